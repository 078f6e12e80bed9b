"""Every fast path gives what the plain path beside it gives. Nothing here measures time."""

import torch
from transformers import DynamicCache

from fastmem.core.cache import Prefix, PrefixCache


def prefix_of(*ids):
    """A prefix whose keys and values are 32 bytes per token."""
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, len(ids), 4), torch.zeros(1, 1, len(ids), 4), 0)
    return Prefix(torch.tensor(ids), cache)


def test_the_prefix_that_saves_most_is_found():
    held = PrefixCache(limit_bytes=10_000)
    short, long = prefix_of(1, 2, 9), prefix_of(1, 2, 3, 4)
    held.add(short)
    held.add(long)
    assert held.longest(torch.tensor([1, 2, 3, 5])) is long
    assert held.longest(torch.tensor([1, 2, 9, 5])) is short
    assert held.longest(torch.tensor([7, 2, 3, 5])) is None
    assert held.longest(torch.tensor([1])) is None  # one token is always left to read


def test_prefixes_are_not_found_under_another_salt():
    held = PrefixCache(limit_bytes=10_000)
    held.add(prefix_of(1, 2, 3), salt="alice")
    assert held.longest(torch.tensor([1, 2, 3, 4]), salt="bob") is None
    assert held.longest(torch.tensor([1, 2, 3, 4])) is None
    assert held.longest(torch.tensor([1, 2, 3, 4]), salt="alice") is not None


def test_the_least_recently_used_prefix_goes_first():
    held = PrefixCache(limit_bytes=3 * 64)
    for first in (10, 20, 30):
        held.add(prefix_of(first, 1))
    assert held.longest(torch.tensor([10, 1, 5])) is not None
    held.add(prefix_of(40, 1))
    assert held.longest(torch.tensor([20, 1, 5])) is None
    assert held.longest(torch.tensor([10, 1, 5])) is not None
    assert held.size_bytes == 3 * 64
    held.add(prefix_of(*range(50, 60)))  # larger than the limit
    assert held.longest(torch.tensor([50, 51, 52])) is None
    assert held.size_bytes == 3 * 64


def test_a_longer_prefix_replaces_what_it_goes_on_from():
    held = PrefixCache(limit_bytes=10_000)
    held.add(prefix_of(1, 2, 3))
    held.add(prefix_of(1, 2, 3, 4))
    assert held.size_bytes == 4 * 32
    held.add(prefix_of(1, 2, 3), salt="other")
    assert held.size_bytes == 7 * 32
