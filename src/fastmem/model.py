"""`FastMem`: a transformers model with a tokenizer that can memorize documents and answer with the memories.

    llm = FastMem.from_pretrained("org/model-or-folder")     # () for the embedded model; or FastMem(model, tokenizer)
    memory = llm.memorize(context)
    out = llm.generate(prompt, memory=memory)
    out = llm.answer(question, context)

The model is never written to, and only caches are kept between calls, so several threads may use one `FastMem`. If you
change the weights of the model in place, the next call uses the new ones, and a stream that has begun raises an
`InputError`. If you replace, cast or move them, write to buffers, or switch adapters, the next call raises an
`InputError`: construct `FastMem` again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from fastmem import prompts
from fastmem.answer.cache import Prefix, PrefixCache
from fastmem.answer.contrast import method_named, uses_memory
from fastmem.answer.prepare import Preparer
from fastmem.answer.request import Decoding, Request, one_for_each
from fastmem.answer.running_batch import Answer, RunningBatch, Stream, answers, decode
from fastmem.device_memory import explained_out_of_memory
from fastmem.errors import InputError
from fastmem.learn.budget import plan
from fastmem.learn.memorize import Run, drain, memorizing, read
from fastmem.learn.optimize import Reading
from fastmem.loading import load, require_loaded
from fastmem.memory.compatibility import require_memory, require_same
from fastmem.memory.effect import warn_of_effects
from fastmem.memory.memory import Base, Memory, Step
from fastmem.memory.memory_modules import MemoryModules
from fastmem.memory.recipe import Recipe, RecipeChoice, changed_recipe, chosen_recipe
from fastmem.prompts import Chat, Prompt, Tokens
from fastmem.ranges import Number, checked
from fastmem.split.compiled import uncompiled
from fastmem.split.hooks import FFN
from fastmem.split.split_model import SplitModel
from fastmem.torch_modes import in_own_modes

OnStep = Callable[[Step], None] | None
Texts = list[str] | list[Tokens]
Documents = str | Tokens | Texts
Prompts = list[str] | list[Tokens] | Sequence[Chat] | list[Prompt]
Memories = Memory | Sequence[Memory | None] | None


class FastMem:
    """A model that can memorize documents and answer.

    tokenizer: None if all input is `Tokens`. recipe: the default of `memorize`; None is the paper's, "auto" finds one
    for this model when it is first used. prefix_bytes: how many bytes of keys and values to keep, so that a second
    question need not read its document again. Errors: `UnsupportedModelError` for a model that cannot be split.
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, recipe: RecipeChoice = None, prefix_bytes: int = 0):
        require_loaded(model, tokenizer)
        self.model, self.tokenizer = model, tokenizer
        self.prefixes = PrefixCache(checked(prefix_bytes, Number(0, whole=True), "prefix_bytes"))
        self.split_model = SplitModel(model)
        self.preparer = Preparer(self.split_model, tokenizer)
        self._recipe = chosen_recipe("paper" if recipe is None else recipe)
        self.name: str = getattr(model.config, "_name_or_path", "") or type(uncompiled(model)).__name__
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self.modules = MemoryModules(self.split_model)

    def __repr__(self) -> str:
        return f"FastMem({self.name!r}, {self.split_model.depth} layers, {self.split_model.device})"

    @classmethod
    @in_own_modes
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        recipe: RecipeChoice = None,
        **kwargs: Any,
    ) -> "FastMem":
        """A model by hub id or folder; None for the embedded one. `kwargs` go to transformers' `from_pretrained`.

        dtype: as in transformers ("auto", "bfloat16", ...); None keeps the checkpoint's. device: "cpu", "cuda", ...;
        None uses a GPU if there is one. recipe: the default of `memorize`; the embedded model has its own. Errors:
        `InputError` for a folder without a model, `UnsupportedModelError` for a model that does not generate text.
        """
        if name is not None:
            return cls(*load(name, dtype, device, **kwargs), recipe=recipe)
        from fastmem import tiny

        recipe = changed_recipe(Recipe(), tiny.RECIPE) if recipe is None else recipe
        llm = cls(*load(tiny.MODEL_DIR, dtype, device, **kwargs), recipe=recipe)
        llm.name = "fastmem-tiny"
        return llm

    @property
    def recipe(self) -> Recipe:
        """The default recipe of `memorize`. An automatic one is found now."""
        return self.resolved()

    @recipe.setter
    def recipe(self, recipe: RecipeChoice) -> None:
        self._recipe = chosen_recipe(recipe)

    def resolved(self, recipe: RecipeChoice = None) -> Recipe:
        """The given recipe, or the default one, as numbers. An automatic one is found now. Errors: `InputError`."""
        chosen = self._recipe if recipe is None else chosen_recipe(recipe)
        if isinstance(chosen, Recipe):
            return chosen
        from fastmem.auto_recipe import automatic_recipe  # which needs this class

        return automatic_recipe(self, chosen)

    @overload
    def memorize(
        self, context: str | Tokens, recipe: RecipeChoice = None, *, on_step: OnStep = None, truncate: bool = False
    ) -> Memory: ...
    @overload
    def memorize(
        self, context: Texts, recipe: RecipeChoice = None, *, on_step: OnStep = None, truncate: bool = False
    ) -> list[Memory]: ...
    def memorize(
        self, context: Documents, recipe: RecipeChoice = None, *, on_step: OnStep = None, truncate: bool = False
    ) -> Memory | list[Memory]:
        """Tune the last FFN on a document and return a `Memory`; for a list of documents, a list of memories.

        on_step: called with every `Step` before its update. truncate: cut a document that exceeds the model's
        positions instead of refusing it. Errors: `InputError` for an empty or too long context or a recipe out of
        range, `ResourceError` if memory runs out.
        """
        recipe = self.resolved(recipe)
        contexts: list[Any] = context if isinstance(context, list) else [context]
        documents = [c if isinstance(c, Tokens) else self.memory_tokens(c, recipe, truncate) for c in contexts]
        texts = [c if isinstance(c, str) else None for c in contexts]
        memories = [self._memorized(d, recipe, on_step, text) for d, text in zip(documents, texts, strict=True)]
        warn_of_effects(memories)
        return memories if isinstance(context, list) else memories[0]

    def _memorized(
        self, document: Tokens, recipe: Recipe, on_step: OnStep, text: str | None, cache: Any = None
    ) -> Memory:
        return drain(self.memorizing(document, recipe, text=text, cache=cache, watch=on_step is not None), on_step)[0]

    @in_own_modes
    def memorizing(
        self,
        document: Tokens | Reading,
        recipe: RecipeChoice = None,
        *,
        at: Sequence[int] | None = None,
        text: str | None = None,
        cache: Any = None,
        watch: bool = True,
    ) -> Run:
        """`memorize` as a generator, so callers can interleave other work.

        It yields None when the document has been read, then before every update (see `learn.memorize.memorizing`,
        also for at and watch), and returns the memories. document: a `Reading` needs no trunk pass. text, cache: as
        for `read`. Errors: those of `memorize`.
        """
        recipe = self.resolved(recipe)
        layers = self.split_model.indices(recipe.layers)
        with explained_out_of_memory():
            if isinstance(document, Tokens):
                self.preparer.check(document.ids)
                plan(self.split_model, recipe, int(document.scored[1:].sum()))  # refused before the trunk runs
                document = self.read(document, layers, text=text, cache=cache)
            yield None
            return (yield from memorizing(self.split_model, document, recipe, self.base(layers), at, watch))

    def read(
        self, document: Tokens, layers: Sequence[int] = (-1,), *, text: str | None = None, cache: Any = None
    ) -> Reading:
        """The trunk pass over a document.

        layers: those that will be tuned. text: the document's text, for the memory's details. cache: a transformers
        cache to fill, so that decoding can continue from the document. Errors: `InputError` if no token is scored.
        """
        encoded = self.preparer.encoded(document.source)
        reading = read(self.split_model, document.ids, document.scored, layers, cache, encoded)
        return replace(reading, details=prompts.document_identity(document, text) | self.reader)

    def memory_tokens(self, context: str, recipe: RecipeChoice = None, truncate: bool = False) -> Tokens:
        """The document as `memorize` reads it. Errors: `InputError` if it is empty or too long."""
        return self.preparer.document(context, self.resolved(recipe).placement, truncate)

    def base(self, layers: Sequence[int] = (-1,)) -> Base:
        """The identity of this model, as a memory of these layers records it."""
        self._follow_model()
        indices = self.split_model.indices(layers)
        return Base(self.name, self.split_model.family, self.modules.digest(indices), self.revision)

    @property
    def reader(self) -> dict[str, str]:
        """Digests of the tokenizer, its template, and a sample of all weights, as a memory records them."""
        return self.preparer.identity | {"sampled_weights_sha256": self.modules.sampled_digest}

    def require(self, memory: Memory) -> None:
        """Check that a memory is of this base and tokenizer. Errors: `MemoryMismatchError`, which names both sides."""
        require_same(memory, self.base, self.split_model.parameters, self.reader)

    def ffn(self, memory: Memory | None) -> FFN | None:
        """The FFN modules of a memory in the model's type, made once per memory. Errors: `MemoryMismatchError`."""
        if memory is None:
            return None
        require_memory(memory)
        self._follow_model()
        if memory not in self.modules:
            self.require(memory)
        return self.modules.ffn(memory)

    def release(self, memory: Memory) -> None:
        """Drop the FFN modules made for a memory; `ffn` makes them again when needed."""
        self.modules.release(memory)

    def _follow_model(self) -> None:
        self.modules.follow_model(dropped=self.prefixes.clear)

    @in_own_modes
    @torch.no_grad()
    def logits(self, token_ids: Any, memory: Memory | None = None, source: Any = None) -> Tensor:
        """[S, V] float32: the logits of the next token at every position of token_ids [S]. source: as of `Tokens`."""
        tokens = Tokens(token_ids, source=source)
        ids, encoded = tokens.ids, self.preparer.encoded(tokens.source)
        self.preparer.check(ids)
        self._follow_model()
        hidden = self.split_model.forward(ids[None], encoded=encoded, ffn=self.ffn(memory))[0]
        return self.split_model.head(hidden).float()

    @overload
    def generate(
        self, prompt: Prompt, memory: Memory | None = None, method: str = "base", **options: Any
    ) -> Answer: ...
    @overload
    def generate(
        self, prompt: Prompts, memory: Memories = None, method: str = "base", **options: Any
    ) -> list[Answer]: ...
    def generate(
        self, prompt: Prompt | Prompts, memory: Memories = None, method: str = "base", **options: Any
    ) -> Answer | list[Answer]:
        """Answer a prompt: a user turn as text, chat messages, or `Tokens`; for a list of prompts, return a list.

        memory: used whenever it is given, so `base` means `fastmem` and `cad` means `fastmem+cad`; one for all, or one
        for each. method: one of `METHODS`. options: the fields of `Decoding`; for a list of prompts `without_context`
        and `prefix` may be lists. Errors: `InputError`, `MemoryMismatchError`, `ResourceError`.
        """
        # Chat messages are a list, but one prompt. What is not a list is one prompt, too, or is refused below.
        if not isinstance(prompt, list | tuple) or (prompt and isinstance(prompt[0], dict)):
            return self.stream(prompt, memory, method, **options).run()  # type: ignore[arg-type]
        many: list[Any] = list(prompt)
        given = {"memory": memory} | {k: options.pop(k) for k in ("without_context", "prefix") if k in options}
        each = one_for_each(given, len(many))
        requests = [self.request(one, method=method, **options | own) for one, own in zip(many, each, strict=True)]
        return answers(self.batch(), requests, Decoding.of(options).batch_size)

    def stream(self, prompt: Prompt, memory: Memory | None = None, method: str = "base", **options: Any) -> Stream:
        """`generate` piece by piece: iterate to get text, then read `.answer`. Arguments: as for `generate`."""
        request = self.request(prompt, memory, method, **options)
        return self._stream(request, memory)

    def _stream(self, request: Request, memory: Memory | None, memorize_seconds: float = 0.0) -> Stream:
        return Stream(decode(self.batch(), [request], 1), self.modules.unwritten(), memory, memorize_seconds)

    def answer(
        self,
        question: str,
        context: str,
        method: str = "fastmem",
        recipe: RecipeChoice = None,
        *,
        memory: Memory | None = None,
        on_step: OnStep = None,
        truncate: bool = False,
        **options: Any,
    ) -> Answer:
        """Memorize the context if the method needs it, then answer with the paper's prompt for questions.

        memory: one that was made of this context before. One of another text is used, with a warning.
        on_step: as for `memorize`. truncate: cut the context, never the question, to what fits. options: the fields of
        `Decoding`. Errors: those of `memorize` and `generate`.
        """
        return self.ask(
            question, context, method, recipe, memory=memory, on_step=on_step, truncate=truncate, **options
        ).run()

    def ask(
        self,
        question: str,
        context: str,
        method: str = "fastmem",
        recipe: RecipeChoice = None,
        *,
        memory: Memory | None = None,
        on_step: OnStep = None,
        truncate: bool = False,
        **options: Any,
    ) -> Stream:
        """`answer`, piece by piece: it memorizes at once and decodes while it is iterated."""
        memorized, seconds = uses_memory(method, memory is not None), 0.0
        made = self.resolved(recipe) if memorized and memory is None else None  # the recipe of the memory to make
        # Prompt and document as tokens, with everything checked before memorizing is paid for.
        placement = None if made is None else made.placement
        asked = self.preparer.question(question, context, method, Decoding.of(options), placement, truncate)
        request = asked.request
        if made is not None and asked.document is not None:
            started = time.perf_counter()
            cache = self.split_model.shareable_cache() if placement == "prompt" else None
            memory = self._memorized(asked.document, made, on_step, asked.context, cache)
            warn_of_effects([memory])
            request = request if cache is None else replace(request, prefix=Prefix(request.prompt, cache))
            seconds = time.perf_counter() - started
        elif memorized and memory is not None:
            prompts.warn_of_another_text(require_memory(memory).details, (context, asked.context))
        if memorized and memory is not None:
            request = self.with_memory(request, memory)
        return self._stream(request, request.memory, seconds)

    def request(self, prompt: Prompt, memory: Memory | None = None, method: str = "base", **options: Any) -> Request:
        """The request for a prompt. Errors: `InputError` for prompts and options that cannot be used."""
        if method_named(method).memorized and memory is None:
            raise InputError(f"method {method!r} needs a memory: give memory=llm.memorize(context), or use answer().")
        request = self.prepare(prompt, method, **options)
        return request if memory is None else self.with_memory(request, memory)

    def prepare(self, prompt: Prompt, method: str = "base", **options: Any) -> Request:
        """The request for a prompt, checked but still without its memory (`with_memory`). Errors: `InputError`."""
        return self.preparer.request(prompt, method, Decoding.of(options))

    def with_memory(self, request: Request, memory: Memory) -> Request:
        """The request, to be answered with this memory. Errors: `MemoryMismatchError`."""
        ffn = self.ffn(memory) or {}  # first: it refuses a memory of another model
        shares_trunk = self.split_model.indices(memory.recipe.layers) == (self.split_model.depth - 1,)
        return request.with_memory(memory, ffn, shares_trunk)

    def batch(self) -> RunningBatch:
        """A new running batch of this model."""
        self._follow_model()
        return RunningBatch(self.split_model, self.tokenizer, self.prefixes)

    def ids(self, prompt: Prompt) -> Tensor:
        """Token ids [S] of a prompt, up to where the answer begins."""
        return self.preparer.ids(prompt)
