"""The rates of this machine that `fastmem.predicted_cost` needs, measured in a few seconds without any of its models.

Products and memory on matrices of 2,048 x 8,192; what modules cost however small they are on a Llama of width 16.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from bench import random_model
from torch import Tensor
from transformers import LlamaConfig

from fastmem import FastMem, Recipe
from fastmem.cost import document
from fastmem.learn.memorize import drain
from fastmem.learn.objective import losses_and_gradient
from fastmem.predicted_cost import Machine, ModelShape, read_work, steps_work
from fastmem.timing import seconds_of

OUTPUTS, INPUTS = 8192, 2048
# More bytes than a last-level cache holds, so that weights come from memory, as a model's do.
STREAMED_BYTES = 2**29
FEW_ROWS, MANY_ROWS = 8, 256
REPEATS = 5


def machine_rates(dtype: torch.dtype, device: str = "cpu", streamed: int = STREAMED_BYTES) -> Machine:
    """The rates for numbers of this type. streamed: bytes of weights that a product of few rows goes through."""
    where = torch.device(device)
    size = OUTPUTS * INPUTS * dtype.itemsize
    matrices = [torch.randn(OUTPUTS, INPUTS, device=where).to(dtype) for _ in range(max(2, streamed // size))]

    def product_seconds(rows: int, chosen: Sequence[Tensor]) -> float:
        states = torch.randn(rows, INPUTS, device=where).to(dtype)
        return _median(lambda: [states @ matrix.T for matrix in chosen], where) / len(chosen)

    row = product_seconds(1, matrices)
    few, many = product_seconds(FEW_ROWS, matrices), product_seconds(MANY_ROWS, matrices[:2])
    operation = max(many - few, 1e-9) / (2 * OUTPUTS * INPUTS * (MANY_ROWS - FEW_ROWS))
    repacked = max(few - operation * 2 * OUTPUTS * INPUTS * FEW_ROWS, row / 4)
    del matrices
    new = _median(lambda: torch.ones(2**24, device=where), where)
    logits, base = (torch.randn(16, 2**16, device=where).to(dtype) for _ in range(2))
    targets = torch.arange(16, device=where)
    objective = _median(lambda: losses_and_gradient(logits, base, targets, 0.1), where)
    known = Machine(1 / operation, size / row, size / repacked, 2**26 / new, logits.numel() / objective, 0, 0, 0)
    return with_fixed_costs(known, dtype, device)


def with_fixed_costs(known: Machine, dtype: torch.dtype, device: str) -> Machine:
    """The same with seconds of a layer, a step and a run: what a model of width 16 takes beyond what is predicted."""
    shallow, deep = (narrow_model(layers, dtype, device) for layers in (2, 10))
    where, tokens = torch.device(device), document(deep.split_model, 8)

    def read_seconds(llm: FastMem) -> float:
        return _median(lambda: llm.read(tokens), where, 4 * REPEATS)

    def steps_seconds(steps: int) -> float:
        found = []
        for _ in range(REPEATS):
            run = deep.memorizing(tokens, Recipe(steps=steps), watch=False)
            next(run)
            found.append(seconds_of(lambda: drain(run), where))  # noqa: B023
        return statistics.median(found)

    shape, count = ModelShape.of(deep.model.config, dtype.itemsize), len(tokens.ids)
    layer = max(0.0, (read_seconds(deep) - read_seconds(shallow)) / 8 - read_work(shape, count).seconds(known) / 10)
    known = replace(known, layer=layer)
    steps_seconds(1)
    one, many = (steps_seconds(n) - steps_work(shape, 8, Recipe(steps=n)).seconds(known) for n in (1, 11))
    step = max(0.0, (many - one) / 10)
    return replace(known, step=step, run=max(0.0, one - step))


def narrow_model(layers: int, dtype: torch.dtype, device: str) -> FastMem:
    """A Llama whose products cost nothing."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        vocab_size=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return random_model(config, f"narrow-{layers}", device, dtype)


def _median(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    work()
    return statistics.median(seconds_of(work, device) for _ in range(repeats))
