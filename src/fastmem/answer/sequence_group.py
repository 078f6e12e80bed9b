"""Token sequences that share a cache, and so a forward pass: keep some of a group, merge several groups.

A row has one sequence, and one more for each different input, and for different keys and values, that its contrast
compares.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastmem.answer.cache import joined, selected
from fastmem.answer.contrast import Side
from fastmem.answer.row import Row
from fastmem.errors import InputError
from fastmem.split.hooks import FFN

FREE_PADDING = 1024
"""Positions. Fewer are joined whatever their share, as one more forward pass costs more than they do."""


@dataclass(eq=False)
class TokenSequence:
    """One sequence of a row. prompt: [S] its ids before the answer. side: what it is contrasted as; None for the main
    sequence. source: [S'] ids for the encoder of an encoder-decoder, encoded: [1, S', D] its output, once it has read
    them. left: its row has left, maybe to return with another sequence. unread: [T] ids to feed next. length: ids read
    so far."""

    row: Row
    ffn: FFN | None
    prompt: Tensor
    side: Side | None = None
    source: Tensor | None = None
    encoded: Tensor | None = None
    left: bool = False
    unread: Tensor = field(init=False)
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def main(self) -> bool:
        """Whether it is the one that answers, not one that is contrasted away."""
        return self.side is None

    def start(self) -> None:
        """Read the prompt and the answer so far from the beginning."""
        self.unread, self.length = self.row.read_ids(self.prompt), 0


@dataclass(eq=False)
class SequenceGroup:
    """Sequences that share a cache. pads: how many masked positions each has in front."""

    sequences: list[TokenSequence]
    cache: Any
    pads: list[int]

    @property
    def length(self) -> int:
        """Positions of the cache, with those that are masked."""
        return int(self.cache.get_seq_length())


def sequences_of(row: Row) -> list[TokenSequence]:
    request = row.request

    def sequence(ffn: FFN | None, prompt: Tensor, side: Side | None = None) -> TokenSequence:
        if request.opening is None:
            return TokenSequence(row, ffn, prompt, side)
        return TokenSequence(row, ffn, request.opening, side, source=prompt)

    sequences = [sequence(request.ffn, request.prompt)]
    if "without_document" in request.needs:
        if request.without is None:
            raise InputError("method 'cad' compares with the prompt without the document: give without_context=...")
        sequences.append(sequence(None, request.without, "without_document"))
    if request.compares_weights and not request.shares_trunk:
        sequences.append(sequence(None, request.prompt, "original"))
    return sequences


def keeping(groups: Sequence[SequenceGroup], wanted: Callable[[TokenSequence], bool]) -> list[SequenceGroup]:
    """The groups with the wanted sequences only; groups without any are dropped."""
    kept = ([i for i, sequence in enumerate(group.sequences) if wanted(sequence)] for group in groups)
    return [_kept(group, indices) for group, indices in zip(groups, kept, strict=True) if indices]


def _kept(group: SequenceGroup, indices: list[int]) -> SequenceGroup:
    """The group with these sequences only, and without the padding they have in common."""
    sequences, pads = [group.sequences[i] for i in indices], [group.pads[i] for i in indices]
    if len(indices) == len(group.sequences):
        return SequenceGroup(sequences, group.cache, pads)
    read = group.cache.get_seq_length() > 0
    cache = selected(group.cache, indices, min(pads)) if read else copy.deepcopy(group.cache)
    return SequenceGroup(sequences, cache, [pad - min(pads) for pad in pads])


def joined_groups(groups: Sequence[SequenceGroup]) -> list[SequenceGroup]:
    """The groups in as few as can be, from the longest on, with no more padding in one than tokens or `FREE_PADDING`.

    A forward pass over several rows costs little more than one over a single row, but one long row must not multiply
    the memory of many short ones.
    """
    chosen: list[list[SequenceGroup]] = []
    for group in sorted(groups, key=lambda group: group.length, reverse=True):
        if chosen and _may_share_a_cache([*chosen[-1], group]):
            chosen[-1].append(group)
        else:
            chosen.append([group])
    return [some[0] if len(some) == 1 else _joined(some) for some in chosen]


def _may_share_a_cache(groups: Sequence[SequenceGroup]) -> bool:
    rows = sum(len(group.sequences) for group in groups)
    tokens = sum(sequence.length for group in groups for sequence in group.sequences)
    return max(group.length for group in groups) * rows - tokens <= max(tokens, FREE_PADDING)


def _joined(groups: Sequence[SequenceGroup]) -> SequenceGroup:
    longest = max(group.length for group in groups)
    pads = [pad + longest - group.length for group in groups for pad in group.pads]
    return SequenceGroup([s for group in groups for s in group.sequences], joined([g.cache for g in groups]), pads)
