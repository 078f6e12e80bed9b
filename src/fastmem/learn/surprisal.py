"""The surprisal of every token of a document: -log q(next), in nats.

Its mean is the cross entropy of the objective, so before memorizing it equals the cross entropy of the first step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.learn.budget import CHUNK_POSITIONS
from fastmem.learn.optimize import Reading
from fastmem.split.hooks import FFN
from fastmem.split.split_model import SplitModel
from fastmem.torch_modes import in_own_modes


@in_own_modes
@torch.no_grad()
def token_surprisals(split_model: SplitModel, reading: Reading, ffn: FFN | None = None) -> Tensor:
    """[N] float32: the surprisal of every scored token, with the weights of `ffn` or the model's own."""
    hidden = torch.cat([split_model.tail(part, ffn) for part in reading.activations.split(CHUNK_POSITIONS)])
    parts = zip(hidden.split(CHUNK_POSITIONS), reading.targets.split(CHUNK_POSITIONS), strict=True)
    return torch.cat(
        [F.cross_entropy(split_model.head(rows).float(), targets, reduction="none") for rows, targets in parts]
    )
