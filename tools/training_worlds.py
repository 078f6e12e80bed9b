"""What the embedded model can be trained on: the made-up world, or the one in plain English."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from fastmem.tiny import world as made_up
from fastmem.tiny.english import english_formats, english_splits
from tools import english_mixture as english
from tools.model_shapes import EMBEDDED, ENGLISH, Shape
from tools.training_batches import STAGES, Stage
from tools.training_mixture import Document, Mixture

MILLION = 1_000_000
TOKENIZER_DOCUMENTS = 8000

ENGLISH_STAGES = (
    Stage(0, english.REMEMBER, 10 * MILLION, (1.0, 1.0)),
    Stage(1, english.READ, 40 * MILLION, (1.0, 1.0), 0.5, 0.25, 0.3),
    Stage(2, english.BOTH, 50 * MILLION, (0.7, 0.7), 0.25, 0.25, 0.2),
    Stage(3, english.FINISH, 28 * MILLION, (0.7, 0.1), 0.25, 0.25, 0.2),
    Stage(4, english.DISPUTE, 15 * MILLION, (0.5, 0.0), 0.25, 0.25, 0.2),
)
"""143 million tokens: first facts, then reading, at last documents that contradict what the model remembers."""
ENGLISH_TOKENIZER_STAGE = 3
"""Named, since a stage that is added at the end must not change the tokenizer."""


class World(NamedTuple):
    """A world to train on and to be measured on."""

    shape: Shape
    stages: tuple[Stage, ...]
    stream: Callable[[Stage, int], Iterable[Document]]  # the documents of a stage, for the seed of the run
    tokenizer_stage: int  # its documents train the tokenizer
    splits: tuple[str, ...]
    examples: Callable[..., tuple[Any, ...]]  # (split, part, limit)
    prompt_of: Callable[[Any], str]  # the user turn of an example
    is_right: Callable[[str, Any], bool]  # (reply, example)
    longest_reply: int  # tokens

    def tokenizer_documents(self, seed: int) -> Iterable[Document]:
        """The documents that train the tokenizer."""
        stage = self.stages[self.tokenizer_stage]._replace(seed=0)
        return islice(self.stream(stage, seed), TOKENIZER_DOCUMENTS)


def _made_up_stream(stage: Stage, seed: int) -> Iterable[Document]:
    return Mixture(seed + stage.seed, stage.shares, stage.answer_first)


def _made_up_prompt(example: made_up.Example) -> str:
    """The paper's instruction and the context, or the question alone."""
    if not example.context:
        return f"Question: {example.question}"
    return f"{made_up.INSTRUCTION}\nContext: {example.context}\nQuestion: {example.question}"


def _made_up_right(reply: str, example: made_up.Example) -> bool:
    """Whether the reply is exactly `The answer is: ` and the expected words."""
    head, marker, answer = reply.partition("The answer is:")
    return bool(marker) and not head and made_up.normalize(answer) == made_up.normalize(example.answers[0])


def _english_stream(stage: Stage, seed: int) -> Iterable[Document]:
    return english.EnglishMixture(seed + stage.seed, stage.shares)


WORLDS = {
    "made-up": World(
        EMBEDDED, STAGES, _made_up_stream, 0, made_up.SPLITS, made_up.examples, _made_up_prompt, _made_up_right, 32
    ),
    "english": World(
        ENGLISH,
        ENGLISH_STAGES,
        _english_stream,
        ENGLISH_TOKENIZER_STAGE,
        english_splits.SPLITS,
        english_splits.examples,
        english_formats.prompt_of,
        english_formats.is_right,
        96,
    ),
}
