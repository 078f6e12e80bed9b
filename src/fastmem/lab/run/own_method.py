"""A method of one's own: how logits become scores, in a Python file.

NEEDS = ("memorized", "original")  # of these and "without_document", "early_layers"

def scores(logits):                # float32 tensors [V] by these names; early layers [L, V]
    return 2 * logits["memorized"] - logits["original"]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from fastmem.answer.contrast import Combination, Side
from fastmem.lab.python_file import PythonFile, load_file

USE = "def scores(logits): return 2 * logits['memorized'] - logits['original']"
_TRIED_TOKENS, _TRIED_LAYERS = 50, 3  # of the random logits that a function is tried on


@dataclass(frozen=True)
class OwnMethod:
    """The method of a file. needs: the logits that it combines."""

    file: PythonFile
    needs: frozenset[Side]

    @property
    def memorized(self) -> bool:
        """Whether it uses a memory."""
        return "memorized" in self.needs

    @property
    def compares_prompts(self) -> bool:
        """Whether it needs the prompt without the document."""
        return "without_document" in self.needs

    @property
    def combination(self) -> Combination:
        """What the decoder calls."""
        return Combination(self.needs, self.scores)

    def scores(self, logits: Mapping[Side, Tensor]) -> Tensor:
        """[V], checked. Errors: `InputError` that names the file and the line."""
        first = next(tensor for side, tensor in logits.items() if side != "early_layers")
        try:
            # Copies, so that a function that writes to its logits changes nobody else's.
            found = self.file.function("scores", USE)({side: tensor.clone() for side, tensor in logits.items()})
        except (Exception, SystemExit) as error:
            raise self.file.failure(error) from error
        if not isinstance(found, Tensor) or found.shape != first.shape or not found.is_floating_point():
            shown = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.60}"
            raise self.file.error(f"scores gave {shown}; give floating-point scores {list(first.shape)}")
        found = found.to(first)
        if bool(found.isnan().any()) or bool(found.isposinf().any()):
            raise self.file.error("scores gave NaN or infinity; give numbers, and -inf for tokens to exclude")
        if not bool(found.isfinite().any()):
            raise self.file.error("scores excluded every token; leave at least one above -inf")
        return found


def own_method(path: str) -> OwnMethod:
    """The method of a file, tried on random logits. Errors: `InputError`."""
    file = load_file(path, "method")
    file.function("scores", USE)
    needs = file.value("NEEDS")
    accepted = get_args(Side)
    if not isinstance(needs, list | tuple) or not needs or not set(map(str, needs)) <= set(accepted):
        given = "it defines no NEEDS" if needs is None else f"NEEDS is {needs!r:.80}"
        raise file.error(f"{given}; give the names of the logits that scores uses, of: {', '.join(accepted)}")
    if not {"memorized", "original"} & set(needs):
        raise file.error(f"NEEDS is {needs!r:.80}; it must have 'memorized' or 'original', the weights that answer")
    method = OwnMethod(file, frozenset(needs))
    generator = torch.Generator().manual_seed(0)
    shapes = {side: [_TRIED_LAYERS] * (side == "early_layers") + [_TRIED_TOKENS] for side in accepted}
    with torch.no_grad():
        method.scores({side: torch.randn(shapes[side], generator=generator) for side in accepted if side in needs})
    return method
