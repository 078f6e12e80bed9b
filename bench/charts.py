"""The charts of docs/results/performance.md from the last lines of bench.decode and bench.length.

python -m bench.decode > decode.log; python -m bench.length > length.log
python -m bench.charts decode.log length.log
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

INK, BAR, BOUND = "#222222", "#4c78a8", "#e45756"


def decode_chart(found: dict[str, Any], path: Path) -> None:
    """Cost of one more token by method, relative to the base model."""
    ratios = found["ratio_to_base"]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    bars = axes.barh(list(ratios), list(ratios.values()), color=BAR)
    axes.axvline(1, color=BOUND, linewidth=1, zorder=0)
    axes.bar_label(bars, fmt="%.2f", padding=4, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.invert_yaxis()
    axes.set_xlabel("seconds per token, base = 1")
    axes.set_xlim(0, 1.15 * max(ratios.values()))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def length_chart(found: dict[str, Any], path: Path) -> None:
    """Seconds of a step and bytes beside the model, by length."""
    tokens = [row["scored_tokens"] for row in found["rows"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    left.plot(tokens, [row["step_seconds"] for row in found["rows"]], "o-", color=BAR, label="a step")
    bound = [found["ceiling_seconds_per_token"] * n for n in tokens]
    left.plot(tokens, bound, "--", color=BOUND, label="matrix products alone")
    left.set_ylabel("seconds")
    right.plot(tokens, [row["peak_bytes"] / 1e9 for row in found["rows"]], "o-", color=BAR, label="measured")
    right.plot(tokens, [row["expected_bytes"] / 1e9 for row in found["rows"]], "--", color=BOUND, label="expected")
    right.set_ylabel("GB beside the loaded model")
    for axes in (left, right):
        axes.set_xlabel("scored tokens")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


CHARTS = {"decode": decode_chart, "length": length_chart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    matplotlib.rcParams |= {"svg.hashsalt": "fastmem", "font.size": 9}
    for log in args.logs:
        found = json.loads(log.read_text().splitlines()[-1])
        if found["bench"] in CHARTS:
            CHARTS[found["bench"]](found, args.output / f"performance-{found['bench']}.svg")


if __name__ == "__main__":
    main()
