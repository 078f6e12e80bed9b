"""`FastMem`, the face: a transformers model with a tokenizer that can memorize, answer and say what it believes.

    llm = FastMem.from_pretrained("org/model-or-folder")     # () for the embedded model; or FastMem(model, tokenizer)
    memory = llm.memorize(context)
    out = llm.generate(prompt, memory=memory)
    out = llm.answer(question, context)

The model is never written to, and nothing here keeps state between calls but caches of what can be computed again, so
several threads may use one `FastMem`.
"""

import functools
import logging
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmem import prompts
from fastmem.core.budget import explained_out_of_memory, plan
from fastmem.core.cache import Prefix, PrefixCache, joinable, new_cache
from fastmem.core.contrast import method_named
from fastmem.core.decode import Request
from fastmem.core.matching import require_same
from fastmem.core.memorize import memorize, memorize_all, read
from fastmem.core.memory import Base, Memory, Recipe, Step, digest
from fastmem.core.replay import FFN
from fastmem.core.trunk import Trunk
from fastmem.errors import InputError
from fastmem.generation import Answer, Decoding, Stream, decode, stop_ids
from fastmem.loading import load
from fastmem.prompts import Prompt, Tokens

log = logging.getLogger("fastmem")


class FastMem:
    """A model ready to memorize. tokenizer: None if only `Tokens` come. recipe: the default of `memorize`.

    prefix_bytes: keys and values to keep of what was read, so that a second question about a document is read alone.
    Errors: `UnsupportedModelError` where the model cannot be split (see `Trunk`).
    """

    def __init__(self, model: Any, tokenizer: Any = None, *, recipe: Recipe | None = None, prefix_bytes: int = 0):
        self.model, self.tokenizer, self.prefixes = model, tokenizer, PrefixCache(prefix_bytes)
        self.trunk = Trunk(model)
        self.recipe = recipe or Recipe()
        self.name: str = getattr(model.config, "_name_or_path", "") or type(model).__name__
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        self._digests: dict[tuple[int, ...], str] = {}
        self._modules: weakref.WeakKeyDictionary[Memory, FFN] = weakref.WeakKeyDictionary()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        recipe: Recipe | None = None,
        **kwargs: Any,
    ) -> "FastMem":
        """A model by hub id or folder; None for the embedded one. `kwargs` go to transformers' `from_pretrained`.

        dtype: as in transformers ("auto", "bfloat16", ...); None keeps the checkpoint's. device: "cpu", "cuda", ...;
        None takes a GPU where there is one. recipe: the default of `memorize`; the embedded model brings its own.
        Errors: `InputError` for a folder that is absent or holds no model, `UnsupportedModelError` for a model that
        is not a causal language model.
        """
        if name is not None:
            return cls(*load(name, dtype, device, **kwargs), recipe=recipe)
        from fastmem import tiny

        own: dict[str, Any] = dict(tiny.RECIPE)
        llm = cls(*load(tiny.MODEL_DIR, dtype, device, **kwargs), recipe=recipe or Recipe(**own))
        llm.name = "fastmem-tiny"
        return llm

    def memorize(
        self,
        context: str | Tokens | list[str] | list[Tokens],
        recipe: Recipe | None = None,
        *,
        on_step: Callable[[Step], None] | None = None,
        truncate: bool = False,
    ) -> Any:
        """Tune the last FFN on a document: a `Memory`; for a list of documents a list of them.

        on_step: called with every `Step` before its update. truncate: cut a document that exceeds the model's
        positions instead of refusing it. Errors: `InputError` for an empty or too long context or a recipe out of
        range, `ResourceError` where memory runs out.
        """
        recipe = recipe or self.recipe
        if isinstance(context, list) and on_step is not None:
            return [self.memorize(one, recipe, on_step=on_step, truncate=truncate) for one in context]
        if isinstance(context, list):
            documents = [c if isinstance(c, Tokens) else self.memory_tokens(c, recipe, truncate) for c in context]
            for tokens in documents:
                self._check_length(len(tokens), 0)
            with explained_out_of_memory():
                memories = memorize_all(self.trunk, documents, recipe, self.base(recipe.layers))
            return [self._finished(*each) for each in zip(memories, documents, context, strict=True)]
        tokens = context if isinstance(context, Tokens) else self.memory_tokens(context, recipe, truncate)
        return self._memorize(tokens, recipe, on_step, text=context)

    def memory_tokens(self, context: str, recipe: Recipe | None = None, truncate: bool = False) -> Tokens:
        """The document as `memorize` reads it. Errors: `InputError` where it is empty or too long."""
        placement = (recipe or self.recipe).placement
        context, limit = prompts.require_text(context), self.trunk.max_positions
        tokens = prompts.memory_tokens(self._require_tokenizer(), context, placement)  # type: ignore[arg-type]
        while truncate and limit is not None and len(tokens) > limit:
            context = prompts.truncated(self.tokenizer, context, len(tokens) - limit)
            tokens = prompts.memory_tokens(self.tokenizer, context, placement)  # type: ignore[arg-type]
        self._check_length(len(tokens), 0)
        return tokens

    def base(self, layers: Sequence[int] = (-1,)) -> Base:
        """Which model this is, as a memory of these layers records it."""
        indices = self.trunk.indices(layers)
        if indices not in self._digests:
            self._digests[indices] = digest(self.trunk.parameters(indices))
        return Base(self.name, self.trunk.family, self._digests[indices], self.revision)

    @torch.no_grad()
    def logits(self, token_ids: Tensor | Sequence[int], memory: Memory | None = None) -> Tensor:
        """[S, V] float32: the logits of the next token at every position of token_ids [S]."""
        ids = torch.as_tensor(token_ids, dtype=torch.int64)
        if ids.ndim != 1 or len(ids) == 0:
            raise InputError(f"logits takes one non-empty sequence of token ids, [S]; given {list(ids.shape)}.")
        self._check_length(len(ids), 0)
        return self.trunk.head(self.trunk.forward(ids[None], ffn=self.ffn(memory))[0]).float()

    def require(self, memory: Memory) -> None:
        """Errors: `MemoryMismatchError`, with both sides named, for a memory of another base or tokenizer."""
        layers = memory.recipe.layers
        require_same(memory, self.base(layers), self.trunk.parameters(layers), self.reader)

    @functools.cached_property
    def reader(self) -> dict[str, str]:
        """Digests of what turns text into token ids, as a memory records them; empty without a tokenizer."""
        return {} if self.tokenizer is None else prompts.identity(self.tokenizer)

    def ffn(self, memory: Memory | None) -> FFN | None:
        """The FFN modules of a memory in the model's type, made once per memory. Errors: `MemoryMismatchError`."""
        if memory is None:
            return None
        if memory not in self._modules:
            self.require(memory)
            originals = self.trunk.parameters(memory.recipe.layers)
            tuned = {n: w.to(originals[n].dtype) for n, w in memory.weights(originals).items()}
            self._modules[memory] = self.trunk.ffn(tuned)
        return self._modules[memory]

    def release(self, memory: Memory) -> None:
        """Drop the FFN modules made for a memory; `ffn` makes them anew when they are asked for again."""
        self._modules.pop(memory, None)

    def generate(
        self,
        prompt: Prompt | list[Prompt],
        memory: Memory | Sequence[Memory | None] | None = None,
        method: str = "base",
        **options: Any,
    ) -> Any:
        """An `Answer` to a prompt: a user turn as text, chat messages, or `Tokens`; for a list of prompts a list.

        memory: used whenever given; one for all, or one per prompt. method: one of `METHODS`. options: the fields of
        `Decoding`; for a list of prompts `without_context` and `prefix` may be lists. Errors: `InputError`,
        `MemoryMismatchError`, `ResourceError`.
        """
        if isinstance(prompt, str | Tokens) or (prompt and isinstance(prompt[0], dict)):
            return self.stream(prompt, memory, method, **options).run()  # type: ignore[arg-type]
        many: list[Any] = list(prompt)
        memories: list[Any] = list(memory) if isinstance(memory, list | tuple) else [memory] * len(many)
        spread = {k: v for k, v in options.items() if k in ("without_context", "prefix") and isinstance(v, list)}
        for name, values in {"memory": memories, **spread}.items():
            if len(values) != len(many):
                raise InputError(f"{name}: {len(values)} given for {len(many)} prompts; give one for each.")
        requests = [
            self.request(one, memories[i], method, **options | {k: v[i] for k, v in spread.items()})
            for i, one in enumerate(many)
        ]
        answers: list[Answer | None] = [None] * len(many)
        decoding = Decoding.of(options | dict.fromkeys(spread))
        for event in decode(self.trunk, self.tokenizer, requests, decoding, self.prefixes):
            if event.answer is not None:
                answers[event.index] = replace(event.answer, method=method, memory=memories[event.index])
        return answers

    def stream(self, prompt: Prompt, memory: Memory | None = None, method: str = "base", **options: Any) -> Stream:
        """The answer piece by piece: iterate for text, then `.answer`. Arguments as for `generate`."""
        request, decoding = self.request(prompt, memory, method, **options), Decoding.of(options)
        return Stream(decode(self.trunk, self.tokenizer, [request], decoding, self.prefixes), method, memory)

    def answer(
        self,
        question: str,
        context: str,
        method: str = "fastmem",
        recipe: Recipe | None = None,
        *,
        memory: Memory | None = None,
        on_step: Callable[[Step], None] | None = None,
        truncate: bool = False,
        **options: Any,
    ) -> Answer:
        """Memorize the context if the method asks for it, then answer with the paper's prompt for questions.

        memory: one made before of this context. truncate: cut the context, never the question, to what fits.
        """
        return self.ask(
            question, context, method, recipe, memory=memory, on_step=on_step, truncate=truncate, **options
        ).run()

    def ask(
        self,
        question: str,
        context: str,
        method: str = "fastmem",
        recipe: Recipe | None = None,
        *,
        memory: Memory | None = None,
        on_step: Callable[[Step], None] | None = None,
        truncate: bool = False,
        **options: Any,
    ) -> Stream:
        """`answer`, piece by piece: memorizes at once, decodes while it is iterated."""
        if not question.strip():
            raise InputError("the question is empty: give what is to be answered from the context.")
        recipe, memorized = recipe or self.recipe, method_named(method).memorized
        context = self._fitting(question, prompts.require_text(context), Decoding.of(options), truncate)
        text = prompts.question_prompt(context, question)
        prompt: Prompt = text
        self._check_length(len(self.ids(text)), Decoding.of(options).max_new_tokens)  # before memorizing is paid for
        options["without_context"] = prompts.question_alone(question)
        seconds = 0.0
        if memorized and memory is None:
            started = time.perf_counter()
            if recipe.placement == "prompt":
                prompt = prompts.in_place(self._require_tokenizer(), text, context)
                cache = new_cache(self.model.config)
                memory = self._memorize(prompt, recipe, on_step, cache if joinable(cache) else None, context)
                options["prefix"] = Prefix(prompt.ids, cache) if joinable(cache) else None
            else:
                memory = self.memorize(context, recipe, on_step=on_step, truncate=truncate)
            seconds = time.perf_counter() - started
        request, decoding = (
            self.request(prompt, memory if memorized else None, method, **options),
            Decoding.of(options),
        )
        events = decode(self.trunk, self.tokenizer, [request], decoding, self.prefixes)
        return Stream(events, method, memory if memorized else None, seconds)

    def request(self, prompt: Prompt, memory: Any = None, method: str = "base", **options: Any) -> Request:
        """The decoder's request for a prompt. Errors: `InputError` for prompts and options that cannot be used."""
        wanted, decoding = method_named(method), Decoding.of(options)
        if wanted.memorized and memory is None:
            raise InputError(f"method {method!r} needs a memory: give memory=llm.memorize(context), or use answer().")
        ids = self.ids(prompt)
        self._check_length(len(ids), decoding.max_new_tokens)
        contrast = wanted.contrast(decoding.alpha, decoding.relative_top, decoding.final_norm)
        without = None
        if wanted.kind == "cad":
            if decoding.without_context is None:
                raise InputError(f"method {method!r} needs the prompt without the document: give without_context=...")
            without = self.ids(decoding.without_context)
        last = (self.trunk.depth - 1,)
        return Request(
            prompt=ids,
            max_new_tokens=decoding.max_new_tokens,
            ffn=self.ffn(memory),
            shares_trunk=memory is None or self.trunk.indices(memory.recipe.layers) == last,
            contrast=contrast,
            without=without,
            sampling=decoding.sampling(),
            stop_ids=self.stop_ids,
            prefix=decoding.prefix,
            top_logprobs=decoding.top_logprobs,
        )

    def ids(self, prompt: Prompt) -> Tensor:
        """Token ids [S] of a prompt, up to where the answer begins."""
        if isinstance(prompt, Tokens):
            return prompt.ids
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InputError("the prompt is empty: give a text, chat messages or Tokens.")
            prompt = [{"role": "user", "content": prompt}]
        return prompts.chat_ids(self._require_tokenizer(), prompt)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: all that the generation config, the config and the tokenizer name."""
        return stop_ids(self.model, self.tokenizer)

    def _memorize(self, tokens: Tokens, recipe: Recipe, on_step: Any, cache: Any = None, text: Any = None) -> Memory:
        self._check_length(len(tokens), 0)
        layers = self.trunk.indices(recipe.layers)
        with explained_out_of_memory():
            plan(self.trunk, recipe, [int(tokens.scored[1:].sum())])  # refuses what cannot fit before the trunk runs
            reading = read(self.trunk, tokens.ids, tokens.scored, layers, cache)
            memory = memorize(self.trunk, reading, recipe, self.base(layers), on_step)
        return self._finished(memory, tokens, text)

    def _finished(self, memory: Memory, tokens: Tokens, text: Any) -> Memory:
        if memory.stopped:
            log.warning("memorizing stopped early: %s.", memory.stopped)
        return replace(memory, details=self.provenance(tokens, text if isinstance(text, str) else None))

    def provenance(self, tokens: Tokens, text: str | None = None) -> dict[str, Any]:
        """The details of a memory of this document: counts, and digests of ids, text, tokenizer and template.

        The text itself is among them too; `Memory.save` writes it only if asked.
        """
        return prompts.document_identity(tokens, text) | self.reader

    def _fitting(self, question: str, context: str, decoding: Decoding, truncate: bool) -> str:
        """The context, cut where asked to so that prompt and answer fit the model's positions."""
        limit, cut = self.trunk.max_positions, 0
        while truncate and limit is not None:
            length = len(self.ids(prompts.question_prompt(context, question)))
            over = length + decoding.max_new_tokens - limit
            if over <= 0:
                break
            context, cut = prompts.truncated(self._require_tokenizer(), context, over), cut + over
        if cut:
            log.info("the document was cut by its last %d tokens to fit the model's %d positions.", cut, limit)
        return context

    def _check_length(self, tokens: int, max_new_tokens: int) -> None:
        limit = self.trunk.max_positions
        if limit is not None and tokens + max_new_tokens > limit:
            answer = f" and {max_new_tokens} for the answer" if max_new_tokens else ""
            raise InputError(
                f"{tokens} tokens{answer} are {tokens + max_new_tokens - limit} too many: the model has {limit} "
                "positions. Shorten the context, or cut it with --truncate (truncate=True)."
            )

    def _require_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError("there is no tokenizer to read text with: give Tokens, or FastMem(model, tokenizer).")
        return self.tokenizer
