"""The check of a model when it is loaded: its parts give its own logits, and it is left as it was.

The model itself runs before any copy of it, so that a copy which differs from it or damages it is found. Its logits of
ten tokens are compared with rebuilt ones, with the FFN's output unchanged and scaled. The logits of the first six
tokens alone show whether later tokens change earlier logits. Reading on from a cache is compared with them, too.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmem.split.cached_reading import WAYS, CachedReading, cached_logits, joinable, new_cache
from fastmem.split.dequantize import is_quantized_linear
from fastmem.split.model_interface import PROBE_SOURCE, vocabulary_size
from fastmem.split.structure import (
    family_of,
    is_codes,
    plain_logits,
    rounding_unit,
    weight_sharing_copy,
    with_named_outputs,
)
from fastmem.split.unsupported import unsupported, unsupported_if

if TYPE_CHECKING:
    from fastmem.split.split_model import SplitModel

PREFIX = 6


class Probe:
    """What the model itself computes, for a comparison with what is made of it.

    Errors: `UnsupportedModelError` if the model cannot be run, or its logits depend on later tokens.
    """

    def __init__(self, model: Any):
        self.family = family_of(model)
        self._versions = [(name, tensor, _version(tensor)) for name, tensor in _shared_tensors(model)]
        no_language_model = unsupported_if(
            (AttributeError, NotImplementedError),
            self.family,
            reason="it is no language model of transformers",
            remedy="give a causal model",
        )
        with no_language_model:
            _, count = model.config, vocabulary_size(model)
        self._ids = (torch.arange(10) * 5 + 1) % count
        with _left_as_it_was(model):
            self._logits = plain_logits(model, self._ids)
            prefix = plain_logits(model, self._ids[:PREFIX])
        if not (self._logits < torch.inf).all():
            raise unsupported(
                self.family, "some of its logits are NaN or infinite", "load it in another type, such as float32"
            )
        self._largest = largest(self._logits)
        # Six positions run through other kernels than ten in every layer: 64 units in the last place of the largest
        # logit. Where activations are quantized, rounding can change a code (bitsandbytes' int8 in a float32 model).
        floats = [p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize > 1]
        floats += [torch.float16] if any(map(is_quantized_linear, model.modules())) else []
        unit = max(map(rounding_unit, floats))
        self._allowed = 64 * unit * self._largest
        if not (ahead := largest_difference(self._logits[:PREFIX], prefix)) <= self._allowed:
            raise unsupported(
                self.family, f"it is not causal (later tokens change its logits by {ahead:.2g})", "give a causal model"
            )

    def check(self, split_model: "SplitModel") -> None:
        """Errors: `UnsupportedModelError` if rebuilt logits differ, or if running the model wrote to its weights."""
        module = split_model.structure.layers[-1].ffn[-1]
        encoded = _encoded(split_model)
        activations = split_model.read(self._ids, torch.arange(len(self._ids)), encoded=encoded)
        whole = weight_sharing_copy(split_model.model)
        part = whole.get_submodule(module)
        other = {module: functools.partial(_scaled, weight_sharing_copy(split_model.model.get_submodule(module)))}
        part.forward = functools.partial(_scaled, part.forward)
        with torch.no_grad():
            rebuilt = split_model.head(split_model.tail(activations))
            rebuilt_scaled = split_model.head(split_model.tail(activations, other))
        # The kernels are the model's own, so in a short type 8 units (6 % in bfloat16) suffice.
        units = 64 if split_model.dtype.itemsize > 2 else 8
        allowed = units * rounding_unit(split_model.dtype) * self._largest
        for label, found, expected in (
            ("rebuilt", rebuilt, self._logits),
            ("rebuilt with another FFN", rebuilt_scaled, plain_logits(whole, self._ids)),
        ):
            if not (apart := largest_difference(found.to(expected.dtype), expected)) <= allowed:
                raise unsupported(
                    self.family,
                    f"{label} logits differ from its own by {apart:.2g}, {allowed:.2g} allowed",
                    "report this model family, or answer with method 'base' or 'cad' through transformers",
                )
        for name, tensor, version in self._versions:
            if _version(tensor) != version:
                raise unsupported(
                    self.family, f"a forward pass writes to {name}", "give a model that leaves its weights as they are"
                )

    def cached_reading(self, split_model: "SplitModel") -> CachedReading:
        """The first of `WAYS` in which reading on from a cache gives the model's own logits.

        Padding must not differ more than rounding does, or it is left out, which only costs speed. A model that takes
        no position numbers counts them itself, where padding is an error of some hundredths that a short type hides
        (1 to 4 units in bfloat16 on tiny BART-like decoders, 0 on BLOOM and MPT): half a unit is allowed there.
        Errors: `UnsupportedModelError` if no way works, as where a state is kept in modules or in a cache of its own.
        """
        unit = rounding_unit(split_model.dtype) * self._largest
        short = 8 * unit if split_model.takes_positions else unit / 2
        allowed = {True: self._allowed if split_model.dtype.itemsize > 2 else short, False: self._allowed}
        encoded = _encoded(split_model)
        failure: Exception | None = None
        for way in WAYS:
            if way.padded and not joinable(new_cache(split_model.model.config)):
                continue
            try:
                logits, at = cached_logits(split_model, self._ids, encoded, way)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                failure = error
                continue
            apart = largest_difference(logits.to(self._logits.dtype), self._logits[at.to(self._logits.device)])
            if apart <= allowed[way.padded]:
                return way
            failure = ValueError(f"its logits are {apart:.2g} apart, {allowed[way.padded]:.2g} allowed")
        reason = "it does not read on from a cache when another sequence was read in between"
        raise unsupported(self.family, reason, "report this model family", failure) from failure


def _encoded(split_model: "SplitModel") -> Tensor | None:
    """[1, S, D]: what the encoder of an encoder-decoder makes of the probe's source; None without one."""
    return split_model.encode(PROBE_SOURCE % split_model.vocabulary_size) if split_model.has_encoder else None


def _scaled(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    out = own(*args, **kwargs)
    return (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5


def largest(logits: Tensor) -> float:
    """The largest absolute value. A head may give a token the logit -inf, which does not count."""
    return logits.masked_fill(logits.isneginf(), 0).abs().max().item()


def largest_difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; NaN if there is one. Equal infinities do not differ."""
    return (a - b).masked_fill(a == b, 0).abs().max().item()


def _shared_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a weight-sharing copy shares with the model, by name."""
    yield from model.named_parameters()
    for path, module in model.named_modules():
        for name, value in (module._buffers | vars(module)).items():
            if isinstance(value, Tensor) and is_codes(value):
                yield f"{path}.{name}", value


def _version(tensor: Tensor) -> int | None:
    """How often it was written to in place; None for a tensor of inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Within the block the model itself can run, in evaluation mode, uncompiled, and with named outputs.

    Afterwards its modules have the attributes and buffers that they had. A forward pass may change both: rotary
    frequencies that depend on the length, lengths seen, running statistics.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    tensors = [value for values in (*attributes, *buffers) for value in values.values() if isinstance(value, Tensor)]
    values = [(tensor, tensor.detach().clone()) for tensor in tensors if not is_codes(tensor)]
    try:
        for module in modules:
            vars(module).update(training=False, _compiled_call_impl=None)
            if "config" in vars(module):
                vars(module)["config"] = with_named_outputs(module.config)
        yield
    finally:
        for module, own_attributes, own_buffers in zip(modules, attributes, buffers, strict=True):
            for held, own in ((vars(module), own_attributes), (module._buffers, own_buffers)):
                for added in held.keys() - own.keys():
                    del held[added]
                held.update(own)
        with torch.no_grad():
            for tensor, value in values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
