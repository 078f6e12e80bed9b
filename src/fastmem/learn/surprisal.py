"""The surprisal of every token of a document: -log q(next), in nats; and how far two FFNs are apart there.

The mean surprisal is the cross entropy of the objective, so before memorizing it equals that of the first step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmem.learn.budget import CHUNK_POSITIONS
from fastmem.learn.objective import Chunk
from fastmem.learn.optimize import Reading
from fastmem.split.hooks import FFN
from fastmem.split.split_model import SplitModel
from fastmem.torch_modes import in_own_modes


@in_own_modes
@torch.no_grad()
def token_surprisals(split_model: SplitModel, reading: Reading, ffn: FFN | None = None) -> Tensor:
    """[N] float32: the surprisal of every scored token, with the weights of `ffn` or the model's own."""
    parts = zip(_hidden(split_model, reading, ffn), reading.targets.split(CHUNK_POSITIONS), strict=True)
    return torch.cat(
        [F.cross_entropy(split_model.head(rows).float(), targets, reduction="none") for rows, targets in parts]
    )


@in_own_modes
@torch.no_grad()
def token_divergences(split_model: SplitModel, reading: Reading, ffn: FFN | None, other: FFN | None) -> Tensor:
    """[N] float64: KL(ffn || other) in nats at every scored token; None stands for the model's own weights."""
    hidden = (_hidden(split_model, reading, each) for each in (ffn, other))
    parts = zip(*hidden, reading.targets.split(CHUNK_POSITIONS), strict=True)
    return torch.cat(
        [Chunk(lambda h: split_model.head(h).double(), targets, p).losses(q)[:, 1] for p, q, targets in parts]
    )


def _hidden(split_model: SplitModel, reading: Reading, ffn: FFN | None) -> tuple[Tensor, ...]:
    """The last hidden states of the scored positions, in chunks [n, D] for the head."""
    parts = reading.activations.split(CHUNK_POSITIONS)
    return torch.cat([split_model.tail(part, ffn) for part in parts]).split(CHUNK_POSITIONS)
