"""The tables, the figure and the JSON document of `side_effects.py`, whose head has the decision rule."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fastmem.lab.report.content import interval_text
from fastmem.lab.run.run_files import write_json
from fastmem.lab.scores.statistics import Comparison, compare, mean
from studies.compared_ways import BASE, Cells, holm, read

LEVEL = 0.05
Values = Sequence[float | bool]


@dataclass(frozen=True)
class Measure:
    """What is measured under a condition. read: from a cell and whether several documents are memorized, to values,
    which are numbers or all booleans. worse: 1 if larger values are worse, -1 if smaller ones are, 0 if it is no side
    effect. margin: how much worse is still accepted.
    """

    name: str
    title: str
    read: Callable[[Mapping[str, Any], bool], Values]
    worse: int = -1
    margin: float = 0.05


def _of(key: str, *path: int | str) -> Callable[[Mapping[str, Any], bool], Values]:
    """The value at a path in a cell, as a list."""

    def values(cell: Mapping[str, Any], several: bool) -> Values:
        value = cell[key]
        for part in path:
            value = value[part]
        return value if isinstance(value, list) else [value]

    return values


def _copied(key: str) -> Callable[[Mapping[str, Any], bool], Values]:
    """Of the one document or of all."""
    return lambda cell, several: [cell[key][int(several)]]


MEASURES = (
    Measure("own", "own question", _of("own"), worse=0),
    Measure("other", "nats on other documents", _of("loss", "other"), worse=1),
    Measure("neutral", "nats on neutral texts", _of("loss", "neutral"), worse=1),
    Measure("agreeing", "agreeing document", _of("agreeing")),
    Measure("contradicting", "contradicting document", _of("contradicting")),
    Measure("recalled", "recall", _of("recalled")),
    Measure("form", "form", _of("form")),
    Measure("distinct_1", "distinct-1", _of("distinct", 0)),
    Measure("distinct_2", "distinct-2", _of("distinct", 1)),
    Measure("self_bleu", "self-BLEU", _of("self_bleu"), worse=1),
    Measure("run", "longest run", _copied("run"), worse=1, margin=2.0),
    Measure("copied", "copied 8-grams", _copied("copied"), worse=1),
)
TABLES = {"texts and questions": MEASURES[:7], "free continuation": MEASURES[7:]}
DRAWN = ("own", "other", "agreeing", "recalled", "distinct_2", "copied")


@dataclass(frozen=True)
class Effect:
    """A condition against the base on one measure.

    base, value: means. low, high: of the difference, 95 %. p_value: corrected by Holm; None if it is no side effect.
    """

    base: float
    value: float
    low: float
    high: float
    p_value: float | None
    measure: Measure

    @property
    def worse(self) -> bool:
        """Whether it is worse at the level."""
        wrong = self.measure.worse * (self.value - self.base) > 0
        return wrong and self.p_value is not None and self.p_value < LEVEL

    @property
    def within_margin(self) -> bool:
        """Whether the interval is within the margin on the worse side."""
        worst = max(self.measure.worse * self.low, self.measure.worse * self.high)
        return worst <= self.measure.margin

    @property
    def text(self) -> str:
        """`0.812, -0.012 [-0.050, +0.030]*`; without an interval if all rows differ by the same amount."""
        low, high = (None, None) if self.low == self.high else (self.low, self.high)
        difference = interval_text(self.value - self.base, low, high, "+")
        return f"{self.value:.3f}, {difference}{'*' if self.p_value is not None and self.p_value < LEVEL else ''}"


@dataclass(frozen=True)
class Results:
    """One model: its rows, and the effect of every condition but the base by measure name."""

    rows: Sequence[Cells]
    measures: Sequence[Measure]
    effects: Mapping[str, Mapping[str, Effect]]

    @classmethod
    def of(cls, rows: Sequence[Cells]) -> "Results":
        """Of rows that all have the base."""
        found = dict.fromkeys(name for row in rows for name in row if name != BASE)
        names = sorted(found, key=is_several)  # conditions that were measured later stand beside their like
        measures = [measure for measure in MEASURES if _counts(rows, measure)]
        compared = {
            (name, measure): (measure, *_compared(rows, name, measure)) for name in names for measure in measures
        }
        side = [key for key, (measure, *_) in compared.items() if measure.worse]
        p_values = [compared[key][2].p_value for key in side]
        corrected = dict(zip(side, holm([1.0 if p is None else p for p in p_values]), strict=True))
        effects: dict[str, dict[str, Effect]] = {name: {} for name in names}
        for (name, measure), (_, base, one) in compared.items():
            low, high = _interval(one)
            difference = one.difference.value or 0.0
            p_value = corrected.get((name, measure))
            effects[name][measure.name] = Effect(base, base + difference, low, high, p_value, measure)
        return cls(rows, measures, effects)

    def verdict(self, condition: str) -> str:
        """By the decision rule, with the measures that decide."""
        side = [effect for effect in self.effects[condition].values() if effect.measure.worse]
        outside = [effect for effect in side if not effect.within_margin]
        if dulled := [effect.measure.title for effect in outside if effect.worse]:
            return f"dulls: {'; '.join(dulled)}"
        return f"open: {', '.join(effect.measure.title for effect in outside)}" if outside else "does not"


def is_several(condition: str) -> bool:
    """Whether a condition memorizes several documents."""
    return not condition.startswith(("one", BASE))


def _counts(rows: Sequence[Cells], measure: Measure) -> bool:
    """Whether a measure has values, and is one of texts that the base can predict."""
    values = [value for row in rows for value in measure.read(row[BASE], False)]
    if measure.name == "neutral" and fmean(values) > rows[0][BASE]["uniform"]:
        return False
    return bool(values)


def _compared(rows: Sequence[Cells], name: str, measure: Measure) -> tuple[float, Comparison]:
    """(the base's mean, the comparison of a condition with it) on the rows that have the condition; intervals by row.

    The values of a row count alike; those of one row are drawn together.
    """
    first, second, groups = list[float | bool | None](), list[float | bool | None](), list[str]()
    for number, row in enumerate(rows):
        if name in row:
            first += measure.read(row[BASE], is_several(name))
            second += (values := measure.read(row[name], is_several(name)))
            groups += [str(number)] * len(values)
    return mean(first, groups).value or 0.0, compare(first, second, groups)


def _interval(one: Comparison) -> tuple[float, float]:
    """Of the difference. Where no value differs: the exact interval for the share of values that differ."""
    if one.difference.low is not None and one.difference.high is not None:
        return one.difference.low, one.difference.high
    if one.test == "mcnemar" and one.difference.value == 0.0:
        high = mean([False] * one.n).high or 0.0
        return -high, high
    return one.difference.value or 0.0, one.difference.value or 0.0


def table(results: Results, measures: Sequence[Measure]) -> Iterator[str]:
    """Means with the difference to the base. *: it differs at 0.05, corrected by Holm."""
    shown = [measure for measure in measures if measure in results.measures]
    yield f"| condition | {' | '.join(measure.title for measure in shown)} |"
    yield "|---" * (len(shown) + 1) + "|"
    base = []
    for measure in shown:
        means = [_base_mean(results.rows, measure, several) for several in (False, True)]
        base.append(f"{means[0]:.3f}" if math.isclose(*means) else f"{means[0]:.3f}; all: {means[1]:.3f}")
    yield f"| {BASE} | {' | '.join(base)} |"
    for name, effects in results.effects.items():
        yield f"| {name} | {' | '.join(effects[measure.name].text for measure in shown)} |"


def _base_mean(rows: Sequence[Cells], measure: Measure, several: bool) -> float:
    return fmean(value for row in rows for value in measure.read(row[BASE], several))


def verdict_table(results: Mapping[str, Results]) -> Iterator[str]:
    """The decision for every condition and model."""
    yield f"| condition | {' | '.join(results)} |"
    yield "|---" * (len(results) + 1) + "|"
    for name in dict.fromkeys(name for found in results.values() for name in found.effects):
        cells = [found.verdict(name) if name in found.effects else "" for found in results.values()]
        yield f"| {name} | {' | '.join(cells)} |"


def place_table(results: Mapping[str, Results]) -> Iterator[str]:
    """The own question by the place of its document among several: in the first and in the second half."""
    yield "| model | condition | documents of the first half | of the second half |"
    yield "|---|---|---|---|"
    for model, found in results.items():
        for name in (name for name in found.effects if " in a row" in name):
            count, rows = int(name.split()[0]), [row for row in found.rows if name in row]
            halves = [
                [right for row in rows for right in row[name]["own"] if (2 * row[name]["place"] >= count) == second]
                for second in (False, True)
            ]
            means = [mean(half) for half in halves]
            cells = ["" if m.value is None else interval_text(m.value, m.low, m.high) for m in means]
            yield f"| {model} | {name} | {' | '.join(cells)} |"


def document(results: Mapping[str, Results]) -> dict[str, Any]:
    """Everything in the tables."""
    models = {}
    for model, found in results.items():
        effects = {}
        for name, by_measure in found.effects.items():
            each = {
                key: {k: v for k, v in asdict(effect).items() if k != "measure"} | {"worse": effect.worse}
                for key, effect in by_measure.items()
            }
            kl = {kind: _kl(found.rows, name, kind) for kind in ("other", "neutral")}
            effects[name] = {"verdict": found.verdict(name), "measures": each, "kl": kl}
        models[model] = {"rows": len(found.rows), "conditions": effects}
    measures = {m.name: {"title": m.title, "worse": m.worse, "margin": m.margin} for m in MEASURES}
    return {"level": LEVEL, "measures": measures, "models": models}


def _kl(rows: Sequence[Cells], name: str, kind: str) -> float:
    return fmean(row[name]["kl"][kind] for row in rows if name in row)


def figure(results: Mapping[str, Results], path: Path) -> None:
    """The difference to the base under every condition, one panel a measure."""
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained", sharey=True)
    names = list(dict.fromkeys(name for found in results.values() for name in found.effects))[::-1]
    measures = {measure.name: measure for measure in MEASURES}
    for axis, measure in zip(axes.flat, (measures[name] for name in DRAWN), strict=True):
        for offset, (model, found) in enumerate(results.items()):
            shown = [
                (place, found.effects[name][measure.name])
                for place, name in enumerate(names)
                if measure.name in found.effects.get(name, {})
            ]
            if not shown:
                continue
            values = [effect.value - effect.base for _, effect in shown]
            low = [max(v - effect.low, 0.0) for v, (_, effect) in zip(values, shown, strict=True)]
            high = [max(effect.high - v, 0.0) for v, (_, effect) in zip(values, shown, strict=True)]
            places = [place + 0.12 - 0.24 * offset for place, _ in shown]
            marker = "os^D"[offset % 4]
            axis.errorbar(values, places, xerr=[low, high], fmt=marker, markersize=4, linewidth=1.2, label=model)
        side = {0: "right: better", 1: "right: worse", -1: "left: worse"}[measure.worse]
        axis.set_title(f"{measure.title} ({side})", fontsize=9)
        axis.axvline(0, color="#888888", linewidth=1, zorder=0)
        if measure.worse:
            axis.axvline(measure.worse * measure.margin, color="#888888", linewidth=1, linestyle=":", zorder=0)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
    drawn.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )
    drawn.supxlabel("difference to the untouched model; bars: 95 %; dotted: the margin", fontsize=9)
    drawn.savefig(path)


def show(folder: Path, figure_path: Path | None, json_path: Path | None) -> None:
    """Print the tables of all models in a folder; draw the figure and write the document where they are wanted."""
    results = {
        path.parent.name: Results.of([row for row in read(path) if BASE in row])
        for path in sorted(folder.glob("*/rows.jsonl"))
    }
    print("Decision\n", *verdict_table(results), sep="\n")
    for model, found in results.items():
        for title, measures in TABLES.items():
            print(f"\n{model}, {len(found.rows)} rows: {title}\n", *table(found, measures), sep="\n")
    print("\nThe own question by the place of its document\n", *place_table(results), sep="\n")
    if figure_path:
        figure(results, figure_path)
    if json_path:
        write_json(json_path, document(results))
