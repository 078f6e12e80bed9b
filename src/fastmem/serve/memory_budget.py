"""How much memories take, how much there may be, and which leave when another one comes. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmem.errors import InputError
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem
from fastmem.serve.memory_source import MemorySource


@dataclass(frozen=True)
class Budget:
    """The greatest number of bytes in each place. None: no limit."""

    device_bytes: int | None = None
    ram_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(eq=False)
class Entry:
    """One memory and where it is.

    holders: how many jobs use it or wait for it. used: a counter, larger is more recent. made: it exists, in RAM or on
    disk. unsaved: it is being written to disk. problem: why it could not be written the last time. loading: it is
    being read from disk. record: see `memory_records.py`.
    """

    source: MemorySource
    ram_bytes: int
    device_bytes: int
    memory: Memory | None = None
    on_device: bool = False
    path: Path | None = None
    disk_bytes: int = 0
    holders: int = 0
    used: int = 0
    made: bool = False
    unsaved: bool = False
    problem: str = ""
    loading: bool = False
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def in_ram(self) -> bool:
        """Whether it counts for the RAM budget: it is in RAM, being read or being made."""
        return self.memory is not None or self.loading or not self.made


def memory_bytes(llm: FastMem, recipe: Recipe) -> tuple[int, int]:
    """(RAM, device) bytes of a memory with this recipe, before it is made.

    In RAM it is a difference in float32, on the device it is weights in the model's type.
    """
    tuned = list(llm.split_model.parameters(recipe.layers).values())
    numbers = sum(t.numel() for t in tuned)
    if recipe.parametrization == "lora":
        sides = [(t.numel() // (t.shape[-1] * t.shape[-2]), t.shape[-2], t.shape[-1]) for t in tuned if t.ndim >= 2]
        numbers = sum(experts * min(recipe.rank, n, m) * (n + m) for experts, n, m in sides)
    return numbers * max(4, tuned[0].element_size()), sum(t.numel() * t.element_size() for t in tuned)


def check_budget(llm: FastMem, budget: Budget, recipe: Recipe) -> None:
    """Errors: `InputError` if one memory of this recipe is larger than the whole budget."""
    ram_bytes, device_bytes = memory_bytes(llm, recipe)
    for option, place, need, limit in (
        ("ram_bytes", "RAM", ram_bytes, budget.ram_bytes),
        ("device_bytes", "device memory", device_bytes, budget.device_bytes),
    ):
        if limit is not None and need > limit:
            raise InputError(
                f"a memory of this recipe takes {need:,} bytes, the store may hold {limit:,} in {place}: raise "
                "that limit, or tune fewer layers.",
                options=(option,),
            )


def evictions(entry: Entry, others: Sequence[Entry], budget: Budget) -> list[tuple[str, Entry]] | None:
    """(place, entry) of what has to leave so that `entry` fits on the device and in RAM; None if it cannot fit."""
    others = sorted(others, key=lambda e: e.used)
    evictable = [e for e in others if not e.holders and not e.unsaved]
    leaving: list[tuple[str, Entry]] = []
    if (limit := budget.ram_bytes) is not None:
        over = entry.ram_bytes + sum(e.ram_bytes for e in others if e.in_ram) - limit
        for other in (e for e in evictable if e.in_ram):
            if over > 0:
                leaving.append(("ram", other))
                over -= other.ram_bytes
        if over > 0:
            return None
    if (limit := budget.device_bytes) is not None:
        gone = {id(e) for _, e in leaving}
        there = [e for e in others if (e.on_device or e.holders) and id(e) not in gone]
        over = entry.device_bytes + sum(e.device_bytes for e in there) - limit
        for other in (e for e in evictable if e.on_device and id(e) not in gone):
            if over > 0:
                leaving.append(("device", other))
                over -= other.device_bytes
        if over > 0:
            return None
    return leaving
