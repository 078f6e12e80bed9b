"""Signals that could tell whether a document should be memorized. `when_to_memorize.py` judges them.

All are numbers of one row. They need the document, the question, the base's own answer and, some of them, the memory;
none needs to know the right answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastmem import FastMem, Memory
from fastmem.calibrate import OtherDocuments, ReadTexts, read_neutral
from fastmem.documents.word_ranking import words
from fastmem.lab.tasks import Example
from fastmem.learn.optimize import Reading
from fastmem.learn.surprisal import token_surprisals
from fastmem.split.hooks import Activations
from fastmem.torch_modes import in_own_modes
from studies.grounding import content

Signals = dict[str, float]


@dataclass(frozen=True)
class BaseAnswer:
    """The untouched model's answer to the row, by its content (`grounding.content`).

    with_document, without_document: the mean log-probability of its tokens. start: the activations of the position
    at which its first token is chosen, with the document in the prompt.
    """

    with_document: float
    without_document: float
    start: Activations

    @classmethod
    @in_own_modes
    @torch.no_grad()
    def of(cls, llm: FastMem, example: Example, answer: Sequence[int]) -> "BaseAnswer":
        """The answer with these tokens."""
        chosen, tokens = content(llm.tokenizer, answer), torch.tensor(answer)
        read = {}
        for prompt in (example.prompt, example.prompt_without_context):
            ids = torch.cat([llm.ids(prompt).cpu(), tokens])
            positions = torch.arange(len(ids) - len(tokens) - 1, len(ids) - 1)[chosen]
            read[prompt] = llm.split_model.read(ids, positions)
        means = []
        for activations in read.values():
            logits = llm.split_model.head(llm.split_model.tail(activations)).float()
            found = logits.log_softmax(-1).gather(1, tokens[chosen, None].to(logits.device))
            means.append(float(found.mean()))
        return cls(means[0], means[-1], read[example.prompt].rows(slice(0, 1)))


def overlap(question: str, document: str) -> float:
    """The share of the question's different words that the document has."""
    asked = set(words(question))
    return len(asked & set(words(document))) / max(1, len(asked))


def before_memorizing(llm: FastMem, example: Example, document: Reading, base: BaseAnswer) -> Signals:
    """What is known without a memory."""
    surprisals = token_surprisals(llm.split_model, document)
    return {
        "word overlap": overlap(example.question, example.context),
        "surprisal": float(surprisals.mean()),
        "highest surprisal": float(surprisals.max()),
        "answer with document": base.with_document,
        "answer without document": base.without_document,
        "answer, difference": base.with_document - base.without_document,
    }


@in_own_modes
@torch.no_grad()
def after_memorizing(llm: FastMem, memory: Memory, document: Reading, base: BaseAnswer, others: ReadTexts) -> Signals:
    """What is known once the document is memorized.

    fall of the loss: the share of the document's cross entropy that is gone. drift: KL from the untouched model, per
    token of answers about other documents. tails disagree: KL(untouched || memorized) where the base's answer begins.
    """
    ffn, text = llm.ffn(memory) or {}, ReadTexts(llm, [document])
    untouched, memorized = (
        llm.split_model.head(llm.split_model.tail(base.start, each)).float().log_softmax(-1)[0] for each in ({}, ffn)
    )
    return {
        "fall of the loss": 1 - text.losses(ffn)[0] / text.losses({})[0],
        "drift": others.losses(ffn)[1],
        "tails disagree": float((untouched.exp() * (untouched - memorized)).sum()),
    }


def other_answers(llm: FastMem) -> ReadTexts:
    """The untouched model's answers about the texts that come with FastMem, whose change is the drift."""
    return OtherDocuments.of(llm, read_neutral(), (-1,)).answers
