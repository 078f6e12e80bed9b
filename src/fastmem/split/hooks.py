"""What a running call uses, keeps and replays: the part of splitting a model that its own `forward` cannot be told.

A structural copy of a model (`anatomy.shared_copy`) is wired so that every FFN asks which weights this call uses,
every mixer runs or replays, and every layer keeps its input where asked (`wire`). What "this call" means is
context-local: each thread, and each nested call, sees its own.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fastmem.core.anatomy import Anatomy, Layer, first

# The modules an FFN is made of, by name, each with what is called instead of it.
FFN = Mapping[str, Callable[..., Any]]


@dataclass
class Recording:
    """What `forward` is asked to keep: copies of the inputs of `layers` and of the outputs of their mixers.

    layers: indices from 0. select: which positions of a [B, T, D] tensor to keep; by default all.
    inputs: layer index -> hidden states. mixed: what a layer's `recorded` names -> its value. calls: layer index ->
    other arguments.
    """

    layers: frozenset[int]
    select: Callable[[Tensor], Tensor] = lambda hidden: hidden
    inputs: dict[int, Tensor] = field(default_factory=dict)
    mixed: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Activations:
    """All that the layers from the lowest tuned one upwards need to be run again.

    layer: that layer's index. hidden: its input, [N, D] at the wanted positions if it is the last layer, else
    [1, S, D]. mixed: what its mixers gave and its side inputs, likewise. calls: the other arguments of the layers
    above, whose attention has to run again (empty for the last layer). positions: [N], which of the S are wanted in
    the end (None: all N).
    """

    layer: int
    hidden: Tensor
    mixed: dict[str, Tensor]
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = ()
    positions: Tensor | None = None

    def split(self, size: int) -> Iterator["Activations"]:
        """Pieces of at most `size` positions; one piece where layers above attend to all of them."""
        if self.calls:
            yield self
            return
        for start in range(0, len(self.hidden), size):
            part = slice(start, start + size)
            yield replace(self, hidden=self.hidden[part], mixed={k: v[part] for k, v in self.mixed.items()})


@dataclass(frozen=True)
class _Now:
    """The arguments of the running call that the model's own `forward`s cannot be handed."""

    ffn: FFN = field(default_factory=dict)
    replay: Mapping[str, Tensor] | None = None
    record: Recording | None = None


_NOW: ContextVar[_Now] = ContextVar("fastmem_now", default=_Now())  # noqa: B039 - frozen


@contextmanager
def running(**arguments: Any) -> Iterator[None]:
    token = _NOW.set(_Now(**arguments))
    try:
        yield
    finally:
        _NOW.reset(token)


def wire(twin: nn.Module, anatomy: Anatomy) -> None:
    """Put the switches into a structural copy; what is not asked otherwise runs as before."""
    for index, layer in enumerate(anatomy.layers):
        keep = functools.partial(_keep_input, index, layer)
        twin.get_submodule(layer.path).register_forward_pre_hook(keep, with_kwargs=True)
        for name in layer.ffn:
            part = twin.get_submodule(name)
            part.forward = functools.partial(_switch_ffn, name, part.forward)
        for name, returns in layer.mixers.items():
            part = twin.get_submodule(name)
            part.forward = functools.partial(_switch_mixer, index, name, returns, part.forward)


def _keep_input(index: int, layer: Layer, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    record = _NOW.get().record
    if record is not None and index in record.layers:
        for name, at in layer.sides.items():
            side = args[1 + at] if isinstance(at, int) else kwargs[at]
            record.mixed[name] = record.select(side).clone()
        record.inputs[index] = record.select(args[0] if args else kwargs["hidden_states"]).clone()
        others = {k: v for k, v in kwargs.items() if k not in ("hidden_states", "past_key_values", "use_cache")}
        record.calls[index] = (args[1:], others)


def _switch_ffn(name: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _NOW.get().ffn.get(name, own)(*args, **kwargs)


def _switch_mixer(index: int, name: str, returns: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    now = _NOW.get()
    if now.replay is not None and name in now.replay:
        return (now.replay[name], *[None] * (returns - 1)) if returns else now.replay[name]
    out = own(*args, **kwargs)
    if now.record is not None and index in now.record.layers:
        now.record.mixed[name] = now.record.select(first(out)).clone()
    return out
