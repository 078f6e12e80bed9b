"""How a model reads on from its cache, tried when it is loaded: with padding or without, and who counts positions.

Answers are decoded from caches, several sequences at a time, and sequences of different lengths are padded on the
left. Not every model allows that: some decoders count positions from the padding on (BART, Pegasus, RoFormer), some
count from another number than 0 (RoBERTa), and some keep a state in their modules, where two sequences mix
(RecurrentGemma). So three ways are tried in turn, and the first one is used whose logits are the model's own.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from fastmem.split.split_model import SplitModel


class CachedReading(NamedTuple):
    """padded: sequences of different lengths share a cache, padded on the left. positions: the model is told its
    position numbers, instead of counting them itself."""

    padded: bool
    positions: bool


WAYS = (
    CachedReading(padded=True, positions=True),
    CachedReading(padded=False, positions=True),
    CachedReading(padded=False, positions=False),
)
# Two sequences that share a cache where the way is padded, and one that is read between their two steps.
TOGETHER, BETWEEN = (9, 4), 6  # tokens


def new_cache(config: Any) -> DynamicCache | EncoderDecoderCache:
    """An empty cache; that of an encoder-decoder has another part for cross attention. Layers with a sliding window
    keep every position too, since the attention mask limits them, so sequences of different lengths can be joined.
    Other kinds of state (linear attention) come from `config`."""
    if getattr(config, "is_encoder_decoder", False):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    typed = DynamicCache(config=config)
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in typed.layers)
    return DynamicCache() if plain else typed


def joinable(cache: DynamicCache | EncoderDecoderCache) -> bool:
    """Whether the sequences of this cache can be padded, joined and selected."""
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


@torch.no_grad()
def cached_logits(
    split_model: "SplitModel",
    ids: Tensor,  # [10]
    encoded: Tensor | None,  # [1, S, D]
    way: CachedReading,
) -> tuple[Tensor, Tensor]:
    """[N, V] and [N]: logits of sequences that begin like `ids`, and the positions of `ids` that they belong to."""
    lengths = [TOGETHER] if way.padded else [(length,) for length in TOGETHER]
    groups = [(each, new_cache(split_model.model.config)) for each in (*lengths, (BETWEEN,))]
    hidden, found = [], []
    for step in (0, 1):
        for group, cache in groups:
            hidden.append(_read(split_model, ids, group, step, cache, encoded, way))
            found += [length - 1 + step for length in group]
    return split_model.head(torch.cat(hidden)), torch.tensor(found)


def _read(
    split_model: "SplitModel",
    ids: Tensor,
    lengths: Sequence[int],
    step: int,
    cache: Any,
    encoded: Tensor | None,
    way: CachedReading,
) -> Tensor:
    """[B, D]: the last hidden states of `ids` up to these lengths; in step 1, of the next token of each."""
    longest = max(lengths)
    at = torch.arange(longest + step) + torch.tensor(lengths)[:, None] - longest  # positions, below 0 for padding
    mask = (at >= 0).long().to(split_model.input_device) if way.padded else None
    at = at[:, longest:] if step else at
    positions = at.clamp(min=0) if way.positions else None
    rows = torch.where(at >= 0, ids[at.clamp(min=0)], 0)
    return split_model.forward(rows, mask=mask, positions=positions, cache=cache, encoded=encoded)[:, -1]
