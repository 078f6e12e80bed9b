"""One memory of several documents: memorized one after the other, or as the average or the sum of their memories."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace

import torch

from fastmem import FastMem, Memory, Recipe
from fastmem.learn.memorize import drain


def faster(recipe: Recipe, factor: float) -> Recipe:
    """The recipe at a multiple of its rate."""
    return replace(recipe, learning_rate=factor * recipe.learning_rate)


def memorized(llm: FastMem, document: str, recipe: Recipe) -> Memory:
    """A memory, without a warning where a high rate diverges."""
    return drain(llm.memorizing(llm.memory_tokens(document), recipe, watch=False))[0]


@functools.lru_cache(64)
def memorized_once(llm: FastMem, document: str) -> Memory:
    """A memory at the model's own rate, kept for later calls."""
    return memorized(llm, document, llm.recipe)


def one_after_the_other(llm: FastMem, documents: Sequence[str], recipe: Recipe) -> Memory:
    """Every document is memorized from the weights that the one before left, and the KL refers to those weights."""
    # A copy of the model whose weights are written in place, which its `FastMem` follows.
    changing = FastMem(copy.deepcopy(llm.model), llm.tokenizer, recipe=recipe)
    weights, own = (dict(each.model.named_parameters()) for each in (changing, llm))
    names: dict[str, None] = {}
    for document in documents:
        for name, difference in memorized(changing, document, recipe).differences().items():
            with torch.no_grad():
                weights[name].add_(difference)
            names[name] = None
    return Memory({name: (weights[name] - own[name]).detach() for name in names}, recipe, llm.base(recipe.layers))


def added(llm: FastMem, documents: Sequence[str], factor: float) -> Memory:
    """The sum of the differences of one memory of each document, at the model's own rate, times a factor."""
    found = [memorized_once(llm, document).differences() for document in documents]
    tensors = {name: factor * torch.stack([each[name] for each in found]).sum(0) for name in found[0]}
    return Memory(tensors, llm.recipe, llm.base(llm.recipe.layers))
