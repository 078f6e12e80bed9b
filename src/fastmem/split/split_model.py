"""A model, split at its FFNs: run the trunk once, rebuild what follows as often as needed with other weights.

Nothing after the last FFN feeds attention, so for the same tokens everything below it, keys and values included, is
the same with and without a memory. `Trunk` turns that into three calls:

    hidden = trunk.forward(ids, ffn=..., record=...)      [B, T] -> [B, T, D], the last hidden state
    hidden = trunk.tail(activations, ffn=...)             the same from what `record` kept, without the trunk
    logits = trunk.head(hidden)                           [N, D] -> [N, V], soft caps and scales included

`ffn` says which weights an FFN uses in this call and no other. Every module called is the model's own code on
`shared_copy`s of it; the model itself is never written to, and a `Trunk` keeps no state between calls, so threads may
share one. A probe on construction compares rebuilt logits with the model's own and refuses where they differ.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmem.core.anatomy import dissect, first, input_device, shared_copy, unsupported, vocabulary
from fastmem.core.floating import floating, is_quantized
from fastmem.core.replay import FFN, Activations, Recording, running, wire
from fastmem.errors import InputError


class _Passed(nn.Module):
    """Stands where the body was: hands on what it is given as the last hidden state."""

    def __init__(self, output_type: type, body: nn.Module):
        super().__init__()
        self.output_type = output_type
        self.__dict__["body"] = body  # not a submodule: only asked for what a head reads from it (Falcon-H1's scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["body"], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        return self.output_type(last_hidden_state=inputs_embeds)


class Trunk:
    """`model`, a transformers causal language model, taken apart once.

    Errors: `UnsupportedModelError` where the parts are not found or the rebuilt logits are not the model's own.
    """

    def __init__(self, model: Any):
        self.model = model
        self.family: str = model.config.model_type
        self.anatomy = dissect(model)
        twin = shared_copy(model)
        wire(twin, self.anatomy)
        self._body = twin.get_submodule(self.anatomy.body)
        self._head = self._around()
        self._layers = [twin.get_submodule(layer.path) for layer in self.anatomy.layers]
        self._closing = [twin.get_submodule(name) for name in self.anatomy.closing]
        # Alibi models take none (BLOOM, MPT).
        self._takes_positions = "position_ids" in inspect.signature(self._body.forward).parameters
        # The base's own FFN modules, outside the switches: for rows of a batch that use them beside others.
        self.own_ffn = {n: shared_copy(model.get_submodule(n)) for layer in self.anatomy.layers for n in layer.ffn}
        self.vocabulary = vocabulary(model)
        self.input_device = input_device(model)
        last = model.get_submodule(self.anatomy.layers[-1].ffn[0])
        self.dtype = model.dtype if is_quantized(last) else next(last.parameters()).dtype
        self.device = next(itertools.chain(last.parameters(), last.buffers())).device
        self._floating: dict[str, nn.Module] = {}
        self.parameters((-1,))  # refuses what is offloaded
        try:
            _probe(self)
        except (AttributeError, RuntimeError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise unsupported(
                self.family, f"its parts do not run on their own ({error})", "report the family"
            ) from error

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.anatomy.layers)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model has positions for; None where its configuration names none."""
        config = self.model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "max_position_embeddings", None)

    def indices(self, layers: Sequence[int]) -> tuple[int, ...]:
        """`layers`, negative ones counted from the end, as sorted indices from 0. Errors: `InputError`."""
        found = set()
        for layer in layers:
            if not -self.depth <= layer < self.depth:
                raise InputError(f"layer {layer} does not exist: accepted are {-self.depth} to {self.depth - 1}.")
            if not self.anatomy.layers[layer].ffn:
                raise InputError(f"layer {layer} has no feed-forward network to tune: choose another.")
            found.add(layer % self.depth)
        return tuple(sorted(found))

    def parameters(self, layers: Sequence[int]) -> dict[str, Tensor]:
        """The model's own FFN weights of `layers`, by their full names. Not copies: not to be written to.

        Errors: `UnsupportedModelError` where they are offloaded, to host or disk, and only there during a call.
        """
        found = {}
        for index in self.indices(layers):
            for module in self.anatomy.layers[index].ffn:
                for name, parameter in self.floating_ffn(module).named_parameters():
                    found[f"{module}.{name}"] = parameter.detach()
                    if parameter.device.type == "meta":
                        reason = f"the weights of layer {index} are offloaded (on the meta device between calls)"
                        raise unsupported(self.family, reason, "keep that layer on a device: device_map or max_memory")
        return found

    def floating_ffn(self, name: str) -> nn.Module:
        """The base's FFN module of that name with float weights: its own, or a copy of a quantized one."""
        if name not in self._floating:
            self._floating[name] = floating(self.own_ffn[name], self.dtype)
        return self._floating[name]

    def ffn(self, weights: Mapping[str, Tensor]) -> FFN:
        """FFN modules that use `weights` (full parameter name -> tensor), ready for `forward` and `tail`.

        Weights in another type than the model's are cast, differentiably, in every call.
        """
        modules: dict[str, Callable[..., Any]] = {}
        for module in {name for layer in self.anatomy.layers for name in layer.ffn}:
            own = {k.removeprefix(f"{module}."): v for k, v in weights.items() if k.startswith(f"{module}.")}
            if own:
                modules[module] = functools.partial(_with_weights, shared_copy(self.floating_ffn(module)), own)
        return modules

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        ffn: FFN | None = None,
        record: Recording | None = None,
    ) -> Tensor:
        """The last hidden state [B, T, D] (after the final norm) for ids [B, T].

        mask: [B, past + T], 0 where a position is padding. positions: [B, T] position numbers. cache: a transformers
        cache, extended in place. ffn: weights for this call. record: filled on the way.
        """
        kwargs: dict[str, Any] = {"attention_mask": mask, "use_cache": cache is not None, "past_key_values": cache}
        if positions is not None and self._takes_positions:
            kwargs["position_ids"] = positions.to(self.input_device)
        with running(ffn=ffn or {}, record=record):
            return self._body(input_ids=ids.to(self.input_device), **kwargs).last_hidden_state

    def activations(self, recording: Recording, positions: Tensor | None = None) -> Activations:
        """What `recording` kept, as the input of `tail`; its lowest layer is where the tail begins."""
        layer = min(recording.layers)
        mixed = {name: recording.mixed[name] for name in self.anatomy.layers[layer].recorded}
        above = tuple(recording.calls[i] for i in range(layer + 1, self.depth))
        return Activations(layer, recording.inputs[layer], mixed, above, positions)

    def read(self, ids: Tensor, positions: Tensor, layers: Sequence[int] = (-1,), cache: Any = None) -> Activations:
        """One forward pass over ids [S]; the activations at positions [N] that tuning `layers` needs. No gradient."""
        lowest = min(self.indices(layers))
        fast = lowest == self.depth - 1
        where = positions.to(self.device)
        recording = Recording(frozenset(range(lowest, self.depth)))
        if fast:
            recording.select = lambda hidden: hidden[0, where]
        with torch.no_grad():
            self.forward(ids[None], cache=cache, record=recording)
        return self.activations(recording, None if fast else where)

    def tail(self, activations: Activations, ffn: FFN | None = None) -> Tensor:
        """The last hidden state [N, D] from the activations, with gradients to whatever `ffn` was made of."""
        at, hidden = activations.layer, activations.hidden
        leading = hidden.shape[:-1]
        replay = {k: v.reshape(1, -1, v.shape[-1]) for k, v in activations.mixed.items()}
        args, kwargs = self.anatomy.layers[at].call
        sides = {where: replay[name] for name, where in self.anatomy.layers[at].sides.items()}
        args = tuple(sides.get(i, value) for i, value in enumerate(args))
        kwargs = {k: sides.get(k, value) for k, value in kwargs.items()}
        with running(ffn=ffn or {}, replay=replay):
            hidden = first(self._layers[at](hidden.reshape(1, -1, hidden.shape[-1]), *args, **kwargs))
        with running(ffn=ffn or {}):
            for layer, (args, kwargs) in zip(self._layers[at + 1 :], activations.calls, strict=True):
                hidden = first(layer(hidden, *args, **kwargs))
            hidden = self.close(hidden)
        if activations.positions is not None:
            return hidden[0, activations.positions]
        return hidden.reshape(*leading, -1)

    def close(self, hidden: Tensor, norms: bool = True) -> Tensor:
        """What follows the last layer and precedes the head: the final norm, and a projection where there is one.

        norms: False leaves out what has no matrix, as published DoLa does with early states.
        """
        for module in self._closing:
            if norms or any(p.ndim >= 2 for p in module.parameters()):
                hidden = first(module(hidden))
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of last hidden states [..., D], in the model's type."""
        return _logits(self._head, hidden)

    def head_over(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """`head` for these tokens [K] alone: hidden states [..., D] to logits [..., K], from gathered rows.

        Right where a logit depends on no other row of the output embedding than its own: who calls this compares.
        Errors: `InputError` where that embedding has no rows of floats.
        """
        whole = self.model.get_output_embeddings()
        weight, bias = getattr(whole, "weight", None), getattr(whole, "bias", None)
        if weight is None or not weight.is_floating_point() or weight.device.type == "meta":
            offloaded = " that is offloaded" if weight is not None and weight.device.type == "meta" else ""
            raise InputError(
                f"recipe shortlist (--shortlist) needs an output embedding with rows of floats, {self.family!r} has "
                f"{type(whole).__name__}{offloaded}. Leave it out; the objective then uses the whole vocabulary."
            )
        rows = nn.Linear(weight.shape[1], len(tokens), bias=bias is not None, device="meta")
        for name, values in {"weight": weight, "bias": bias}.items():
            if values is not None:
                gathered = values.detach()[tokens.to(values.device)].to(self.device)
                setattr(rows, name, nn.Parameter(gathered, requires_grad=False))
        return functools.partial(_logits, self._around({id(whole): rows}))

    def _around(self, replace: dict[int, Any] | None = None) -> nn.Module:
        """The model with its body taken out: what is left is the head. replace: as for `shared_copy`."""
        body = self.model.get_submodule(self.anatomy.body)
        return shared_copy(self.model, {id(body): _Passed(self.anatomy.output_type, body)} | (replace or {}))


def _logits(head: nn.Module, hidden: Tensor) -> Tensor:
    rows = hidden.reshape(1, -1, hidden.shape[-1])
    return head(inputs_embeds=rows, use_cache=False).logits.reshape(*hidden.shape[:-1], -1)


def _with_weights(module: nn.Module, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
    return functional_call(module, {k: w.to(dtypes[k]) for k, w in weights.items()}, args, kwargs)


def _probe(trunk: Trunk) -> None:
    """Compare rebuilt logits with the model's own, as it is and with the FFN's output scaled; refuse a difference."""
    ids = (torch.arange(10) * 5 + 1) % trunk.vocabulary
    module = trunk.anatomy.layers[-1].ffn[-1]

    def scaled(own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        return (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5

    whole = shared_copy(trunk.model)
    part = whole.get_submodule(module)
    activations = trunk.read(ids, torch.arange(10))
    with torch.no_grad():
        own = whole(input_ids=ids[None].to(trunk.input_device), use_cache=False).logits[0].float()
        prefix = whole(input_ids=ids[None, :6].to(trunk.input_device), use_cache=False).logits[0].float()
        rebuilt = trunk.head(trunk.tail(activations)).float()
        other = {module: functools.partial(scaled, shared_copy(trunk.model.get_submodule(module)))}
        rebuilt_scaled = trunk.head(trunk.tail(activations, other)).float()
        part.forward = functools.partial(scaled, part.forward)
        own_scaled = whole(input_ids=ids[None].to(trunk.input_device), use_cache=False).logits[0].float()
    # In units in the last place of the largest logit. Six positions run through other kernels than ten in every layer;
    # what is rebuilt runs through the same ones, so that in a short type 8 (6 % in bfloat16) are plenty.
    unit = torch.finfo(trunk.dtype).eps * own.abs().max().item()
    allowed = unit * (64 if trunk.dtype.itemsize > 2 else 8)
    if not (ahead := (own[:6] - prefix).abs().max().item()) <= 64 * unit:
        raise unsupported(
            trunk.family, f"it reads ahead (logits move by {ahead:.2g} with later tokens)", "give a causal model"
        )
    for label, a, b in (("rebuilt", rebuilt, own), ("rebuilt with another FFN", rebuilt_scaled, own_scaled)):
        if not (apart := (a - b).abs().max().item()) <= allowed:
            raise unsupported(
                trunk.family,
                f"{label} logits differ from its own by {apart:.2g}, {allowed:.2g} allowed",
                "report the family, or answer with method 'base' or 'cad' through transformers",
            )
