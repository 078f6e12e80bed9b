"""Low-rank memories (LoRA, arXiv 2106.09685): tune two small factors of every FFN matrix instead of the matrix.

    w = w_0 + scale * B @ A        w [..., n, m],  B [..., n, r],  A [..., r, m],  scale = lora_alpha / rank

Leading dimensions are experts, each with its own factors. A is drawn uniformly from +-1/sqrt(m) with the recipe's seed
and B is zero, so a run starts exactly at the original. All layouts follow this rule: where a family stores a matrix
transposed (GPT-2, the experts of gpt-oss), the random factor is on the side of the outputs. Biases, including those of
experts in one tensor, are not tuned, because adapter formats have no place for them.

Pure functions over dictionaries: weights by full name, factors by that name with one of two endings.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastmem.torch_modes import in_own_modes

ENDINGS = (".lora_A", ".lora_B")


def start(originals: Mapping[str, Tensor], rank: int, seed: int) -> dict[str, Tensor]:
    """The factors before the first step, float32 or wider, for every matrix; r is at most its smaller side.

    They are drawn on the host in the order of the names, so every device gets the same.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name in sorted(filter(lambda name: is_matrix(name, originals[name]), originals)):
        weight = originals[name]
        *experts, n, m = weight.shape
        r = min(rank, n, m)
        wide = torch.promote_types(weight.dtype, torch.float32)
        drawn = torch.rand(*experts, r, m, generator=generator, dtype=wide) * 2 - 1
        factors[f"{name}.lora_A"] = (drawn * m**-0.5).to(weight.device)
        factors[f"{name}.lora_B"] = torch.zeros(*experts, n, r, dtype=wide, device=weight.device)
    return factors


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a weight has low-rank factors."""
    return weight.ndim >= 2 and not name.endswith("bias")


def names(factors: Mapping[str, Tensor]) -> list[str]:
    """The full names of the weights that have factors."""
    return [name.removesuffix(".lora_A") for name in factors if name.endswith(".lora_A")]


@in_own_modes
def differences(factors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """w - w_0 = scale * B @ A of every weight, float32 or wider."""
    found = {}
    for name in names(factors):
        a, b = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
        wide = torch.promote_types(a.dtype, torch.float32)
        found[name] = scale * (b.to(wide) @ a.to(wide))
    return found


def factor_gradients(
    gradients: Mapping[str, Tensor], factors: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Gradients of the factors from gradients of the weights: dA = scale * B' G, dB = scale * G A'.

    Gradients of weights without factors (biases) are ignored.
    """
    found = {}
    for name in names(factors):
        if (gradient := gradients.get(name)) is None:
            continue
        a, b = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
        found[f"{name}.lora_A"] = scale * (b.mT @ gradient)
        found[f"{name}.lora_B"] = scale * (gradient @ a.mT)
    return found
