"""One loop for every method: join requests, step them together, let them leave.

A `Batch` holds *lanes*: sequences that share forward passes. A request has one lane, or two where its contrast
compares different inputs (CAD: the prompt without the document) or different keys and values (CD with a memory of an
earlier layer). Whatever compares only weights of the last FFN, or earlier layers' states, costs no lane: the trunk's
recorded activations go through another tail, and all hidden states through the head in one product.

Every lane can have weights of its own. Lanes join and leave between any two steps; what a row answers does not depend
on who shares its batch (up to the rounding of the kernels), so batch equals single and padded equals unpadded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmem.core.cache import Prefix, cropped, joinable, joined, new_cache, selected
from fastmem.core.contrast import Contrast, adaptive_alpha, candidate_layers, contrast, dola
from fastmem.core.replay import FFN, Activations, Recording
from fastmem.core.rows import ffn_by_row
from fastmem.core.sampling import Sampling, choose
from fastmem.core.trunk import Trunk
from fastmem.errors import InputError


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to be decoded.

    prompt: ids [S]. ffn: a memory's FFN modules (`Trunk.ffn`), None for the base. shares_trunk: those are of the last
    layer only, so keys and values are the base's. without: ids [S'], the prompt without the document, for CAD.
    stop_ids: tokens that end the answer. prefix: tokens of the prompt that were read before. top_logprobs: how many
    alternatives to report beside each token's log-probability; None reports neither.
    """

    prompt: Tensor
    max_new_tokens: int = 100
    ffn: FFN | None = None
    shares_trunk: bool = True
    contrast: Contrast | None = None
    without: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    prefix: Prefix | None = None
    top_logprobs: int | None = None


@dataclass(eq=False)
class Row:
    """A request under way. token_ids: what it has answered so far, an end token included. reason: why it ended."""

    request: Request
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    reason: str | None = None
    cached_tokens: int = 0
    logprobs: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)


@dataclass(eq=False)
class _Lane:
    """One sequence of a row. unread: ids [T] to feed next. length: positions read so far."""

    row: Row
    ffn: FFN | None
    unread: Tensor
    main: bool
    length: int = 0


@dataclass(eq=False)
class _Group:
    """Lanes that share a cache, with how many masked positions stand in front of each."""

    lanes: list[_Lane]
    cache: Any
    pads: list[int]


@dataclass(eq=False)
class _States:
    """Last hidden states of one row, each [D]: of the main lane, of what it is contrasted with, of early layers."""

    final: Tensor | None = None
    against: Tensor | None = None
    early: Tensor | None = None  # [n, D]


class Batch:
    """The running rows of one trunk. Not for two threads at once; each may have a batch of its own."""

    def __init__(self, trunk: Trunk):
        self.trunk = trunk
        self.rows: list[Row] = []
        self._groups: list[_Group] = []
        self._joinable = joinable(new_cache(trunk.model.config))

    def join(self, requests: Sequence[Request]) -> list[Row]:
        """Add the rows; their prompts are read by the next `step`, which gives their first tokens."""
        rows = [Row(request, request.sampling.generator()) for request in requests]
        self._groups += self._new_groups([lane for row in rows for lane in _lanes(row)])
        self.rows += rows
        return rows

    def leave(self, rows: Sequence[Row]) -> None:
        """Free the lanes of these rows, finished or not."""
        gone = set(map(id, rows))
        self.rows = [row for row in self.rows if id(row) not in gone]
        kept = ([i for i, lane in enumerate(g.lanes) if id(lane.row) not in gone] for g in self._groups)
        self._groups = [_kept(g, rows) for g, rows in zip(self._groups, kept, strict=True) if rows]

    @torch.no_grad()
    def step(self) -> list[Row]:
        """One more token for every row. Returns the rows finished by it; they have left."""
        states = {id(row): _States() for row in self.rows}
        for group in self._groups:
            self._forward(group, states)
        if self._joinable and len(self._groups) > 1:
            self._groups = [_merged(self._groups)]
        scores = self._scores([states[id(row)] for row in self.rows])
        chosen = torch.stack([self._choose(row, scores[i]) for i, row in enumerate(self.rows)]).tolist()
        for i, (row, token) in enumerate(zip(self.rows, chosen, strict=True)):
            row.token_ids.append(token)
            if row.request.top_logprobs is not None:
                row.logprobs.append(_logprobs(scores[i], token, row.request.top_logprobs))
            if token in row.request.stop_ids:
                row.reason = "stop"
            elif len(row.token_ids) >= row.request.max_new_tokens:
                row.reason = "length"
        for group in self._groups:
            for lane in group.lanes:
                lane.unread = torch.tensor([lane.row.token_ids[-1]])
        done = [row for row in self.rows if row.reason]
        if done:
            self.leave(done)
        return done

    def prefix(self, row: Row) -> Prefix | None:
        """What has been read of the row's main lane, to go on from elsewhere; None where it cannot be shared."""
        if not (self._joinable and row.request.shares_trunk):
            return None
        for group in self._groups:
            for i, lane in enumerate(group.lanes):
                if lane.row is row and lane.main and lane.length:
                    ids = torch.cat([row.request.prompt.cpu(), torch.tensor(row.token_ids, dtype=torch.int64)])
                    return Prefix(ids[: lane.length], selected(group.cache, [i], group.pads[i]))
        return None

    def _new_groups(self, lanes: list[_Lane]) -> list[_Group]:
        """Lanes of similar length together; a lane that goes on from a prefix alone."""
        groups: list[_Group] = []
        config = self.trunk.model.config
        for lane in sorted(lanes, key=lambda lane: len(lane.unread)):
            prefix, length = lane.row.request.prefix, 0
            if prefix is not None and lane.row.request.shares_trunk and self._joinable:
                length = prefix.shared_with(lane.unread)
            if length and prefix is not None:
                lane.unread, lane.length = lane.unread[length:], length
                if lane.main:
                    lane.row.cached_tokens = length
                groups.append(_Group([lane], cropped(prefix.cache, length), [0]))
                continue
            last = groups[-1] if groups else None
            # Padding in front costs trunk time: a bucket holds lengths within a half of its shortest.
            fits = last and not last.lanes[0].length and len(lane.unread) <= 1.5 * len(last.lanes[0].unread)
            if last is not None and fits and self._joinable:
                last.lanes.append(lane)
                last.pads.append(0)
            else:
                groups.append(_Group([lane], new_cache(config), [0]))
        for group in groups:
            longest = max(len(lane.unread) for lane in group.lanes)
            group.pads = [longest - len(lane.unread) for lane in group.lanes]
        return groups

    def _forward(self, group: _Group, states: dict[int, _States]) -> None:
        """Read what the lanes have not read yet; leave the last position's hidden states in `states`."""
        lanes, past = group.lanes, group.cache.get_seq_length()
        width = max(len(lane.unread) for lane in lanes)
        ids = torch.zeros(len(lanes), width, dtype=torch.int64)
        positions = torch.zeros_like(ids)
        for i, lane in enumerate(lanes):
            new = len(lane.unread)
            ids[i, width - new :] = lane.unread
            positions[i, width - new :] = torch.arange(lane.length, lane.length + new)
            lane.length += new
        mask = None
        if any(group.pads):
            mask = (torch.arange(past + width) >= torch.tensor(group.pads)[:, None]).long().to(self.trunk.input_device)
        depth = self.trunk.depth
        against = [i for i, lane in enumerate(lanes) if lane.main and _compares_tails(lane.row.request)]
        early = [i for i, lane in enumerate(lanes) if lane.main and _kind(lane.row.request) == "dola"]
        layers = ({depth - 1} if against else set()) | (set(candidate_layers(depth)) if early else set())
        record = Recording(frozenset(layers), lambda hidden: hidden[:, -1]) if layers else None
        ffn = ffn_by_row([lane.ffn for lane in lanes], self.trunk.own_ffn)
        hidden = self.trunk.forward(ids, mask=mask, positions=positions, cache=group.cache, ffn=ffn, record=record)
        for lane, final in zip(lanes, hidden[:, -1], strict=True):
            state = states[id(lane.row)]
            if lane.main:
                state.final = final
            else:
                state.against = final
        if record is not None and against:
            kept = {name: record.mixed[name][against] for name in self.trunk.anatomy.layers[-1].recorded}
            tails = self.trunk.tail(Activations(depth - 1, record.inputs[depth - 1][against], kept))
            for i, tail in zip(against, tails, strict=True):
                states[id(lanes[i].row)].against = tail
        if record is not None and early:
            candidates = torch.stack([record.inputs[layer].to(self.trunk.device) for layer in candidate_layers(depth)])
            for i in early:
                wanted = lanes[i].row.request.contrast
                norms = wanted is not None and wanted.final_norm
                states[id(lanes[i].row)].early = self.trunk.close(candidates[:, i], norms)

    def _scores(self, states: list[_States]) -> Tensor:
        """What the next tokens are chosen from, [B, V] float32: all hidden states through the head in one product."""
        parts = [torch.stack([state.final for state in states if state.final is not None])]
        against = [i for i, state in enumerate(states) if state.against is not None]
        early = [i for i, state in enumerate(states) if state.early is not None]
        parts += [state.against[None] for state in states if state.against is not None]
        parts += [state.early for state in states if state.early is not None]
        logits = self.trunk.head(torch.cat(parts)).float()
        scores, rest = logits[: len(states)].clone(), logits[len(states) :]
        for i, other in zip(against, rest, strict=False):
            wanted = self.rows[i].request.contrast
            assert wanted is not None
            row, other = scores[i : i + 1].clone(), other[None]
            alpha = wanted.alpha if not wanted.adaptive else adaptive_alpha(row, other)
            scores[i : i + 1] = contrast(row, other, alpha, wanted.cut)
        rest = rest[len(against) :]
        for n, i in enumerate(early):
            wanted = self.rows[i].request.contrast
            assert wanted is not None
            count = len(rest) // len(early)
            candidates = rest[n * count : (n + 1) * count, None]
            scores[i : i + 1] = dola(scores[i : i + 1].clone(), candidates, wanted.cut)
        return scores

    def _choose(self, row: Row, scores: Tensor) -> Tensor:
        seen = row.request.prompt.new_empty(0)
        if row.request.sampling.repetition_penalty != 1:
            seen = torch.cat([row.request.prompt.cpu(), torch.tensor(row.token_ids, dtype=torch.int64)])
        return choose(scores, row.request.sampling, seen.to(scores.device), row.generator)


def _kind(request: Request) -> str | None:
    return request.contrast.kind if request.contrast else None


def _compares_tails(request: Request) -> bool:
    """Memorized against original weights of the last FFN: another tail, not another lane."""
    return _kind(request) == "cd" and request.shares_trunk


def _lanes(row: Row) -> list[_Lane]:
    request = row.request
    lanes = [_Lane(row, request.ffn, request.prompt.cpu(), main=True)]
    if _kind(request) == "cad":
        if request.without is None:
            raise InputError("method 'cad' compares with the prompt without the document: give without_context=...")
        lanes.append(_Lane(row, None, request.without.cpu(), main=False))
    elif _kind(request) == "cd" and not request.shares_trunk:
        lanes.append(_Lane(row, None, request.prompt.cpu(), main=False))
    return lanes


def _kept(group: _Group, rows: list[int]) -> _Group:
    """The group with the lanes `rows` only, and without the padding they all have in common."""
    if len(rows) == len(group.lanes) or not group.cache.get_seq_length():
        return _Group([group.lanes[i] for i in rows], group.cache, [group.pads[i] for i in rows])
    pads = [group.pads[i] for i in rows]
    cache = selected(group.cache, rows, min(pads))
    return _Group([group.lanes[i] for i in rows], cache, [pad - min(pads) for pad in pads])


def _merged(groups: list[_Group]) -> _Group:
    longest = max(group.cache.get_seq_length() for group in groups)
    pads = [pad + longest - group.cache.get_seq_length() for group in groups for pad in group.pads]
    return _Group([lane for group in groups for lane in group.lanes], joined([g.cache for g in groups]), pads)


def _logprobs(scores: Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """(log-probability of the token, the `count` most likely with theirs) under what it was chosen from."""
    log_probabilities = scores.log_softmax(-1)
    top = log_probabilities.topk(count) if count else None
    pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top else []
    return log_probabilities[token].item(), pairs
