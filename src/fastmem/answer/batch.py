"""Requests decoded together, token by token: they join, are stepped, and leave.

A `Batch` runs *sequences*, which share forward passes. A request has one, and one more for each other input (CAD: the
prompt without the document) and for other keys and values (CD with a memory of an earlier layer) that its contrast
compares. A contrast of weights of the last FFN, or of earlier layers' states, needs no sequence: the activations that
the trunk recorded go through another tail, and all hidden states go through the head in one product.

Every sequence can have weights of its own. Requests join and leave between any two steps, and an answer does not
depend on the other requests in the batch, except for the rounding of the kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastmem.answer.cache import Prefix, cropped, repeated, selected
from fastmem.answer.contrast import Combination, Contrast, Side, adaptive_alpha, candidate_layers, contrast, dola
from fastmem.answer.request import Request
from fastmem.answer.row import Logprob, Row
from fastmem.answer.sampling import adjusted, choose
from fastmem.answer.sequence_group import SequenceGroup, TokenSequence, joined_groups, keeping, sequences_of
from fastmem.split.cached_reading import new_cache
from fastmem.split.ffn_by_row import ffn_by_row
from fastmem.split.hooks import Activations, Recording
from fastmem.split.split_model import SplitModel


@dataclass(eq=False)
class _States:
    """Last hidden states of one row: of the main sequence [D], of what is contrasted away [D], of early layers [n,
    D]."""

    final: Tensor | None = None
    against: dict[Side, Tensor] = field(default_factory=dict)
    early: Tensor | None = None


class Batch:
    """The running rows of one model. Not for use by two threads at once; each can have a batch of its own."""

    def __init__(self, split_model: SplitModel):
        self.split_model = split_model
        self.rows: list[Row] = []
        self._paused: list[Row] = []
        # Of `rows` and of paused rows, and until the next step also of rows that have left or changed sides.
        self._groups: list[SequenceGroup] = []
        self._paused_groups: list[SequenceGroup] = []

    def join(self, requests: Sequence[Request]) -> list[Row]:
        """Add requests. The next `step` reads their prompts and gives their first tokens."""
        rows = [Row(request, request.sampling.generator(), prefix=request.prefix) for request in requests]
        self.add(rows)
        return rows

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, which may have begun in another batch: what they have answered so far is read again."""
        self._groups += self._new_groups([sequence for row in rows for sequence in sequences_of(row)])
        self.rows += rows

    def leave(self, rows: Sequence[Row]) -> None:
        """Remove these rows, finished or not. The next `step` frees their part of a cache that others share."""
        self.rows, self._paused, gone = _without(self.rows, rows), _without(self._paused, rows), set(rows)
        for sequence in (s for group in (*self._groups, *self._paused_groups) for s in group.sequences):
            sequence.left = sequence.left or sequence.row in gone
        self._groups, self._paused_groups = (
            [group for group in groups if not all(sequence.left for sequence in group.sequences)]
            for groups in (self._groups, self._paused_groups)
        )

    def pause(self, rows: Sequence[Row]) -> None:
        """Leave these rows as they are, with their keys and values, until `go_on`: no step extends them."""
        self.rows = _without(self.rows, rows)
        self._paused += rows

    def go_on(self, rows: Sequence[Row]) -> None:
        """Let paused rows take part in the next step."""
        self._paused = _without(self._paused, rows)
        self.rows += rows

    @torch.no_grad()
    def step(self) -> list[Row]:
        """One more token for every row. Returns the rows finished by it, which have left.

        If it raises, no row has a new token; the batch can then no longer be used, but its rows can be added to
        another one.
        """
        # 1. Read what is new, up to the last hidden state of every row.
        for row in self.rows:
            row.save_draws()
        self._sort_groups()
        self._restart_grown()
        states = {id(row): _States() for row in self.rows}
        for group in self._groups:
            self._forward(group, states)
        if self.split_model.joins_sequences and len(self._groups) > 1:
            sides = [[g for g in self._groups if self._is_long(g.sequences[0]) is long] for long in (False, True)]
            self._groups = [group for side in sides for group in joined_groups(side)]
        # 2. Scores, and a token for every row.
        scores = self._scores([states[id(row)] for row in self.rows])  # [B, V]
        chosen = torch.stack([_choose(row, scores[i]) for i, row in enumerate(self.rows)]).tolist()
        counts = [row.request.top_logprobs for row in self.rows]
        logprobs = [
            None if count is None else _logprobs(scores[i], token, count)
            for i, (token, count) in enumerate(zip(chosen, counts, strict=True))
        ]
        # 3. Nothing can fail from here on: extend the rows.
        for row, token, logprob in zip(self.rows, chosen, logprobs, strict=True):
            row.token_ids.append(token)
            if logprob is not None:
                row.logprobs.append(logprob)
            if row.json is not None:
                row.json.accept(token)
            if token in row.request.stop_ids or (row.json is not None and row.json.complete):
                row.reason = "stop"
            elif len(row.token_ids) >= row.request.max_new_tokens:
                row.reason = "length"
        for group in self._groups:
            for sequence in group.sequences:
                sequence.unread = torch.tensor([sequence.row.token_ids[-1]])
        done = [row for row in self.rows if row.reason]
        if done:
            self.leave(done)
        return done

    def prefix(self, row: Row, most: int) -> Prefix | None:
        """A copy of what has been read of the row's main sequence, at most so many tokens; None if it cannot be
        shared."""
        if not (self.split_model.joins_sequences and row.request.shares_trunk):
            return None
        for group in self._groups:
            for i, sequence in enumerate(group.sequences):
                if sequence.row is row and sequence.main and sequence.length and not self._is_long(sequence):
                    length, start = min(sequence.length, most), group.pads[i]
                    ids = row.read_ids(row.request.prompt)[:length]
                    return Prefix(ids, selected(group.cache, [i], start, start + length))
        return None

    def _sort_groups(self) -> None:
        """Divide the groups by whether their rows take part, and drop the rest.

        This copies keys and values, so only `step` does it: where memory runs out, its rows can be added elsewhere.
        """
        groups, running, paused = [*self._groups, *self._paused_groups], set(self.rows), set(self._paused)
        self._groups = keeping(groups, lambda sequence: sequence.row in running and not sequence.left)
        self._paused_groups = keeping(groups, lambda sequence: sequence.row in paused and not sequence.left)

    def _new_groups(self, sequences: list[TokenSequence]) -> list[SequenceGroup]:
        """Group sequences of similar length, and those that go on from the same point of one prefix."""
        config = self.split_model.model.config
        groups: list[SequenceGroup] = []
        continued: dict[tuple[int, int, int], list[TokenSequence]] = {}
        for sequence in sorted(sequences, key=lambda sequence: len(sequence.unread)):
            if length := self._skip_prefix(sequence):
                key = (id(sequence.row.prefix), length, len(sequence.unread))
                continued.setdefault(key, []).append(sequence)
                continue
            last = groups[-1].sequences if groups else []
            # Padding costs trunk time, so lengths in a group are within a factor of 1.5.
            near = last and len(sequence.unread) <= 1.5 * len(last[0].unread)
            if near and self.split_model.joins_sequences and self._is_long(sequence) is self._is_long(last[0]):
                last.append(sequence)
            else:
                groups.append(SequenceGroup([sequence], new_cache(config), []))
        for group in groups:
            longest = max(len(sequence.unread) for sequence in group.sequences)
            group.pads = [longest - len(sequence.unread) for sequence in group.sequences]
        for same in continued.values():
            prefix = same[0].row.prefix
            assert prefix is not None
            cache = repeated(cropped(prefix.cache, same[0].length), len(same))
            groups.append(SequenceGroup(same, cache, [0] * len(same)))
        return groups

    def _skip_prefix(self, sequence: TokenSequence) -> int:
        """Leave out what the row's prefix has already read; the number of tokens."""
        row = sequence.row
        if row.prefix is None or not row.request.shares_trunk or not self.split_model.joins_sequences:
            return 0
        if self._is_long(sequence) or self.split_model.is_long(len(row.prefix.ids)):
            return 0
        length = row.prefix.shared_with(sequence.unread)
        sequence.unread, sequence.length = sequence.unread[length:], length
        if sequence.main:
            row.cached_tokens = length
        return length

    def _is_long(self, sequence: TokenSequence) -> bool:
        return self.split_model.is_long(sequence.length + len(sequence.unread))

    def _restart_grown(self) -> None:
        """Read sequences again that are about to pass a longrope model's switch, as its own `generate` does."""
        grown = [
            s for g in self._groups for s in g.sequences if self._is_long(s) and not self.split_model.is_long(s.length)
        ]
        grown = [sequence for sequence in grown if sequence.length]
        if not grown:
            return
        gone = set(map(id, grown))
        self._groups = keeping(self._groups, lambda sequence: id(sequence) not in gone)
        for sequence in grown:
            sequence.start()
        self._groups += self._new_groups(grown)

    def _forward(self, group: SequenceGroup, states: dict[int, _States]) -> None:
        """Read what the group's sequences have not read yet; put their last hidden states into `states`."""
        sequences, past, depth = group.sequences, group.cache.get_seq_length(), self.split_model.depth
        # 1. Ids and positions, padded on the left.
        width = max(len(sequence.unread) for sequence in sequences)
        ids = torch.zeros(len(sequences), width, dtype=torch.int64)  # [B, T]
        positions = torch.zeros_like(ids)
        for i, sequence in enumerate(sequences):
            new = len(sequence.unread)
            ids[i, width - new :] = sequence.unread
            positions[i, width - new :] = torch.arange(sequence.length, sequence.length + new)
            sequence.length += new
            sequence.unread = sequence.unread[:0]
        mask = None  # [B, past + T]
        if any(group.pads):
            mask = torch.arange(past + width) >= torch.tensor(group.pads)[:, None]
            mask = mask.long().to(self.split_model.input_device)
        # 2. The trunk, recording what contrasts need.
        tails = [i for i, s in enumerate(sequences) if s.main and s.row.request.compares_tails]
        early = [i for i, s in enumerate(sequences) if s.main and "early_layers" in s.row.request.needs]
        layers = ({depth - 1} if tails else set()) | (set(candidate_layers(depth)) if early else set())
        record = Recording(frozenset(layers), lambda hidden: hidden[:, -1]) if layers else None
        ffn = ffn_by_row([sequence.ffn for sequence in sequences], self.split_model.own_ffn)
        encoded = self._encoded(sequences)
        hidden = self.split_model.forward(  # [B, T, D]
            ids, mask=mask, positions=positions, cache=group.cache, encoded=encoded, ffn=ffn, record=record
        )
        for sequence, final in zip(sequences, hidden[:, -1], strict=True):
            state = states[id(sequence.row)]
            if sequence.side is None:
                state.final = final
            else:
                state.against[sequence.side] = final
        # 3. The tail with the original weights, and the early layers.
        if record is not None and tails:
            kept = {name: record.mixed[name] for name in self.split_model.structure.layers[-1].recorded}
            activations = Activations(depth - 1, record.inputs[depth - 1], kept).rows(tails)
            for i, tail in zip(tails, self.split_model.tail(activations), strict=True):
                states[id(sequences[i].row)].against["original"] = tail
        if record is not None and early:
            inputs = [record.inputs[layer].to(self.split_model.device) for layer in candidate_layers(depth)]
            candidates = torch.stack(inputs)  # [n, B, D]
            for i in early:
                wanted = sequences[i].row.request.contrast
                norms = isinstance(wanted, Contrast) and wanted.final_norm
                states[id(sequences[i].row)].early = self.split_model.close(candidates[:, i], norms)

    def _encoded(self, sequences: list[TokenSequence]) -> Tensor | None:
        """[1, S, D]: what the encoder of an encoder-decoder made of the source, which it reads once; None without."""
        if not self.split_model.has_encoder:
            return None
        (sequence,) = sequences  # its caches cannot be joined
        if sequence.encoded is None and sequence.source is not None:
            sequence.encoded = self.split_model.encode(sequence.source)
        return sequence.encoded

    def _scores(self, states: list[_States]) -> Tensor:
        """The scores that next tokens are chosen from, [B, V] float32; the head runs once, on all hidden states."""
        parts = [torch.stack([state.final for state in states if state.final is not None])]
        for state in states:
            parts += [hidden[None] for hidden in state.against.values()]
            parts += [state.early] if state.early is not None else []
        logits = self.split_model.head(torch.cat(parts)).float()
        scores, rest = logits[: len(states)].clone(), logits[len(states) :]
        for i, (row, state) in enumerate(zip(self.rows, states, strict=True)):
            sides = dict(zip(state.against, rest, strict=False))
            rest = rest[len(sides) :]
            if state.early is not None:
                sides["early_layers"], rest = rest[: len(state.early)], rest[len(state.early) :]
            scores[i] = _contrasted(row, scores[i], sides)
        return scores


def _without(rows: Sequence[Row], gone: Sequence[Row]) -> list[Row]:
    left_out = set(gone)
    return [row for row in rows if row not in left_out]


def _contrasted(
    row: Row,
    logits: Tensor,  # [V]
    sides: dict[Side, Tensor],  # [V], early layers [L, V]
) -> Tensor:
    """[V]: the scores of one row, from the logits of its main sequence and of what it compares them with."""
    wanted = row.request.contrast
    allowed = logits if row.json is None else row.json.restricted(logits)
    if stops := _forbidden(row, len(logits)):
        allowed = allowed.index_fill(0, torch.tensor(stops, device=logits.device), -torch.inf)
    if wanted is None:
        return allowed
    if isinstance(wanted, Combination):
        main: Side = "memorized" if "memorized" in wanted.needs else "original"
        scores = wanted.scores({main: logits} | sides)
        return scores if row.json is None else row.json.restricted(scores)
    # After the schema and the stop tokens: the plausibility constraint must not exclude all tokens that remain.
    if wanted.kind == "dola":
        return dola(allowed[None], sides["early_layers"][:, None], wanted.cut)[0]
    (other,) = sides.values()
    alpha = adaptive_alpha(logits[None], other[None]) if wanted.adaptive else wanted.alpha
    return contrast(allowed[None], other[None], alpha, wanted.cut)[0]


def _forbidden(row: Row, vocabulary_size: int) -> list[int]:
    """The stop tokens, as long as the answer must not end. Some models name one that they cannot write."""
    if len(row.token_ids) >= row.request.min_new_tokens:
        return []
    return [token for token in sorted(row.request.stop_ids) if token < vocabulary_size]


def _choose(row: Row, scores: Tensor) -> Tensor:
    """The next token of a row, from scores [V]."""
    request = row.request
    if (forced := request.forced.get(len(row.token_ids))) is not None:
        return torch.tensor(forced, device=scores.device)
    forbidden = _forbidden(row, len(scores))
    if request.sampling.adjusts or forbidden:
        prompt, answer = request.before_answer.to(scores.device), torch.tensor(row.token_ids, dtype=torch.int64)
        scores = adjusted(scores, request.sampling, prompt, answer.to(scores.device), forbidden)
    return choose(scores, request.sampling, row.generator)


def _logprobs(scores: Tensor, token: int, count: int) -> Logprob:
    """Of the token and of the `count` most likely ones, under the scores [V] it was chosen from."""
    log_probabilities = scores.log_softmax(-1)
    top = log_probabilities.topk(count) if count else None
    pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True)) if top else []
    return log_probabilities[token].item(), pairs
