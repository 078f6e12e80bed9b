"""`FastMemLM`: the harness's Hugging Face model, with a memory of the document of every request.

The document is a column of the task's row (`request.doc`); it is not extracted from the prompt. Requests of one
document are grouped, so it is memorized once. Rows without a document are answered by the base, with a warning.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from fastmem.answer.contrast import adaptive_alpha, contrast, method_named
from fastmem.errors import InputError
from fastmem.memory.memory import Memory
from fastmem.memory.recipe import merged_recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.system_turn import remove_system_turn

log = logging.getLogger("fastmem")

# Columns with the document in known tasks; the first that is present counts.
CONTEXT_FIELDS = ("sub_context", "context", "article", "passage", "document")
DEFAULT_NEW_TOKENS = 256  # the harness's own


@register_model("fastmem")
class FastMemLM(HFLM):
    """pretrained: hub id or folder; None for the embedded model. method: one of `METHODS` except those with CAD, which
    need a second prompt that a harness task does not have. recipe: a recipe file, auto or paper; learning_rate, steps
    and kl_weight override it. context_field: the column of the task with the document; by default the first of
    `CONTEXT_FIELDS`. system_turn: False drops the one that the chat template adds unasked.
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
        system_turn: bool = True,
        **options: Any,
    ):
        self._method = method_named(method)
        if self._method.kind == "cad":
            raise InputError(
                f"method {method!r} needs the prompt without the document, which a harness task does not have: "
                "use another method."
            )
        self._method_name, self._alpha, self._context_field = method, alpha, context_field
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness passes cuda:0 by default, and its own models fall back to the CPU
        self._llm = FastMem.from_pretrained(pretrained, dtype=dtype, device=device)
        self._llm.split_model.require_decoder_only("lm-eval")
        if not system_turn:
            remove_system_turn(self._llm.tokenizer)
        given = {"learning_rate": learning_rate, "steps": steps, "kl_weight": kl_weight}
        changes = {name: value for name, value in given.items() if value is not None}
        self._recipe = self._llm.resolved(merged_recipe(self._llm.recipe, recipe or None, changes))
        self._memory: Memory | None = None  # that `_model_call` uses
        super().__init__(pretrained=self._llm.model, tokenizer=self._llm.tokenizer, **options)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy one) of continuations, with the memory of each document."""
        ask = super().loglikelihood
        return self._by_document(requests, lambda group: ask(group, disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, with the memory of each document."""
        ask = super().loglikelihood_rolling
        return self._by_document(requests, lambda group: ask(group, disable_tqdm))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers in batches, with the memory of each document."""
        self._warn_of_missing_documents(requests)
        texts: list[str] = [""] * len(requests)
        size = self.batch_size if isinstance(self.batch_size, int) else 16
        order = sorted(range(len(requests)), key=lambda i: (_options(requests[i]), self.document(requests[i].doc)))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for options in dict.fromkeys(_options(requests[i]) for i in batch):
                alike = [i for i in batch if _options(requests[i]) == options]
                for i, text in zip(alike, self._generate([requests[i] for i in alike], *options), strict=True):
                    texts[i] = text
        return texts

    def document(self, doc: Any) -> str:
        """The document in a task's row; empty if there is none. Errors: `InputError` for a `context_field` without."""
        columns = doc if isinstance(doc, dict) else {}
        if self._context_field:
            self._require_text(columns, self._context_field)
        fields = (self._context_field,) if self._context_field else CONTEXT_FIELDS
        found = next((columns[name] for name in fields if columns.get(name)), "")
        return found if isinstance(found, str) else ""

    @staticmethod
    def _require_text(columns: Mapping[str, Any], name: str) -> None:
        """Errors: `InputError` if the column of that name is absent or holds something else than texts."""
        value = columns.get(name)
        if name not in columns:
            reason = f"the task's rows have no column {name!r}"
        elif not isinstance(value, str | None):
            reason = f"the task's column {name!r} holds a {type(value).__name__}, not a text"
        else:
            return
        raise InputError(f"context_field: {reason}. Give one of its columns: {', '.join(columns)}.")

    def _warn_of_missing_documents(self, requests: Sequence[Instance]) -> None:
        """One warning if the method memorizes and some rows have nothing to memorize."""
        rows = {(request.task_name, request.doc_id): request.doc for request in requests}
        missing = sum(not self.document(doc) for doc in rows.values())
        if missing and self._method.memorized:
            log.warning(
                "%d of %d rows have no document, so the untouched model answers them: if they have one, name its "
                "column with context_field.", missing, len(rows)
            )  # fmt: skip

    def _generate(self, requests: Sequence[Instance], stop: tuple[str, ...], max_new_tokens: int) -> list[str]:
        documents = [self.document(request.doc) for request in requests]
        memories = {document: self._memorized(document) for document in dict.fromkeys(documents)}
        texts = [""] * len(requests)
        for memorized in (True, False):
            rows = [i for i, document in enumerate(documents) if (memories[document] is not None) is memorized]
            if not rows:
                continue
            answers = self._llm.generate(
                [Tokens(self.tok_encode(requests[i].args[0])) for i in rows],
                [memories[documents[i]] for i in rows],
                self._method_name if memorized or not self._method.memorized else "base",
                max_new_tokens=max_new_tokens,
                stop=stop,
                alpha=self._alpha,
            )
            for i, answer in zip(rows, answers, strict=True):
                texts[i] = answer.text
        return texts

    def _memorized(self, document: str) -> Memory | None:
        """The memory of a document; None if there is no document or the method uses none."""
        if not document or not self._method.memorized:
            return None
        return self._llm.memorize(document, self._recipe)

    def _by_document(self, requests: list[Instance], answer: Callable[[list[Instance]], list[Any]]) -> list[Any]:
        """Call `answer` once per document, with its memory in use; the results, in the order of `requests`.

        Errors: `InputError` for DoLa.
        """
        if self._method.kind == "dola":
            raise InputError("dola masks tokens, so texts have no likelihood: use another method.")
        self._warn_of_missing_documents(requests)
        rows_of: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            rows_of.setdefault(self.document(request.doc), []).append(i)
        results: list[Any] = [None] * len(requests)
        for document, rows in rows_of.items():
            self._memory = self._memorized(document)
            try:
                for i, result in zip(rows, answer([requests[i] for i in rows]), strict=True):
                    results[i] = result
            finally:
                self._memory = None
        return results

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] with the memory in use. Rows are padded on the right, which a causal model ignores."""
        if self._memory is None:
            return super()._model_call(inps, attn_mask, labels)
        split_model = self._llm.split_model
        with torch.no_grad():
            logits = split_model.head(split_model.forward(inps, ffn=self._llm.ffn(self._memory)))
            if self._method.kind != "cd":
                return logits
            memorized = logits.float().flatten(0, 1)  # [B * T, V]
            original = split_model.head(split_model.forward(inps)).float().flatten(0, 1)
            alpha = adaptive_alpha(memorized, original) if self._method.adaptive else self._alpha
            return contrast(memorized, original, alpha).view(logits.shape)


def _options(request: Instance) -> tuple[tuple[str, ...], int]:
    """(stop strings, most new tokens) of a request. Errors: `InputError` if it asks for sampling."""
    given = request.args[1]
    if given.get("do_sample") or given.get("temperature"):
        raise InputError("the model 'fastmem' decodes greedily: remove do_sample and temperature from the task.")
    until = given.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    return stops, int(given.get("max_gen_toks") or given.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
