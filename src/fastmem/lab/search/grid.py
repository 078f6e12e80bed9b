"""Answer one example with many recipes, for little more than the cost of their optimizations.

The points of a grid share the trunk pass over the document, the optimization if they differ only in steps (one run of
50 steps also gives the memories after 10 and 20), the trunk pass over the prompt, and the batch that decodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch

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
    """The values to try; the grid is their product. The other fields of the recipe are those of `recipe`.

    alphas: 0 is plain FastMem; a larger value is the `alpha` of `fastmem+cd`, with `relative_top` as in `Contrast`.
    Errors: `InputError` for values out of range or given twice.
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
                raise InputError(
                    f"the space's {name} are {list(values)}: give each value once, and at least one.", field=name
                )
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
    """Answers examples at every point of a space, `batch_size` points at a time."""

    def __init__(self, llm: FastMem, space: Space, max_new_tokens: int, batch_size: int = 64):
        self.llm, self.space, self.max_new_tokens, self.batch_size = llm, space, max_new_tokens, batch_size

    def texts(self, example: Example) -> list[str]:
        """The answer at every point, in the order of `Space.points`. Errors: `InputError`, `ResourceError`."""
        document, prompt = self._tokens(example)
        # Checks the length of the prompt before the model reads it.
        request = self.llm.prepare(prompt, "fastmem", max_new_tokens=self.max_new_tokens)
        request = replace(request, prefix=self._prefix(prompt))
        texts: list[str] = []
        # One batch for each set of layers and KL weight, because all memories of a batch must fit into memory.
        for layers, kl in product(self.space.layers, self.space.kls):
            memories = self._memories(document, replace(self.space.recipe, layers=layers, kl_weight=kl))
            requests = [self._at_point(request, memory, alpha) for memory in memories for alpha in self.space.alphas]
            texts += [answer.text for answer in answers(self.llm.batch(), requests, self.batch_size)]
        return texts

    def _memories(self, document: Tokens, recipe: Recipe) -> Iterator[Memory]:
        """The memories for all rates and steps, from one trunk pass and one run per rate."""
        reading = self.llm.read(document, recipe.layers)
        # An adaptive KL weight depends on the number of steps, so each number needs its own run.
        runs = [self.space.steps] if recipe.adaptive_kl is None else [(steps,) for steps in self.space.steps]
        for rate in self.space.rates:
            for steps in runs:
                at_rate = replace(recipe, learning_rate=rate, steps=max(steps))
                yield from drain(self.llm.memorizing(reading, at_rate, at=steps, watch=False))

    def _at_point(self, request: Request, memory: Memory, alpha: float) -> Request:
        if alpha:
            contrast = Contrast("cd", alpha, relative_top=self.space.relative_top)
            request = replace(request, method="fastmem+cd", contrast=contrast)
        return self.llm.with_memory(request, memory)

    @torch.no_grad()
    def _prefix(self, prompt: Tokens) -> Prefix | None:
        """The prompt, read once for all points; None if the model's state cannot be shared."""
        cache = self.llm.split_model.shareable_cache()
        if cache is None:
            return None
        self.llm.split_model.forward(prompt.ids[None], cache=cache)
        return Prefix(prompt.ids, cache)

    def _tokens(self, example: Example) -> tuple[Tokens, Tokens]:
        """(the tokens to memorize, the prompt); the same for the placement "prompt"."""
        if self.space.recipe.placement == "prompt":
            tokens = example.in_place(self.llm.tokenizer)
            return tokens, tokens
        return self.llm.memory_tokens(example.context, self.space.recipe), Tokens(self.llm.ids(example.prompt))
