"""The tables, the figure and the JSON document of `when_to_memorize.py`, which has question, design and decision rule.

A folder holds a folder for every model, with dev.jsonl and test.jsonl.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmem.lab.report.content import mean_text
from fastmem.lab.run.run_files import write_json
from fastmem.lab.scores.statistics import Comparison, compare, mean
from studies.area_under_curve import auroc, resampled, shown
from studies.compared_ways import BASE, holm
from studies.when_to_memorize import FIRST, KINDS, MEMORY, SECOND, TWO_ANSWERS, chosen_rate, memory_name, read

LEVEL = 0.05
SAID = ("first", "second", "remembered")
Rows = Sequence[Mapping[str, Any]]
AREAS = {"(a) corrected, not spoiled": True, "(b) not spoiled, of all": False}  # whether only changed rows count


@dataclass(frozen=True)
class Effect:
    """Two shares of the same rows. without: the first. corrected: the p-value after Holm's correction."""

    without: float
    comparison: Comparison
    corrected: float

    @property
    def text(self) -> str:
        """The difference with its interval. *: significant."""
        return mean_text(self.comparison.difference, "+") + ("*" if self.corrected < LEVEL else "")


@dataclass(frozen=True)
class Answers:
    """One part of a model's rows at one rate. kinds, groups, before, after: [N]. signals: by name, [N]."""

    kinds: np.ndarray
    groups: np.ndarray
    before: np.ndarray
    after: np.ndarray
    signals: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, rows: Rows, rate: float) -> "Answers":
        """The rows that were answered without and with a memory."""
        name = memory_name(rate)
        rows = [row for row in rows if {BASE, name} <= row["cells"].keys()]
        kinds, groups = (np.array([row[key] for row in rows]) for key in ("kind", "group"))
        before, after = (np.array([right(row, each) for row in rows], dtype=bool) for each in (BASE, name))
        found = [row["cells"][BASE]["signals"] | row["cells"][name]["signals"] for row in rows]
        return cls(kinds, groups, before, after, {key: np.array([each[key] for each in found]) for key in found[0]})

    def only(self, chosen: np.ndarray) -> "Answers":
        """Some of the rows."""
        signals = {name: values[chosen] for name, values in self.signals.items()}
        return Answers(self.kinds[chosen], self.groups[chosen], self.before[chosen], self.after[chosen], signals)

    @functools.cached_property
    def resamples(self) -> np.ndarray:
        """[1 + R, N]: how often every row is drawn."""
        return resampled(self.groups)

    def areas(self, gate: "Gate", only_changed: bool, once: bool = False) -> np.ndarray:
        """[1 + R]: the area (a) of the gate, among the changed rows, or (b), among all. once: without resamples."""
        spoiled = self.before & ~self.after
        rows = self.before != self.after if only_changed else np.full(len(spoiled), True)
        weights = np.ones((1, len(spoiled))) if once else self.resamples
        if not rows.any():
            return np.full(len(weights), np.nan)
        return auroc(gate.values(self)[rows], ~spoiled[rows], weights[:, rows])


@dataclass(frozen=True)
class Gate:
    """Memorize where sign * signal is at least the threshold."""

    signal: str
    sign: int
    threshold: float = -math.inf

    def values(self, answers: Answers) -> np.ndarray:
        return self.sign * answers.signals[self.signal]

    def right(self, answers: Answers) -> np.ndarray:
        """[N]: whether the answers are right if the gate decides."""
        return np.where(self.values(answers) >= self.threshold, answers.after, answers.before)

    @property
    def text(self) -> str:
        if math.isinf(self.threshold):
            return f"{self.signal}: {'never' if self.threshold > 0 else 'always'}"
        return f"{self.signal} {'at least' if self.sign > 0 else 'at most'} {self.sign * self.threshold:.4g}"


def right(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row was answered right under a condition."""
    (found,) = row["cells"][name]["right"].values()
    return bool(found)


def signed(dev: Answers, signal: str) -> Gate:
    """The signal with the sign of the larger area (a); a positive one where no area can be computed."""
    area = dev.areas(Gate(signal, 1), True, once=True)[0]
    return Gate(signal, -1 if area < 0.5 else 1)


def with_threshold(dev: Answers, gate: Gate) -> Gate:
    """The threshold with the most right answers; of equal ones the lowest. They lie half way between two values."""
    values = np.unique(gate.values(dev)[np.isfinite(gate.values(dev))])
    candidates = [-math.inf, *((values[:-1] + values[1:]) / 2).tolist(), math.inf]
    gates = [Gate(gate.signal, gate.sign, each) for each in candidates]
    counts = [int(each.right(dev).sum()) for each in gates]
    return gates[counts.index(max(counts))]


def chosen_gate(dev: Answers) -> Gate | None:
    """The gate that development rows choose; None if they do not have both corrected and spoiled rows."""
    gates = [signed(dev, signal) for signal in dev.signals]
    areas = [float(dev.areas(gate, True, once=True)[0]) for gate in gates]
    if any(math.isnan(area) for area in areas):
        return None
    return with_threshold(dev, gates[areas.index(max(areas))])


@dataclass(frozen=True)
class Results:
    """One model. effects: by kind and (kind, condition, what is said). against: the gate less always, and never."""

    rate: float
    dev: Answers
    test: Answers
    rows: Rows  # test rows
    effects: Mapping[tuple[str, str, str], Effect]
    gate: Gate | None
    against: Mapping[str, Effect]

    @classmethod
    def of(cls, dev: Rows, test: Rows) -> "Results":
        rate = chosen_rate([dict(row) for row in dev])
        known, new = Answers.of(dev, rate), Answers.of(test, rate)
        pairs = {}
        for kind in KINDS:
            one = new.only(new.kinds == kind)
            if len(one.kinds):
                pairs[kind, MEMORY, "right"] = (one.before.tolist(), one.after.tolist(), one.groups.tolist())
        for kind in TWO_ANSWERS:
            for name in (MEMORY, FIRST, SECOND):
                key = f"{name} {rate:g}"
                rows = [row for row in test if row["kind"] == kind and {BASE, key} <= row["cells"].keys()]
                for what in SAID if rows else ():
                    without, given = ([row["cells"][each]["said"][what] for row in rows] for each in (BASE, key))
                    pairs[kind, name, what] = (without, given, [row["group"] for row in rows])
        gate, against = chosen_gate(known), {}
        if gate is not None:
            decided = gate.right(new).tolist()
            against = {
                name: (values.tolist(), decided, new.groups.tolist())
                for name, values in (("always", new.after), ("never", new.before))
            }
        return cls(rate, known, new, test, effects(pairs), gate, effects(against))

    @property
    def worth_having(self) -> bool:
        """The conditions of the decision rule on this model."""
        return bool(self.against) and all(
            effect.corrected < LEVEL and (effect.comparison.difference.low or 0.0) > 0
            for effect in self.against.values()
        )


def effects(pairs: Mapping[Any, tuple[list[bool], list[bool], list[str]]]) -> dict[Any, Effect]:
    """The comparison of every pair (without, with, groups), corrected over all of them."""
    found = {key: compare(*pair) for key, pair in pairs.items()}
    corrected = holm([1.0 if one.p_value is None else one.p_value for one in found.values()])
    shares = {key: sum(pair[0]) / len(pair[0]) for key, pair in pairs.items()}
    return {key: Effect(shares[key], found[key], p) for key, p in zip(found, corrected, strict=True)}


def kind_table(results: Results) -> Iterator[str]:
    """Right answers without and with a memory, by kind."""
    yield "| kind | rows | without | with | difference | corrected, spoiled |"
    yield "|---" * 6 + "|"
    for (kind, _, what), effect in results.effects.items():
        if what == "right":
            one, after = effect.comparison, effect.without + (effect.comparison.difference.value or 0.0)
            shares = f"{effect.without:.3f} | {after:.3f} | {effect.text}"
            yield f"| {kind} | {one.n} | {shares} | {one.only_second}, {one.only_first} |"


def said_table(results: Results) -> Iterator[str]:
    """What is answered where two things are said."""
    heads = " | ".join(f"{what} | less none" for what in SAID)
    yield f"| kind | memory of | rows | {heads} |"
    yield "|---" * (3 + 2 * len(SAID)) + "|"
    for kind in TWO_ANSWERS:
        for name, title in ((MEMORY, "all"), (FIRST, "the first"), (SECOND, "the second")):
            found = [results.effects.get((kind, name, what)) for what in SAID]
            each = [effect for effect in found if effect is not None]
            if not each:
                continue
            if name == MEMORY:
                cells = " | ".join(f"{effect.without:.3f} | " for effect in each)
                yield f"| {kind} | none | {each[0].comparison.n} | {cells}|"
            cells = " | ".join(
                f"{effect.without + (effect.comparison.difference.value or 0.0):.3f} | {effect.text}"
                for effect in each
            )
            yield f"| {kind} | {title} | {each[0].comparison.n} | {cells} |"


def signal_table(results: Results) -> Iterator[str]:
    """The areas of every signal on development and on test rows."""
    plain = results.test.only(~np.isin(results.test.kinds, TWO_ANSWERS))
    yield (
        "| memorize if the signal is | "
        + " | ".join(f"{name}, development | test | test without {' and '.join(TWO_ANSWERS)}" for name in AREAS)
        + " |"
    )
    yield "|---" * (1 + 3 * len(AREAS)) + "|"
    for signal in results.dev.signals:
        gate, cells = signed(results.dev, signal), []
        for only_changed in AREAS.values():
            once = results.dev.areas(gate, only_changed, once=True)[0]
            cells += ["-" if math.isnan(once) else f"{once:.3f}"]
            cells += [shown(part.areas(gate, only_changed)) for part in (results.test, plain)]
        yield f"| {'high' if gate.sign > 0 else 'low'}: {signal} | {' | '.join(cells)} |"


def gate_lines(results: Results) -> Iterator[str]:
    """The gate of development rows on test rows, beside memorizing always and never."""
    always, never = (mean_text(mean(v.tolist())) for v in (results.test.after, results.test.before))
    perfect = float((results.test.after | results.test.before).mean())
    if results.gate is None:
        yield f"- no gate: development rows lack corrected or spoiled ones. Always {always}, never {never}."
        return
    decided = results.gate.right(results.test)
    memorized = float((results.gate.values(results.test) >= results.gate.threshold).mean())
    yield f"- gate: memorize if {results.gate.text} ({memorized:.0%} of the test rows)"
    gated = mean_text(mean(decided.tolist()))
    yield f"- right: gate {gated}, always {always}, never {never}, a perfect gate {perfect:.3f}"
    for name, effect in results.against.items():
        yield f"- gate less {name}: {effect.text}, p = {effect.corrected:.2g} (corrected)"
    yield f"- {'worth having' if results.worth_having else 'not worth having'} on this model"


def document(results: Mapping[str, Results]) -> dict[str, Any]:
    """Every number of the tables."""
    models = {}
    for name, found in results.items():
        areas = {}
        for signal in found.dev.signals:
            gate = signed(found.dev, signal)
            areas[signal] = {"sign": gate.sign} | {
                title: {
                    "development": known(found.dev.areas(gate, changed, once=True))[0],
                    "test": known(found.test.areas(gate, changed)),
                }
                for title, changed in AREAS.items()
            }
        models[name] = {
            "rate": found.rate,
            "rows": {"development": len(found.dev.kinds), "test": len(found.test.kinds)},
            "effects": [
                {"kind": kind, "memory": memory, "what": what} | asdict(effect)
                for (kind, memory, what), effect in found.effects.items()
            ],
            "signals": areas,
            "gate": found.gate and {"memorize if": found.gate.text, "worth having": found.worth_having},
            "gate less": {key: asdict(effect) for key, effect in found.against.items()},
        }
    return {"level": LEVEL, "models": models, "worth having": worth_having(results)}


def known(areas: np.ndarray) -> list[float | None]:
    """The value and, if there are resamples, the ends of its interval; None where there is none."""
    if np.isnan(areas[0]):
        return [None]
    ends = np.nanpercentile(areas[1:], [2.5, 97.5]) if len(areas) > 1 else ()
    return [round(float(value), 6) for value in (areas[0], *ends)]


def worth_having(results: Mapping[str, Results]) -> bool:
    """The decision."""
    return bool(results) and all(found.worth_having for found in results.values())


def figure(results: Mapping[str, Results], path: Path) -> None:
    """What a memory changes by kind, and the areas of the signals; one row a model."""
    from matplotlib import pyplot as plt

    kinds = {
        model: {key[0]: effect.comparison.difference for key, effect in found.effects.items() if key[2] == "right"}
        for model, found in results.items()
    }
    inches = [0.9 + 0.3 * len(each) for each in kinds.values()]
    drawn, axes = plt.subplots(len(results), 2, squeeze=False, figsize=(10, sum(inches)), height_ratios=inches)
    drawn.set_layout_engine("constrained")
    for (left, other), (model, found) in zip(axes, results.items(), strict=True):
        draw(left, {kind: (mean.value or 0.0, mean.low, mean.high) for kind, mean in kinds[model].items()}, 0.0)
        left.set_title(model, fontsize=10)
        left.set_xlabel("right answers with a memory, less without")
        gates = {signal: signed(found.dev, signal) for signal in found.dev.signals}
        areas = {signal: known(found.test.areas(gate, True)) for signal, gate in gates.items()}
        points = {signal: (value, *ends) for signal, (value, *ends) in areas.items() if value is not None}
        if points:
            draw(other, points, 0.5)
            other.set_xlabel("area under the curve, corrected against spoiled")
        else:
            other.set_axis_off()
            other.text(0, 0.5, "no area: no row was spoiled, or none corrected", fontsize=9)
    drawn.savefig(path)


def draw(axis: Any, bars: Mapping[str, Sequence[float | None]], line: float) -> None:
    """Values with their 95 % intervals, the first at the top."""
    for place, (value, low, high) in enumerate(list(bars.values())[::-1]):
        assert value is not None
        ends = [[value - (value if low is None else low)], [(value if high is None else high) - value]]
        axis.errorbar([value], [place], xerr=np.maximum(ends, 0), fmt="o", markersize=4, color="#1f77b4")
    axis.set_yticks(range(len(bars)), list(bars)[::-1], fontsize=8)
    axis.axvline(line, color="#888888", linewidth=1, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def show(folder: Path, figure_path: Path | None, json_path: Path | None) -> None:
    """Print the tables of all models in a folder; draw the figure and write the document where they are wanted."""
    results = {
        path.parent.name: Results.of(read(path.with_name("dev.jsonl")), read(path))
        for path in sorted(folder.glob("*/test.jsonl"))
        if read(path)
    }
    for model, found in results.items():
        sizes = f"{len(found.dev.kinds)} development and {len(found.test.kinds)} test rows, rate {found.rate:g}"
        print(f"{model}: {sizes}\n", *kind_table(found), sep="\n")
        print("\nWhere two things are said\n", *said_table(found), sep="\n")
        print("\nSignals, areas under the curve\n", *signal_table(found), sep="\n")
        print("\nGate\n", *gate_lines(found), "", sep="\n")
    print(f"Decision: a gate is {'' if worth_having(results) else 'not '}worth having.")
    if figure_path:
        figure(results, figure_path)
    if json_path:
        write_json(json_path, document(results))
