"""Keys and values of several sequences: pad, join, select, and share a prefix.

This file and `split/cached_reading.py`, which makes caches, use the internals of a transformers cache. A memory of the
last FFN does not change keys and values, so a prefix that was read once serves the base and every such memory.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that were read, and their keys and values. `cache` is never extended, only viewed."""

    ids: Tensor  # [S]
    cache: DynamicCache

    def shared_with(
        self,
        ids: Tensor,  # [S]
    ) -> int:
        """How many leading tokens of `ids` need not be read again; at least one must be read."""
        length = min(len(self.ids), len(ids) - 1)
        differing = (self.ids[:length] != ids[:length].to(self.ids.device)).nonzero()
        return int(differing[0]) if len(differing) else length

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.numel() * t.element_size() for layer in self.cache.layers for t in (layer.keys, layer.values))


class PrefixCache:
    """Prefixes that were read, at most `limit_bytes` of keys and values. The least recently used are evicted first.

    Several threads can share one. salt: a prefix is only found with the salt it was added with, so the time that an
    answer takes does not reveal what others have read.
    """

    def __init__(self, limit_bytes: int):
        self.limit_bytes = limit_bytes
        self._prefixes: list[tuple[str, Prefix]] = []  # least recently used first
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all keys and values."""
        with self._lock:
            return sum(prefix.size_bytes for _, prefix in self._prefixes)

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._prefixes.clear()

    def longest(
        self,
        ids: Tensor,  # [S]
        salt: str = "",
    ) -> Prefix | None:
        """The prefix that shares the most tokens with `ids`; None if none shares any."""
        with self._lock:
            shared = [prefix.shared_with(ids) if own == salt else 0 for own, prefix in self._prefixes]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or shared[best] == 0:
                return None
            self._prefixes.append(self._prefixes.pop(best))
            return self._prefixes[-1][1]

    def add(self, prefix: Prefix | None, salt: str = "") -> None:
        """Keep a prefix, and drop those that it continues. Does nothing for None, or a prefix above the limit."""
        if prefix is None or prefix.size_bytes > self.limit_bytes:
            return
        with self._lock:
            self._prefixes = [
                (own, p) for own, p in self._prefixes if own != salt or not _begins_with(prefix.ids, p.ids)
            ]
            self._prefixes.append((salt, prefix))
            size_bytes = sum(p.size_bytes for _, p in self._prefixes)
            while size_bytes > self.limit_bytes:
                size_bytes -= self._prefixes.pop(0)[1].size_bytes


def _begins_with(ids: Tensor, start: Tensor) -> bool:
    return len(start) <= len(ids) and torch.equal(ids[: len(start)], start)


def cropped(cache: DynamicCache, length: int) -> DynamicCache:
    """A view of the first `length` positions. Extending it does not change the original, since it copies the keys."""
    return _cache_of([(layer.keys[..., :length, :], layer.values[..., :length, :]) for layer in cache.layers])


def repeated(cache: DynamicCache, times: int) -> DynamicCache:
    """A view of the only sequence of the cache as several. Extending it copies the keys, as with `cropped`."""
    several = (times, -1, -1, -1)
    return _cache_of([(layer.keys.expand(several), layer.values.expand(several)) for layer in cache.layers])


def selected(cache: DynamicCache, rows: Sequence[int], start: int = 0, end: int | None = None) -> DynamicCache:
    """A copy of the sequences `rows` of the cache, from position `start` to `end`."""
    index, kept = list(rows), slice(start, end)
    return _cache_of([(layer.keys[index, :, kept], layer.values[index, :, kept]) for layer in cache.layers])


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """All sequences in one cache, padded on the left with zeros, which the attention mask must hide."""
    longest = max(cache.get_seq_length() for cache in caches)

    def padded(tensor: Tensor) -> Tensor:  # [B, heads, S, width] -> [B, heads, longest, width]
        return F.pad(tensor, (0, 0, longest - tensor.shape[-2], 0))

    return _cache_of(
        [
            (torch.cat([padded(part.keys) for part in parts]), torch.cat([padded(part.values) for part in parts]))
            for parts in zip(*(cache.layers for cache in caches), strict=True)
        ]
    )


def _cache_of(states: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache of these keys and values per layer, [B, heads, S, width] each, without the copy that `update` makes."""
    cache = DynamicCache()
    for keys, values in states:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
