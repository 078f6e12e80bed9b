"""Find a learning rate for a model without labels: the largest at which its answers about other texts stay.

A memory should change what a model says about its document and nothing else. The *drift* measures the second: the mean
of KL(untouched || memorized) over the tokens of the untouched model's own answers to questions about other documents,
which stand in the prompt. It grows with the rate (about with its square), so the rate at which it reaches a limit is
found by bisection, with a handful of documents. docs/results/rate.md has what it reaches on six models, where it
fails, and what was tried instead. `auto_recipe.py` keeps what is found.
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
from fastmem.memory.recipe import AutoRecipe, Recipe, changed_recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens, question_prompt
from fastmem.split.hooks import FFN, Activations
from fastmem.torch_modes import in_own_modes

NEUTRAL_FILE = Path(__file__).parent / "neutral.jsonl"
MOST_DRIFT = 0.003
"""At 2e-3 and three steps it is 0.0026 to 0.0028 on the three models it was chosen on (docs/results/rate.md)."""
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

    drift: nats per token of an answer about another document; inf if a run diverged. loss_before, loss_after: the
    cross entropy of the document in nats per token, before the first update and before the last.
    """

    learning_rate: float
    drift: float
    loss_before: float
    loss_after: float


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
        lines = path.read_text(encoding="utf-8").splitlines()
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


class UnrelatedAnswers:
    """The untouched model's own answers to prompts, on which drift is measured."""

    @in_own_modes
    @torch.no_grad()
    def __init__(self, llm: FastMem, prompts: Sequence[str], layers: Sequence[int] = (-1,)):
        self.split_model = llm.split_model
        self._answers: list[tuple[Activations, list[Chunk]]] = []
        answers = llm.generate(list(prompts), max_new_tokens=ANSWER_TOKENS)
        for text, answer in zip(prompts, answers, strict=True):
            prompt = llm.ids(text).cpu()
            ids = torch.cat([prompt, torch.tensor(answer.token_ids, dtype=torch.int64)])
            reading = llm.read(Tokens(ids, torch.arange(len(ids)) >= len(prompt)), layers)
            untouched = self.split_model.tail(reading.activations).split(CHUNK_POSITIONS)
            targets = reading.targets.split(CHUNK_POSITIONS)
            chunks = [Chunk(self.split_model.head, *each) for each in zip(targets, untouched, strict=True)]
            self._answers.append((reading.activations, chunks))

    @in_own_modes
    @torch.no_grad()
    def drift(self, ffn: FFN, skip: Container[int] = ()) -> float:
        """Mean KL(untouched || with `ffn`), in nats per token; inf if it is not finite.

        skip: the numbers of answers that are left out, from 0.
        """
        found = []
        for activations, chunks in (answer for number, answer in enumerate(self._answers) if number not in skip):
            parts = self.split_model.tail(activations, ffn).split(CHUNK_POSITIONS)
            found += [chunk.losses(part)[:, 1] for chunk, part in zip(chunks, parts, strict=True)]
        mean = torch.cat(found).mean().item()
        return mean if math.isfinite(mean) else math.inf


@dataclass(frozen=True)
class OtherDocuments:
    """Answers about all documents but the one that is memorized. about: the number of the document of each answer."""

    answers: UnrelatedAnswers
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
        return cls(UnrelatedAnswers(llm, prompts, layers), about)

    def drift(self, document: int, ffn: FFN) -> float:
        """The drift of a memory of the document with this number, as `UnrelatedAnswers.drift`."""
        own = [number for number, about in enumerate(self.about) if about == document]
        return self.answers.drift(ffn, skip=own)


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
    most_drift: float = MOST_DRIFT,
    on_progress: OnProgress = None,
) -> Calibration:
    """The recipe with the largest rate at which the drift is at most `most_drift`.

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
    documents = [llm.memory_tokens(text, placed, truncate=True) for text in neutral.documents]
    found: dict[int, Point] = {}

    def allowed(index: int) -> bool:
        nonlocal last
        at_rate = replace(recipe, learning_rate=LOWEST_RATE * 2**index)
        last = found[index] = tried(llm, documents, others, at_rate, lambda: advance(1))
        return last.drift <= most_drift

    low, high = -1, RATES  # allowed, not allowed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    advance(total - done)
    points = tuple(found[index] for index in sorted(found))
    bounded = low >= 0 and high < RATES
    rate = crossing(found[low], found[high], most_drift) if bounded else LOWEST_RATE * 2 ** max(low, 0)
    return Calibration(replace(recipe, learning_rate=float(f"{rate:.2g}")), points, bounded)


def tried(
    llm: FastMem,
    documents: Sequence[Tokens],
    others: OtherDocuments,
    recipe: Recipe,
    on_document: Callable[[], None] = lambda: None,
) -> Point:
    """What memorizing these documents does with a recipe. on_document: called after each."""
    drifts, losses = [], []
    for number, document in enumerate(documents):
        # Not `memorize`: that a high rate diverges is no reason for a warning here.
        (memory,) = drain(llm.memorizing(document, recipe, watch=False))
        drifts.append(math.inf if memory.stopped else others.drift(number, llm.ffn(memory) or {}))
        llm.release(memory)
        if memory.trace:
            losses.append((memory.trace[0].cross_entropy, memory.trace[-1].cross_entropy))
        on_document()
    before, after = (sum(each) / len(each) for each in zip(*losses, strict=True)) if losses else (math.nan, math.nan)
    return Point(recipe.learning_rate, sum(drifts) / len(drifts), before, after)


def crossing(below: Point, above: Point, most_drift: float) -> float:
    """The rate between two at which the drift is `most_drift`, if it is a power of the rate."""
    if not math.isfinite(above.drift) or not 0 < below.drift < above.drift:
        return below.learning_rate
    power = math.log(above.drift / below.drift) / math.log(above.learning_rate / below.learning_rate)
    return below.learning_rate * (most_drift / below.drift) ** (1 / power)
