"""How surprising a document is to the model, token by token: -log q(next), in nats.

Its mean is the cross entropy of the objective, so before memorizing it is the first step's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.core.budget import CHUNK_POSITIONS
from fastmem.core.optimize import Reading
from fastmem.core.replay import FFN
from fastmem.core.trunk import Trunk


@torch.no_grad()
def surprises(trunk: Trunk, reading: Reading, ffn: FFN | None = None) -> Tensor:
    """[N] float32: the surprise of every scored token, with the weights of `ffn` or the model's own."""
    hidden = torch.cat([trunk.tail(part, ffn) for part in reading.activations.split(CHUNK_POSITIONS)])
    parts = zip(hidden.split(CHUNK_POSITIONS), reading.targets.split(CHUNK_POSITIONS), strict=True)
    return torch.cat([F.cross_entropy(trunk.head(rows).float(), targets, reduction="none") for rows, targets in parts])
