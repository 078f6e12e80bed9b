"""The stages in which the embedded model is trained, and the documents of each."""

from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from tools.training_mixture import Document, Mixture, Shares

TOKENIZER_DOCUMENTS = 8000

REMEMBER: Shares = {
    "statements": 0.28, "recall": 0.26, "known_context": 0.18, "new_context": 0.14, "passages": 0.12,
    "no_instruction": 0.02,
}  # fmt: skip
READ: Shares = {
    "statements": 0.08, "recall": 0.11, "known_context": 0.12, "new_context": 0.22, "interview": 0.16,
    "passages": 0.27, "turned": 0.02, "long": 0.01, "no_instruction": 0.01,
}  # fmt: skip
BOTH: Shares = {
    "statements": 0.08, "recall": 0.15, "known_context": 0.07, "new_context": 0.07, "interview": 0.16, "passing": 0.08,
    "turned": 0.03, "irrelevant": 0.03, "unanswerable": 0.03, "hop": 0.02, "list": 0.02, "json": 0.02, "summary": 0.02,
    "passages": 0.20, "long": 0.01, "no_instruction": 0.01,
}  # fmt: skip
RECALL: Shares = BOTH | {
    "statements": 0.12, "recall": 0.33, "known_context": 0.05, "new_context": 0.05, "interview": 0.12, "passing": 0.05,
    "turned": 0.02, "irrelevant": 0.04, "unanswerable": 0.045, "hop": 0.015, "list": 0.01, "json": 0.01,
    "summary": 0.01, "passages": 0.12, "long": 0.005, "no_instruction": 0.005,
}  # fmt: skip
FINISH: Shares = RECALL | {
    "statements": 0.065, "recall": 0.235, "known_context": 0.06, "new_context": 0.09, "interview": 0.13,
    "passing": 0.04, "irrelevant": 0.05, "unanswerable": 0.055, "passages": 0.195, "contradicting": 0.005,
}  # fmt: skip
DISPUTE: Shares = FINISH | {
    "statements": 0.05, "recall": 0.18, "new_context": 0.08, "interview": 0.12, "passages": 0.19, "contradicting": 0.0,
    "disputed": 0.10,
}  # fmt: skip
"""The share of each kind of document in a stage of training, named by what the stage is about; each adds up to 1."""


class Stage(NamedTuple):
    """A part of the training, with its own optimizers."""

    seed: int  # added to --seed
    shares: Shares
    tokens: int
    rates: tuple[float, float]  # multiples of --learning-rate at the start and the end, linear in between
    statement_weight: float = 0.5  # loss weight of plain statements; that of answers is 1
    user_weight: float = 0.25  # loss weight of instructions, contexts and questions
    user_share: float = 1.0  # of the documents with that weight; of the others, it is 0, which saves their head
    batch_tokens: int = 4096  # about so many in a batch


# Questions without a document are short: 0.15 of the documents were 0.03 of the tokens, and after 16 million the
# model answered 0.52 of them. RECALL brought this to 0.92 within 4.6 million.
STAGES = (
    Stage(0, REMEMBER, 3_270_000, (1.0, 1.0), batch_tokens=8192),
    Stage(1, READ, 8_130_000, (1.0, 1.0), 0.5, 0.25, 0.3, 8192),
    Stage(2, BOTH, 4_900_000, (0.7, 0.7), 0.25, 0.25, 0.2, 8192),
    Stage(3, RECALL, 4_600_000, (0.6, 0.6), 0.5, 0.25, 0.2),
    Stage(4, FINISH, 11_000_000, (0.6, 0.4), 0.5, 0.25, 0.2),
    Stage(5, DISPUTE, 7_000_000, (0.4, 0.0), 0.25, 0.25, 0.1),
)
"""39 million tokens: first facts, then reading, at last documents that contradict what the model remembers."""
TOKENIZER_STAGE = 2
"""The documents of this stage train the tokenizer."""


def documents_of(stage: Stage, seed: int) -> Iterable[Document]:
    """The endless stream of a stage's documents. seed: of the run."""
    return Mixture(seed + stage.seed, stage.shares)


def tokenizer_documents(seed: int) -> Iterable[Document]:
    """The documents that train the tokenizer."""
    return islice(documents_of(STAGES[TOKENIZER_STAGE]._replace(seed=0), seed), TOKENIZER_DOCUMENTS)
