"""Charts as inline SVG: no library, no script, colours from the page's style sheet (classes, so dark mode works)."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760


@dataclass(frozen=True)
class Point:
    """One line of `intervals`. note: to its right. accent: drawn in the colour of FastMem."""

    label: str
    value: float
    low: float | None
    high: float | None
    note: str = ""
    accent: bool = False


@dataclass(frozen=True)
class Bar:
    """One line of `bars`: parts stacked from the left, in the order of the legend."""

    label: str
    parts: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """values: mean per step. low, high: the band around it."""

    label: str
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def intervals(points: Sequence[Point], reference: float | None, title: str) -> str:
    """A dot and its interval per line, with a dashed line at `reference`."""
    left, right, row = 150, 620, 30
    ends = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    low, high, ticks = _scale(min(ends), max(ends))
    height = row * len(points) + 34

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [_axis(ticks, x, height - 22)]
    if reference is not None:
        parts.append(
            f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="4" y2="{height - 22}"/>'
        )
    for i, point in enumerate(points):
        y, kind = row * i + 20, "accent" if point.accent else "plain"
        parts.append(f'<text class="label" x="{left - 12}" y="{y + 4}" text-anchor="end">{escape(point.label)}</text>')
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line class="whisker {kind}" x1="{x(point.low):.1f}" x2="{x(point.high):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="dot {kind}" cx="{x(point.value):.1f}" cy="{y}" r="5.5"/>')
        parts.append(f'<text class="note" x="{right + 14}" y="{y + 4}">{escape(point.note)}</text>')
    return _svg(parts, height, title)


def bars(lines: Sequence[Bar], legend: Sequence[str], title: str, unit: str = "") -> str:
    """Stacked bars; `unit` is written at the axis."""
    left, right, row = 150, 620, 28
    longest = max(sum(line.parts) for line in lines) or 1.0
    _, high, ticks = _scale(0.0, longest)
    height = row * len(lines) + 62

    def x(value: float) -> float:
        return left + value / high * (right - left)

    parts = [_axis(ticks, x, height - 22, unit, top=22)]
    at = left
    for i, name in enumerate(legend):
        parts.append(f'<rect class="part{i}" x="{at}" y="4" width="11" height="11" rx="2"/>')
        parts.append(f'<text class="note" x="{at + 16}" y="14">{escape(name)}</text>')
        at += 34 + round(7.6 * len(name))
    for i, line in enumerate(lines):
        y, start = row * i + 28, 0.0
        parts.append(f'<text class="label" x="{left - 12}" y="{y + 13}" text-anchor="end">{escape(line.label)}</text>')
        for n, part in enumerate(line.parts):
            if part > 0:
                parts.append(
                    f'<rect class="part{n}" x="{x(start):.1f}" y="{y}" width="{x(start + part) - x(start):.1f}" '
                    f'height="18"><title>{escape(legend[n])}: {part:.4g}</title></rect>'
                )
            start += part
        parts.append(f'<text class="note" x="{right + 14}" y="{y + 13}">{escape(line.note)}</text>')
    return _svg(parts, height, title)


def curves(panels: Sequence[tuple[str, Curve]], title: str, axis: str = "step") -> str:
    """Panels side by side, each one curve with its band; `axis` is written below them."""
    gap, height = 60, 230
    width = (WIDTH - gap * len(panels)) / len(panels)
    parts = []
    for n, (name, curve) in enumerate(panels):
        left = gap * (n + 0.75) + width * n
        low, high, ticks = _scale(min(curve.low), max(curve.high))
        last = max(len(curve.values) - 1, 1)

        def at(
            step: int, value: float, left: float = left, low: float = low, high: float = high, last: int = last
        ) -> str:
            return f"{left + step / last * width:.1f},{190 - (value - low) / (high - low) * 155:.1f}"

        parts.append(f'<text class="label" x="{left:.0f}" y="16">{escape(name)}</text>')
        for tick in ticks:
            y = float(at(0, tick).split(",")[1])
            parts.append(f'<line class="grid" x1="{left:.1f}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        band = [at(i, v) for i, v in enumerate(curve.high)] + [
            at(i, v) for i, v in reversed(list(enumerate(curve.low)))
        ]
        parts.append(f'<polygon class="band{n}" points="{" ".join(band)}"/>')
        parts.append(f'<polyline class="line{n}" points="{" ".join(at(i, v) for i, v in enumerate(curve.values))}"/>')
        for i in _few(last):
            x = float(at(i, low).split(",")[0])
            parts.append(f'<text class="tick" x="{x:.1f}" y="208" text-anchor="middle">{i}</text>')
        parts.append(f'<text class="tick" x="{left + width / 2:.1f}" y="224" text-anchor="middle">{axis}</text>')
    return _svg(parts, height, title)


def grid(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: dict[tuple[int, int], float],
    best: tuple[int, int],
    title: str,
    scale: tuple[float, float],
) -> str:
    """A table of coloured cells, (row, column) -> value; `best` is framed. Missing cells stay empty.

    scale: the values of the faintest and the strongest colour, so that several tables can be compared.
    """
    left, top, height, width = 90, 26, 34, 76
    low, high = scale
    parts = [
        f'<text class="tick" x="{left + width * (i + 0.5)}" y="{top - 9}" text-anchor="middle">{escape(name)}</text>'
        for i, name in enumerate(columns)
    ]
    for r, name in enumerate(rows):
        y = top + height * r
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 22}" text-anchor="end">{escape(name)}</text>')
        for c in range(len(columns)):
            if (r, c) not in cells:
                continue
            share = (cells[r, c] - low) / (high - low) if high > low else 0.5
            frame = " best" if (r, c) == best else ""
            parts.append(
                f'<rect class="cell{frame}" style="--share:{share:.3f}" x="{left + width * c + 1}" y="{y + 1}" '
                f'width="{width - 2}" height="{height - 2}" rx="3"/>'
                f'<text class="value{" dark" if share > 0.8 else ""}" x="{left + width * (c + 0.5)}" y="{y + 22}" '
                f'text-anchor="middle">{cells[r, c]:.3f}</text>'
            )
    return _svg(parts, top + height * len(rows) + 6, title, left + width * len(columns) + 8)


def _svg(parts: Sequence[str], height: float, title: str, width: float = WIDTH) -> str:
    return (
        f'<div class="chart"><svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg></div>'
    )


def _axis(ticks: Sequence[float], x, bottom: float, unit: str = "", top: float = 4) -> str:  # type: ignore[no-untyped-def]
    found = []
    for i, tick in enumerate(ticks):
        said = f"{tick:g}" + (f" {unit}" if unit and i == len(ticks) - 1 else "")
        found.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        found.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{said}</text>')
    return "".join(found)


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round ends around [low, high] and three to seven ticks from end to end."""
    span = max(high - low, 1e-9, abs(high) * 1e-3)
    power = 10.0 ** int(f"{span:e}".split("e")[1])
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1, 2) if span / (s * power) <= 5)
    first, last = int(low // step), int(-(-high // step))
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 12) for i in range(first, last + 1)]


def _few(last: int) -> list[int]:
    every = max(1, round(last / 5))
    return list(range(0, last + 1, every))
