"""Many recipes on one example, for little more than the cost of their optimizations.

Points of a grid share what they can: the trunk pass over the document; the optimization of points that differ only in
steps (10 and 20 lie on the way to 50); the trunk pass over the prompt; and the batch that decodes their answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

from fastmem import prompts
from fastmem.answer.cache import Prefix
from fastmem.answer.contrast import Contrast
from fastmem.answer.request import Request
from fastmem.answer.running_batch import answers
from fastmem.errors import InputError
from fastmem.lab.tasks import Example
from fastmem.learn.memorize import drain
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens

# arXiv 2406.16069, IAAR-Shanghai/FastMem `src/grid_search.py`.
PAPER_RATES, PAPER_STEPS, PAPER_KLS = (1e-6, 3e-6, 1e-5, 3e-5), (10, 20, 50), (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Space:
    """The values that are tried: the grid is their product. The other fields of the recipe are those of `recipe`.

    alphas: 0 is plain FastMem; a larger value is `fastmem+cd` of that strength among the tokens that `relative_top`
    leaves. Errors: `InputError` for values out of range or given twice.
    """

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
            Contrast("cd", point.alpha, relative_top=self.relative_top)  # ... and so does the contrast

    @property
    def points(self) -> tuple["Point", ...]:
        """The grid, in a fixed order."""
        return tuple(
            Point(replace(self.recipe, learning_rate=rate, steps=steps, kl_weight=kl, layers=layers), alpha)
            for layers, kl, rate, steps, alpha in product(self.layers, self.kls, self.rates, self.steps, self.alphas)
        )


@dataclass(frozen=True)
class Point:
    """A recipe and the strength of the contrast."""

    recipe: Recipe
    alpha: float


class Grid:
    """Answers examples at every point of a space."""

    def __init__(self, llm: FastMem, space: Space, max_new_tokens: int, batch_size: int = 64):
        self.llm, self.space, self.max_new_tokens, self.batch_size = llm, space, max_new_tokens, batch_size

    def texts(self, example: Example) -> list[str]:
        """The answer at every point, in the order of `Space.points`. Errors: `InputError`, `ResourceError`."""
        document, prompt = self._tokens(example)
        plain = self.llm.prepare(prompt, "fastmem", max_new_tokens=self.max_new_tokens)  # refuses a long prompt
        plain = replace(plain, prefix=self._prefix(prompt))
        found: list[str] = []
        # One batch for every set of layers and KL weight: its memories are what must fit into memory together.
        for layers, kl in product(self.space.layers, self.space.kls):
            memories = self._memories(document, replace(self.space.recipe, layers=layers, kl_weight=kl))
            requests = [self._request(plain, memory, alpha) for memory in memories for alpha in self.space.alphas]
            found += [answer.text for answer in answers(self.llm.batch(), requests, self.batch_size)]
        return found

    def _memories(self, document: Tokens, recipe: Recipe) -> Iterator[Memory]:
        """The memories of all rates and steps, from one trunk pass and one run per rate."""
        reading = self.llm.read(document, recipe.layers)
        # An adaptive KL weight depends on the number of steps, so it needs a run for each.
        runs = [self.space.steps] if recipe.adaptive_kl is None else [(steps,) for steps in self.space.steps]
        for rate in self.space.rates:
            for steps in runs:
                wanted = replace(recipe, learning_rate=rate, steps=max(steps))
                yield from drain(self.llm.memorizing(reading, wanted, at=steps, watch=False))

    def _request(self, plain: Request, memory: Memory, alpha: float) -> Request:
        request = plain
        if alpha:
            contrast = Contrast("cd", alpha, relative_top=self.space.relative_top)
            request = replace(plain, method="fastmem+cd", contrast=contrast)
        return self.llm.with_memory(request, memory)

    @torch.no_grad()
    def _prefix(self, prompt: Tokens) -> Prefix | None:
        """The prompt, read once for all points; None if the model's state cannot be shared."""
        cache = self.llm.shareable_cache()
        if cache is not None:
            self.llm.split_model.forward(prompt.ids[None], cache=cache)
        return None if cache is None else Prefix(prompt.ids, cache)

    def _tokens(self, example: Example) -> tuple[Tokens, Tokens]:
        """(what is memorized, the prompt that is answered); for the placement "prompt" they are the same."""
        if self.space.recipe.placement == "prompt":
            tokens = prompts.in_place(self.llm.tokenizer, example.prompt, example.context)
            return tokens, tokens
        return self.llm.memory_tokens(example.context, self.space.recipe), Tokens(self.llm.ids(example.prompt))
