"""What memorizing and answering will cost, computed from a model's configuration alone: no weights, no run.

    work = read_work(shape, 155) + steps_work(shape, 150, Recipe(steps=3))
    work.seconds(machine)

A `Work` counts what is done: operations of matrix products, and bytes that pass through memory. A `Machine` holds the
rates at which one machine does these. Seconds are the sum of both over all kinds of work, as if nothing overlapped,
which errs on the slow side by at most two where two kinds take equally long. The shape is that of a decoder with gated
FFNs (Llama, Mistral, Qwen, SmolLM); the recipe tunes all weights of the last FFN over the whole vocabulary.

Operations of products equal what torch counts, bytes beside the model are those of `learn/budget.py`; passes over
activations are counted by reading the code of transformers' Llama, and are small beside the rest.
`docs/results/cost.md` has predictions beside measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from fastmem.errors import InputError
from fastmem.learn.budget import Sizes, even_size, roomy_plan
from fastmem.learn.memorize import CHECKED_POSITIONS
from fastmem.memory.recipe import Recipe

# glibc maps an allocation above this size anew every time (M_MMAP_THRESHOLD's maximum on 64 bits, mallopt(3)), so that
# every page of it is faulted in; smaller ones soon come from memory that the process has touched before.
NEW_ALLOCATION_BYTES = 2**25
# Numbers read and written per number of the hidden states in one layer: two norms and two residual sums.
LAYER_PASSES = 20
# The same per number of queries and keys: the rotary embedding. And per number of the FFN's width: silu and product.
ROTARY_PASSES, GATE_PASSES = 12, 5
# Bytes read and written per logit: soft-max of both models, losses, gradient (objective.py); and when one is chosen
# (answer/batch.py).
OBJECTIVE_BYTES, CHOICE_BYTES = 80, 16
# Kernels that are launched, views not counted: by a layer; by the rest of a trunk pass (embedding, mask, final norm);
# by the rest of a token, and for each of its rows; by a row's own last FFN.
LAYER_LAUNCHES, PASS_LAUNCHES, TOKEN_LAUNCHES, ROW_LAUNCHES, FFN_LAUNCHES = 34, 33, 27, 5, 6
# Fixed costs of a step and of a whole run in those of a layer's modules, for machines where they were not measured.
STEP_LAYERS, RUN_LAYERS = 4, 20
ITEMSIZES = (2, 4, 8)


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model's configuration on which its costs depend.

    itemsize: bytes of a number. tied: input and output embedding are one matrix.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    itemsize: int

    @classmethod
    def of(cls, config: Any, itemsize: int) -> "ModelShape":
        """The shape in a transformers configuration, of weights with numbers of so many bytes.

        Errors: `InputError` for another itemsize than 2, 4 or 8, and for a configuration that states no shape.
        """
        if itemsize not in ITEMSIZES:
            raise InputError(f"itemsize is {itemsize}: give one of {ITEMSIZES}.", field="itemsize")
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        try:
            width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            return cls(
                hidden=text.hidden_size,
                ffn=text.intermediate_size,
                layers=text.num_hidden_layers,
                heads=text.num_attention_heads,
                kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
                head_width=width,
                vocabulary=text.vocab_size,
                tied=bool(text.tie_word_embeddings),
                itemsize=itemsize,
            )
        except AttributeError as error:
            raise InputError(
                f"this configuration states no shape of a decoder ({error}): give that of a Llama or a like model."
            ) from error

    @property
    def parameters(self) -> int:
        """All weights, norms included."""
        layer = sum(map(prod, (*self.attention, *self.ffn_matrices))) + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def attention(self) -> tuple[tuple[int, int], ...]:
        """Shapes of a layer's query, key, value and output matrices, as (output, input)."""
        queries, keys, D = self.heads * self.head_width, self.kv_heads * self.head_width, self.hidden
        return (queries, D), (keys, D), (keys, D), (D, queries)

    @property
    def ffn_matrices(self) -> tuple[tuple[int, int], ...]:
        """Shapes of a layer's gate, up and down matrices, as (output, input)."""
        return (self.ffn, self.hidden), (self.ffn, self.hidden), (self.hidden, self.ffn)

    @property
    def tuned(self) -> int:
        """Weights of one FFN."""
        return sum(map(prod, self.ffn_matrices))

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.itemsize

    @property
    def sizes(self) -> Sizes:
        """What `learn/budget.py` needs to know."""
        return Sizes(self.ffn_matrices, self.itemsize, self.hidden, self.vocabulary)


@dataclass(frozen=True)
class Machine:
    """The rates of one machine for numbers of one type. Products are counted as two operations per multiplication.

    products: operations per second in products of many rows. row_bytes, rows_bytes: bytes of weights per second that
    a product of one row, and of several, goes through; libraries may first repack the weights for several. new_bytes:
    bytes written per second to memory that was just allocated. objective: logits per second that the objective goes
    through. layer, step, run: seconds that the modules of a layer, a step and a run take however small the model is.
    """

    products: float
    row_bytes: float
    rows_bytes: float
    new_bytes: float
    objective: float
    layer: float
    step: float
    run: float

    @classmethod
    def simple(cls, products: float, row_bytes: float, layer: float) -> "Machine":
        """A machine of which only three rates are known, as from a data sheet."""
        own = row_bytes, row_bytes, row_bytes, row_bytes / OBJECTIVE_BYTES
        return cls(products, *own, layer, STEP_LAYERS * layer, RUN_LAYERS * layer)


@dataclass(frozen=True)
class Work:
    """What is done; every field is divided by the rate of the same name, and the last three times their seconds."""

    products: float = 0
    row_bytes: float = 0
    rows_bytes: float = 0
    new_bytes: float = 0
    objective: float = 0
    layer: float = 0
    step: float = 0
    run: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(getattr(self, f.name) * times for f in fields(self)))

    def parts(self, machine: Machine) -> dict[str, float]:
        """Seconds of each kind of work."""
        fixed = ("layer", "step", "run")
        return {
            f.name: getattr(self, f.name) * getattr(machine, f.name)
            if f.name in fixed
            else getattr(self, f.name) / getattr(machine, f.name)
            for f in fields(self)
        }

    def seconds(self, machine: Machine) -> float:
        """Seconds of all of it."""
        return sum(self.parts(machine).values())


NOTHING = Work()


def read_work(shape: ModelShape, tokens: int) -> Work:
    """The trunk pass over a document or a prompt of so many tokens, without the head."""
    return _layers(shape, rows=tokens, sequences=1, past=0) + _launched(PASS_LAUNCHES)


def prompt_work(shape: ModelShape, tokens: int) -> Work:
    """Reading a prompt, up to its first answer token."""
    return _layers(shape, tokens, 1, 0) + _token_end(shape, 1)


def token_work(shape: ModelShape, rows: int, past: int, own_memories: bool = True) -> Work:
    """One more token for each of `rows` answers with `past` tokens before it. own_memories: the rows' last FFNs
    differ, so every row reads one of its own."""
    work = _layers(shape, rows, rows, past) + _token_end(shape, rows)
    if own_memories and rows > 1:
        work += _ffn(shape, rows) * -1 + (_ffn(shape, 1) + _launched(FFN_LAUNCHES)) * rows
    # The cache is written anew with the new keys and values in it.
    return work + _moved(2 * rows * past * shape.cache_bytes)


def steps_work(shape: ModelShape, scored: int, recipe: Recipe) -> Work:
    """All steps over a document of so many scored tokens, after its trunk pass, with what begins and ends a run.

    Errors: `InputError` for a recipe that tunes other weights than all of the last FFN, or takes a shortlist.
    """
    if recipe.layers != (-1,) or recipe.parametrization != "full" or recipe.shortlist is not None:
        raise InputError("the formula knows recipes that tune the whole last FFN over the whole vocabulary.")
    step, setup, planned = Work(step=1), Work(run=1), roomy_plan(shape.sizes, recipe, scored)
    room = planned.kept_logits_bytes
    for piece in _cut(scored, planned.piece_positions):
        tail = _tail(shape, piece)
        setup += tail
        step += tail + _ffn_gradient(shape, piece)
        for chunk in _cut(piece, planned.chunk_positions):
            head = _product(shape, chunk, shape.hidden, shape.vocabulary)
            room -= chunk * shape.sizes.logits_bytes
            if room >= 0:
                setup += head
            else:
                step += head
            back = _product(shape, chunk, shape.vocabulary, shape.hidden)
            step += head + back + Work(objective=chunk * shape.vocabulary)
    # AdamW reads and writes the weight and two moments and reads the gradient, all float32; clipping reads the
    # gradient twice and writes it once; casts in both directions.
    wide, size = max(shape.itemsize, 4), shape.itemsize
    step += _moved(shape.tuned * (7 * wide + 3 * wide + 2 * (wide + size)))
    # Before: float32 weights, moments and a gradient, a copy in the model's type. After: the difference, and whether
    # all of it is finite.
    setup += _new(shape, 4 * wide + size) + _moved(shape.tuned * (5 * wide + 3 * size))
    checked = min(CHECKED_POSITIONS, scored)
    setup += _tail(shape, checked) + _product(shape, checked, shape.hidden, shape.vocabulary)
    return setup + step * recipe.steps


def peak_bytes(shape: ModelShape, scored: int, recipe: Recipe) -> int:
    """Bytes beside the loaded model at the peak of memorizing."""
    return roomy_plan(shape.sizes, recipe, scored).need_bytes


def disk_bytes(shape: ModelShape, stored: str = "float32", rank: int | None = None) -> int:
    """Bytes of the tensors of a memory of the last FFN in a file. stored: float32, bfloat16 or int8. rank: of low-rank
    factors in float32 instead; None keeps every weight."""
    if rank is not None:
        return sum(4 * min(rank, n, m) * (n + m) for n, m in shape.ffn_matrices)
    if stored == "int8":
        return shape.tuned + 4 * sum(n for n, _ in shape.ffn_matrices)
    return shape.tuned * {"float32": 4, "bfloat16": 2}[stored]


def _cut(total: int, most: int) -> Iterator[int]:
    """The sizes of equal parts of at most `most`."""
    size = even_size(total, most)
    for start in range(0, total, size):
        yield min(size, total - start)


def _product(shape: ModelShape, rows: int, inputs: int, outputs: int) -> Work:
    """[rows, inputs] times a matrix of weights."""
    weights = inputs * outputs * shape.itemsize
    made = _result(rows * outputs * shape.itemsize)
    read = Work(row_bytes=weights) if rows == 1 else Work(rows_bytes=weights)
    return Work(products=2 * rows * inputs * outputs) + read + made


def _result(size: int) -> Work:
    """A tensor of so many bytes is written."""
    return Work(new_bytes=size) if size > NEW_ALLOCATION_BYTES else Work(row_bytes=size)


def _moved(size: float) -> Work:
    """So many bytes are read or written where they are."""
    return Work(row_bytes=size)


def _new(shape: ModelShape, per_weight: int) -> Work:
    """Tensors like the tuned ones are made, of so many bytes per weight."""
    return sum((_result(4 * prod(m)) * (per_weight / 4) for m in shape.ffn_matrices), NOTHING)


def _layers(shape: ModelShape, rows: int, sequences: int, past: int) -> Work:
    """All layers over `rows` tokens of so many sequences, with `past` tokens of each in the cache."""
    layer = sum((_product(shape, rows, m, n) for n, m in shape.attention), _ffn(shape, rows)) + Work(layer=1)
    queries = shape.heads * shape.head_width
    # Scores and sums of values; a token attends to what stands before it.
    each = rows // sequences
    pairs = rows * (past + (each + 1) / 2)
    layer += Work(products=4 * pairs * queries)
    keys = shape.kv_heads * shape.head_width
    passes = LAYER_PASSES * shape.hidden + ROTARY_PASSES * (queries + keys)
    layer += _moved(rows * passes * shape.itemsize)
    return layer * shape.layers + _moved(rows * past * shape.cache_bytes)


def _ffn(shape: ModelShape, rows: int) -> Work:
    work = sum((_product(shape, rows, m, n) for n, m in shape.ffn_matrices), NOTHING)
    return work + _moved(rows * GATE_PASSES * shape.ffn * shape.itemsize)


def _tail(shape: ModelShape, rows: int) -> Work:
    """What follows the last attention, up to the last hidden state."""
    return _ffn(shape, rows) + _moved(rows * LAYER_PASSES * shape.hidden * shape.itemsize) + Work(layer=0.5)


def _ffn_gradient(shape: ModelShape, rows: int) -> Work:
    """Gradients of the three matrices, and of the input of the last one."""
    work = _product(shape, rows, shape.hidden, shape.ffn) + Work(products=2 * rows * shape.tuned)
    work += sum((_result(prod(m) * shape.itemsize) for m in shape.ffn_matrices), NOTHING)
    return work + _moved(rows * 2 * GATE_PASSES * shape.ffn * shape.itemsize)


def _token_end(shape: ModelShape, rows: int) -> Work:
    """From the last hidden states of so many rows to their most likely tokens."""
    head = _product(shape, rows, shape.hidden, shape.vocabulary) + _moved(rows * shape.vocabulary * CHOICE_BYTES)
    return head + _launched(TOKEN_LAUNCHES + ROW_LAUNCHES * rows)


def _launched(kernels: int) -> Work:
    """So many kernels, in costs of a layer."""
    return Work(layer=kernels / LAYER_LAUNCHES)
