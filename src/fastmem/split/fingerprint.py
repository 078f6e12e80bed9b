"""Notice that a model was changed after it was split: a cheap look at its tensors, no digest of their bytes.

The split shares the storage of the model's parameters and has copies of its buffers. So a write to a parameter is
followed: what was computed from the old values has to go. A parameter that was replaced, cast or moved, a buffer with
other values, and adapters that were switched are not, since the split no longer runs the model.

Torch counts most writes in place. It does not count those through `.data`, nor the steps of a fused optimizer, so some
numbers of every tensor are compared, too.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastmem.errors import InputError
from fastmem.split.compiled import uncompiled_name

SAMPLED_NUMBERS = 64  # of every tensor
# How PEFT's layers record which adapters are active, switched off or merged.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters")
_PLAIN = (nn.Parameter, Tensor)  # not classes of their own, which may stand for other numbers than they hold
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes; NaN equals NaN in them


class ModelWatch:
    """What a model was when it was last looked at."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._parameters = list(model.parameters())
        self._layout = _layout(model)
        buffers = [buffer for module in model.modules() for _, buffer in _saved_buffers(module)]
        self._buffers = _Sample(buffer for buffer in buffers if buffer is not None)
        self._weights = _Sample(model.parameters())
        self._buffer_values, self._values = self._buffers.values(), self._weights.values()
        self._writes = self.writes()

    def writes(self) -> list[int]:
        """How often each parameter was written to, as far as torch counts it."""
        return [parameter._version for parameter in self._parameters]

    def written_to(self) -> bool:
        """Whether weights have changed since the last look. Errors: `InputError` for a change that is not followed."""
        # The layout first: a sample of storage that is gone is never read.
        if _layout(self.model) != self._layout or self._buffers.values() != self._buffer_values:
            raise InputError(
                "the model was changed after FastMem was constructed: its weights were replaced, cast or moved, its "
                "buffers were written to, or its adapters were switched. Construct FastMem again with the changed "
                "model."
            )
        before = self._writes, self._values
        self._writes, self._values = self.writes(), self._weights.values()
        return (self._writes, self._values) != before


class _Sample:
    """A few numbers of every tensor, spread evenly, to be read again and again in a few calls."""

    def __init__(self, tensors: Iterable[Tensor]):
        alike: dict[tuple[torch.device, int], list[Tensor]] = {}
        for tensor in tensors:
            if len(numbers := _spread(tensor)) and tensor.itemsize in _INTEGERS:
                integers = numbers.view(_INTEGERS[tensor.itemsize])
                alike.setdefault((tensor.device, tensor.itemsize), []).append(integers)
        self._alike = list(alike.values())

    def values(self) -> list[bytes]:
        """The numbers as they are now."""
        return [torch.cat(numbers).cpu().numpy().tobytes() for numbers in self._alike]


def _layout(model: nn.Module) -> list[Any]:
    """Which tensors the model has, their storage, type and device, and the state of PEFT adapters."""
    layout: list[Any] = []
    for module in model.modules():
        for name, tensor in (*module._parameters.items(), *_saved_buffers(module)):
            if tensor is not None and tensor.device.type != "meta":  # an offloaded weight is new in every call
                layout.append((name, _storage(tensor), tensor.dtype, tensor.device))
        state = vars(module)
        layout += [(name, str(state[name])) for name in _ADAPTER_STATE if name in state]
    return layout


def _saved_buffers(module: nn.Module) -> list[tuple[str, Tensor | None]]:
    """A module's own buffers that a checkpoint holds. A forward pass may write to others (rotary frequencies)."""
    return [entry for entry in module._buffers.items() if entry[0] not in module._non_persistent_buffers_set]


def sampled_digest(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and a few numbers of every parameter, and the state of PEFT adapters.

    It tells models apart, and a model before and after training, without reading all of its bytes; a change to a few
    numbers it may miss.
    """
    sha = hashlib.sha256()
    for name, tensor in model.named_parameters():
        sha.update(f"{uncompiled_name(name)} {tensor.dtype} {list(tensor.shape)};".encode())
        sha.update(_spread(tensor).to("cpu", torch.float64).contiguous().numpy().data)
    for name, module in model.named_modules():
        state = vars(module)
        sha.update("".join(f"{name} {key} {state[key]};" for key in _ADAPTER_STATE if key in state).encode())
    return sha.hexdigest()


def _storage(tensor: Tensor) -> int:
    """The address of the values; of a tensor that wraps others (torchao), the identity of the object."""
    return tensor.data_ptr() if type(tensor) in _PLAIN else id(tensor)


def _spread(tensor: Tensor) -> Tensor:
    """A view of up to `SAMPLED_NUMBERS` values, spread evenly; empty for tensors that are wrapped or offloaded."""
    if type(tensor) not in _PLAIN or tensor.device.type == "meta" or not tensor.is_contiguous():
        return torch.empty(0)
    values = tensor.detach().view(-1)
    return values[:: max(1, len(values) // SAMPLED_NUMBERS)]
