"""A model split at its FFNs: run the trunk once, then compute what follows as often as needed with other weights.

Nothing after the last FFN feeds attention. So for the same tokens everything below it, keys and values included, is
the same with and without a memory. `SplitModel` offers that as three calls:

    hidden = split_model.forward(ids, ffn=..., record=...)   [B, T] -> [B, T, D], the last hidden state
    hidden = split_model.tail(activations, ffn=...)          the same from recorded activations, without the trunk
    logits = split_model.head(hidden)                        [N, D] -> [N, V], soft caps and scales included

`ffn` selects the FFN weights of this call only. Of an encoder-decoder the decoder is split, and `forward` takes what
`encode` returned, too. All modules that run are the model's own code on weight-sharing copies; the model is never
written to. A `SplitModel` keeps no state between calls, so threads may share it: weights of a call belong to modules
of their own and are never exchanged in a shared module. On construction, rebuilt logits are compared with the model's
own, and a model for which they differ is refused.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from fastmem.errors import InputError
from fastmem.split.dequantize import dequantized, is_quantized
from fastmem.split.hooks import FFN, Activations, Recording, call_arguments, install_hooks
from fastmem.split.model_interface import (
    head_inputs,
    input_device,
    is_encoder_decoder,
    longrope_switch,
    vocabulary_size,
)
from fastmem.split.probe import Probe
from fastmem.split.structure import (
    family_of,
    find_structure,
    hidden_states,
    weight_sharing_copy,
)
from fastmem.split.unsupported import unsupported, unsupported_if
from fastmem.torch_modes import in_own_modes


class _PassThroughBody(nn.Module):
    """Takes the place of the body and returns its input as the last hidden state."""

    def __init__(self, output_type: type, body: nn.Module):
        super().__init__()
        self.output_type = output_type
        self.__dict__["body"] = body  # not a submodule: some heads read attributes of the body (Falcon-H1's scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["body"], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.output_type(last_hidden_state=inputs_embeds)


class SplitModel:
    """A transformers language model, causal or encoder-decoder, split once.

    Errors: `UnsupportedModelError` if a part is not found or the rebuilt logits differ from the model's own.
    """

    @in_own_modes
    def __init__(self, model: Any):
        self.model = model
        self.family = family_of(model)
        if any(parameter.is_inference() for parameter in model.parameters()):
            reason = "its weights were made in torch.inference_mode(), which rules out gradients"
            raise unsupported(self.family, reason, "load the model outside of it")
        probe = Probe(model)  # runs the model itself, before any copy of it runs
        self.structure = find_structure(model)
        model_copy = self._hooked_copy()
        self._body = model_copy.get_submodule(self.structure.body)
        # A body that has read long sequences keeps their rotary frequencies, so they have one of their own.
        self.longrope_switch = longrope_switch(model.config)
        self._long_body = self._body
        if self.longrope_switch is not None:
            self._long_body = self._hooked_copy().get_submodule(self.structure.body)
        self._encoder = model_copy.get_encoder() if is_encoder_decoder(model) else None  # type: ignore[operator]
        self._head = self._head_alone()
        self._layers = [model_copy.get_submodule(layer.path) for layer in self.structure.layers]
        self._closing = [model_copy.get_submodule(name) for name in self.structure.closing]
        # Models with ALiBi take no positions (BLOOM, MPT).
        accepted = inspect.signature(self._body.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
        # The base's own FFN modules, without hooks: for rows of a batch in which other rows have weights of their own.
        self.own_ffn = {
            n: weight_sharing_copy(model.get_submodule(n)) for layer in self.structure.layers for n in layer.ffn
        }
        self.vocabulary_size = vocabulary_size(model)
        if self._encoder is not None and len(self._encoder.get_input_embeddings().weight) != self.vocabulary_size:
            reason = "its encoder and its decoder have different vocabularies"
            raise unsupported(self.family, reason, "give a model that has one vocabulary")
        self.input_device = input_device(model)
        last = model.get_submodule(self.structure.layers[-1].ffn[0])
        self.dtype = model.dtype if is_quantized(last) else next(last.parameters()).dtype
        self.device = next(itertools.chain(last.parameters(), last.buffers())).device
        self._dequantized: dict[str, nn.Module] = {}
        self.parameters((-1,))  # refuses offloaded weights
        with unsupported_if(
            (AttributeError, RuntimeError, TypeError),
            family=self.family,
            reason="its parts cannot be run separately",
            remedy="report this model family",
        ):
            probe.check(self)
            way = probe.cached_reading(self)
        self.takes_positions = self.takes_positions and way.positions
        # Whether sequences of different lengths can share a cache, padded on the left.
        self.joins_sequences = way.padded

    @property
    def has_encoder(self) -> bool:
        """Whether it is an encoder-decoder, so that `forward` and `read` need what `encode` returned."""
        return self._encoder is not None

    def require_decoder_only(self, what: str) -> None:
        """Errors: `InputError` for an encoder-decoder. what: that works with decoder-only models alone."""
        if self.has_encoder:
            raise InputError(f"{what} works with decoder-only models, and {self.family!r} is an encoder-decoder.")

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.structure.layers)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model accepts; None if its configuration states no limit."""
        config = self.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "max_position_embeddings", None)

    def indices(self, layers: Sequence[int]) -> tuple[int, ...]:
        """`layers`, negative ones counted from the end, as sorted indices from 0. Errors: `InputError`."""
        found = set()
        for layer in layers:
            if not -self.depth <= layer < self.depth:
                text = f"layer {layer} does not exist: give {-self.depth} to {self.depth - 1}."
                raise InputError(text, field="layers")
            if not self.structure.layers[layer].ffn:
                text = f"layer {layer} has no feed-forward network to tune: choose another layer."
                raise InputError(text, field="layers")
            found.add(layer % self.depth)
        return tuple(sorted(found))

    def parameters(self, layers: Sequence[int]) -> dict[str, Tensor]:
        """The model's own FFN weights of `layers`, by full name. They are not copies and must not be written to.

        Errors: `UnsupportedModelError` if they are offloaded to host or disk and present only during a call.
        """
        found = {}
        for index in self.indices(layers):
            for module in self.structure.layers[index].ffn:
                for name, parameter in self.dequantized_ffn(module).named_parameters():
                    found[f"{module}.{name}"] = parameter.detach()
                    if parameter.device.type == "meta":
                        reason = f"the weights of layer {index} are offloaded (on the meta device between calls)"
                        raise unsupported(self.family, reason, "keep that layer on a device: device_map or max_memory")
        return found

    def dequantized_ffn(self, name: str) -> nn.Module:
        """The base's FFN module of that name with float weights: its own, or a copy if it is quantized."""
        found = self._dequantized.get(name)
        if found is None:
            found = self._dequantized[name] = dequantized(self.own_ffn[name], self.dtype, self.family)
        return found

    def forget_weights(self) -> None:
        """Drop the float copies of quantized FFNs, because the model's weights have changed."""
        self._dequantized.clear()

    def ffn(self, weights: Mapping[str, Tensor]) -> FFN:
        """FFN modules that use `weights` (full parameter name -> tensor), for `forward` and `tail`.

        Every one is a module of its own that holds these tensors, so threads may call it at the same time. Tensors in
        the model's type are used as they are and may be written to between calls. Others are cast once; gradients
        flow through the cast.
        """
        modules: dict[str, Callable[..., Any]] = {}
        for module in {name for layer in self.structure.layers for name in layer.ffn}:
            own = {k.removeprefix(f"{module}."): w for k, w in weights.items() if k.startswith(f"{module}.")}
            if own:
                base = self.dequantized_ffn(module)
                parameters = [(p, own[name]) for name, p in base.named_parameters() if name in own]
                modules[module] = weight_sharing_copy(base, {id(p): w.to(p.dtype) for p, w in parameters})
        return modules

    def is_long(self, length: int) -> bool:
        """Whether a sequence of this length uses the long rotary frequencies of a longrope model (Phi-3-128k).

        The model reads all of it with other frequencies than a shorter one, so keys of the two do not go together.
        """
        return self.longrope_switch is not None and length > self.longrope_switch

    def shareable_cache(self) -> DynamicCache | None:
        """A new cache for `read` that other sequences can continue; None if the model's state cannot be shared."""
        return DynamicCache() if self.joins_sequences else None

    @torch.no_grad()
    def encode(
        self,
        source: Tensor,  # [S]
    ) -> Tensor:
        """[1, S, D]: what the encoder makes of these ids, for the decoder's cross attention."""
        assert self._encoder is not None
        return self._encoder(input_ids=source[None].to(self.input_device)).last_hidden_state

    def forward(
        self,
        ids: Tensor,  # [B, T]
        *,
        mask: Tensor | None = None,  # [B, past + T]
        positions: Tensor | None = None,  # [B, T]
        cache: Any = None,
        encoded: Tensor | None = None,  # [B, S, D]
        ffn: FFN | None = None,
        record: Recording | None = None,
    ) -> Tensor:
        """The last hidden state [B, T, D] (after the final norm) for ids [B, T].

        mask: [B, past + T], 0 at padding. positions: [B, T], position numbers. cache: a transformers cache, extended
        in place. encoded: of an encoder-decoder, what `encode` returned. ffn: FFN weights of this call. record: filled
        during the pass. In a longrope model, all sequences of a call and its cache must be on the same side of
        `longrope_switch`. Errors: `InputError` if an encoder-decoder is not given what its encoder made.
        """
        body = self._body
        if self.longrope_switch is not None:
            past = 0 if cache is None else cache.get_seq_length()
            length = past + ids.shape[1] if positions is None else int(positions.max()) + 1
            body = self._long_body if self.is_long(length) else self._body
        kwargs: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None, self._cache_argument: cache}
        if positions is not None and self.takes_positions:
            kwargs["position_ids"] = positions.to(self.input_device)
        if self.has_encoder:
            if encoded is None:
                self.require_decoder_only("reading tokens without a source for an encoder")
            kwargs["encoder_hidden_states"] = encoded
        with call_arguments(ffn=ffn or {}, record=record):
            return body(input_ids=ids.to(self.input_device), **kwargs).last_hidden_state

    def activations(self, recording: Recording, positions: Tensor | None = None) -> Activations:
        """A recording as the input of `tail`, which begins at its lowest layer."""
        layer = min(recording.layers)
        mixed = {name: recording.mixed[name] for name in self.structure.layers[layer].recorded}
        above = tuple(recording.calls[i] for i in range(layer + 1, self.depth))
        return Activations(layer, recording.inputs[layer], mixed, above, positions)

    def read(
        self,
        ids: Tensor,  # [S]
        positions: Tensor,  # [N]
        layers: Sequence[int] = (-1,),
        cache: Any = None,
        encoded: Tensor | None = None,
    ) -> Activations:
        """The activations at `positions` that tuning `layers` needs, from one pass over `ids`. No gradient."""
        lowest = min(self.indices(layers))
        fast = lowest == self.depth - 1
        where = positions.to(self.device)
        recording = Recording(frozenset(range(lowest, self.depth)))
        if fast:
            recording.select = lambda hidden: hidden[0, where]
        with torch.no_grad():
            self.forward(ids[None], cache=cache, encoded=encoded, record=recording)
        return self.activations(recording, None if fast else where)

    def tail(self, activations: Activations, ffn: FFN | None = None) -> Tensor:
        """The last hidden state [N, D] from the activations; differentiable with respect to the weights in `ffn`."""
        at, hidden = activations.layer, activations.hidden
        leading = hidden.shape[:-1]
        replay = {k: v.reshape(1, -1, v.shape[-1]) for k, v in activations.mixed.items()}
        args, kwargs = self.structure.layers[at].call
        side_inputs = {where: replay[name] for name, where in self.structure.layers[at].side_inputs.items()}
        args = tuple(side_inputs.get(i, value) for i, value in enumerate(args))
        kwargs = {k: side_inputs.get(k, value) for k, value in kwargs.items()}
        with call_arguments(ffn=ffn or {}, replay=replay):
            hidden = hidden_states(self._layers[at](hidden.reshape(1, -1, hidden.shape[-1]), *args, **kwargs))
        with call_arguments(ffn=ffn or {}):
            for layer, (args, kwargs) in zip(self._layers[at + 1 :], activations.calls, strict=True):
                hidden = hidden_states(layer(hidden, *args, **kwargs))
            hidden = self.close(hidden)
        if activations.positions is not None:
            return hidden[0, activations.positions]
        return hidden.reshape(*leading, -1)

    def close(self, hidden: Tensor, norms: bool = True) -> Tensor:
        """Apply the modules between the last layer and the head: the final norm, and a projection if there is one.

        norms: False skips modules without matrices, as published DoLa does with early states.
        """
        for module in self._closing:
            if norms or any(p.ndim >= 2 for p in module.parameters()):
                hidden = hidden_states(module(hidden))
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of last hidden states [..., D], in the model's type."""
        return _logits(self._head, hidden)

    def head_over(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """`head` for these tokens [K] only: hidden states [..., D] to logits [..., K], from gathered rows.

        It is correct if every logit depends on its own row of the output embedding alone; the caller must check that.
        Errors: `InputError` if the output embedding has no float rows.
        """
        whole = self.model.get_output_embeddings()
        weight, bias = getattr(whole, "weight", None), getattr(whole, "bias", None)
        if weight is None or is_quantized(whole) or weight.device.type == "meta":
            offloaded = " that is offloaded" if weight is not None and weight.device.type == "meta" else ""
            raise InputError(
                f"recipe shortlist needs an output embedding with float rows; {self.family!r} has "
                f"{type(whole).__name__}{offloaded}. Leave it out to use the whole vocabulary."
            )
        rows = nn.Linear(weight.shape[1], len(tokens), bias=bias is not None, device="meta")
        for name, values in {"weight": weight, "bias": bias}.items():
            if values is not None:
                gathered = values.detach()[tokens.to(values.device)].to(self.device)
                setattr(rows, name, nn.Parameter(gathered, requires_grad=False))
        return functools.partial(_logits, self._head_alone({id(whole): rows}))

    def _hooked_copy(self) -> nn.Module:
        model_copy = weight_sharing_copy(self.model)
        install_hooks(model_copy, self.structure)
        return model_copy

    def _head_alone(self, replace: dict[int, Any] | None = None) -> nn.Module:
        """The model with its body taken out: what is left is the head. replace: as for `weight_sharing_copy`."""
        body = self.model.get_submodule(self.structure.body)
        return weight_sharing_copy(
            self.model, {id(body): _PassThroughBody(self.structure.output_type, body)} | (replace or {})
        )


def _logits(head: nn.Module, hidden: Tensor) -> Tensor:
    rows = hidden.reshape(1, -1, hidden.shape[-1])
    return head(**head_inputs(head, rows), use_cache=False).logits.reshape(*hidden.shape[:-1], -1)
