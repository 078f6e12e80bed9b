"""What memorizing needs, before it is started: bytes from shapes, against the bytes that are free.

Large at 1.5 B parameters (P = 50 M tuned, D = 2048, F = 8192, V = 128,256), in this order: 16 P for the float32
weights, gradients and moments; 2 P twice for the weights and gradients in the model's type; the logits of a chunk of
positions, twice; the FFN's activations of a piece; four vectors per scored position. Only the last grows with the
length, and what chunks and pieces take is chosen so that the whole fits.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from fastmem.core.memory import Recipe
from fastmem.core.trunk import Trunk
from fastmem.errors import ResourceError

# Positions that go through the head at once: enough that its weights are read for 2 * 256 operations per number.
CHUNK_POSITIONS = 256
# Positions that go through the FFN at once: every piece adds to all its weights' gradients.
PIECE_POSITIONS = 1024
SMALLEST_POSITIONS = 32
# The untouched model's logits are kept from step to step as far as they fit in here; beyond, computed again.
KEPT_LOGITS_BYTES = 256 * 2**20
# A share of the free memory that is left alone: allocators keep gaps.
SPARE = 0.1
# On a CPU lockstep gains where launching dominates (embedded shape: 1.15 times as fast) and loses where one document's
# products keep the cores busy (1.5 B, four documents, 4 GB: 0.95 and 0.94 times as fast in two runs).
LOCKSTEP_BYTES = {"cpu": 2**30}


@dataclass(frozen=True)
class Plan:
    """How the scored positions are cut, and how many bytes of base logits are kept. need_bytes: in all."""

    chunk_positions: int
    piece_positions: int
    kept_logits_bytes: int
    need_bytes: int


def plan(trunk: Trunk, recipe: Recipe, positions: Sequence[int], free: int | None = None) -> Plan:
    """For documents of so many scored positions, tuned side by side. free: bytes; by default what the device has.

    Errors: `ResourceError` that says how many positions would fit.
    """
    free = free_bytes(trunk.device) if free is None else free
    usable = None if free is None else int(free * (1 - SPARE))
    kept = min(KEPT_LOGITS_BYTES, sum(positions) * _logits_bytes(trunk))
    chunk, piece = CHUNK_POSITIONS, PIECE_POSITIONS
    while True:
        need = need_bytes(trunk, recipe, positions, chunk, piece) + kept
        if usable is None or need <= usable:
            return Plan(chunk, piece, kept, need)
        if kept:
            kept = 0
        elif piece > SMALLEST_POSITIONS:
            piece //= 2
            chunk = min(chunk, piece)
        else:
            raise _too_large(trunk, recipe, positions, need, usable)


def side_by_side(trunk: Trunk, recipe: Recipe, positions: Sequence[int]) -> list[list[int]]:
    """Which documents, by index, are tuned in lockstep: as many as fill a piece, where it pays and memory allows."""
    free = free_bytes(trunk.device)
    allowed = LOCKSTEP_BYTES.get(trunk.device.type, float("inf"))
    if free is not None:
        allowed = min(allowed, free * (1 - SPARE) / 2)
    groups: list[list[int]] = []
    for i in sorted(range(len(positions)), key=positions.__getitem__):
        wanted = [positions[j] for j in [*(groups[-1] if groups else []), i]]
        chunk = min(CHUNK_POSITIONS, sum(wanted))
        need = need_bytes(trunk, recipe, wanted, chunk, PIECE_POSITIONS)
        if groups and sum(wanted) <= PIECE_POSITIONS and need <= allowed:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def need_bytes(trunk: Trunk, recipe: Recipe, positions: Sequence[int], chunk: int, piece: int) -> int:
    """Bytes beside the loaded model at the fullest moment of an optimization, base logits not counted."""
    weights = trunk.parameters(recipe.layers)
    tuned = sum(w.numel() for w in weights.values())
    size = trunk.dtype.itemsize
    wide = max(size, 4)
    if recipe.parametrization == "lora":
        factors = sum(recipe.rank * sum(w.shape[-2:]) for w in weights.values() if w.ndim > 1)
        per_document = 4 * wide * factors + (size + 2 * wide) * tuned
    else:
        per_document = 4 * wide * tuned + (size if size < wide else 0) * tuned
    lowest, width = min(trunk.indices(recipe.layers)), trunk.model.get_input_embeddings().weight.shape[1]
    mixers = len(trunk.anatomy.layers[lowest].mixers)
    per_position = (1 + mixers + 3) * width * size
    # One pass's gradients, and what a layer keeps for its backward pass: of a gated FFN four times its width. Layers
    # above the lowest tuned one cannot be cut, since their attention sees all positions.
    widest = max(max(w.shape[-2:]) for w in weights.values() if w.ndim > 1)
    layers = trunk.depth - lowest
    cut = min(piece, sum(positions)) if layers == 1 else sum(positions)
    passing = size * tuned + cut * layers * (4 * widest + 6 * width) * size
    heads = 2 * min(chunk, sum(positions)) * _logits_bytes(trunk)
    if recipe.shortlist is not None and recipe.shortlist < trunk.vocabulary:  # rows of each chunk; logits, slope
        heads += ceil(sum(positions) / chunk) * recipe.shortlist * width * size
        heads += sum(positions) * (recipe.shortlist + width) * wide
    return per_document * len(positions) + per_position * sum(positions) + passing + heads


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where nobody says."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found.append(int(limit.read_text()) - int(used.read_text()))
    return min(found, default=None)


def _logits_bytes(trunk: Trunk) -> int:
    return trunk.vocabulary * trunk.dtype.itemsize


def _too_large(trunk: Trunk, recipe: Recipe, positions: Sequence[int], need: int, usable: int) -> ResourceError:
    small, others = SMALLEST_POSITIONS, [0] * (len(positions) - 1)
    fitting = bisect_right(
        range(sum(positions)), usable, key=lambda n: need_bytes(trunk, recipe, [n, *others], small, small)
    )
    fitting = max(0, fitting - 1)
    given = f"memorizing {sum(positions)} scored tokens needs {need / 1e9:.2f} GB on {trunk.device}"
    remedy = f"at most {fitting} scored tokens would fit" if fitting else "not even one token would fit"
    return ResourceError(
        f"{given}, {usable / 1e9:.2f} GB are free: {remedy}. Shorten the context (--truncate), load the model in a "
        "smaller type (--dtype bfloat16), or memorize fewer documents at once."
    )


@contextmanager
def explained_out_of_memory() -> Iterator[None]:
    """Turn an allocator's failure into a `ResourceError` that says what to lower."""
    try:
        yield
    except ResourceError:
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        allocator = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not allocator and "allocate memory" not in text and "not enough memory" not in text:
            raise
        line = text.splitlines()[0] if text else type(error).__name__
        raise ResourceError(
            f"out of memory ({line}): shorten the context (--truncate), lower --batch-size or --max-new-tokens, or "
            "load the model in a smaller type (--dtype bfloat16)."
        ) from error
