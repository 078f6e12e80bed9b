"""`MemoryModules`: what is computed once from a model's weights: digests, FFN modules of memories, found recipes."""

import threading
import weakref
from collections.abc import Callable
from functools import lru_cache

from fastmem.memory.memory import Memory, digest
from fastmem.memory.recipe import AutoRecipe, Recipe
from fastmem.split.fingerprint import ModelWatch, sampled_digest
from fastmem.split.hooks import FFN
from fastmem.split.split_model import SplitModel

# Sets of layers whose digest is kept: there are as many sets as subsets of the layers, and most models use one.
DIGESTS = 4


class MemoryModules:
    """Of one model, whose owner may write to its weights between calls. Several threads can share one.

    recipes: the automatic recipes that were resolved. resolving: held while one is.
    """

    def __init__(self, split_model: SplitModel):
        self.split_model = split_model
        self._watch, self._looking = ModelWatch(split_model.model), threading.Lock()
        self._digest = lru_cache(DIGESTS)(lambda layers: digest(split_model.parameters(layers)))
        self._sampled_digest: str | None = None
        self._modules: weakref.WeakKeyDictionary[Memory, FFN] = weakref.WeakKeyDictionary()
        self.recipes: dict[AutoRecipe, Recipe] = {}
        self.resolving = threading.Lock()

    def __contains__(self, memory: Memory) -> bool:
        return memory in self._modules

    def follow_model(self, dropped: Callable[[], None]) -> None:
        """Drop everything if the model's weights were written to since, and call `dropped`. Errors: `ModelWatch`'s."""
        with self._looking:  # nobody goes on with what was made of the old weights while another thread drops it
            if self._watch.written_to():
                self.split_model.forget_weights()
                self._digest.cache_clear()
                self._sampled_digest = None
                self._modules.clear()
                self.recipes.clear()
                dropped()

    def unwritten(self) -> Callable[[], bool]:
        """A cheap check, for every token: whether the weights are still as they are now, as far as torch counts."""
        writes = self._watch.writes()
        return lambda: self._watch.writes() == writes

    def digest(self, layers: tuple[int, ...]) -> str:
        """Of the original weights of the FFNs of these layers, counted from 0."""
        return self._digest(layers)

    @property
    def sampled_digest(self) -> str:
        """Of a few numbers of all weights."""
        if self._sampled_digest is None:
            self._sampled_digest = sampled_digest(self.split_model.model)
        return self._sampled_digest

    def ffn(self, memory: Memory) -> FFN:
        """The FFN modules of a memory that fits the model, in the model's type."""
        found = self._modules.get(memory)
        if found is None:
            originals = self.split_model.parameters(memory.recipe.layers)
            tuned = {n: w.to(originals[n].dtype) for n, w in memory.weights(originals).items()}
            found = self._modules[memory] = self.split_model.ffn(tuned)
        return found

    def release(self, memory: Memory) -> None:
        """Drop the FFN modules of a memory; `ffn` makes them again."""
        self._modules.pop(memory, None)
