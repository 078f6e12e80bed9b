"""The tables and the figure of docs/results/rate.md: `python -m studies.rate_table DIR --figure FILE.svg`.

DIR holds a folder for every model, as `rate_without_labels.py` writes them. Intervals are 95 %, paired bootstrap.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import pyplot as plt

from fastmem.calibrate import LIMITS
from fastmem.lab.report.content import mean_text
from fastmem.lab.run.run_files import complete_rows, read_json
from fastmem.lab.scores.statistics import compare
from studies.rate_without_labels import SIGNALS, STEPS, WANTED, rule_rate, searched_rate

CHOOSING = ("embedded", "nq-mini", "neox", "qwen", "gemma", "llama", "gemma-long", "llama-long")
CONFIRMING = ("qwen-small",)
PLATEAU, MOST_LOST = 0.02, 0.01


@dataclass(frozen=True)
class Measured:
    """What was measured of one model. test: empty if the test rows were not answered yet."""

    name: str
    signals: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> "Measured":
        dev, test = (
            complete_rows(path)[1] if path.exists() else [] for path in (folder / "dev.jsonl", folder / "test.jsonl")
        )
        return cls(folder.name, read_json(folder / "signals.json")["points"], dev, test)

    def share(self, kind: str, point: str) -> float:
        """The share of right answers on development rows."""
        scores = [row["scores"][point] for row in self.dev if row["kind"] == kind]
        return sum(scores) / len(scores)

    def signal(self, variant: str, rate: float, name: str) -> float:
        (point,) = [p for p in self.signals if p["variant"] == variant and p["rate"] == rate]
        return float(point[name])

    def plateau(self, variant: str) -> list[float]:
        """The rates that are about as good as the best one: at most `PLATEAU` behind on contradicting rows, and at
        most `MOST_LOST` behind the base on agreeing ones."""
        names = {rate: f"{variant} {rate:.3g}" for rate in WANTED[variant]}
        harmless = [r for r, n in names.items() if self.share("agrees", n) >= self.share("agrees", "base") - MOST_LOST]
        if not harmless:
            return []
        best = max(self.share("contradicts", names[rate]) for rate in harmless)
        return [rate for rate in harmless if self.share("contradicts", names[rate]) >= best - PLATEAU]


def limits(models: Sequence[Measured], variant: str, signal: str) -> tuple[float, float]:
    """The limits on a signal that lead to a rate on the plateau of every model: the largest of the lowest and the
    smallest of the highest values on the plateaus. Empty if the first exceeds the second."""
    low, high = 0.0, math.inf
    for model in models:
        values = [model.signal(variant, rate, signal) for rate in model.plateau(variant)] or [math.nan]
        low, high = max(low, min(values)), min(high, max(values))
    return low, high


def signal_table(models: Sequence[Measured]) -> list[str]:
    """For every signal and way to memorize that all of these models have, the limits that suit all of them."""
    variants = [name for name in WANTED if all(any(p["variant"] == name for p in m.signals) for m in models)]
    lines = ["| signal | " + " | ".join(variants) + " |", "|---" * (len(variants) + 1) + "|"]
    for signal in SIGNALS:
        cells = []
        for variant in variants:
            low, high = limits(models, variant, signal)
            factor = f", x {high / low:.2g}" if low <= high else ": none"
            cells.append(f"{low:.2g} to {high:.2g}{factor}")
        lines.append(f"| {signal} | " + " | ".join(cells) + " |")
    return lines


def plateau_table(models: Sequence[Measured]) -> list[str]:
    """For three steps, every model's plateau, the signals there, and the rates of the search and of the rule."""
    variant = f"adamw {STEPS}"
    lines = [
        "| model | contradicts: base, best | plateau | drift there | fall there | rate of the rule |",
        "|---|---|---|---|---|---|",
    ]
    for model in models:
        best = model.share("contradicts", f"{variant} {searched_rate(model.dev, variant):.3g}")
        rates = model.plateau(variant)
        spans = [rates] + [
            [model.signal(variant, rate, name) for rate in rates] for name in ("drift_reading", "loss_fall")
        ]
        shown = " | ".join(f"{min(span):.2g} to {max(span):.2g}" if span else "none" for span in spans)
        base = model.share("contradicts", "base")
        lines.append(f"| {model.name} | {base:.2f}, {best:.2f} | {shown} | {rule_rate(model.signals):.2g} |")
    return lines


def way_table(models: Sequence[Measured]) -> list[str]:
    """The best rate of every way to memorize, and what it reaches, on development rows."""
    lines = [
        "| model | base | way | best rate | contradicts, agrees, irrelevant there |",
        "|---|---|---|---|---|",
    ]
    for model in models:
        kinds = [k for k in ("contradicts", "agrees", "irrelevant") if any(row["kind"] == k for row in model.dev)]
        base = ", ".join(f"{model.share(kind, 'base'):.2f}" for kind in kinds)
        for variant in [name for name in WANTED if any(p["variant"] == name for p in model.signals)]:
            rate = searched_rate(model.dev, variant)
            there = ", ".join(f"{model.share(kind, f'{variant} {rate:.3g}'):.2f}" for kind in kinds)
            lines.append(f"| {model.name} | {base} | {variant} | {rate:.2g} | {there} |")
    return lines


def test_table(models: Sequence[Measured]) -> list[str]:
    """The rule against the search, on test rows."""
    lines = [
        "| model | rows | kind | base | searched, 10 steps | rule, 3 steps | rule - searched | rule - base | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in models:
        for kind in ("contradicts", "agrees", "irrelevant"):
            rows = [row for row in model.test if row["kind"] == kind]
            if not rows:
                continue
            base, searched, rule = ([row["scores"][name] for row in rows] for name in ("base", "searched", "rule"))
            ratio = median(row["seconds"]["rule"] / row["seconds"]["searched"] for row in rows)
            means = " | ".join(f"{sum(scores) / len(rows):.3f}" for scores in (base, searched, rule))
            against = [mean_text(compare(other, rule).difference, "+") for other in (searched, base)]
            lines.append(f"| {model.name} | {len(rows)} | {kind} | {means} | {' | '.join(against)} | {ratio:.2f} |")
    return lines


def figure(models: Sequence[Measured], path: Path) -> None:
    """What three steps gain on contradicting documents, by rate, by drift and by fall."""
    drawn, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    variant = f"adamw {STEPS}"
    for model in models:
        style = "-" if model.name in CHOOSING else "--"
        base = model.share("contradicts", "base")
        gains = [model.share("contradicts", f"{variant} {rate:.3g}") - base for rate in WANTED[variant]]
        drift, fall = (
            [max(model.signal(variant, rate, name), 1e-7) for rate in WANTED[variant]]
            for name in ("drift_reading", "loss_fall")
        )
        for side, values in zip(axes, (WANTED[variant], drift, fall), strict=True):
            side.plot(values, gains, style, marker="o", markersize=3, linewidth=1, label=model.name)
    axes[1].axvline(LIMITS.drift, color="#888888", linewidth=1)
    axes[1].axvline(LIMITS.drift_until_learnt, color="#888888", linewidth=1, linestyle=":")
    axes[2].axvline(LIMITS.learnt, color="#888888", linewidth=1)
    axes[0].set_xlabel("learning rate, three steps")
    axes[1].set_xlabel("drift, nats per token; lines: limits")
    axes[2].set_xlabel("fall of the document's loss; line: learnt")
    axes[2].set_xlim(0, 1)
    axes[0].set_ylabel("gain on contradicting documents")
    axes[0].legend(frameon=False, fontsize=7)
    for side in axes:
        side.axhline(0, color="#cccccc", linewidth=1, zorder=0)
        side.spines[["top", "right"]].set_visible(False)
    for side in axes[:2]:
        side.set_xscale("log")
    drawn.savefig(path)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m studies.rate_table", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    wanted = [name for name in (*CHOOSING, *CONFIRMING) if (args.folder / name / "signals.json").exists()]
    models = [Measured.read(args.folder / name) for name in wanted]
    choosing = [model for model in models if model.name in CHOOSING]
    print("Limits that suit the models on which the rule was chosen\n", *signal_table(choosing), sep="\n")
    print("\nThree steps, development rows\n", *plateau_table(models), sep="\n")
    print("\nAll ways, development rows\n", *way_table(models), sep="\n")
    print("\nTest rows\n", *test_table(models), sep="\n")
    if args.figure:
        figure(models, args.figure)


if __name__ == "__main__":
    main()
