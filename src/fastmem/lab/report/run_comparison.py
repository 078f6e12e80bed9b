"""Two finished runs, or two methods of one run, on the rows that both have."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastmem.errors import InputError, RunError, one_of
from fastmem.lab.report.content import facts
from fastmem.lab.report.results import Results, compare_rows, ordered, paired
from fastmem.lab.run import run_files
from fastmem.lab.scores import grading
from fastmem.lab.scores.grading import Record
from fastmem.lab.scores.statistics import Comparison, Mean
from fastmem.lab.tasks.example import Example

FORMS = ("paper_correct", "exact_match")  # both forms of accuracy
_FACTS = ("device", "torch", "fastmem", "commit")  # of `facts`
_SURROUNDINGS = ("batch_size", "scorers", *_FACTS)  # from the summary, which a killed run may lack


@dataclass(frozen=True)
class MethodPair:
    """A method of run A and one of run B. rows: (row of A, row of B) of every example that both answered."""

    method_a: str
    method_b: str
    rows: list[tuple[Record, Record]]

    def mean_a(self, score: str) -> Mean:
        """The mean of A over the paired rows."""
        return grading.mean([a for a, _ in self.rows], score)

    def mean_b(self, score: str) -> Mean:
        """The mean of B over the paired rows."""
        return grading.mean([b for _, b in self.rows], score)

    def against(self, score: str) -> Comparison:
        """B minus A."""
        return compare_rows(self.rows, score)

    def differing(self, scores: Sequence[str]) -> list[tuple[Record, Record]]:
        """The rows on which A and B differ in one of the scores."""
        return [(a, b) for a, b in self.rows if any(a["scores"].get(s) != b["scores"].get(s) for s in scores)]

    @property
    def same_text(self) -> int:
        """How many of the rows have one text."""
        return sum(a["text"] == b["text"] for a, b in self.rows)


@dataclass(frozen=True)
class RunComparison:
    """Run B against run A.

    examples: id -> example, those of both runs in the order of B. differences: (dotted name, value in A, value in B)
    of every setting that differs.
    """

    a: Results
    b: Results
    examples: dict[str, Example]
    differences: list[tuple[str, Any, Any]]
    pairs: list[MethodPair]

    @property
    def titles(self) -> dict[str, str]:
        """The scores that both runs have: name -> title."""
        return shared_titles(self.a, self.b)

    @property
    def scores(self) -> list[str]:
        """The scores of the tables: both forms of accuracy and one's own; where no answer is right or wrong, all."""
        shown = [s for s in self.titles if s in FORMS or s not in grading.STANDARD or not self.b.has_right_answers]
        rows = [row for pair in self.pairs for both in pair.rows for row in both]
        return [score for score in shown if any(value is not None for value in grading.values(rows, score))]


def compare_runs(a: Results, b: Results, methods: Sequence[tuple[str, str]]) -> RunComparison:
    """Compare methods (of A, of B) on the rows that both have. Errors: `RunError` for runs of other data."""
    examples = shared_examples(a, b)
    if not shared_titles(a, b):
        raise RunError(
            f"{a.name} has the scores {', '.join(a.columns)}, {b.name} has {', '.join(b.columns)}, none in "
            "common: give two runs with the same scores, or a metric of your own.",
            options=("metric",),
        )
    pairs = [MethodPair(of_a, of_b, paired(a.rows[of_a], b.rows[of_b])) for of_a, of_b in methods]
    for pair in pairs:
        if not pair.rows:
            raise RunError(
                f"no example has a row of {pair.method_a!r} in {a.name} and one of {pair.method_b!r} in {b.name} yet: "
                "run the same `fastmem eval` again."
            )
    return RunComparison(a, b, examples, _differences(a, b), pairs)


def method_pairs(
    a: Results, b: Results, methods: Sequence[str] = (), method_a: str | None = None, method_b: str | None = None
) -> list[tuple[str, str]]:
    """The methods to compare: `method_a` with `method_b`, or each of `methods` (all of both runs) with itself.

    Errors: `InputError` for a method that a run lacks, `RunError` if the runs have no method in common.
    """
    if method_a and method_b:
        _require(a, method_a, "method_a")
        _require(b, method_b, "method_b")
        return [(method_a, method_b)]
    for method in methods:
        _require(a, method, "methods")
        _require(b, method, "methods")
    if not methods and not a.rows.keys() & b.rows.keys():
        raise RunError(
            f"{a.name} has {', '.join(a.methods)}, {b.name} has {', '.join(b.methods)}, no method in common: name one "
            "of each.",
            options=("method_a", "method_b"),
        )
    return [(method, method) for method in methods or ordered(a.rows.keys() & b.rows.keys())]


def shared_titles(a: Results, b: Results) -> dict[str, str]:
    """The scores that both runs have: name -> title."""
    return {name: title for name, title in b.columns.items() if name in a.columns}


def shared_examples(a: Results, b: Results) -> dict[str, Example]:
    """Id -> example, those of B that A has too. Errors: `RunError` if there are none, or one id names two examples."""
    of_a = {example.id: example for example in a.examples}
    both = [(of_a[example.id], example) for example in b.examples if example.id in of_a]
    if not both:
        raise RunError(
            f"{_data(a)} and {_data(b)} share no example: the first is {a.examples[0].id!r} here and "
            f"{b.examples[0].id!r} there. Give two runs of the same data."
        )
    cuts = [r.about["identity"]["decoding"].get("max_context_tokens") for r in (a, b)]
    found = {first.id: _other_fields(first, second, cuts[0] != cuts[1]) for first, second in both}
    found = {name: other for name, other in found.items() if other}
    if found:
        name, other = next(iter(found.items()))
        raise RunError(
            f"{_data(a)} and {_data(b)} are of different data: {len(found)} of their {len(both)} common ids have "
            f"different examples, the first is {name!r} ({', '.join(other)}). Give two runs of the same data."
        )
    return {example.id: example for _, example in both}


def match_runs(first: Sequence[Path], second: Sequence[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """(pairs of run folders, folders without a partner).

    Partners have one folder name or, where that finds none, one task, and are the only ones of it. One folder on
    either side is a pair whatever they are. Errors: `RunError` if there is no pair.
    """
    if len(first) == len(second) == 1:
        return [(first[0], second[0])], []
    left, right, partner = list(first), list(second), {}
    for key in (_name, _task):
        keys = Counter(map(key, left)), Counter(map(key, right))
        for folder in left:
            if keys[0][key(folder)] == keys[1][key(folder)] == 1:
                partner[folder] = next(other for other in right if key(other) == key(folder))
        left = [folder for folder in left if folder not in partner]
        right = [folder for folder in right if folder not in partner.values()]
    if not partner:
        raise RunError(
            f"{', '.join(map(str, first))} and {', '.join(map(str, second))} have no name or task in common: give two "
            "folders of runs of the same tasks."
        )
    return [(folder, partner[folder]) for folder in first if folder in partner], left + right


def _require(r: Results, method: str, field: str) -> None:
    try:
        one_of(method, r.methods, "method", field=field)
    except InputError as error:
        raise InputError(f"{r.name}: {error.text}", field=field) from error


def _name(folder: Path) -> str:
    return folder.resolve().name


def _task(folder: Path) -> str:
    return str(run_files.read_run(folder)["identity"]["task"])


def _data(r: Results) -> str:
    return f"{r.name} ({r.task}, {r.about['identity']['data']['source']})"


def _other_fields(a: Example, b: Example, cut: bool) -> list[str]:
    """The names of the fields that differ. cut: the runs cut documents at different lengths."""
    other = [f.name for f in fields(Example) if getattr(a, f.name) != getattr(b, f.name)]
    if cut and (a.context.startswith(b.context) or b.context.startswith(a.context)):
        return [name for name in other if name != "context"]
    return other


def _differences(a: Results, b: Results) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in A, value in B). What a killed run did not record is no difference."""
    of_a, of_b = _settings(a), _settings(b)
    for name in _SURROUNDINGS:
        if of_a[name] is None or of_b[name] is None:
            del of_a[name], of_b[name]
    if of_a["recipe"].get("layers") != of_b["recipe"].get("layers"):  # they have other weights in the same model
        of_a["model"].pop("tuned_weights", None)
    return run_files.differences(of_a, of_b)


def _settings(r: Results) -> Record:
    """What determines the rows of a run, and its surroundings (None if not recorded)."""
    identity = r.about["identity"]
    model = {"name": r.model, "revision": r.about["model"].get("revision")} | identity["model"]
    data = {name: value for name, value in identity["data"].items() if name not in ("examples", "digest")}
    around = {name: r.summary.get(name) for name in ("batch_size", "scorers")}
    around |= {name: None if facts(r)[name] == "unknown" else facts(r)[name] for name in _FACTS}
    return identity | {"model": model, "data": data} | around
