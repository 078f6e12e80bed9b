"""The memory that memorizing needs, known before it starts: bytes from shapes, compared with the free bytes.

At 1.5 B parameters (P = 50 M tuned, D = 2048, F = 8192, V = 128,256) the large parts are, in this order: 16 P for the
float32 weights, gradients and moments; 2 P twice for weights and gradients in the model's type; the logits of a chunk
of positions, twice; the FFN's activations of a piece; four vectors per scored position. Only the last part grows with
the length of the document, and the sizes of chunks and pieces are chosen so that everything fits.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil, prod

from fastmem.device_memory import free_bytes
from fastmem.errors import ResourceError
from fastmem.memory.recipe import Recipe
from fastmem.split.model_interface import embedding_weight
from fastmem.split.split_model import SplitModel

# Positions that go through the head at once: enough that each weight read is used in 2 * 256 operations.
CHUNK_POSITIONS = 256
# Positions that go through the FFN at once: every piece adds to the gradients of all its weights.
PIECE_POSITIONS = 1024
SMALLEST_POSITIONS = 32
# The untouched model's logits are kept between steps as far as they fit in here; the rest is computed every time.
KEPT_LOGITS_BYTES = 256 * 2**20
# The share of the free memory that is not used, because allocators leave gaps.
RESERVE = 0.1


@dataclass(frozen=True)
class Plan:
    """How the scored positions are cut, and how many bytes of base logits are kept. need_bytes: the total need."""

    chunk_positions: int
    piece_positions: int
    kept_logits_bytes: int
    need_bytes: int


@dataclass(frozen=True)
class Sizes:
    """What the need depends on, numbers that a model's configuration states.

    tuned: shapes of the tuned weights. itemsize: bytes of a number of the model. width: D. vocabulary: V. layers: from
    the lowest tuned one to the last. mixers: of the lowest tuned layer, usually one attention.
    """

    tuned: tuple[tuple[int, ...], ...]
    itemsize: int
    width: int
    vocabulary: int
    layers: int = 1
    mixers: int = 1

    @property
    def logits_bytes(self) -> int:
        """Of one position."""
        return self.vocabulary * self.itemsize


def sizes_of(split_model: SplitModel, recipe: Recipe) -> Sizes:
    """The sizes of a model and of the layers that a recipe tunes."""
    lowest = min(split_model.indices(recipe.layers))
    return Sizes(
        tuned=tuple(tuple(w.shape) for w in split_model.parameters(recipe.layers).values()),
        itemsize=split_model.dtype.itemsize,
        width=embedding_weight(split_model.model).shape[1],
        vocabulary=split_model.vocabulary_size,
        layers=split_model.depth - lowest,
        mixers=len(split_model.structure.layers[lowest].mixers),
    )


def plan(split_model: SplitModel, recipe: Recipe, positions: int, free: int | None = None) -> Plan:
    """The plan for a document of so many scored positions. free: bytes; None asks the device.

    Errors: `ResourceError` that says how many positions would fit.
    """
    free = free_bytes(split_model.device) if free is None else free
    usable = None if free is None else int(free * (1 - RESERVE))
    sizes = sizes_of(split_model, recipe)
    roomy = roomy_plan(sizes, recipe, positions)
    kept, chunk, piece = roomy.kept_logits_bytes, roomy.chunk_positions, roomy.piece_positions
    while True:
        need = need_bytes(sizes, recipe, positions, chunk, piece) + kept
        if usable is None or need <= usable:
            return Plan(chunk, piece, kept, need)
        if kept:
            kept = 0
        elif piece > SMALLEST_POSITIONS:
            piece //= 2
            chunk = min(chunk, piece)
        else:
            raise _too_large(split_model, sizes, recipe, positions, need, usable)


def roomy_plan(sizes: Sizes, recipe: Recipe, positions: int) -> Plan:
    """The plan where memory is not short: the largest chunks and pieces, as many kept logits as are useful."""
    kept = min(KEPT_LOGITS_BYTES, positions * sizes.logits_bytes)
    need = need_bytes(sizes, recipe, positions, CHUNK_POSITIONS, PIECE_POSITIONS) + kept
    return Plan(CHUNK_POSITIONS, PIECE_POSITIONS, kept, need)


def even_size(total: int, most: int) -> int:
    """The size of the parts when `total` is cut into equal parts of at most `most`."""
    return ceil(total / ceil(total / most))


def need_bytes(sizes: Sizes, recipe: Recipe, positions: int, chunk: int, piece: int) -> int:
    """Bytes in addition to the loaded model at the peak of an optimization, without kept base logits."""
    tuned, matrices = sum(map(prod, sizes.tuned)), [shape for shape in sizes.tuned if len(shape) > 1]
    size, width, layers = sizes.itemsize, sizes.width, sizes.layers
    wide = max(size, 4)
    if recipe.parametrization == "lora":
        factors = sum(recipe.rank * sum(shape[-2:]) for shape in matrices)
        fixed = 4 * wide * factors + (size + 2 * wide) * tuned
    else:
        fixed = 4 * wide * tuned + (size if size < wide else 0) * tuned
    per_position = (1 + sizes.mixers + 3) * width * size
    # The gradients of one pass, and what a layer keeps for its backward pass: four times the width of a gated FFN.
    # Layers above the lowest tuned one cannot be cut into pieces, because their attention needs all positions.
    widest = max(max(shape[-2:]) for shape in matrices)
    cut = min(piece, positions) if layers == 1 else positions
    backward = size * tuned + cut * layers * (4 * widest + 6 * width) * size
    heads = 2 * min(chunk, positions) * sizes.logits_bytes
    if recipe.shortlist is not None and recipe.shortlist < sizes.vocabulary:
        heads += ceil(positions / chunk) * recipe.shortlist * width * size  # gathered rows of the head
        heads += positions * (recipe.shortlist + width) * wide  # logits and correction
    return fixed + per_position * positions + backward + heads


def _too_large(
    split_model: SplitModel, sizes: Sizes, recipe: Recipe, positions: int, need: int, usable: int
) -> ResourceError:
    small = SMALLEST_POSITIONS
    fitting = bisect_right(range(positions), usable, key=lambda n: need_bytes(sizes, recipe, n, small, small)) - 1
    remedy = f"at most {fitting} scored tokens would fit" if fitting > 0 else "not even one token would fit"
    return ResourceError(
        f"memorizing {positions} scored tokens needs {need / 1e9:.2f} GB on {split_model.device}, "
        f"{usable / 1e9:.2f} GB are free: {remedy}. Shorten the context, or load the model in a smaller type such as "
        "bfloat16.",
        options=("truncate", "dtype"),
    )
