"""Modules that `torch.compile` has wrapped: what they wrap, and the names that their weights have without the wrapper.

Only the wrapper's code is compiled. The module inside stays as it was, and a copy of it runs uncompiled.
"""

import copy
from typing import Any

from torch import nn

WRAPPED = "_orig_mod"  # how torch names the module inside


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside the wrapper; any other module itself."""
    inside = module._modules.get(WRAPPED)
    return module if inside is None else uncompiled(inside)


def uncompiled_name(name: str) -> str:
    """The name of a parameter or module in the model without wrappers."""
    return ".".join(part for part in name.split(".") if part != WRAPPED)


def uncompiled_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """`copy.deepcopy` without the wrappers around the module and its parts. memo: as of `deepcopy`."""
    for part in reversed(list(module.modules())):  # those inside others first
        if WRAPPED in part._modules and id(part) not in memo:
            memo[id(part)] = copy.deepcopy(uncompiled(part), memo)
    twin: nn.Module = copy.deepcopy(module, memo)
    return twin
