"""Keys and values of many sequences side by side: pad, join, select, and share a prefix.

The one file that reaches into a transformers cache. Since a memory of the last FFN leaves keys and values untouched,
a prefix read once serves the base and every such memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens read once, ids [S], and their keys and values; `cache` is never extended, only viewed."""

    ids: Tensor
    cache: DynamicCache

    def shared_with(self, ids: Tensor) -> int:
        """How many leading tokens of `ids` need not be read again; at least one is left to read."""
        length = min(len(self.ids), len(ids) - 1)
        differing = (self.ids[:length] != ids[:length].to(self.ids.device)).nonzero()
        return int(differing[0]) if len(differing) else length

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.numel() * t.element_size() for layer in self.cache.layers for t in (layer.keys, layer.values))


def new_cache(config: Any) -> DynamicCache:
    """An empty cache. Sliding windows are left to the attention mask, so every layer keeps every position and
    sequences of different lengths can be joined; other kinds of state (linear attention) come from `config`."""
    typed = DynamicCache(config=config)
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in typed.layers)
    return DynamicCache() if plain else typed


def joinable(cache: DynamicCache) -> bool:
    """Whether the sequences of this cache can be padded, joined and selected."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def cropped(cache: DynamicCache, length: int) -> DynamicCache:
    """A view of the first `length` positions. Extending it does not touch the original: keys are concatenated anew."""
    return _of([(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in cache.layers])


def selected(cache: DynamicCache, rows: Sequence[int], start: int = 0) -> DynamicCache:
    """The sequences `rows` of the cache, from position `start` on."""
    index = list(rows)
    return _of([(layer.keys[index, :, start:], layer.values[index, :, start:]) for layer in cache.layers])


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """All sequences in one cache, padded on the left with zeros that the mask must hide."""
    longest = max(cache.get_seq_length() for cache in caches)

    def padded(tensor: Tensor) -> Tensor:
        return F.pad(tensor, (0, 0, longest - tensor.shape[-2], 0))

    return _of(
        [
            (torch.cat([padded(part.keys) for part in parts]), torch.cat([padded(part.values) for part in parts]))
            for parts in zip(*(cache.layers for cache in caches), strict=True)
        ]
    )


def _of(states: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache around these keys and values, without the copy that `update` would make."""
    cache = DynamicCache()
    for keys, values in states:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
