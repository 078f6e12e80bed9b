"""Many recipes on one example for little more than the price of their optimizations.

What points of a grid share is computed once: the trunk pass over the document and over the prompt; the optimization of
points that differ in steps only (10 and 20 lie on the way to 50); the head's matrix, read once for all rates in
lockstep; and, while answers are decoded, the trunk for every beginning of an answer that several points agree on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fastmem import prompts
from fastmem.core.cache import joinable, new_cache, selected
from fastmem.core.contrast import Contrast, contrast
from fastmem.core.memorize import SHORTLIST_ERROR, read
from fastmem.core.memory import Memory, Recipe
from fastmem.core.optimize import Optimization, Reading
from fastmem.core.replay import FFN, Activations, Recording
from fastmem.errors import InputError
from fastmem.lab.tasks import Example
from fastmem.model import FastMem
from fastmem.prompts import Tokens

# Arxiv 2406.16069, IAAR-Shanghai/FastMem `src/grid_search.py`.
PAPER_RATES, PAPER_STEPS, PAPER_KLS = (1e-6, 3e-6, 1e-5, 3e-5), (10, 20, 50), (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Space:
    """The values tried: their product is the grid. alphas: 0 is plain FastMem, above it `fastmem+cd` of that strength
    among the tokens that `relative_top` leaves. The rest of the recipe is `recipe`'s."""

    recipe: Recipe
    rates: tuple[float, ...] = PAPER_RATES
    steps: tuple[int, ...] = PAPER_STEPS
    kls: tuple[float, ...] = PAPER_KLS
    layers: tuple[tuple[int, ...], ...] = ((-1,),)
    alphas: tuple[float, ...] = (0.0,)
    relative_top: float | None = None

    def __post_init__(self) -> None:
        for name in ("rates", "steps", "kls", "layers", "alphas"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"the space's {name} are {list(values)}: give each value once, and at least one.")
        for point in self.points:  # each recipe refuses values out of range ...
            Contrast("cd", point.alpha, relative_top=self.relative_top)  # and so does this

    @property
    def points(self) -> tuple["Point", ...]:
        """The grid, in a fixed order."""
        return tuple(
            Point(replace(self.recipe, learning_rate=rate, steps=steps, kl_weight=kl, layers=layers), alpha)
            for layers, kl, rate, steps, alpha in product(self.layers, self.kls, self.rates, self.steps, self.alphas)
        )


@dataclass(frozen=True)
class Point:
    """One recipe and the strength of the contrast on top of it."""

    recipe: Recipe
    alpha: float


class Grid:
    """Answers an example at every point of a space."""

    def __init__(self, llm: FastMem, space: Space, max_new_tokens: int):
        self.llm, self.space, self.max_new_tokens = llm, space, max_new_tokens
        self._points = {point: i for i, point in enumerate(space.points)}

    def texts(self, example: Example) -> list[str]:
        """The answer at every point, in the order of `Space.points`."""
        llm, found = self.llm, [""] * len(self._points)
        tokens, prompt = reading_tokens(llm, example, self.space.recipe)
        decoder = _Decoder(llm, prompt, self.max_new_tokens, self.space.relative_top or 0.0)
        for layers in self.space.layers:
            reading = read(llm.trunk, tokens.ids, tokens.scored, llm.trunk.indices(layers))
            for memories in self._memories(reading, layers):
                wanted = [(memory, alpha) for memory in memories for alpha in self.space.alphas]
                for (memory, alpha), text in zip(wanted, decoder.texts(wanted), strict=True):
                    found[self._points[Point(memory.recipe, alpha)]] = text
        return found

    def _memories(self, reading: Reading, layers: tuple[int, ...]) -> Iterator[list[Memory]]:
        """The memories of all rates and steps of one KL weight, one weight after the other."""
        for kl in self.space.kls:
            recipe = replace(self.space.recipe, kl_weight=kl, layers=layers)
            found, off = self._side_by_side(reading, recipe, self.space.rates)
            far = tuple(r for r, share in zip(self.space.rates, off, strict=True) if not share <= SHORTLIST_ERROR)
            if far:  # then, as in `memorize`, all tokens are scored
                exact, _ = self._side_by_side(reading, replace(recipe, shortlist=None), far)
                found = [m for m in found if m.recipe.learning_rate not in far]
                found += [replace(m, recipe=replace(m.recipe, shortlist=recipe.shortlist)) for m in exact]
            yield found

    def _side_by_side(
        self, reading: Reading, recipe: Recipe, rates: Sequence[float]
    ) -> tuple[list[Memory], list[float]]:
        """(memories of these rates at all steps, how far off the shortlist was for every rate)."""
        llm, space = self.llm, self.space
        base, last = llm.base(llm.trunk.indices(recipe.layers)), max(space.steps)
        run = Optimization(llm.trunk, [reading] * len(rates), recipe)
        run.optimizer = torch.optim.AdamW(
            [
                {"params": list(tuning.masters.values()), "lr": rate}
                for tuning, rate in zip(run.tunings, rates, strict=True)
            ],
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        memories: list[Memory] = []
        off = [0.0] * len(rates)
        for index in range(last + 1):
            if index == last:
                off = run.check()
            if index in space.steps:
                for tuning, rate in zip(run.tunings, rates, strict=True):
                    at = replace(recipe, learning_rate=rate, steps=index)
                    memories.append(Memory(tuning.tensors(last=index == last), at, base))
            if index < last:
                run.gradients(index)
                run.update()
        return memories, off


def reading_tokens(llm: FastMem, example: Example, recipe: Recipe) -> tuple[Tokens, Tokens]:
    """(what is memorized, the prompt that is answered); in place they are the same."""
    if recipe.placement == "prompt":
        tokens = prompts.in_place(llm.tokenizer, example.prompt, example.context)
        return tokens, tokens
    return llm.memory_tokens(example.context, recipe), Tokens(llm.ids(example.prompt))


class _Decoder:
    """One prompt under many memories of the last layer: a tree of tokens whose trunk is walked once."""

    def __init__(self, llm: FastMem, prompt: Tokens, max_new_tokens: int, relative_top: float):
        self.llm, self.prompt, self.max_new_tokens, self.relative_top = llm, prompt, max_new_tokens, relative_top
        # Refuses a prompt that is too long.
        llm.request(prompt, max_new_tokens=max_new_tokens)
        self._cache = new_cache(llm.model.config)
        self._fast = joinable(self._cache)
        if self._fast:
            self._start = self._walk(prompt.ids[None], 0, self._cache)

    def texts(self, wanted: Sequence[tuple[Memory, float]]) -> list[str]:
        last = self.llm.trunk.depth - 1
        if self._fast and all(self.llm.trunk.indices(m.recipe.layers) == (last,) for m, _ in wanted):
            return [self.llm.tokenizer.decode(ids, skip_special_tokens=True) for ids in self._tree(wanted)]
        return [
            self.llm.generate(
                self.prompt,
                memory,
                "fastmem+cd" if alpha else "fastmem",
                alpha=alpha,
                relative_top=self.relative_top,
                max_new_tokens=self.max_new_tokens,
            ).text
            for memory, alpha in wanted
        ]

    @torch.no_grad()
    def _tree(self, wanted: Sequence[tuple[Memory, float]]) -> list[list[int]]:
        """Greedy token ids of every (memory, alpha)."""
        llm = self.llm
        ffns = {id(memory): llm.trunk.ffn(self._weights(memory)) for memory, _ in wanted}
        said: list[list[int]] = [[] for _ in wanted]
        branches = [list(range(len(wanted)))]  # points that have said the same so far
        cache, states = self._cache, self._start
        for length in range(self.max_new_tokens):
            tokens = self._next(wanted, ffns, branches, states)
            grown: dict[tuple[int, int], list[int]] = {}
            for branch, points in enumerate(branches):
                for point in points:
                    said[point].append(tokens[point])
                    if tokens[point] not in llm.stop_ids:
                        grown.setdefault((branch, tokens[point]), []).append(point)
            if not grown or length + 1 == self.max_new_tokens:
                break
            parents, ids = zip(*grown, strict=True)
            branches = list(grown.values())
            cache = selected(cache, list(parents))
            states = self._walk(torch.tensor(ids)[:, None], len(self.prompt) + length, cache)
        return said

    def _weights(self, memory: Memory) -> dict[str, Tensor]:
        originals = self.llm.trunk.parameters(memory.recipe.layers)
        return {name: w.to(originals[name].dtype) for name, w in memory.weights(originals).items()}

    @torch.no_grad()
    def _walk(self, ids: Tensor, past: int, cache: object) -> Activations:
        """The trunk over ids [B, T]; what the last layer's tail needs at the last position of each, [B]."""
        trunk = self.llm.trunk
        recording = Recording(frozenset({trunk.depth - 1}), lambda hidden: hidden[:, -1])
        positions = torch.arange(past, past + ids.shape[1]).expand(len(ids), -1)
        trunk.forward(ids, positions=positions, cache=cache, record=recording)
        return trunk.activations(recording)

    def _next(
        self,
        wanted: Sequence[tuple[Memory, float]],
        ffns: dict[int, FFN],
        branches: list[list[int]],
        states: Activations,
    ) -> dict[int, int]:
        """The next token of every point: a tail for every memory in a branch, and one product with the head."""
        trunk = self.llm.trunk
        # The tail of every memory over all branches it is in: at most as many positions as it has points.
        hidden: dict[tuple[int, int], Tensor] = {}
        members: dict[int, list[int]] = {}
        for branch, points in enumerate(branches):
            for memory in {id(wanted[point][0]) for point in points}:
                members.setdefault(memory, []).append(branch)
        for memory, rows in members.items():
            tails = trunk.tail(_rows(states, rows), ffns[memory])
            hidden |= {(memory, branch): tail for branch, tail in zip(rows, tails, strict=True)}
        base = trunk.head(trunk.tail(states)).float() if any(alpha for _, alpha in wanted) else None
        keys = list(hidden)
        logits = dict(zip(keys, trunk.head(torch.stack([hidden[key] for key in keys])).float(), strict=True))
        placed = [(point, branch) for branch, together in enumerate(branches) for point in together]
        scores = []
        for point, branch in placed:
            tuned, alpha = wanted[point]
            now = logits[id(tuned), branch]
            if alpha and base is not None:
                now = contrast(now, base[branch], alpha, self.relative_top)
            scores.append(now)
        chosen = torch.stack(scores).argmax(-1).tolist()
        return {point: token for (point, _), token in zip(placed, chosen, strict=True)}


def _rows(states: Activations, rows: list[int]) -> Activations:
    return replace(states, hidden=states.hidden[rows], mixed={name: m[rows] for name, m in states.mixed.items()})
