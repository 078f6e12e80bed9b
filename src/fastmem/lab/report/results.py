"""The results of one run, read from its folder and graded again from the raw texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastmem.errors import RunError
from fastmem.lab.run import run_files
from fastmem.lab.run.run_shapes import SUMMARY, require_shape
from fastmem.lab.scores import grading, statistics
from fastmem.lab.scores.grading import Record
from fastmem.lab.scores.own_metric import OwnMetric, try_out, with_scores
from fastmem.lab.tasks import TASKS
from fastmem.lab.tasks.example import Example, Kind

BASE = "base"

# The order of the paper's tables.
_METHODS = ("base", "one-shot", "dola", "cad", "adacad", "fastmem", "fastmem+cd", "fastmem+adacd", "fastmem+dola")


@dataclass(frozen=True)
class Results:
    """One run.

    rows: method -> its rows, in the order of the examples.
    about: the content of `run.json`.
    summary: the content of `summary.json`; empty if the run was killed before it wrote one.
    computed: the scores of one's own that were computed when the rows were read -> the file that did it.
    task_scores: the scores of a data set with metrics of its own, computed when the rows were read.
    """

    name: str
    task: str
    kind: Kind
    model: str
    examples: tuple[Example, ...]
    rows: dict[str, list[Record]]
    about: Record
    summary: Record
    computed: dict[str, str] = field(default_factory=dict)
    task_scores: tuple[str, ...] = ()
    _means: dict[tuple[str, str], statistics.Mean] = field(default_factory=dict, repr=False)  # 5,000 resamples each

    @property
    def methods(self) -> list[str]:
        """The methods of the run, in the order of tables."""
        return ordered(self.rows)

    @property
    def headline(self) -> str:
        """The main score of the task."""
        return next(iter(self.columns))

    @property
    def own_headline(self) -> str | None:
        """The main score of a task that has scores of its own."""
        return self.about.get("headline")

    @property
    def columns(self) -> dict[str, str]:
        """The scores of the run, the headline first: name -> title. A score of one's own has its name as its title."""
        own = {name: name for name in self.own_names}
        return ({self.own_headline: self.own_headline} if self.own_headline else grading.columns(self.kind)) | own

    @property
    def own_names(self) -> list[str]:
        """The scores of the task's own, and those of files of one's own."""
        return grading.own_names(row for rows in self.rows.values() for row in rows)

    @property
    def has_right_answers(self) -> bool:
        """Whether the paper's rule applies: not to summaries, nor to tasks that have scores of their own."""
        return self.kind != "summary" and not self.own_headline

    @property
    def right_score(self) -> str | None:
        """The score that says whether an answer is right; None where answers are neither right nor wrong."""
        if self.has_right_answers:
            return "paper_correct"
        return self.own_headline if self.task_scores else None

    def mean(self, method: str, score: str) -> statistics.Mean:
        """The mean of one score over the method's rows."""
        if (method, score) not in self._means:
            self._means[method, score] = grading.mean(self.rows[method], score)
        return self._means[method, score]

    def against_base(self, method: str, score: str) -> statistics.Comparison | None:
        """The method minus the base on the rows both have; None for the base itself and for runs without it."""
        if method == BASE or BASE not in self.rows:
            return None
        return compare_rows(paired(self.rows[BASE], self.rows[method]), score)

    @property
    def missing(self) -> dict[str, list[str]]:
        """Reason why a score is missing -> the methods that lack it."""
        methods: dict[str, list[str]] = {}
        for method in self.methods:
            for reason in dict.fromkeys(grading.missing(self.rows[method]).values()):
                methods.setdefault(reason, []).append(method)
        return methods

    def errors(self, method: str) -> list[str]:
        """The texts of the method's errors."""
        return [row["error"] for row in self.rows[method] if row["error"]]

    @property
    def complete(self) -> bool:
        """Whether every method has a row for every example."""
        return not any(map(self.partial, self.rows))

    def partial(self, method: str) -> str:
        """`144 of 240 rows` if rows of the method are missing, otherwise empty."""
        rows, examples = len(self.rows[method]), len(self.examples)
        return "" if rows == examples else f"{rows} of {examples} rows"


def load_results(folder: Path, metrics: Sequence[OwnMetric] = ()) -> Results:
    """The run in `folder`, graded again from its raw texts.

    metrics: further scores of one's own, or new versions of those of the run. Errors: `RunError`, `InputError` if a
    metric fails on the first example.
    """
    about = run_files.read_run(folder)
    examples = run_files.read_examples(folder)
    by_id = {example.id: example for example in examples}
    task = about["identity"]["task"]
    definition = TASKS.get(task)  # None for a task of a Python file, which may be gone
    score = None if definition is None else definition.score
    whole_words = definition is None or definition.whole_words
    of_task = () if score is None else tuple(score("", examples[0]))
    computed = try_out(metrics, examples[0], of_task)
    rows: dict[str, list[Record]] = {}
    for row in run_files.read_rows(folder):
        if row["id"] not in by_id:
            raise RunError(
                f"{folder}: {run_files.ROWS} has a row for {row['id']!r}, which is not in {run_files.EXAMPLES}. "
                "Run the evaluation again in a new folder."
            )
        row["scores"] = {name: value for name, value in row["scores"].items() if name not in computed}
        graded = grading.regraded(row, by_id[row["id"]], score, whole_words)
        rows.setdefault(row["method"], []).append(with_scores(graded, metrics, by_id[row["id"]]))
    if not rows:
        raise RunError(f"{folder} has no finished rows yet: run the same `fastmem eval` again.")
    position = {example.id: i for i, example in enumerate(examples)}
    for of_method in rows.values():
        of_method.sort(key=lambda row: position[row["id"]])
    summary_path = folder / run_files.SUMMARY
    summary = run_files.read_json(summary_path) if summary_path.exists() else {}
    require_shape(summary, SUMMARY, str(summary_path))
    model = about["model"]["name"]
    return Results(folder.name, task, about["kind"], model, examples, rows, about, summary, computed, of_task)


def paired(first: Iterable[Record], second: Iterable[Record]) -> list[tuple[Record, Record]]:
    """(row of `first`, row of `second`) of every example that both have, in the order of `second`."""
    by_id = {row["id"]: row for row in first}
    return [(by_id[row["id"]], row) for row in second if row["id"] in by_id]


def compare_rows(pairs: Sequence[tuple[Record, Record]], score: str) -> statistics.Comparison:
    """The second of each pair minus the first."""
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    return statistics.compare(
        grading.values(first, score), grading.values(second, score), [row["group"] for row in second]
    )


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the paper's tables, others after them."""
    return sorted(methods, key=lambda name: (_METHODS.index(name) if name in _METHODS else len(_METHODS), name))
