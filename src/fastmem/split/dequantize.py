"""A float copy of a quantized feed-forward network.

A quantized model stays quantized, but the FFN that is tuned needs float weights. Some tensor subclasses can dequantize
themselves (torchao's). Whatever other format a linear uses (int8 with scales, packed 4 bits, a codebook), passing the
identity matrix through it yields its weight, rounded once to the type of the hidden states. So no format needs code of
its own.
"""

import torch
from torch import Tensor, nn

from fastmem.split.structure import is_codes, weight_sharing_copy
from fastmem.split.unsupported import unsupported, unsupported_if

UNQUANTIZED = "load the model with its last layer unquantized"


def is_quantized(module: nn.Module) -> bool:
    """Whether any of its matrices, parameter or buffer, is quantized."""
    return any(map(_is_quantized_matrix, (*module.parameters(), *module.buffers())))


def is_quantized_linear(part: nn.Module) -> bool:
    """Whether it is one linear whose weight is quantized, in whatever format."""
    return hasattr(part, "in_features") and not list(part.children()) and is_quantized(part)


def dequantized(module: nn.Module, dtype: torch.dtype, family: str) -> nn.Module:
    """The module itself if its matrices are floats; otherwise a copy with float linears. family: for the error.

    Errors: `UnsupportedModelError` if a float linear cannot be computed, or something else than a linear is quantized.
    """
    if not is_quantized(module):
        return module
    linears = {}
    for part in filter(is_quantized_linear, module.modules()):
        with unsupported_if(
            (RuntimeError, TypeError, ValueError, AssertionError),
            family=family,
            reason=f"no float copy of a quantized {type(part).__name__} could be made",
            remedy=UNQUANTIZED,
        ):
            linears[id(part)] = _linear(part, dtype)
    floats = weight_sharing_copy(module, linears)
    found = dict(floats.named_parameters())
    if not found or any(map(_is_quantized_matrix, found.values())):
        kinds = {type(part).__name__ for part in floats.modules() if not list(part.children()) and is_quantized(part)}
        reason = f"its quantized weights are not in linear layers, but in {', '.join(sorted(kinds))}"
        raise unsupported(family, reason, UNQUANTIZED)
    return floats


@torch.no_grad()
def _linear(part: nn.Module, dtype: torch.dtype) -> nn.Linear:
    width = int(part.in_features)  # type: ignore[arg-type]
    own = getattr(part, "weight", None)
    if isinstance(own, Tensor) and _dequantizes_itself(own):
        weight, bias = own.dequantize().to(dtype), getattr(part, "bias", None)
    else:
        device = next(t for t in (*part.parameters(), *part.buffers()) if _is_quantized_matrix(t)).device
        bias = part(torch.zeros(1, width, dtype=dtype, device=device))[0]
        weight = (part(torch.eye(width, dtype=dtype, device=device)) - bias).T.contiguous()
        bias = bias if bias.any() else None
    linear = nn.Linear(width, len(weight), bias=bias is not None, dtype=dtype, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def _is_quantized_matrix(tensor: Tensor) -> bool:
    """Codes, or a subclass that stands for other numbers than it holds: torchao's, or a parameter of a class of its
    own (bitsandbytes). A distributed tensor is neither."""
    stands_for_others = _dequantizes_itself(tensor) or nn.Parameter in type(tensor).__mro__[1:]
    return is_codes(tensor) or (stands_for_others and tensor.ndim >= 2)


def _dequantizes_itself(tensor: Tensor) -> bool:
    return type(tensor).dequantize is not Tensor.dequantize
