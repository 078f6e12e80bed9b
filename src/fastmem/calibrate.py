"""Find a learning rate for a model without labels: large enough that documents are learnt, with little other change.

A memory should change what a model says about its document and nothing else. The *drift* measures the second: the mean
of KL(untouched || memorized) over the tokens of the untouched model's own answers to questions about other documents,
which stand in the prompt. The *fall* measures the first: the share of its loss that a document loses. Both grow with
the rate, so the rate at which they reach their limits is found by bisection, with a handful of documents.
docs/results/rate.md has what it reaches, where it fails, and what was tried instead. `auto_recipe.py` keeps what is
found.
"""

import json
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastmem.errors import InputError
from fastmem.learn.budget import CHUNK_POSITIONS
from fastmem.learn.memorize import drain
from fastmem.learn.objective import Chunk
from fastmem.learn.optimize import Reading
from fastmem.memory.recipe import AutoRecipe, Recipe, changed_recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens, question_prompt
from fastmem.split.hooks import FFN, Activations
from fastmem.torch_modes import in_own_modes

NEUTRAL_FILE = Path(__file__).parent / "neutral.jsonl"
STEPS = 3
"""Three steps take 0.42 to 0.47 of the time of the paper's ten (docs/results/rate.md)."""
LOWEST_RATE, RATES = 1e-6, 17  # doubling, up to 0.066
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Neutral:
    """Documents to memorize, and questions to ask while another of them stands in the prompt."""

    documents: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """What a rate does, as means over the documents.

    drift: nats per token of an answer about another document; inf if a run diverged. fall: the share of a document's
    cross entropy that is gone after the last update. loss_before, loss_after: that cross entropy, in nats per token.
    """

    learning_rate: float
    drift: float
    fall: float
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Limits:
    """What a rate may do. The defaults were chosen on eight models (docs/results/rate.md).

    drift: always allowed. drift_until_learnt: allowed while the documents are not learnt, that is while less than the
    share `learnt` of their loss is gone.
    """

    drift: float = 0.002
    learnt: float = 0.6
    drift_until_learnt: float = 0.012

    def allow(self, point: Point) -> bool:
        """Whether the rate of a point is small enough."""
        return point.drift <= (self.drift_until_learnt if point.fall < self.learnt else self.drift)

    def between(self, low: Point, high: Point) -> float:
        """The rate between two neighbours at which a limit is reached; low is allowed, high is not."""
        learnt = _rate_of_fall(low, high, self.learnt)
        return max(
            _rate_of_drift(low, high, self.drift), min(learnt, _rate_of_drift(low, high, self.drift_until_learnt))
        )


LIMITS = Limits()


@dataclass(frozen=True)
class Progress:
    """done, total: documents memorized; equal at the end. point: the last rate that was tried."""

    done: int
    total: int
    point: Point | None


OnProgress = Callable[[Progress], None] | None


@dataclass(frozen=True)
class Calibration:
    """The recipe that was found. points: the rates that were tried, in their order. bounded: False if the highest rate
    that is tried still drifts less than allowed, or the lowest one more."""

    recipe: Recipe
    points: tuple[Point, ...]
    bounded: bool


def settings(auto: AutoRecipe) -> Recipe:
    """An automatic recipe without its rate, which is still to be found: the fields that are given, and the rule's."""
    return changed_recipe(replace(Recipe(), steps=STEPS), dict(auto.changes))


def read_neutral(path: Path = NEUTRAL_FILE) -> Neutral:
    """The lines of a JSONL file, each with a `document` or a `question`. Errors: `InputError`."""
    found: dict[str, list[str]] = {"document": [], "question": []}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not at U+2028, which a text may contain
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the neutral texts {str(path)!r} cannot be read: {error}.", field="neutral") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            ((kind, text),) = json.loads(line).items()
        except (ValueError, AttributeError, RecursionError):
            kind, text = "", None
        if kind not in found or not isinstance(text, str) or not text.strip():
            raise InputError(
                f'line {number} of {str(path)!r}: give {{"document": TEXT}} or {{"question": TEXT}}.', field="neutral"
            )
        found[kind].append(text)
    if not all(found.values()):
        raise InputError(f"{str(path)!r} needs documents and questions, at least one of each.", field="neutral")
    return Neutral(tuple(found["document"]), tuple(found["question"]))


class ReadTexts:
    """Texts that were read once, and their losses with any FFN."""

    @in_own_modes
    @torch.no_grad()
    def __init__(self, llm: FastMem, readings: Sequence[Reading]):
        self.split_model = llm.split_model
        self._texts: list[tuple[Activations, list[Chunk]]] = []
        for reading in readings:
            untouched = self.split_model.tail(reading.activations).split(CHUNK_POSITIONS)
            targets = reading.targets.split(CHUNK_POSITIONS)
            chunks = [Chunk(self.split_model.head, *each) for each in zip(targets, untouched, strict=True)]
            self._texts.append((reading.activations, chunks))

    @in_own_modes
    @torch.no_grad()
    def losses(self, ffn: FFN, skip: Container[int] = ()) -> tuple[float, float]:
        """(cross entropy, KL(untouched || with `ffn`)), means in nats per token; inf where they are not finite.

        skip: the numbers of texts that are left out, from 0. An empty `ffn` is the untouched one.
        """
        found = []
        for activations, chunks in (text for number, text in enumerate(self._texts) if number not in skip):
            parts = self.split_model.tail(activations, ffn).split(CHUNK_POSITIONS)
            found += [chunk.losses(part) for chunk, part in zip(chunks, parts, strict=True)]
        cross_entropy, kl = (
            value if math.isfinite(value) else math.inf for value in torch.cat(found).mean(0).tolist()
        )
        return cross_entropy, kl


def own_answers(llm: FastMem, prompts: Sequence[str], layers: Sequence[int] = (-1,)) -> ReadTexts:
    """The untouched model's own answers to prompts, whose KL is the drift."""
    readings = []
    for text, answer in zip(prompts, llm.generate(list(prompts), max_new_tokens=ANSWER_TOKENS), strict=True):
        prompt = llm.ids(text).cpu()
        ids = torch.cat([prompt, torch.tensor(answer.token_ids, dtype=torch.int64)])
        readings.append(llm.read(Tokens(ids, torch.arange(len(ids)) >= len(prompt)), layers))
    return ReadTexts(llm, readings)


@dataclass(frozen=True)
class OtherDocuments:
    """Answers about all documents but the one that is memorized. about: the number of the document of each answer."""

    answers: ReadTexts
    about: tuple[int | None, ...]

    @classmethod
    def of(cls, llm: FastMem, neutral: Neutral, layers: Sequence[int]) -> "OtherDocuments":
        """A prompt for every question and every document at least, both in turn; too long documents are cut.

        A single document is accompanied by those of the set that comes with FastMem. Errors: `InputError` for a
        question that exceeds the model's positions.
        """
        alone = len(neutral.documents) == 1
        documents = read_neutral().documents if alone else neutral.documents
        count = max(len(documents), len(neutral.questions))
        pairs = [(documents[n % len(documents)], neutral.questions[n % len(neutral.questions)]) for n in range(count)]
        prompts = [_prompt_that_fits(llm, *pair) for pair in pairs]
        about = tuple(None if alone else n % len(documents) for n in range(count))
        return cls(own_answers(llm, prompts, layers), about)

    def drift(self, document: int, ffn: FFN) -> float:
        """The drift of a memory of the document with this number, in nats per token; inf if it is not finite."""
        own = [number for number, about in enumerate(self.about) if about == document]
        return self.answers.losses(ffn, skip=own)[1]


@dataclass(frozen=True)
class Document:
    """A document to memorize. loss: its cross entropy with the untouched model, in nats per token."""

    reading: Reading
    text: ReadTexts
    loss: float

    @classmethod
    def of(cls, llm: FastMem, reading: Reading) -> "Document":
        """The document of a reading."""
        text = ReadTexts(llm, [reading])
        return cls(reading, text, text.losses({})[0])


def _prompt_that_fits(llm: FastMem, document: str, question: str) -> str:
    """The paper's prompt, with as much of the document as leaves room for the answer."""
    limit = llm.split_model.max_positions
    room = None if limit is None else limit - ANSWER_TOKENS

    def encode(beginning: str) -> Tokens:
        return Tokens(llm.ids(question_prompt(beginning, question)))

    return question_prompt(llm.preparer.fitting(document, encode, room)[0], question)


def calibrate(
    llm: FastMem,
    neutral: Neutral | None = None,
    recipe: Recipe | None = None,
    *,
    limits: Limits = LIMITS,
    on_progress: OnProgress = None,
) -> Calibration:
    """The recipe with the largest rate that the limits allow.

    neutral: by default the English set that comes with FastMem. recipe: all but its rate; by default the paper's, with
    `STEPS` steps. on_progress: called at the beginning, after each document and at the end. A document that
    exceeds the model's positions is cut. Errors: `InputError` for a question that exceeds them.
    """
    llm.split_model.require_decoder_only('recipe "auto"')
    neutral = neutral or read_neutral()
    recipe = recipe or settings(Recipe.auto())
    total = math.ceil(math.log2(RATES + 1)) * len(neutral.documents)
    done, last = 0, None

    def advance(documents: int) -> None:
        nonlocal done
        done += documents
        if on_progress is not None:
            on_progress(Progress(done, total, last))

    advance(0)
    others = OtherDocuments.of(llm, neutral, recipe.layers)
    placed = replace(recipe, placement="assistant") if recipe.placement == "prompt" else recipe
    tokens = [llm.memory_tokens(text, placed, truncate=True) for text in neutral.documents]
    documents = [Document.of(llm, llm.read(each, recipe.layers)) for each in tokens]
    found: dict[int, Point] = {}

    def allowed(index: int) -> bool:
        nonlocal last
        at_rate = replace(recipe, learning_rate=LOWEST_RATE * 2**index)
        last = found[index] = tried(llm, documents, others, at_rate, lambda: advance(1))
        return limits.allow(last)

    low, high = -1, RATES  # allowed, not allowed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    advance(total - done)
    points = tuple(found[index] for index in sorted(found))
    bounded = low >= 0 and high < RATES
    rate = limits.between(found[low], found[high]) if bounded else LOWEST_RATE * 2 ** max(low, 0)
    return Calibration(replace(recipe, learning_rate=float(f"{rate:.2g}")), points, bounded)


def tried(
    llm: FastMem,
    documents: Sequence[Document],
    others: OtherDocuments,
    recipe: Recipe,
    on_document: Callable[[], None] = lambda: None,
) -> Point:
    """What memorizing these documents does with a recipe. on_document: called after each."""
    drifts, losses = [], []
    for number, document in enumerate(documents):
        # Not `memorize`: that a high rate diverges is no reason for a warning here.
        (memory,) = drain(llm.memorizing(document.reading, recipe, watch=False))
        ffn = llm.ffn(memory) or {}
        drifts.append(math.inf if memory.stopped else others.drift(number, ffn))
        losses.append(document.text.losses(ffn)[0])
        llm.release(memory)
        on_document()
    before = [document.loss for document in documents]
    fall = _mean([1 - now / was for was, now in zip(before, losses, strict=True)])
    return Point(recipe.learning_rate, _mean(drifts), fall, _mean(before), _mean(losses))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rate_of_drift(low: Point, high: Point, limit: float) -> float:
    """The rate between two at which the drift is `limit`, if it is a power of the rate; else the nearer of the two."""
    if high.drift <= limit:
        return high.learning_rate
    if not math.isfinite(high.drift) or not 0 < low.drift < limit:
        return low.learning_rate
    power = math.log(high.drift / low.drift) / math.log(high.learning_rate / low.learning_rate)
    return low.learning_rate * (limit / low.drift) ** (1 / power)


def _rate_of_fall(low: Point, high: Point, limit: float) -> float:
    """The rate between two at which the fall is `limit`, if it is linear in the logarithm of the rate."""
    if low.fall >= limit:
        return low.learning_rate
    if not high.fall >= limit:
        return high.learning_rate
    share = (limit - low.fall) / (high.fall - low.fall)
    return low.learning_rate * (high.learning_rate / low.learning_rate) ** share
