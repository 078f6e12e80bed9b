"""What `which_layer.py` and `alternatives.py` share: rows, the choice of rates, the run, the tables and the figure.

A *way* turns one document into something that answers a question about it. The rows are those of `study_rows.py`,
right by the main score of their task. Every way is tried at three rates on development rows of the first three kinds.
The best is the one with the largest sum of the shares of right answers over these kinds, of equals the middle one.
While the best is the lowest or the highest rate, the next one beyond it is tried, too, up to six rates. Test rows of
all kinds are answered at the best rate only. Seconds are processor time of making the memory.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fastmem import FastMem
from fastmem.answer.request import Request
from fastmem.answer.running_batch import answers
from fastmem.lab.report.content import mean_text
from fastmem.lab.run.run_files import Appender, complete_rows
from fastmem.lab.scores.statistics import Comparison, compare
from fastmem.tiny import world
from studies import study_rows
from studies.study_rows import Row
from studies.tuned_parameters import greedy

KINDS = ("contradicts", "agrees", "irrelevant", "turned", "hop", "list", "json", "summary")
CHOOSING_KINDS = KINDS[:3]  # of the rows that choose a rate
NQ_KINDS = KINDS[:2]  # no model here knows the answers of NQ, which an irrelevant document leaves to the model
Cells = dict[str, Any]  # of one row: "name rate" -> right or wrong by kind, seconds, bytes, loss
BASE = "base"
MOST_RATES = 6  # that are tried on development rows


@dataclass(frozen=True)
class Made:
    """What answers about one document: either requests to FastMem, or logits of ids [B, T] at the last K positions.

    seconds: processor time of making it. bytes: what must be kept to answer again. loss: on the document, before the
    last update.
    """

    seconds: float = 0.0
    bytes: int = 0
    request: Callable[[Row], Request] | None = None
    logits: Callable[[Tensor, int], Tensor] | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Way:
    """name: as in the table. rates: the first three to choose from, in equal ratios, or one. make: from (model,
    document, rate)."""

    name: str
    rates: tuple[float, ...]
    make: Callable[[FastMem, str, float], Made]


def texts(llm: FastMem, row: Row, made: Mapping[str, Made]) -> dict[str, str]:
    """The answers of all ways, by their names."""
    requests = {name: one.request(row) for name, one in made.items() if one.request is not None}
    found = answers(llm.batch(), list(requests.values()), 64)
    given = {name: answer.text for name, answer in zip(requests, found, strict=True)}
    tokenizer, stop = llm.preparer.require_tokenizer(), llm.preparer.stop_ids
    prompt, guesses = llm.ids(row.example.prompt).tolist(), [list(answer.token_ids) for answer in found]
    for name, one in made.items():
        if one.logits is not None:
            tokens = greedy(one.logits, prompt, guesses, stop, row.max_new_tokens)
            given[name] = tokenizer.decode(tokens, skip_special_tokens=True)
            guesses.append(tokens)
    return given


def answered(llm: FastMem, row: Row, wanted: Sequence[tuple[Way, float]]) -> dict[str, Any]:
    """By way and rate ("name rate"): right or wrong under the row's kind, seconds and bytes."""
    made = {key(way, rate): way.make(llm, row.example.context, rate) for way, rate in wanted}
    given, cells = texts(llm, row, made), {}
    for name, one in made.items():
        right = {row.kind: row.right(given[name])}
        cells[name] = {"right": right, "seconds": round(one.seconds, 4), "bytes": one.bytes, "loss": one.loss}
    return cells


def key(way: Way, rate: float) -> str:
    """A way at a rate."""
    return f"{way.name} {rate:g}" if len(way.rates) > 1 else way.name


def run(llm: FastMem, rows: Sequence[Row], wanted: Sequence[tuple[Way, float]], path: Path) -> None:
    """Answer what the file does not have yet: each line holds some ways' cells of a row."""
    with Appender(path) as file:
        done = {(line["id"], name) for line in file.rows for name in line["cells"]}
        for number, row in enumerate(rows):
            missing = [(way, rate) for way, rate in wanted if (row.id, key(way, rate)) not in done]
            if missing:
                file.append({"id": row.id, "cells": answered(llm, row, missing)})
                print(f"{path}: row {number + 1} of {len(rows)}", end="\r", flush=True)
    print()


def read(path: Path) -> list[Cells]:
    """The cells of every row by name, from all lines of the row."""
    merged: dict[str, Cells] = {}
    for line in complete_rows(path)[1]:
        merged.setdefault(line["id"], {}).update(line["cells"])
    return list(merged.values())


def study(
    llm: FastMem,
    ways: Sequence[Way],
    folder: Path,
    data: Path | None,
    rows: Mapping[world.Part, int],
    kinds: Sequence[str] = KINDS,
) -> None:
    """The development rows, the choice of the rates, the test rows of these kinds. rows: of each kind, by part."""
    folder.mkdir(parents=True, exist_ok=True)

    def of(part: world.Part, kinds: Sequence[str]) -> list[Row]:
        asked = [kind for kind in kinds if not data or kind in NQ_KINDS]
        return list(study_rows.in_turns(study_rows.rows(data, part, asked, rows[part])))

    dev = folder / "dev.jsonl"
    try_rates(llm, of("dev", CHOOSING_KINDS), [way for way in ways if len(way.rates) > 1], dev)
    chosen = chosen_rates(read(dev), ways)
    run(llm, of("test", kinds), [(way, chosen[way.name]) for way in ways], folder / "test.jsonl")


def try_rates(llm: FastMem, rows: Sequence[Row], ways: Sequence[Way], path: Path) -> None:
    """Answer development rows at the rates of every way, and at further ones until the best has neighbours."""
    before = read(path) if path.exists() else []
    wanted = [(way, rate) for way in ways for rate in sorted({*way.rates, *tried_rates(before, way)})]
    while wanted:
        run(llm, rows, wanted, path)
        found = read(path)
        wanted = [(way, rate) for way in ways if (rate := further_rate(found, way)) is not None]


def rights(rows: Sequence[Cells], name: str) -> dict[str, list[bool | None]]:
    """By kind, whether the answers of a way were right, row by row; None where it has not answered."""
    kinds = {kind for row in rows for cell in row.values() for kind in cell["right"]}
    return {
        kind: [
            row[name]["right"][kind] if name in row else None
            for row in rows
            if any(kind in cell["right"] for cell in row.values())
        ]
        for kind in kinds
    }


def share(values: Sequence[bool | None]) -> float:
    """Of those that are not None."""
    given = [value for value in values if value is not None]
    return sum(given) / max(len(given), 1)


def tried_rates(rows: Sequence[Cells], way: Way) -> list[float]:
    """The rates of a way that these rows have, from low to high."""
    keys = (name.rpartition(" ") for row in rows for name in row)
    return sorted({float(rate) for name, _, rate in keys if name == way.name})


def best_rate(rows: Sequence[Cells], way: Way) -> float:
    """Of those that were tried; see the head of this file."""
    sums = {rate: sum(map(share, rights(rows, key(way, rate)).values())) for rate in tried_rates(rows, way)}
    equal = [rate for rate, total in sums.items() if math.isclose(total, max(sums.values()))]
    return equal[len(equal) // 2]


def further_rate(rows: Sequence[Cells], way: Way) -> float | None:
    """The next rate beyond the best one, if that is the lowest or the highest of fewer than the most."""
    tried, best, ratio = tried_rates(rows, way), best_rate(rows, way), way.rates[1] / way.rates[0]
    if len(tried) == MOST_RATES or best not in (tried[0], tried[-1]):
        return None
    return best / ratio if best == tried[0] else best * ratio


def chosen_rates(rows: Sequence[Cells], ways: Sequence[Way]) -> dict[str, float]:
    """The rate of every way that has one, or whose rates these rows have."""
    found = {way.name: way.rates[0] for way in ways if len(way.rates) == 1}
    complete = [way for way in ways if len(way.rates) > 1 and {*way.rates} <= {*tried_rates(rows, way)}]
    return found | {way.name: best_rate(rows, way) for way in complete}


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979): each can be compared with 0.05."""
    order, corrected, largest = sorted(range(len(p_values)), key=lambda i: p_values[i]), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@dataclass(frozen=True)
class Results:
    """The test rows of one model, and the rates that its development rows chose, as way -> "name rate"."""

    rows: list[Cells]
    names: dict[str, str]
    rates: dict[str, float]

    @classmethod
    def read(cls, folder: Path, ways: Sequence[Way]) -> "Results":
        """Of the ways that have answered."""
        rates, rows = chosen_rates(read(folder / "dev.jsonl"), ways), read(folder / "test.jsonl")
        names = {way.name: key(way, rates[way.name]) for way in ways if way.name in rates}
        names = {way: name for way, name in names.items() if any(name in row for row in rows)}
        return cls(rows, names, rates)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if kind in self.right(next(iter(self.names)))]

    def right(self, way: str) -> dict[str, list[bool | None]]:
        return rights(self.rows, self.names[way])

    def answered(self, way: str, kind: str) -> int:
        """How many rows of a kind a way has answered."""
        return sum(value is not None for value in self.right(way)[kind])

    def median(self, way: str, what: str) -> float:
        name = self.names[way]
        return median(row[name][what] for row in self.rows if name in row)

    def against(self, reference: str) -> dict[tuple[str, str], tuple[Comparison, float]]:
        """By (way, kind): the comparison with a way on the rows that both answered, and its p-value (McNemar)
        corrected over all of these."""
        found = {
            (way, kind): compare(self.right(reference)[kind], self.right(way)[kind])
            for way in self.names
            if way != reference
            for kind in self.kinds
            if self.answered(way, kind)
        }
        corrected = holm([1.0 if one.p_value is None else one.p_value for one in found.values()])
        return {name: (one, p) for (name, one), p in zip(found.items(), corrected, strict=True)}


def tables(results: Results, ways: Sequence[Way], reference: str) -> Iterator[str]:
    """Two tables: the kinds that choose a rate, with the costs, and the others."""
    first = [kind for kind in results.kinds if kind in CHOOSING_KINDS]
    others = [kind for kind in results.kinds if kind not in CHOOSING_KINDS]
    yield from table(results, ways, reference, first, costs=True)
    if others:
        yield from ["", *table(results, ways, reference, others)]


def table(
    results: Results, ways: Sequence[Way], reference: str, kinds: Sequence[str], costs: bool = False
) -> Iterator[str]:
    """Shares of right answers of these kinds with the difference from `reference`. *: it differs at 0.05, corrected
    over all kinds (Holm)."""
    heads = ["way", *(["rate"] if costs else []), "rows", *kinds, *(["s", "kB"] if costs else [])]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    against = results.against(reference)
    for way in (way for way in ways if way.name in results.names):
        found = results.right(way.name)
        counts = [str(results.answered(way.name, kind)) for kind in kinds]
        cells = [f"{results.rates[way.name]:g}" if len(way.rates) > 1 else ""] if costs else []
        cells.append("/".join(counts if len(set(counts)) > 1 else counts[:1]))
        for kind in kinds:
            text = f"{share(found[kind]):.3f}" if results.answered(way.name, kind) else "-"
            if (way.name, kind) in against:
                one, p = against[way.name, kind]
                text += f", {mean_text(one.difference, '+')}{'*' if p < 0.05 else ''}"
            cells.append(text)
        if costs:
            kilobytes = results.median(way.name, "bytes") / 1000
            cells += [f"{results.median(way.name, 'seconds'):.2f}", f"{kilobytes:,.0f}" if kilobytes else "0"]
        yield f"| {way.name} | {' | '.join(cells)} |"


def development_table(folder: Path, ways: Sequence[Way]) -> Iterator[str]:
    """Every rate of every way on development rows: the shares of right answers by kind."""
    rows, lines = read(folder / "dev.jsonl"), dict[str, list[str]]()
    for way in ways:
        if len(way.rates) > 1 and (tried := tried_rates(rows, way)):
            best, lines[way.name] = best_rate(rows, way), []
            for rate in tried:
                found = rights(rows, key(way, rate))
                shares = ", ".join(f"{share(found[kind]):.2f}" for kind in KINDS if kind in found)
                lines[way.name].append(f"{rate:g}{' (chosen)' if rate == best else ''}: {shares}")
    columns = max(map(len, lines.values()), default=0)
    yield f"| way | rates, from low to high |{' |' * (columns - 1)}"
    yield "|---" * (1 + columns) + "|"
    for name, cells in lines.items():
        yield f"| {' | '.join([name, *cells, *[''] * (columns - len(cells))])} |"


def document(results: Mapping[str, Results], reference: str) -> dict[str, Any]:
    """Every number of the tables: by model and way the rate, the costs, and of every kind that it answered the rows,
    the share of right answers, and the difference from `reference` with its corrected p-value."""
    models: dict[str, Any] = {}
    for model, found in results.items():
        against, models[model] = found.against(reference), {}
        for way in found.names:
            kinds: dict[str, dict[str, Any]] = {}
            costs = {what: found.median(way, what) for what in ("seconds", "bytes")}
            models[model][way] = {"rate": found.rates[way], **costs, "kinds": kinds}
            for kind, right in found.right(way).items():
                if rows := found.answered(way, kind):
                    kinds[kind] = {"rows": rows, "right": share(right)}
                if (way, kind) in against:
                    comparison, p = against[way, kind]
                    kinds[kind] |= {"difference": asdict(comparison.difference), "corrected p": p}
    return {"reference": reference, "models": models}


def figure(results: Mapping[str, Results], reference: str, path: Path) -> None:
    """The differences from the base by kind, of the kinds that choose a rate; one panel a model."""
    from matplotlib import pyplot as plt

    inches = [1.0 + 0.3 * len(found.names) for found in results.values()]
    drawn, axes = plt.subplots(len(results), 1, squeeze=False, figsize=(8, sum(inches)), height_ratios=inches)
    drawn.set_layout_engine("constrained")
    for axis, (model, found) in zip(axes[:, 0], results.items(), strict=True):
        against = found.against(BASE)
        ways = [way for way in found.names if way != BASE][::-1]
        kinds = [kind for kind in found.kinds if kind in CHOOSING_KINDS]
        for offset, kind in enumerate(kinds):
            shown = [place for place, way in enumerate(ways) if (way, kind) in against]
            means = [against[ways[place], kind][0].difference for place in shown]
            places = [place + 0.4 - 0.8 * (offset + 0.5) / len(kinds) for place in shown]
            values = [mean.value or 0.0 for mean in means]
            low = [
                value - (value if mean.low is None else mean.low) for mean, value in zip(means, values, strict=True)
            ]
            high = [
                (value if mean.high is None else mean.high) - value for mean, value in zip(means, values, strict=True)
            ]
            axis.errorbar(values, places, xerr=[low, high], fmt="o", markersize=3, linewidth=1, label=kind)
        axis.set_yticks(range(len(ways)), [f"{way} *" if way == reference else way for way in ways], fontsize=8)
        axis.axvline(0, color="#888888", linewidth=1, zorder=0)
        axis.set_title(model, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(CHOOSING_KINDS))
    axes[-1, 0].set_xlabel("share of right answers, less the base's; bars: 95 %; *: FastMem")
    drawn.savefig(path)


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, processor seconds)."""
    start = time.process_time()
    made = make()
    return made, time.process_time() - start


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes in float32."""
    return 4 * sum(tensor.numel() for tensor in tensors.values())


def load(model: str | None) -> FastMem:
    """The model in float32; None for the embedded one."""
    from fastmem.tiny import MODEL_DIR

    return FastMem.from_pretrained(model or str(MODEL_DIR), dtype=torch.float32)
