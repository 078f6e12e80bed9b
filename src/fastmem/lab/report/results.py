"""What a folder holds, regraded: the examples, every method's rows, and what the run said about itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import RunError
from fastmem.lab.run import run_files
from fastmem.lab.scores import grading, statistics
from fastmem.lab.tasks.example import Example, Kind

Record = dict[str, Any]
BASE = "base"


@dataclass(frozen=True)
class Results:
    """One run. rows: method -> its rows in the order of the examples. about: `run.json`. summary: of the last start,
    empty where the run was killed before it wrote one."""

    name: str
    task: str
    kind: Kind
    model: str
    examples: tuple[Example, ...]
    rows: dict[str, list[Record]]
    about: Record
    summary: Record
    _means: dict[tuple[str, str], statistics.Mean] = field(default_factory=dict, repr=False)  # 5,000 resamples each

    @property
    def headline(self) -> str:
        """The score that stands for the task in tables."""
        return next(iter(grading.columns(self.kind)))

    def mean(self, method: str, score: str) -> statistics.Mean:
        """Of one score, over the method's rows."""
        if (method, score) not in self._means:
            rows = self.rows[method]
            groups = [row["group"] for row in rows]
            self._means[method, score] = statistics.mean(grading.values(rows, score), groups)
        return self._means[method, score]

    def against_base(self, method: str, score: str) -> statistics.Comparison | None:
        """The method minus the base on the rows both have; None for the base and where the base was not run."""
        if method == BASE or BASE not in self.rows:
            return None
        base = {row["id"]: row for row in self.rows[BASE]}
        both = [row for row in self.rows[method] if row["id"] in base]
        return statistics.compare(
            grading.values([base[row["id"]] for row in both], score),
            grading.values(both, score),
            [row["group"] for row in both],
        )

    @property
    def missing(self) -> dict[str, list[str]]:
        """Why scores are missing -> the methods that lack them."""
        found: dict[str, list[str]] = {}
        for method in ordered(list(self.rows)):
            for reason in dict.fromkeys(grading.missing(self.rows[method]).values()):
                found.setdefault(reason, []).append(method)
        return found

    def errors(self, method: str) -> list[str]:
        """The texts of the method's errors."""
        return [row["error"] for row in self.rows[method] if row["error"]]

    def seconds(self, method: str) -> Record:
        """Mean seconds per example of trunk, steps and decode."""
        rows = self.rows[method]
        return {part: sum(r["seconds"][part] for r in rows) / len(rows) for part in ("trunk", "steps", "decode")}

    def peak_bytes(self, method: str) -> int:
        """The most memory any batch of the method needed."""
        return max(int(row.get("peak_bytes") or 0) for row in self.rows[method])

    @property
    def complete(self) -> bool:
        """Whether every method has a row for every example."""
        return all(len(rows) == len(self.examples) for rows in self.rows.values())


def load_results(folder: Path) -> Results:
    """The run in `folder`, regraded from its raw texts. Errors: `RunError`."""
    about = run_files.read_json(folder / run_files.RUN)
    examples = run_files.read_examples(folder)
    by_id = {example.id: example for example in examples}
    rows: dict[str, list[Record]] = {}
    for row in run_files.read_rows(folder):
        if row["id"] not in by_id:
            raise RunError(f"{folder}: a row answers {row['id']!r}, which is no example of the run: run it anew.")
        rows.setdefault(row["method"], []).append(grading.regraded(row, by_id[row["id"]]))
    if not rows:
        raise RunError(f"{folder} holds no finished row yet: start its `fastmem eval` again.")
    place = {example.id: i for i, example in enumerate(examples)}
    for found in rows.values():
        found.sort(key=lambda row: place[row["id"]])
    summary_path = folder / run_files.SUMMARY
    summary = run_files.read_json(summary_path) if summary_path.exists() else {}
    task = about["identity"]["task"]
    return Results(folder.name, task, about["kind"], about["model"]["name"], examples, rows, about, summary)


def ordered(methods: Sequence[str]) -> list[str]:
    """Methods in the order of the paper's tables, others after them."""
    first = ["base", "one-shot", "dola", "cad", "adacad", "fastmem", "fastmem+cd", "fastmem+adacd", "fastmem+dola"]
    return sorted(methods, key=lambda name: (first.index(name) if name in first else len(first), name))
