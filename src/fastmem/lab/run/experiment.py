"""What is run: methods, recipe and decoding of one task, and what makes two runs the same run."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastmem.answer.contrast import METHODS, Contrast, Method
from fastmem.errors import InputError, RunError, one_of
from fastmem.lab.run import run_files
from fastmem.lab.scores.summary import Scorers
from fastmem.lab.tasks import TASKS, Data
from fastmem.lab.tasks.example import Example
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem

FORMAT = 1
ONE_SHOT = "one-shot"  # the paper's Table 2: the untouched model, with one worked example in the prompt


@dataclass(frozen=True)
class Experiment:
    """How the examples of one task are answered.

    methods: names of `METHODS`, or "one-shot". alpha, relative_top: as in `Contrast`. max_new_tokens: None takes the
    task's. max_context_tokens: cut longer documents (the paper's limit is 7,500); None leaves them whole. batch_size:
    examples answered side by side; it decides the rounding of the kernels, nothing else. seed: recorded; decoding is
    greedy and memorizing draws nothing.
    """

    task: str
    methods: tuple[str, ...]
    recipe: Recipe
    alpha: float = 0.5
    relative_top: float | None = None
    max_new_tokens: int | None = None
    max_context_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0
    scorers: Scorers = field(default_factory=Scorers)

    def __post_init__(self) -> None:
        one_of(self.task, TASKS, "task")
        if not self.methods:
            raise InputError(f"no method is given. Accepted: {', '.join([*METHODS, ONE_SHOT])}.")
        for name in self.methods:
            one_of(name, [*METHODS, ONE_SHOT], "method")
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"a method is named twice: {', '.join(self.methods)}.")
        Contrast("cd", self.alpha, relative_top=self.relative_top)  # refuses values out of range
        for name in ("batch_size", "max_new_tokens", "max_context_tokens"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise InputError(f"{name} is {given}: give 1 or more.", field=name)
        if self.task == "world_open" and (needing := [n for n in self.methods if needs_context(n)]):
            raise InputError(
                f"the task 'world_open' asks without a context, which {needing[0]!r} needs: use base or dola."
            )

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_new_tokens or TASKS[self.task].max_new_tokens


def method_of(name: str) -> Method:
    """The decoding method behind a name of `Experiment.methods`."""
    return METHODS["base" if name == ONE_SHOT else name]


def needs_context(name: str) -> bool:
    """Whether the method does anything with the document besides reading it in the prompt."""
    method = method_of(name)
    return method.memorized or method.kind == "cad"


def by_context(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The examples with those of one document next to each other, so that it is memorized once."""
    together: dict[str, list[Example]] = {}
    for example in examples:
        together.setdefault(example.context, []).append(example)
    return tuple(example for group in together.values() for example in group)


def identity(experiment: Experiment, data: Data, examples: Sequence[Example], llm: FastMem) -> dict[str, Any]:
    """All that decides the rows of a run, methods left out: rows of several methods stand side by side."""
    return {
        "format": FORMAT,
        "task": experiment.task,
        "data": {
            "source": data.source,
            "revision": data.revision,
            "examples": len(examples),
            "digest": _digest(examples),
        },
        "model": identity_of_model(llm),
        "recipe": recipe_values(experiment.recipe),
        "decoding": {
            "alpha": experiment.alpha,
            "relative_top": experiment.relative_top,
            "max_new_tokens": experiment.new_tokens,
            "max_context_tokens": experiment.max_context_tokens,
        },
        "seed": experiment.seed,
    }


def identity_of_model(llm: FastMem) -> dict[str, str]:
    """Family, weights and type; its name or folder may change."""
    base = llm.base()
    return {"family": base.family, "digest": base.digest[:16], "dtype": str(llm.split_model.dtype)}


def claim(folder: Path, identity: dict[str, Any], llm: FastMem, examples: Sequence[Example]) -> None:
    """Make `folder` the folder of this run, or find that it is already. Errors: `RunError` where it is another's."""
    path = folder / run_files.RUN
    if path.exists():
        found = run_files.read_json(path).get("identity", {})
        for name, was, now in _differences(found, identity):
            raise RunError(
                f"{folder} holds another run: {name} was {was!r}, now {now!r}. Give another folder, or the old value.",
                field="output",
            )
        return
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give a folder.", field="output")
    if (folder / run_files.ROWS).exists():
        raise RunError(f"{folder} holds rows but no {run_files.RUN}: give another folder.", field="output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error.strerror}): give another folder.", field="output") from error
    run_files.write_examples(folder / run_files.EXAMPLES, examples)
    model = {"name": model_name(llm), "revision": llm.revision}
    run_files.write_json(path, {"identity": identity, "model": model, "kind": TASKS[identity["task"]].kind})


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it."""
    return asdict(recipe) | {"layers": list(recipe.layers)}


def model_name(llm: FastMem) -> str:
    """A hub id as it is, of a folder its last part: paths of one machine say nothing on another."""
    path = Path(llm.name)
    return path.name if path.is_absolute() or llm.name.startswith(".") else llm.name


def _digest(examples: Iterable[Example]) -> str:
    whole = hashlib.sha256()
    for example in examples:
        whole.update(json.dumps(asdict(example), ensure_ascii=False).encode())
    return whole.hexdigest()[:16]


def _differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in {**was, **now}:
        before, after = was.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append((prefix + name, before, after))
    return found
