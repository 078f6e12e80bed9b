"""The tables and the figure of docs/results/cost.md: predictions beside measurements, and sizes that were not run.

Called by `cost_by_size.py --table`; question, design and decision rule stand there.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from fastmem import Recipe
from fastmem.lab.run.run_files import Record
from fastmem.predicted_cost import (
    Machine,
    ModelShape,
    Work,
    disk_bytes,
    peak_bytes,
    prompt_work,
    read_work,
    steps_work,
    token_work,
)
from studies.quiet_machine import LIMIT

MOST_ERROR = 0.2
ITEMSIZE = {"float32": 4, "bfloat16": 2}
KINDS = {"read": "trunk pass", "steps": "steps", "prompt": "prompt", "token": "token"}


@dataclass(frozen=True)
class Hardware:
    """A machine from its data sheets. products: operations per second in bfloat16 or float32. bytes: of memory per
    second. memory: bytes of it. share, bytes_share: what is assumed to be reached. layer: seconds of its modules."""

    name: str
    products: float
    bytes: float
    itemsize: int
    memory: float
    share: float = 0.5
    bytes_share: float = 0.7
    layer: float = 3e-4

    @property
    def machine(self) -> Machine:
        """The rates that are assumed."""
        return Machine.simple(self.products * self.share, self.bytes * self.bytes_share, self.layer)


HARDWARE = (
    # 8 cores at 3 GHz, two AVX2 multiply-adds of 8 float32 a cycle: 32 operations; DDR5-5600 (JEDEC), two channels.
    Hardware("laptop, 32 GB", 8 * 3e9 * 32, 89.6e9, 4, 32e9),
    # NVIDIA Ada GPU architecture white paper: FP16 tensor operations with FP32 accumulate, dense; 24 GB.
    Hardware("RTX 4090", 165.2e12, 1.008e12, 2, 24e9),
    # NVIDIA H100 data sheet, SXM5: BF16 tensor operations, dense (half of the figure with sparsity); 80 GB.
    Hardware("H100 SXM", 989.4e12, 3.35e12, 2, 80e9),
)


def work_of(row: Record, shape: ModelShape) -> Work:
    """What a measured row did."""
    if row["what"] == "read":
        return read_work(shape, row["tokens"])
    if row["what"] == "steps":
        return steps_work(shape, row["tokens"], Recipe(steps=row["case"]["steps"]))
    if row["what"] == "prompt":
        return prompt_work(shape, row["tokens"])
    return token_work(shape, row["rows"], row["past"], row["own"])


def with_predictions(rows: Sequence[Record], config: Callable[[str, int | None], Any]) -> list[Record]:
    """The rows with `predicted`, `simple` (three rates) and `parts`, in seconds; for bytes with `predicted`."""
    found: list[Record] = []
    for row in rows:
        case = row["case"]
        shape = ModelShape.of(config(case["shape"], case["vocabulary"]), ITEMSIZE[case["dtype"]])
        if row["what"] in KINDS:
            rates, work = Machine(**row["rates"]), work_of(row, shape)
            simple = Machine.simple(rates.products, rates.row_bytes, rates.layer)
            measured = statistics.median(row["seconds"])
            predicted: Record = {"predicted": work.seconds(rates), "simple": work.seconds(simple)}
            predicted["parts"] = work.parts(rates)
        elif row["what"] == "peak":
            measured = row["bytes"]
            predicted = {"predicted": peak_bytes(shape, row["tokens"], Recipe(steps=case["steps"]))}
        else:
            measured, predicted = row["bytes"], {"predicted": {name: _disk(shape, name) for name in row["bytes"]}}
        found.append(row | {"measured": measured, "parameters": shape.parameters} | predicted)
    return found


def _disk(shape: ModelShape, name: str) -> int:
    return disk_bytes(shape, rank=int(name.split()[1])) if name.startswith("rank") else disk_bytes(shape, name)


def error(row: Record, name: str = "predicted") -> float:
    """(predicted - measured) / measured; infinite if nothing was measured, as of a peak that others hid."""
    return row[name] / row["measured"] - 1 if row["measured"] else math.inf


def label(case: Record) -> str:
    """The shape of a case, and what differs from the usual."""
    usual = {"dtype": "float32", "vocabulary": None, "steps": 3}
    changed = [f"{case['scored']} tokens"]
    changed += [f"{case[name]}" for name in ("dtype",) if case[name] != usual[name]]
    changed += [f"vocabulary {case['vocabulary']:,}"] if case["vocabulary"] else []
    changed += [f"{case['steps']} steps"] if case["steps"] != usual["steps"] else []
    return f"{case['shape']}, {', '.join(changed)}"


def cell(row: Record) -> str:
    """Measured [smallest, largest], predicted and the error."""
    own = [seconds_text(value) for value in (row["measured"], min(row["seconds"]), max(row["seconds"]))]
    disturbed = "" if row["elsewhere"] <= LIMIT else ", disturbed"
    return f"{own[0]} [{own[1]}, {own[2]}] / {seconds_text(row['predicted'])} ({error(row):+.0%}{disturbed})"


def seconds_text(seconds: float) -> str:
    """Three digits, in ms or s."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def size_text(size: float) -> str:
    """Three digits, in MB or GB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def show(rows: Sequence[Record], path: Path | None) -> None:
    """Print the tables and one JSON document; draw the figure."""
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(label(row["case"]), []).append(row)
    print("| model | trunk pass | steps | prompt | token |", "|---" * 5 + "|", sep="\n")
    for name, own in groups.items():
        alone = {r["what"]: r for r in own if r["what"] != "token" or r["rows"] == 1}
        print(f"| {name} | {' | '.join(cell(alone[kind]) for kind in KINDS)} |")
    print("\n| model | answers | memories | one more token of each |", "|---" * 4 + "|", sep="\n")
    for name, own in groups.items():
        for row in own:
            if row["what"] == "token" and row["rows"] > 1:
                print(f"| {name} | {row['rows']} | {'one each' if row['own'] else 'one'} | {cell(row)} |")
    print("\n| model | peak | float32 file | bfloat16 | int8 | rank 8 |", "|---" * 6 + "|", sep="\n")
    for name, own in groups.items():
        (peak,), (disk,) = ([r for r in own if r["what"] == kind] for kind in ("peak", "disk"))
        peaks = f"{size_text(peak['measured'])} / {size_text(peak['predicted'])} ({error(peak):+.0%})"
        pairs = [(size, disk["predicted"][name] / size - 1) for name, size in disk["measured"].items()]
        files = [f"{size_text(size)} ({off:+.1%})" for size, off in pairs]
        print(f"| {name} | {peaks} | {' | '.join(files)} |")
    timed = [row for row in rows if row["what"] in KINDS and row["elsewhere"] <= LIMIT]
    disturbed = sum(row["what"] in KINDS for row in rows) - len(timed)
    print("\n| times | n | median error | with three rates | within 20 % | worst |", "|---" * 6 + "|", sep="\n")
    summary = {}
    for kind, name in ({"": "all"} | KINDS).items():
        own = [row for row in timed if kind in ("", row["what"])]
        summary[name] = errors = error_summary(own)
        shares = f"{errors['median']:.1%} | {errors['simple']:.1%} | {errors['within']:.0%}"
        print(f"| {name} | {errors['n']} | {shares} | {errors['worst']:+.0%}, {errors['worst_case']} |")
    peaks_error = statistics.median(abs(error(row)) for row in rows if row["what"] == "peak")
    median = summary["all"]["median"]
    verdict = "at most" if median <= MOST_ERROR else "above"
    print(f"\nMedian absolute error {median:.1%}: {verdict} {MOST_ERROR:.0%}.")
    print(
        f"Median absolute error of the peaks {peaks_error:.1%}. Times that were disturbed and left out: {disturbed}."
    )
    noisy = sorted({row["case"]["dtype"] for row in rows if row.get("rates_elsewhere", 0) > LIMIT})
    if noisy:
        print(f"Others worked while the rates were measured: {', '.join(noisy)}. Give --rates of a quieter start.")
    if path is not None:
        figure(timed, path)
    rates = {row["case"]["dtype"]: row["rates"] for row in rows}
    print(json.dumps({"study": "cost_by_size", "errors": summary, "peak_error": peaks_error, "rates": rates}))


def error_summary(rows: Sequence[Record]) -> dict[str, Any]:
    """The median absolute error, that with three rates, the share within the limit, and the worst."""
    worst = max(rows, key=lambda row: abs(math.log(row["predicted"] / row["measured"])))
    return {
        "n": len(rows),
        "median": statistics.median(abs(error(row)) for row in rows),
        "simple": statistics.median(abs(error(row, "simple")) for row in rows),
        "within": statistics.mean(abs(error(row)) <= MOST_ERROR for row in rows),
        "worst": error(worst),
        "worst_case": f"{KINDS[worst['what']]} of {label(worst['case'])}",
    }


def computed(configs: Mapping[str, Any], scored: int = 150, hardware: Sequence[Hardware] = HARDWARE) -> None:
    """What the formula says of machines that are known from their data sheets only."""
    columns = "machine | model, type | weights | machines | 10 steps on 150 tokens | token | 32 tokens | beside it"
    print(f"\n| {columns} |", "|---" * (columns.count("|") + 1) + "|", sep="\n")
    for one in hardware:
        for name, config in configs.items():
            shape, recipe, own = ModelShape.of(config, one.itemsize), Recipe(), one.machine
            memorize = read_work(shape, scored + 5) + steps_work(shape, scored, recipe)
            values = (memorize, token_work(shape, 1, scored), token_work(shape, 32, scored))
            times = " | ".join(seconds_text(work.seconds(own)) for work in values)
            weights, peak = shape.parameters * shape.itemsize, peak_bytes(shape, scored, recipe)
            kind = {4: "float32", 2: "bfloat16"}[one.itemsize]
            count = math.ceil((weights + peak) / one.memory)
            print(f"| {one.name} | {name}, {kind} | {size_text(weights)} | {count} | {times} | {size_text(peak)} |")


def figure(rows: Sequence[Record], path: Path) -> None:
    """Predicted against measured seconds."""
    matplotlib.rcParams |= {"svg.hashsalt": "fastmem", "font.size": 9}
    drawn, axes = plt.subplots(figsize=(5.5, 5), layout="constrained")
    for kind, name in KINDS.items():
        own = [row for row in rows if row["what"] == kind]
        axes.plot([r["measured"] for r in own], [r["predicted"] for r in own], "o", markersize=4, label=name)
    ends = [min(r["measured"] for r in rows) / 2, max(r["measured"] for r in rows) * 2]
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=0)
    near = ([end * (1 + sign * MOST_ERROR) for end in ends] for sign in (-1, 1))
    axes.fill_between(ends, *near, color="#eeeeee", zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured seconds")
    axes.set_ylabel("predicted seconds; grey: within 20 %")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    drawn.savefig(path, metadata={"Date": None})
