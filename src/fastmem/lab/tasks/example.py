"""One measured row and the texts made of it: what is memorized, what is asked, what is asked without the document.

The prompts are those of the paper's code (arXiv 2406.16069, IAAR-Shanghai/FastMem `src/train_and_inference.py`), as
user turns without any chat markup. Knows no file, no model and no score.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from fastmem.errors import InputError

Kind = Literal["question", "choice", "summary"]

_CHOOSE = (
    "Please choose the candidate that best fits the instructions and provide the answer in the following format: "
    '"The answer is: ...".\n'
)


@dataclass(frozen=True)
class Example:
    """A row of any task.

    id: unique within its task; the same row of `nq` and `nq_swap` (or `hotpotqa` and `hotpotqa_titles`) has one id.
    kind: "question" (answer from a passage), "choice" (MemoTrap: two candidates), "summary".
    context: the text that is memorized: the passage, the article, or MemoTrap's instruction sentence. Empty where a
        question is asked without one (`world_open`).
    question: the question; MemoTrap: the sentence to be finished; summaries: the instruction.
    answers: any of them is right; for summaries the one reference.
    original_answers: what the model is expected to remember instead; empty where nothing is known about it.
    choices: the two candidates of "choice", otherwise empty.
    group: rows that ask the same thing share it; splits and intervals go by groups. The id where left out.
    subset: the part of a data set that has parts (MemoTrap), otherwise empty.
    """

    id: str
    kind: Kind
    context: str
    question: str
    answers: tuple[str, ...]
    original_answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""
    subset: str = ""

    @property
    def reference(self) -> str:
        """The reference summary; of other kinds the first answer."""
        return self.answers[0]

    @property
    def prompt(self) -> str:
        """The user turn with the document."""
        from fastmem.prompts import question_alone, question_prompt  # brings torch, which regrading does without

        if self.kind == "summary":
            return f"Article: {self.context}\n{self.question}"
        if self.kind == "choice":
            return f"{_CHOOSE}Instruction: {self.context}\n{self._sentence}"
        return question_prompt(self.context, self.question) if self.context else question_alone(self.question)

    @property
    def prompt_without_context(self) -> str:
        """The user turn without the document, for contrasts of prompts (CAD).

        Questions: `Question: ...?` alone; summaries: the instruction alone; MemoTrap: the same prompt without its
        `Instruction:` line (what is memorized there is the instruction, so that is what the contrast leaves out).
        """
        from fastmem.prompts import question_alone

        if self.kind == "summary":
            return self.question
        return f"{_CHOOSE}{self._sentence}" if self.kind == "choice" else question_alone(self.question)

    @property
    def _sentence(self) -> str:
        return f'Sentence: {self.question}\nCandidates: "{self.choices[0]}" or "{self.choices[1]}"'


@dataclass(frozen=True)
class Shot:
    """A worked example: what is asked and the reply that answers it as asked."""

    example: Example
    reply: str


def messages(example: Example, *, shot: Shot | None = None, with_context: bool = True) -> list[dict[str, str]]:
    """The conversation that asks `example`; a `shot` is an earlier user and assistant turn (one-shot, the paper's
    Table 2).

    Without context the shot goes without its own context as well, so that the two branches of a contrast differ in
    documents only.
    """

    def turn(row: Example) -> dict[str, str]:
        return {"role": "user", "content": row.prompt if with_context else row.prompt_without_context}

    earlier = [] if shot is None else [turn(shot.example), {"role": "assistant", "content": shot.reply}]
    return [*earlier, turn(example)]


def cut(example: Example, max_tokens: int, tokenizer: Any) -> Example:
    """`example` with its context cut to the first `max_tokens` tokens; question and instruction stay whole.

    tokenizer: a callable that gives `input_ids` of a text, as Hugging Face's do. Where it knows offsets the cut
    context is a prefix of the original to the letter; otherwise its `decode` makes the text. MemoTrap's context *is*
    the instruction and is never cut. The paper's limit is 7,500 (IAAR-Shanghai/FastMem, `doc_token`).
    """
    if max_tokens < 1:
        raise InputError(f"a context is cut to at least 1 token; given {max_tokens}.")
    if example.kind == "choice" or not example.context:
        return example
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(example.context, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        if len(offsets) <= max_tokens:
            return example
        # A character of several tokens has its end in every one of them: end before the first token that is left out.
        end = min(offsets[max_tokens - 1][1], max(offsets[max_tokens][0], 1))
        return replace(example, context=example.context[:end])
    ids = tokenizer(example.context, add_special_tokens=False)["input_ids"]
    return example if len(ids) <= max_tokens else replace(example, context=tokenizer.decode(ids[:max_tokens]))
