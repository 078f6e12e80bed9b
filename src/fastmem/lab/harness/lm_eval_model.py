"""`FastMemLM`: the harness's Hugging Face model, with a memory of every request's document.

The document comes from the task's own row (`request.doc`), not from a guess at the prompt. Requests of one document
are gathered and it is memorized once. A row without a document is answered by the untouched model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from fastmem.answer.contrast import contrast, method_named
from fastmem.errors import InputError
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import Recipe, changed_recipe, read_recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens

# Where rows of known tasks keep their document, the first that is there.
CONTEXT_FIELDS = ("sub_context", "context", "article", "passage", "document")
DEFAULT_NEW_TOKENS = 256  # the harness's own


@register_model("fastmem")
class FastMemLM(HFLM):
    """pretrained: hub id or folder; None for the embedded model. method: one of `METHODS` but cad, which needs a
    second prompt that a harness task does not have. recipe: a recipe file; single values win over it.
    context_field: the column of the task that holds the document.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "fastmem",
        recipe: str | None = None,
        learning_rate: float | None = None,
        steps: int | None = None,
        kl_weight: float | None = None,
        alpha: float = 0.5,
        context_field: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        **options: Any,
    ):
        self._method = method_named(method)
        if self._method.kind == "cad":
            raise InputError(f"method {method!r} needs the prompt without the document, which a harness task lacks.")
        self._method_name, self._alpha, self._context_field = method, alpha, context_field
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness asks for cuda:0 wherever nobody names a device, and its own models fall back
        self._llm = FastMem.from_pretrained(pretrained, dtype=dtype, device=device)
        given = {"learning_rate": learning_rate, "steps": steps, "kl_weight": kl_weight}
        values = {name: value for name, value in given.items() if value is not None}
        written = read_recipe(Path(recipe)) if recipe else {}
        self._recipe: Recipe = changed_recipe(self._llm.recipe, written | values)
        self._memory: Memory | None = None
        super().__init__(pretrained=self._llm.model, tokenizer=self._llm.tokenizer, **options)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of continuations, under the memory of each request's document."""
        if self._method.kind == "dola":
            raise InputError("dola masks tokens, so continuations have no likelihood under it: take another method.")
        return self._by_document(requests, lambda group: super(FastMemLM, self).loglikelihood(group, disable_tqdm))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, under the memory of each request's document, side by side."""
        texts: list[str] = [""] * len(requests)
        size = self.batch_size if isinstance(self.batch_size, int) else 16
        order = sorted(range(len(requests)), key=lambda i: (_options(requests[i]), self.document(requests[i].doc)))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for options in dict.fromkeys(_options(requests[i]) for i in batch):
                self._generate([i for i in batch if _options(requests[i]) == options], requests, texts, options)
        return texts

    def document(self, doc: Any) -> str:
        """The document in a task's row; empty where it has none."""
        fields = (self._context_field,) if self._context_field else CONTEXT_FIELDS
        found = next((doc[name] for name in fields if isinstance(doc, dict) and doc.get(name)), "")
        return found if isinstance(found, str) else ""

    def _generate(
        self, batch: Sequence[int], requests: list[Instance], texts: list[str], options: tuple[tuple[str, ...], int]
    ) -> None:
        until, most = options
        memories = self._memories([self.document(requests[i].doc) for i in batch])
        prompts: list[Any] = [Tokens(self.tok_encode(requests[i].args[0])) for i in batch]
        for memorized in (True, False):
            rows = [n for n, memory in enumerate(memories) if (memory is not None) is memorized]
            if not rows:
                continue
            answers = self._llm.generate(
                [prompts[n] for n in rows],
                [memories[n] for n in rows],
                self._method_name if memorized or not self._method.memorized else "base",
                max_new_tokens=most,
                stop=until,
                alpha=self._alpha,
            )
            for n, answer in zip(rows, answers, strict=True):
                texts[batch[n]] = answer.text

    def _memories(self, documents: Sequence[str]) -> list[Memory | None]:
        made: dict[str, Memory | None] = {}
        for document in documents:
            if document not in made:
                made[document] = self._memorized(document)
        return [made[document] for document in documents]

    def _memorized(self, document: str) -> Memory | None:
        if not document or not self._method.memorized:
            return None
        return self._llm.memorize(document, self._recipe)

    def _by_document(self, requests: list[Instance], answer: Callable[[list[Instance]], list[Any]]) -> list[Any]:
        """`answer` of the requests of one document after the other, in the order they came in."""
        places: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            places.setdefault(self.document(request.doc), []).append(i)
        found: list[Any] = [None] * len(requests)
        for document, rows in places.items():
            self._memory = self._memorized(document)
            try:
                for i, result in zip(rows, answer([requests[i] for i in rows]), strict=True):
                    found[i] = result
            finally:
                self._memory = None
        return found

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] under the memory in force. Rows are padded on the right, which a causal model ignores."""
        if self._memory is None:
            return super()._model_call(inps, attn_mask, labels)
        split_model = self._llm.split_model
        with torch.no_grad():
            now = split_model.head(split_model.forward(inps, ffn=self._llm.ffn(self._memory)))
            if self._method.kind != "cd" or self._method.adaptive:
                return now
            return contrast(now, split_model.head(split_model.forward(inps)), self._alpha)


def _options(request: Instance) -> tuple[tuple[str, ...], int]:
    """(stop strings, most new tokens) of a request."""
    given = request.args[1]
    if given.get("do_sample") or given.get("temperature"):
        raise InputError("the model 'fastmem' answers greedily: take do_sample and temperature out of the task.")
    until = given.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return stops, int(given.get("max_gen_toks") or given.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
