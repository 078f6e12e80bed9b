"""Notice that a model was changed after it was split: a cheap look at its tensors, no digest of their bytes.

`layout` covers what a `SplitModel` shares with the model: which tensors there are, their storage, type and device, and
the state of PEFT adapters. If it differs, the split no longer runs the model. `content` covers the values: torch's
counter of writes in place, and a few numbers of the last FFN, because writes through `.data` are not counted. If only
it differs, everything that was computed from the old values has to go.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.errors import InputError

SAMPLED_NUMBERS = 64  # of every tensor of the last FFN
# How PEFT's layers record which adapters are active, switched off or merged.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters")


@dataclass(frozen=True)
class Fingerprint:
    """layout: of the tensors a model has. content: of their values."""

    layout: tuple[Any, ...]
    content: tuple[Any, ...]


class ModelWatch:
    """The fingerprint of a model when it was last looked at. sampled: names of modules whose values are looked at."""

    def __init__(self, model: nn.Module, sampled: tuple[str, ...]):
        self.model, self.sampled = model, sampled
        self._last = fingerprint(model, sampled)

    def written_to(self) -> bool:
        """Whether values have changed since the last look. Errors: `InputError` if whole weights were replaced."""
        now, before = fingerprint(self.model, self.sampled), self._last
        if now.layout != before.layout:
            raise InputError(
                "the model was changed after FastMem was constructed: its weights were replaced, cast or moved, or "
                "its adapters were switched. Construct FastMem again with the changed model."
            )
        self._last = now
        return now.content != before.content


def fingerprint(model: nn.Module, sampled: tuple[str, ...]) -> Fingerprint:
    """The fingerprint of a model. sampled: as in `ModelWatch`."""
    layout: list[Any] = []
    versions: list[int] = []
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None and tensor.device.type != "meta":  # an offloaded weight is new in every call
                layout.append((name, _storage(tensor), tensor.dtype, tensor.device))
                versions.append(0 if tensor.is_inference() else tensor._version)
        state = vars(module)
        layout += [(name, str(state[name])) for name in _ADAPTER_STATE if name in state]
    numbers = [_sample(p) for name in sampled for p in model.get_submodule(name).parameters()]
    content = torch.cat(numbers).tolist() if numbers else []
    return Fingerprint(tuple(layout), (*versions, *content))


def sampled_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and a few numbers of every parameter, and the state of PEFT adapters.

    It tells models apart, and a model before and after training, without reading all of its bytes; a change to a few
    numbers it may miss.
    """
    sha = hashlib.sha256()
    for name, tensor in model.named_parameters():
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        sha.update(_sample(tensor).numpy().data)
    for name, module in model.named_modules():
        state = vars(module)
        sha.update("".join(f"{name} {key} {state[key]};" for key in _ADAPTER_STATE if key in state).encode())
    return sha.hexdigest()


def _storage(tensor: Tensor) -> int:
    """The address of the values; of a tensor that wraps others (torchao), the identity of the object."""
    return tensor.data_ptr() if type(tensor) is nn.Parameter else id(tensor)


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLED_NUMBERS` values, spread evenly; none of tensors that are wrapped or offloaded."""
    if type(tensor) is not nn.Parameter or tensor.device.type == "meta" or not tensor.is_contiguous():
        return torch.empty(0, dtype=torch.int64)
    values = tensor.detach().view(-1)
    return values[:: max(1, len(values) // SAMPLED_NUMBERS)].to("cpu", torch.float64).view(torch.int64)  # NaN == NaN
