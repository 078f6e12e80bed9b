"""`Preparer`: prompts and documents become token ids and requests, tokenized and checked once."""

import functools
import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmem import prompts
from fastmem.answer.contrast import method_named
from fastmem.answer.decoder_opening import DecoderOpening
from fastmem.answer.json_schema import JsonSchema, SchemaReader
from fastmem.answer.request import Decoding, Request
from fastmem.errors import InputError
from fastmem.prompts import PROMPT, Prompt, Tokens
from fastmem.ranges import checked
from fastmem.split.split_model import SplitModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("fastmem")


@dataclass(frozen=True)
class Question:
    """A prepared question. context: as it is in the prompt. document: what to memorize; None if nothing."""

    context: str
    request: Request
    document: Tokens | None


class Preparer:
    """For one model and its tokenizer, which is None if all input is `Tokens`."""

    def __init__(self, split_model: SplitModel, tokenizer: Any):
        self.split_model, self.tokenizer = split_model, tokenizer
        self._schemas: SchemaReader | None = None

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: all that the generation config, the config and the tokenizer name."""
        model = self.split_model.model
        sources = (getattr(model, "generation_config", None), model.config, self.tokenizer)
        named = [getattr(source, "eos_token_id", None) for source in sources]
        lists = [ids if isinstance(ids, list | tuple) else [ids] for ids in named if ids is not None]
        return frozenset(i for ids in lists for i in ids)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Digests of the tokenizer and its template; empty without a tokenizer."""
        return {} if self.tokenizer is None else prompts.identity(self.tokenizer)

    @functools.cached_property
    def opening(self) -> DecoderOpening | None:
        """How the decoder of an encoder-decoder begins; None for other models. Errors: `InputError`."""
        return DecoderOpening.of(self.split_model.model) if self.split_model.has_encoder else None

    def encoded(self, source: Tensor | None) -> Tensor | None:
        """[1, S, D]: what an encoder makes of source [S], or of an end token alone; None for a decoder-only model.

        Errors: `InputError` for ids that are not the model's, and for a source that nothing would read.
        """
        if self.opening is None:
            if source is not None:
                raise InputError(
                    "source is for an encoder, which this model does not have: leave it out.", field="source"
                )
            return None
        source = torch.tensor([self.opening.end]) if source is None else source
        self.check(source)
        return self.split_model.encode(source)

    def ids(self, prompt: Prompt) -> Tensor:
        """Token ids [S] of a prompt, up to where the answer begins: what the encoder reads, if there is one. Errors:
        `InputError`."""
        prompt = checked(prompt, PROMPT, "prompt")
        if isinstance(prompt, Tokens):
            return prompt.ids
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InputError(
                    "the prompt is empty: give a text, chat messages, or token ids as Tokens(ids).", field="prompt"
                )
            prompt = [{"role": "user", "content": prompt}]
        tokenizer = self.require_tokenizer()
        return prompts.chat_ids(tokenizer, prompt) if self.opening is None else prompts.encoder_ids(tokenizer, prompt)

    def request(self, prompt: Prompt, method: str, decoding: Decoding) -> Request:
        """The request for a prompt, without a memory. Errors: `InputError` for anything that cannot be used."""
        wanted = method_named(method)
        if decoding.stop_strings() and self.tokenizer is None:
            raise InputError("stop strings need a tokenizer: construct FastMem(model, tokenizer), or stop by token.")
        without = decoding.without_context if wanted.kind == "cad" else None
        if wanted.kind == "cad" and without is None:
            raise InputError(f"method {method!r} needs the prompt without the document: give without_context=...")
        if (decoding.top_logprobs or 0) > (most := self.split_model.vocabulary_size):
            text = f"top_logprobs is {decoding.top_logprobs}: the model has {most} tokens; give at most as many."
            raise InputError(text, field="top_logprobs")
        self._check_token_ids(decoding)
        if decoding.json_schema is not None:
            self.split_model.require_decoder_only("json_schema")
        return Request(
            prompt=self._checked_ids(prompt, decoding),
            method=method,
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens,
            contrast=wanted.contrast(decoding.alpha, decoding.relative_top, decoding.final_norm),
            without=None if without is None else self._checked_ids(without, decoding),
            sampling=decoding.sampling(),
            stop_ids=frozenset(decoding.stop_token_ids) | (frozenset() if decoding.ignore_eos else self.stop_ids),
            stop=decoding.stop_strings(),
            top_logprobs=decoding.top_logprobs,
            schema=None if decoding.json_schema is None else self.schema(str(decoding.json_schema)),
            prefix=decoding.prefix,
            opening=None if self.opening is None else torch.tensor([self.opening.start]),
            forced={} if self.opening is None else self.opening.forced(decoding.max_new_tokens),
        )

    def schema(self, text: str) -> JsonSchema:
        """A JSON schema, read for the model's tokenizer. Errors: `InputError`, `MissingPackageError`."""
        if self._schemas is None:
            tokenizer, count = self.require_tokenizer(), self.split_model.vocabulary_size
            self._schemas = SchemaReader(tokenizer, self.stop_ids, count)
        return self._schemas.read(text)

    def _check_token_ids(self, decoding: Decoding) -> None:
        """Errors: `InputError` for an option that names a token which the model does not have."""
        count = self.split_model.vocabulary_size
        for name, ids in (("stop_token_ids", decoding.stop_token_ids), ("logit_bias", dict(decoding.logit_bias))):
            if any(token >= count for token in ids):
                text = f"{name} has token {max(ids)}: the model has {count} tokens, 0 to {count - 1}."
                raise InputError(text, field=name)

    def document(self, context: str, placement: str, truncate: bool = False) -> Tokens:
        """A document as it is memorized. truncate: cut it to the model's positions. Errors: `InputError`."""
        encode = functools.partial(prompts.memory_tokens, self.require_tokenizer(), placement=placement)
        if self.opening is not None:
            opening = self.opening.of_document
            encode = functools.partial(
                prompts.written_tokens, self.require_tokenizer(), placement=placement, opening=opening
            )
        _, tokens = self.fitting(context, encode, self.split_model.max_positions if truncate else None)
        self.check(tokens.ids)
        return tokens

    def fitting(self, context: str, encode: Callable[[str], Tokens], room: int | None) -> tuple[str, Tokens]:
        """(the longest beginning of the context that `encode` turns into at most `room` tokens, these tokens).

        It ends between two characters. room: None leaves the context whole. Errors: `InputError` if nothing fits.
        """
        context = prompts.require_text(context)
        tokens = encode(context)
        if room is None or len(tokens) <= room:
            return context, tokens
        # A longer beginning has more tokens, with few exceptions; what the search returns was tried and fits.
        end = bisect_right(range(1, len(context)), room, key=lambda end: len(encode(context[:end].rstrip())))
        if end == 0:
            raise InputError("nothing of the document is left after truncation: shorten the question or the answer.")
        return (left := context[:end].rstrip()), encode(left)

    def question(
        self,
        question: str,
        context: str,
        method: str,
        decoding: Decoding,
        placement: str | None,
        truncate: bool = False,
    ) -> Question:
        """A question about a context, with the paper's prompt.

        placement: how the context will be memorized, None if it is not. truncate: cut the context, never the question,
        so that prompt and answer fit the model's positions. Errors: `InputError`.
        """
        for name, given in (("question", question), ("context", context)):
            if not isinstance(given, str):
                raise InputError(
                    f"the {name} must be one text; given {type(given).__name__}: call answer once for each question, "
                    "or generate with a list of prompts.",
                    field=name,
                )
        if not question.strip():
            raise InputError("the question is empty: give what is to be answered from the context.", field="question")
        prompts.require_characters(question, "question")
        tokenizer, limit, in_place = self.require_tokenizer(), self.split_model.max_positions, placement == "prompt"
        if in_place:
            self.split_model.require_decoder_only("placement 'prompt'")

        def encode(context: str) -> Tokens:
            text = prompts.question_prompt(context, question)
            if not in_place:
                return Tokens(self.ids(text))
            return prompts.in_place(tokenizer, text, context, len(prompts.QUESTION_OPENING))

        whole = prompts.require_text(context)
        shared = decoding.max_new_tokens if self.opening is None else 0  # an encoder has positions of its own
        room = limit - shared if truncate and limit is not None else None
        context, prompt = self.fitting(whole, encode, room)
        if context != whole:
            log.info(
                "the document was cut to %d of its %d characters, to fit the model's %d positions.",
                len(context),
                len(whole),
                limit,
            )
        if decoding.without_context is None:
            decoding = replace(decoding, without_context=prompts.question_alone(question))
        request = self.request(prompt, method, decoding)
        if placement is None or in_place:
            return Question(context, request, prompt if in_place else None)
        return Question(context, request, self.document(context, placement, truncate))

    def _checked_ids(self, prompt: Prompt, decoding: Decoding) -> Tensor:
        ids = self.ids(prompt)
        if self.opening is None:
            self.check(ids, decoding.max_new_tokens)
        else:
            self.check(ids)
            self.check(torch.tensor([self.opening.start]), decoding.max_new_tokens)
        return ids

    def check(self, ids: Tensor, max_new_tokens: int = 0) -> None:
        """Errors: `InputError` for ids [S] that are not the model's, or that exceed its positions with the answer."""
        limit, count = self.split_model.max_positions, self.split_model.vocabulary_size
        if (largest := int(ids.max())) >= count:
            raise InputError(
                f"token id {largest} does not exist: the model has {count} tokens, 0 to {count - 1}. Give ids of the "
                "model's own tokenizer.",
                field="ids",
            )
        if limit is not None and len(ids) + max_new_tokens > limit:
            answer = f" and {max_new_tokens} for the answer" if max_new_tokens else ""
            raise InputError(
                f"{len(ids)} tokens{answer} are {len(ids) + max_new_tokens - limit} too many: the model has {limit} "
                "positions. Shorten the context.",
                options=("truncate",),
            )

    def require_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer. Errors: `InputError` if there is none."""
        if self.tokenizer is None:
            raise InputError("there is no tokenizer to read text with: give Tokens, or FastMem(model, tokenizer).")
        return self.tokenizer
