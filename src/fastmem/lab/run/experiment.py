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
from fastmem.lab.run.own_method import OwnMethod
from fastmem.lab.run.run_files import Record
from fastmem.lab.run.run_shapes import FORMAT
from fastmem.lab.scores.own_metric import OwnMetric, try_out
from fastmem.lab.scores.summary import Scorers, require_packages
from fastmem.lab.tasks import TASKS, Data, Task
from fastmem.lab.tasks.example import Example, Score
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem
from fastmem.model_identity import identity_of_model

ONE_SHOT = "one-shot"  # the paper's Table 2: the untouched model, with one worked example in the prompt


@dataclass(frozen=True)
class Experiment:
    """How the examples of one task are answered.

    methods: names of `METHODS`, "one-shot", or the labels of own_methods, which have no alpha. alpha, relative_top: as
    in `Contrast`. repetition_penalty: as in `Sampling`; the authors' DoLa has 1.2, their other methods have none.
    max_new_tokens: None takes the task's. max_context_tokens: cut longer documents (the paper's limit is 7,500); None
    keeps them whole. batch_size: examples decoded at the same time; it affects the rounding of the kernels only. seed:
    recorded only; decoding is greedy, and memorizing uses the recipe's seed. own_task: the task, if it is not one of
    `TASKS`; `task` is then its label. metrics: scores of one's own. Errors: `InputError` for values out of range;
    `MissingPackageError` if the scorers need packages that are not installed.
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
    own_task: Task | None = None
    metrics: tuple[OwnMetric, ...] = ()
    own_methods: tuple[OwnMethod, ...] = ()

    def __post_init__(self) -> None:
        if self.own_task is None:
            one_of(self.task, TASKS, "task")
        if not self.methods:
            raise InputError(f"no method is given. Accepted: {', '.join([*METHODS, ONE_SHOT])}.")
        for name in self.methods:
            one_of(name, [*METHODS, ONE_SHOT, *(own.file.label for own in self.own_methods)], "method")
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"a method is named twice: {', '.join(self.methods)}.")
        Contrast("cd", self.alpha, relative_top=self.relative_top)  # raises for values out of range, as does
        Sampling(repetition_penalty=self.repetition_penalty)
        for name in ("batch_size", "max_new_tokens", "max_context_tokens"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise InputError(f"{name} is {given}: give 1 or more.", field=name)
        if self.is_scored_by_models:
            require_packages(self.scorers)
        if ONE_SHOT in self.methods and self.definition.shot is None:
            raise InputError(f"{self.task} defines no SHOT, the worked example that the method {ONE_SHOT!r} needs.")
        if twice := _repeated(metric.file.label for metric in self.own_scores):
            raise InputError(f"two files are called {twice}: give each its own name.", field="metric")
        if self.task == "world_open" and (needing := [n for n in self.methods if self.needs_context(n)]):
            raise InputError(
                f"the task 'world_open' asks without a context, which {needing[0]!r} needs: use base or dola."
            )

    @property
    def definition(self) -> Task:
        """The task itself."""
        return self.own_task or TASKS[self.task]

    @property
    def is_scored_by_models(self) -> bool:
        """Whether `scorers` are used: for summaries, unless the task has scores of its own."""
        return self.definition.kind == "summary" and not task_score(self.definition)

    def method(self, name: str) -> Method | OwnMethod:
        """The method for a name in `methods`."""
        own = next((own for own in self.own_methods if own.file.label == name), None)
        return own or METHODS["base" if name == ONE_SHOT else name]

    def needs_context(self, name: str) -> bool:
        """Whether the method uses the document beyond reading it in the prompt."""
        method = self.method(name)
        return method.memorized or method.compares_prompts

    @property
    def new_tokens(self) -> int:
        """The most tokens of an answer."""
        return self.max_new_tokens or self.definition.max_new_tokens

    @property
    def own_scores(self) -> tuple[OwnMetric, ...]:
        """What computes scores of one's own: the task's file, if it has some, then the metrics."""
        score = file_score(self.definition)
        return (*([score] if score else []), *self.metrics)

    def headline(self, examples: Sequence[Example]) -> str | None:
        """The main score of a task with scores of its own; None for that of its kind.

        Checks what can be checked before a model is loaded. Errors: `InputError` for an example without a document
        that a method needs, and for metrics that fail on the first example.
        """
        bare = next((example for example in examples if not example.context), None)
        needing = next((name for name in self.methods if self.needs_context(name)), None)
        if bare is not None and needing is not None:
            raise InputError(f"the example {bare.id!r} has no document, which {needing!r} needs: use base or dola.")
        score = self.definition.score
        of_task = [] if score is None else list(score("", examples[0]))
        names = [*of_task, *try_out(self.own_scores, examples[0], of_task)]
        return names[0] if task_score(self.definition) else None


def task_score(task: Task) -> Score | None:
    """How a task with scores of its own grades answers; None for the scores of its kind."""
    own = file_score(task)
    return task.score if own is None else own.scores


def file_score(task: Task) -> OwnMetric | None:
    """The score that the file of a task computes, if it has a function `score`."""
    return OwnMetric(task.file) if task.file is not None and task.file.value("score") is not None else None


def by_context(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The examples reordered so that those of one document are adjacent and it is memorized once."""
    by_document: dict[str, list[Example]] = {}
    for example in examples:
        by_document.setdefault(example.context, []).append(example)
    return tuple(example for group in by_document.values() for example in group)


def identity(experiment: Experiment, data: Data, examples: Sequence[Example], llm: FastMem) -> Record:
    """Everything that determines the rows of a run, except the methods: a run can have rows of several."""
    found = {
        "format": FORMAT,
        "task": experiment.task,
        "data": {
            "source": data.source,
            "revision": data.revision,
            "examples": len(examples),
            "digest": digest_of(examples),
        }
        | ({"selection": data.selection} if data.selection else {}),
        "recipe": recipe_values(experiment.recipe),
        "decoding": {
            "alpha": experiment.alpha,
            "relative_top": experiment.relative_top,
            "max_new_tokens": experiment.new_tokens,
            "max_context_tokens": experiment.max_context_tokens,
        }
        | ({} if experiment.repetition_penalty == 1 else {"repetition_penalty": experiment.repetition_penalty}),
        "model": identity_of_model(llm, experiment.recipe.layers),
        "seed": experiment.seed,
    }
    if experiment.metrics:
        found["metrics"] = {m.file.label: m.file.digest for m in experiment.metrics}
    if experiment.is_scored_by_models:
        scorers = asdict(experiment.scorers).items()
        found["scorers"] = {name: value for name, value in scorers if name not in ("device", "batch_size")}
    return found


def open_run_folder(
    folder: Path, identity: Record, llm: FastMem, examples: Sequence[Example], task: Task, headline: str | None
) -> None:
    """Create the folder of this run, or check that it is one. Errors: `RunError` if it belongs to another run.

    headline: the main score, if it is one of the task's own.
    """
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
    about = {"identity": identity, "model": model, "kind": task.kind}
    run_files.write_json(path, about | ({"headline": headline} if headline else {}))


def record_methods(folder: Path, methods: Iterable[OwnMethod], rows: Iterable[Record]) -> None:
    """Record the files of these methods in the run. Errors: `RunError` if rows of one were made by another file."""
    about, used = run_files.read_json(folder / run_files.RUN), {row["method"] for row in rows}
    before = about.get("method_files", {})
    now = {method.file.label: method.file.digest for method in methods}
    for label, digest in now.items():
        if label in used and before.get(label) != digest:
            raise RunError(
                f"{folder} has rows of another {label}: its digest was {before.get(label)!r}, now {digest!r}. Give "
                "another folder, another name to the file, or the old file.",
                field="output",
            )
    if now and before | now != before:
        run_files.write_json(folder / run_files.RUN, about | {"method_files": before | now})


def recipe_values(recipe: Recipe) -> Record:
    """The recipe as it is after a round trip through JSON."""
    return asdict(recipe) | {"layers": list(recipe.layers)}


def model_name(llm: FastMem) -> str:
    """The hub id; for a folder only its last part, because paths differ between machines."""
    path = Path(llm.name)
    return path.name if path.is_absolute() or llm.name.startswith(".") else llm.name


def digest_of(examples: Iterable[Example]) -> str:
    """A digest of all fields of the examples, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.record, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
