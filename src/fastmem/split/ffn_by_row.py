"""Different FFN weights for every row of a batch, in one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fastmem.split.hooks import FFN
from fastmem.split.structure import hidden_states


def ffn_by_row(
    wanted: Sequence[FFN | None],  # one per row of the batch; None is the base
    own: Mapping[str, Callable[..., Any]],  # the base's modules by name
) -> FFN:
    """FFN modules for a batch whose row i uses `wanted[i]`. Each distinct set of weights runs once, on its rows."""
    distinct = {id(ffn): ffn for ffn in wanted}
    if len(distinct) == 1:
        return wanted[0] or {}
    rows = {key: [i for i, ffn in enumerate(wanted) if id(ffn) == key] for key in distinct}

    def dispatched(name: str) -> Callable[..., Any]:
        parts = [(rows[key], (ffn or {}).get(name, own[name])) for key, ffn in distinct.items()]
        return lambda *args, **kwargs: _call_by_rows(parts, len(wanted), args, kwargs)

    return {name: dispatched(name) for ffn in distinct.values() if ffn for name in ffn}


def _call_by_rows(
    parts: list[tuple[list[int], Callable[..., Any]]], count: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call each module on its rows and reassemble the hidden states.

    Inputs are [B, T, D], or [B * T, D] where a layer flattens them (OPT).
    """

    def select(value: Any, rows: list[int]) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.reshape(count, -1, *value.shape[1:])[rows].reshape(-1, *value.shape[1:])

    out: Tensor | None = None
    extras: list[None] = []
    for rows, module in parts:
        result = module(*(select(a, rows) for a in args), **{k: select(v, rows) for k, v in kwargs.items()})
        found = hidden_states(result)
        if out is None:
            out = found.new_empty(count, found.shape[0] // len(rows), *found.shape[1:])
            extras = [None] * (len(result) - 1) if isinstance(result, tuple) else []
        out[rows] = found.reshape(len(rows), -1, *found.shape[1:])
    assert out is not None
    joined_rows = out.reshape(-1, *out.shape[2:])
    return (joined_rows, *extras) if extras else joined_rows
