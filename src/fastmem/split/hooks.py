"""Per-call hooks: which FFN weights to use, which activations to record, which mixer outputs to replay.

`install_hooks` prepares a weight-sharing copy of a model: every FFN looks up the weights of the running call, every
mixer runs or returns a recorded output, and every layer records its input where asked. The arguments of the running
call are held in a context variable, so each thread and each nested call has its own.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from fastmem.split.structure import Layer, Structure, hidden_states

# Keyword arguments of a layer that a replay must not pass again.
_NOT_RECORDED = ("hidden_states", "use_cache")

# The modules that make up FFNs, by name -> what is called in their place.
FFN = Mapping[str, Callable[..., Any]]


@dataclass
class Recording:
    """What a forward pass should keep: the inputs of `layers` and the outputs of their mixers, as copies.

    layers: indices from 0. select: reduces a [B, T, D] tensor to the positions to keep; by default all of them.
    inputs: layer index -> hidden states. mixed: name in a layer's `recorded` -> its value. calls: layer index -> the
    other arguments of the layer.
    """

    layers: frozenset[int]
    select: Callable[[Tensor], Tensor] = lambda hidden: hidden
    inputs: dict[int, Tensor] = field(default_factory=dict)
    mixed: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Activations:
    """Everything needed to run the layers from the lowest tuned one upwards again.

    layer: index of that layer. hidden: its input, [N, D] at the wanted positions if it is the last layer, else
    [1, S, D]. mixed: the outputs of its mixers and its side inputs, in the same shape. calls: the other arguments of
    the layers above, whose attention has to run again (empty for the last layer). positions: [N], which of the S
    positions are wanted in the end (None: all N).
    """

    layer: int
    hidden: Tensor
    mixed: dict[str, Tensor]
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ()
    positions: Tensor | None = None

    def split(self, size: int) -> Iterator["Activations"]:
        """Parts of at most `size` positions; a single part if layers above attend to all positions."""
        if self.calls:
            yield self
            return
        for start in range(0, len(self.hidden), size):
            yield self.rows(slice(start, start + size))

    def rows(self, index: slice | list[int]) -> "Activations":
        """The activations at some of the positions."""
        return replace(self, hidden=self.hidden[index], mixed={k: v[index] for k, v in self.mixed.items()})


@dataclass(frozen=True)
class _CallArguments:
    """The arguments of the running call that cannot be passed through the model's own `forward`."""

    ffn: FFN = field(default_factory=dict)
    replay: Mapping[str, Tensor] | None = None
    record: Recording | None = None


_CALL: ContextVar[_CallArguments] = ContextVar("fastmem_call", default=_CallArguments())  # noqa: B039 - frozen


@contextmanager
def call_arguments(**arguments: Any) -> Iterator[None]:
    """Within the block, the hooks use these arguments: the fields of `_CallArguments`."""
    token = _CALL.set(_CallArguments(**arguments))
    try:
        yield
    finally:
        _CALL.reset(token)


def install_hooks(model_copy: nn.Module, structure: Structure) -> None:
    """Install the hooks in a weight-sharing copy. A call without arguments runs as the model itself does."""
    for index, layer in enumerate(structure.layers):
        keep = functools.partial(_record_input, index, layer)
        model_copy.get_submodule(layer.path).register_forward_pre_hook(keep, with_kwargs=True)
        for name in layer.ffn:
            part = model_copy.get_submodule(name)
            part.forward = functools.partial(_call_ffn, name, part.forward)
        for name, returns in layer.mixers.items():
            part = model_copy.get_submodule(name)
            part.forward = functools.partial(_call_mixer, index, name, returns, part.forward)


def _record_input(index: int, layer: Layer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    record = _CALL.get().record
    if record is not None and index in record.layers:
        for name, at in layer.side_inputs.items():
            side_input = args[1 + at] if isinstance(at, int) else kwargs[at]
            record.mixed[name] = record.select(side_input).clone()
        record.inputs[index] = record.select(args[0] if args else kwargs["hidden_states"]).clone()
        others = {k: _without_cache(v) for k, v in kwargs.items() if k not in _NOT_RECORDED}
        record.calls[index] = (tuple(_without_cache(value) for value in args[1:]), others)


def _without_cache(value: Any) -> Any:
    """None for a cache, which a replay would extend once more. Some families pass it by position (GPT-2)."""
    return None if isinstance(value, Cache) else value


def _call_ffn(name: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _CALL.get().ffn.get(name, own)(*args, **kwargs)


def _call_mixer(index: int, name: str, returns: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    call = _CALL.get()
    if call.replay is not None and name in call.replay:
        return (call.replay[name], *[None] * (returns - 1)) if returns else call.replay[name]
    out = own(*args, **kwargs)
    if call.record is not None and index in call.record.layers:
        call.record.mixed[name] = call.record.select(hidden_states(out)).clone()
    return out
