"""Find the parts of a model by what they do, not by their names.

One short forward pass through a weight-sharing copy of the model is observed. The calls and their inputs and outputs
identify the parts:

- the *body* is the module that returns `last_hidden_state`; in an encoder-decoder it is the decoder;
- its *layers* are the module list whose members were called;
- in a layer, the *feed-forward network* (FFN) is the part that has matrices and treats every position independently;
- the *mixers* (attention, convolutions) have matrices and do not;
- the *closing* modules (the final norm, a projection) map the last layer's output to the last hidden state.

A new model family therefore needs no entry anywhere. The check in `probe.py` verifies the result.
"""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastmem.split.compiled import uncompiled_copy
from fastmem.split.model_interface import input_device, is_encoder_decoder, probe_inputs, vocabulary_size
from fastmem.split.unsupported import unsupported, unsupported_if

log = logging.getLogger("fastmem")

# Length of the observed sequence: odd and unlike usual sizes, so that a dimension of this length counts positions.
PROBE_TOKENS = 11

C = TypeVar("C")


@dataclass(frozen=True)
class Layer:
    """One decoder layer. All names are relative to the whole model.

    path: the layer itself.
    ffn: the FFN's modules; usually one, two where a layer holds bare linears (OPT) or has a separate shared expert.
    mixers: name of each token mixer -> how many values its forward returns (0: a bare tensor, not a tuple).
    call: the observed positional and keyword arguments after the hidden states; a replay passes them again.
    side_inputs: those of these arguments that have one row per position, like the hidden states (Gemma 4's per-layer
        inputs): a name to record them under -> position after the hidden states, or keyword.
    """

    path: str
    ffn: tuple[str, ...]
    mixers: dict[str, int]
    call: tuple[tuple[Any, ...], dict[str, Any]]
    side_inputs: dict[str, int | str]

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of everything a replay of this layer needs in addition to its hidden states."""
        return (*self.mixers, *self.side_inputs)


@dataclass(frozen=True)
class Structure:
    """Where the parts of one model are. All names are relative to the whole model."""

    body: str
    layers: tuple[Layer, ...]
    closing: tuple[str, ...]
    output_type: type


@dataclass(frozen=True)
class _Call:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    snapshot: Tensor | None  # of the hidden states in `out`, since some layers add to them in place (Falcon)


@torch.inference_mode(False)  # the copy's own tensors can be written to, wherever it is made
def weight_sharing_copy(module: nn.Module, replace: dict[int, Any] | None = None) -> nn.Module:
    """A copy of the modules, in evaluation mode, that shares the original's weights and nothing else.

    The copy can be run, hooked and changed; the original is never written to. Shared is the storage of parameters and
    of codes in buffers. Everything that a forward pass may write to is the copy's own: buffers, tensors in attributes,
    and what a quantized parameter holds beside its codes. The copy's parameters are frozen, so gradients exist only
    for tensors that a caller substitutes. replace: `id(part)` -> the object to use instead.
    """
    memo: dict[int, Any] = dict(replace or {})
    parameters = []
    for part in module.modules():
        for value in (*part._parameters.values(), *vars(part).values()):
            if isinstance(value, Tensor) and isinstance(value, nn.Parameter) and id(value) not in memo:
                parameters.append(value)
                memo[id(value)] = _frozen(value)
            elif type(value) is OrderedDict and not value:  # hooks: `deepcopy` takes 10 times as long for each
                memo[id(value)] = OrderedDict()
        for name in ("config", "generation_config"):
            if (config := vars(part).get(name)) is not None:
                memo.setdefault(id(config), with_named_outputs(config))
    # bitsandbytes keeps scales and codes in attributes of a parameter, and its forward pass changes them.
    with _DeepCopyOfTensors(shared=lambda _: True):
        for parameter in parameters:
            own = memo[id(parameter)]
            if own is not parameter and type(parameter) is not nn.Parameter:
                vars(own).update(copy.deepcopy(vars(parameter), memo))
    with _DeepCopyOfTensors(shared=is_codes):
        twin = uncompiled_copy(module, memo)
    for part in twin.modules():
        part.training = False  # without `eval`, which a module may override to merge weights in place (loralib)
    return twin


class _DeepCopyOfTensors(TorchFunctionMode):
    """Within the block, `copy.deepcopy` copies Python objects as always, and shares the tensors it is told to."""

    def __init__(self, shared: Callable[[Tensor], bool]):
        super().__init__()
        self.shared = shared

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return args[0] if self.shared(args[0]) else args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the same class and storage. One on the meta device has no storage, and is returned itself."""
    if parameter.device.type == "meta":
        return parameter
    if issubclass(type(parameter), nn.Parameter):
        return parameter.detach().as_subclass(type(parameter))
    return nn.Parameter(parameter.detach(), requires_grad=False)  # a tensor subclass marked as a parameter (torchao)


def is_codes(tensor: Tensor) -> bool:
    """Whether it is a matrix of integers or 8-bit floats: quantized weights, or a mask, which can be as large."""
    return tensor.ndim >= 2 and (not tensor.is_floating_point() or tensor.itemsize == 1)


def with_named_outputs(config: C) -> C:
    """The configuration, or a copy of it if it makes modules return tuples."""
    if getattr(config, "return_dict", True):
        return config
    own = copy.copy(config)
    own.return_dict = True  # type: ignore[attr-defined]
    return own


def hidden_states(output: Any) -> Tensor:
    """The hidden states in a module's output: the output itself, or the first element of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def find_structure(model: nn.Module) -> Structure:
    """Observe one forward pass of `PROBE_TOKENS` tokens and name the parts.

    Errors: `UnsupportedModelError`, with the family and the part that was not found.
    """
    family = family_of(model)
    with unsupported_if(
        (TypeError, ValueError, AttributeError, RuntimeError),
        family=family,
        reason="its modules cannot be copied",
        remedy="remove the attribute of a module that cannot be, such as a lock or an open file",
    ):
        model_copy = weight_sharing_copy(model)
    calls = _watch(model_copy)
    bodies = [call for call in calls if call.name and getattr(call.out, "last_hidden_state", None) is not None]
    if is_encoder_decoder(model):
        bodies = [call for call in bodies if model_copy.get_submodule(call.name) is model_copy.get_decoder()]  # type: ignore[operator]
    if not bodies:
        raise unsupported(
            family, "none of its modules returns a last hidden state", "give a transformers causal model"
        )
    body = min(bodies, key=lambda call: call.name.count("."))
    called = {call.name: call for call in calls}
    paths = _layer_paths(model_copy, body.name, called)
    if not paths:
        raise unsupported(family, "it has no list of decoder layers", "give a decoder-only transformer")
    layers = tuple(_layer(model_copy, path, called) for path in paths)
    if not layers[-1].ffn:
        raise unsupported(family, "its last layer has no feed-forward network", "give a transformer that has one")
    closing = _closing(hidden_states(called[paths[-1]].out), paths[-1], calls, body.out.last_hidden_state)
    if closing is None:
        raise unsupported(
            family, "cannot trace from the last layer to `last_hidden_state`", "report this model family"
        )
    return Structure(body.name, layers, closing, type(body.out))


def family_of(model: Any) -> str:
    """The name of the model's family, or of its class."""
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """[S, V]: the logits of a forward pass over ids [S], in float32 or wider.

    Errors: `UnsupportedModelError` if the pass fails.
    """
    failed = unsupported_if(
        (TypeError, ValueError, AttributeError, RuntimeError),  # no causal language model of transformers
        family=family_of(model),
        reason="a plain forward pass failed",
        remedy="give a transformers causal model that runs by itself",
    )
    with failed, torch.no_grad():
        logits = model(**probe_inputs(model, ids.to(input_device(model))), use_cache=False).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _watch(model_copy: nn.Module) -> list[_Call]:
    """Every call of every module in one forward pass, in the order in which they returned."""
    calls: list[_Call] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs, out: calls.append(_Call(name, args, kwargs, out, _snapshot(out)))

    handles = [m.register_forward_hook(hook(name), with_kwargs=True) for name, m in model_copy.named_modules()]
    try:
        plain_logits(model_copy, (torch.arange(PROBE_TOKENS) * 7 + 1) % vocabulary_size(model_copy))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _snapshot(out: Any) -> Tensor | None:
    states = hidden_states(out)
    return states.clone() if isinstance(states, Tensor) else None


def _layer_paths(model_copy: nn.Module, body: str, called: dict[str, _Call]) -> list[str]:
    """The outermost module list of the body whose members were called; the longest if there are several."""
    lists = [
        (name.count("."), -len(m), [f"{name}.{i}" for i in range(len(m)) if f"{name}.{i}" in called])
        for name, m in model_copy.named_modules()
        if isinstance(m, nn.ModuleList) and (name.startswith(f"{body}.") or not body)
    ]
    lists = [entry for entry in lists if entry[2]]
    return min(lists, key=lambda entry: entry[:2])[2] if lists else []


def _layer(model_copy: nn.Module, path: str, called: dict[str, _Call]) -> Layer:
    ffn, mixers = [], {}
    for child, module in _parts(model_copy.get_submodule(path)):
        call = called.get(f"{path}.{child}")
        if call is None or not _has_matrices(module):
            continue
        if _position_wise(module, call):
            ffn.append(_unwrapped(module, call.name, called))
        else:
            mixers[call.name] = len(call.out) if isinstance(call.out, tuple) else 0
    # A layer with a whole FFN module may also have bare linears (Gemma 3n's gates), which do not belong to the FFN.
    whole = [name for name in ffn if next(model_copy.get_submodule(name).children(), None) is not None]
    call = called[path]
    kwargs = {k: v for k, v in call.kwargs.items() if k != "hidden_states"}
    others: list[tuple[int | str, Any]] = [*enumerate(call.args[1:]), *kwargs.items()]
    side_inputs = {f"{path}:{at}": at for at, value in others if _has_a_row_per_position(value)}
    return Layer(path, tuple(whole or ffn), mixers, (call.args[1:], kwargs), side_inputs)


def _parts(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children by name; a module list stands for its members (T5)."""
    for name, child in layer.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{member}", module) for member, module in child.named_children())
        else:
            yield name, child


def _unwrapped(module: nn.Module, name: str, called: dict[str, _Call]) -> str:
    """The name of the module inside that has all the matrices: T5 wraps an FFN with its norm and the residual."""
    holders = [(child, part) for child, part in module.named_children() if _has_matrices(part)]
    own = any(p.ndim >= 2 for p in module.parameters(recurse=False)) or any(map(is_codes, module.buffers(False)))
    if len(holders) != 1 or own or f"{name}.{holders[0][0]}" not in called:
        return name
    return _unwrapped(holders[0][1], f"{name}.{holders[0][0]}", called)


def _has_a_row_per_position(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3 and tuple(value.shape[:2]) == (1, PROBE_TOKENS)


def _has_matrices(module: nn.Module) -> bool:
    """Whether it has two-dimensional weights: parameters, or a quantized linear's codes in a buffer."""
    return any(p.ndim >= 2 for p in module.parameters()) or any(map(is_codes, module.buffers()))


def _position_wise(module: nn.Module, call: _Call) -> bool:
    """Whether the module, called on the last position alone, returns what it returned for it in the sequence."""
    tensors = [*call.args, *call.kwargs.values()]
    if call.snapshot is None or not tensors:
        return False
    if not all(isinstance(t, Tensor) and _positions(t) is not None for t in tensors):
        return False
    with torch.no_grad():
        args = [_last(t) for t in call.args]
        alone = hidden_states(module(*args, **{k: _last(t) for k, t in call.kwargs.items()})).float()
    among = _last(call.snapshot).float()
    # Kernels differ with the shape: a few units in the last place of the working type, relative to the largest value.
    tolerance = 64 * rounding_unit(call.snapshot.dtype)
    return bool((alone.reshape(-1) - among.reshape(-1)).abs().max() <= tolerance * (among.abs().max() + 1e-6))


def rounding_unit(dtype: torch.dtype) -> float:
    """The relative rounding error of a model of this type. A float64 model may compute parts in float32: routers, the
    attention weights of Gemma 2."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _positions(tensor: Tensor) -> int | None:
    """The dimension that counts positions in [1, S, ...] or [S, ...]; None where there is none."""
    return next((d for d in (1, 0) if tensor.ndim > d + 1 and tensor.shape[d] == PROBE_TOKENS), None)


def _last(tensor: Tensor) -> Tensor:
    dimension = _positions(tensor)
    return tensor if dimension is None else tensor.narrow(dimension, PROBE_TOKENS - 1, 1)


def _closing(state: Tensor, path: str, calls: list[_Call], target: Tensor) -> tuple[str, ...] | None:
    """Names of the modules that lead from the last layer's output to the last hidden state."""
    chain: list[str] = []
    while not _same(state, target):
        takers = [c for c in calls if c.args and c.args[0] is state and not c.name.startswith(path) and c.name]
        if not takers or takers[0].name in chain:
            return None
        chain.append(takers[0].name)
        state = hidden_states(takers[0].out)
    return tuple(chain)


def _same(a: Tensor, b: Tensor) -> bool:
    """The same tensor, or a view of all of it (GPT-2 reshapes what its final norm returns)."""
    return a is b or (a.data_ptr() == b.data_ptr() and a.numel() == b.numel())
