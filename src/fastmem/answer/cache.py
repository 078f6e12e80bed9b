"""Keys and values of many sequences side by side: pad, join, select, and share a prefix.

The one file that reaches into a transformers cache. Since a memory of the last FFN leaves keys and values untouched,
a prefix read once serves the base and every such memory.
"""

import threading
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


class PrefixCache:
    """Prefixes read before, at most `limit_bytes` of them; the least recently used go first. Threads may share one.

    salt: prefixes are only found again under the salt they were added with, so that from the time an answer takes
    nobody learns what others have asked.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._held: list[tuple[str, Prefix]] = []  # least recently used first
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all keys and values held."""
        with self._lock:
            return sum(prefix.size_bytes for _, prefix in self._held)

    def longest(self, ids: Tensor, salt: str = "") -> Prefix | None:
        """The prefix that saves the most of reading `ids` [S]; None where none saves anything."""
        with self._lock:
            shared = [prefix.shared_with(ids) if own == salt else 0 for own, prefix in self._held]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or shared[best] == 0:
                return None
            self._held.append(self._held.pop(best))
            return self._held[-1][1]

    def add(self, prefix: Prefix | None, salt: str = "") -> None:
        """Keep a prefix, instead of those that it goes on from; None, or one larger than the limit, is not kept."""
        if prefix is None or prefix.size_bytes > self.limit_bytes:
            return
        with self._lock:
            self._held = [(own, p) for own, p in self._held if own != salt or not _begins(prefix.ids, p.ids)]
            self._held.append((salt, prefix))
            size_bytes = sum(p.size_bytes for _, p in self._held)
            while size_bytes > self.limit_bytes:
                size_bytes -= self._held.pop(0)[1].size_bytes


def _begins(ids: Tensor, start: Tensor) -> bool:
    return len(start) <= len(ids) and torch.equal(ids[: len(start)], start)


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
