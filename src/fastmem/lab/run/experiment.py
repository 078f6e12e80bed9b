"""`Experiment`: methods, recipe and decoding for one task. The identity of a run decides whether it can be resumed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fastmem.answer.contrast import METHODS, Contrast, Method
from fastmem.answer.sampling import Sampling
from fastmem.errors import InputError, RunError, one_of
from fastmem.lab.run import run_files
from fastmem.lab.run.run_files import Record
from fastmem.lab.scores.summary import Scorers, require_packages
from fastmem.lab.tasks import TASKS, Data
from fastmem.lab.tasks.example import Example
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem
from fastmem.system_turn import is_removed

FORMAT = 1
ONE_SHOT = "one-shot"  # the paper's Table 2: the untouched model, with one worked example in the prompt


@dataclass(frozen=True)
class Experiment:
    """How the examples of one task are answered.

    methods: names of `METHODS`, or "one-shot". alpha, relative_top: as in `Contrast`. repetition_penalty: as in
    `Sampling`; the authors' DoLa has 1.2, their other methods have none. max_new_tokens: None takes the task's.
    max_context_tokens: cut longer documents (the paper's limit is 7,500); None keeps them whole. batch_size: examples
    decoded at the same time; it affects the rounding of the kernels only. seed: recorded only; decoding is greedy, and
    memorizing uses the recipe's seed. Errors: `InputError` for values out of range; `MissingPackageError` if the
    scorers need packages that are not installed.
    """

    task: str
    methods: tuple[str, ...]
    recipe: Recipe
    alpha: float = 0.5
    relative_top: float | None = None
    repetition_penalty: float = 1.0
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
        Contrast("cd", self.alpha, relative_top=self.relative_top)  # raises for values out of range, as does
        Sampling(repetition_penalty=self.repetition_penalty)
        for name in ("batch_size", "max_new_tokens", "max_context_tokens"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise InputError(f"{name} is {given}: give 1 or more.", field=name)
        if TASKS[self.task].kind == "summary":
            require_packages(self.scorers)
        if self.task == "world_open" and (needing := [n for n in self.methods if needs_context(n)]):
            raise InputError(
                f"the task 'world_open' asks without a context, which {needing[0]!r} needs: use base or dola."
            )

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_new_tokens or TASKS[self.task].max_new_tokens


def method_of(name: str) -> Method:
    """The decoding method for a name in `Experiment.methods`."""
    return METHODS["base" if name == ONE_SHOT else name]


def needs_context(name: str) -> bool:
    """Whether the method uses the document beyond reading it in the prompt."""
    method = method_of(name)
    return method.memorized or method.kind == "cad"


def by_context(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The examples reordered so that those of one document are adjacent and it is memorized once."""
    by_document: dict[str, list[Example]] = {}
    for example in examples:
        by_document.setdefault(example.context, []).append(example)
    return tuple(example for group in by_document.values() for example in group)


def identity(experiment: Experiment, data: Data, examples: Sequence[Example], llm: FastMem) -> Record:
    """Everything that determines the rows of a run, except the methods: a run can have rows of several."""
    return {
        "format": FORMAT,
        "task": experiment.task,
        "data": {
            "source": data.source,
            "revision": data.revision,
            "examples": len(examples),
            "digest": _digest(examples),
        }
        | ({"selection": data.selection} if data.selection else {}),
        "model": identity_of_model(llm),
        "recipe": recipe_values(experiment.recipe),
        "decoding": {
            "alpha": experiment.alpha,
            "relative_top": experiment.relative_top,
            "max_new_tokens": experiment.new_tokens,
            "max_context_tokens": experiment.max_context_tokens,
        }
        | ({} if experiment.repetition_penalty == 1 else {"repetition_penalty": experiment.repetition_penalty}),
        "seed": experiment.seed,
    }


def identity_of_model(llm: FastMem) -> dict[str, str]:
    """Family, weights and type, and whether its template lost its system turn; name or folder may change."""
    base = llm.base()
    system_turn = {"system_turn": "removed"} if is_removed(llm.tokenizer) else {}
    return {"family": base.family, "digest": base.digest[:16], "dtype": str(llm.split_model.dtype)} | system_turn


def open_run_folder(folder: Path, identity: Record, llm: FastMem, examples: Sequence[Example]) -> None:
    """Create the folder of this run, or check that it is one. Errors: `RunError` if it belongs to another run."""
    path = folder / run_files.RUN
    if path.exists():
        before = run_files.read_json(path).get("identity", {})
        for name, was, now in run_files.differences(before, identity):
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
        raise RunError(
            f"{folder} cannot be created ({error.strerror}): give another folder.", field="output"
        ) from error
    run_files.write_examples(folder / run_files.EXAMPLES, examples)
    model = {"name": model_name(llm), "revision": llm.revision}
    run_files.write_json(path, {"identity": identity, "model": model, "kind": TASKS[identity["task"]].kind})


def recipe_values(recipe: Recipe) -> Record:
    """The recipe as it is after a round trip through JSON."""
    return asdict(recipe) | {"layers": list(recipe.layers)}


def model_name(llm: FastMem) -> str:
    """The hub id; for a folder only its last part, because paths differ between machines."""
    path = Path(llm.name)
    return path.name if path.is_absolute() or llm.name.startswith(".") else llm.name


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example), ensure_ascii=False).encode())
    return digest.hexdigest()[:16]
