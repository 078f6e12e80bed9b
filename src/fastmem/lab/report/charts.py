"""The data of the page's charts; `charts.html.jinja` draws them as inline SVG without a library or a script."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear axis: calling it turns a value into a coordinate. ticks: three to seven round values, end to end."""

    ticks: list[float]
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float) -> "Scale":
        """An axis that holds all values, drawn from coordinate `start` to `end`."""
        low, high = min(values), max(values)
        span = max(high - low, 1e-9, abs(high) * 1e-3)
        power = 10.0 ** int(f"{span:e}".split("e")[1])
        step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1, 2) if span / (s * power) <= 5)
        first, last = int(low // step), int(-(-high // step))
        return cls([round(i * step, 12) for i in range(first, max(last, first + 1) + 1)], start, end)


@dataclass(frozen=True)
class Point:
    """One line of a chart of intervals. partial: written below the label. note: written to the right. accent: drawn in
    the accent colour."""

    label: str
    partial: str
    value: float
    low: float | None
    high: float | None
    note: str
    accent: bool


@dataclass(frozen=True)
class Bar:
    """One line of a chart of stacked bars. partial, note: as for `Point`. parts: from the left, in the order of the
    legend."""

    label: str
    partial: str
    parts: Sequence[float]
    note: str


@dataclass(frozen=True)
class Curve:
    """One panel of a chart of curves: a value per step, and the band around it from `low` to `high`."""

    name: str
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
