"""Text and chat messages to `Tokens`: the ids that the model reads, and which of them are targets of the loss.

All text becomes token ids here. The document is user input: control tokens written in it are encoded as ordinary text,
so a document cannot open a turn of its own. The prompts are those of the paper's code (arXiv 2406.16069,
IAAR-Shanghai/FastMem `src/train_and_inference.py`).
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastmem.chat_template import (
    PLAIN_TEMPLATE,
    any_control,
    explained_refusal,
    ids_as_text,
    rendered,
    template,
)
from fastmem.encoding import ENCODING, encoded, half_character
from fastmem.errors import InputError, one_of, shown
from fastmem.memory.recipe import PLACEMENTS
from fastmem.ranges import Other

log = logging.getLogger("fastmem")

_IDS = "a non-empty list of token ids, 0 or more"
_FLAGS = "one `scored` flag per id"


@dataclass(frozen=True)
class Tokens:
    """Token ids to read, and which of them are memorized.

    ids: [S] int64 token ids.
    scored: [S] bool; where it is true, the token is a target of the loss, predicted from the tokens before it. The
        first token is never one. None scores every token but the first.
    source: [S'] int64 ids for the encoder of an encoder-decoder; None gives it an end token alone.
    Errors: `InputError` for ids that are empty or negative, and for lengths that differ.
    """

    ids: torch.Tensor
    scored: torch.Tensor
    source: torch.Tensor | None

    def __init__(
        self,
        ids: torch.Tensor | Sequence[int],
        scored: torch.Tensor | Sequence[bool] | None = None,
        source: torch.Tensor | Sequence[int] | None = None,
    ):
        ids = _vector(ids, _IDS, "ids")
        mask = torch.ones(len(ids), dtype=torch.bool) if scored is None else _vector(scored, _FLAGS, "scored").bool()
        if mask.shape != ids.shape:
            raise InputError(f"Tokens takes {_FLAGS}; given {list(mask.shape)} for {len(ids)} ids.", field="scored")
        mask[0] = False
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "scored", mask)
        object.__setattr__(self, "source", None if source is None else _vector(source, _IDS, "source"))

    def __len__(self) -> int:
        return len(self.ids)


def _vector(given: Any, accepted: str, name: str) -> torch.Tensor:
    """[S] int64, a copy. Errors: `InputError` that says what `Tokens` takes."""
    try:
        found = torch.as_tensor(given).clone()  # what the caller does with its own afterwards changes no document
        whole = not (found.is_floating_point() or found.is_complex() or (found.dtype == torch.bool and name == "ids"))
        if found.ndim == 1 and len(found) and whole and int((found := found.to(torch.int64)).min()) >= 0:
            return found
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(f"Tokens takes {accepted}; given {shown(given)}.", field=name)


# A user turn as text, ready tokens, or chat messages.
Chat = Sequence[dict[str, str]]
Prompt = str | Tokens | Chat


def _prompt(given: Any) -> Any:
    chat = isinstance(given, list | tuple) and given and all(isinstance(message, dict) for message in given)
    if not isinstance(given, str | Tokens) and not chat:
        raise TypeError
    return given


PROMPT = Other("a text, chat messages, or token ids as Tokens(ids)", _prompt)


# The paper's user turn for extractive question answering (NQ, NQ-SWAP, HotpotQA), up to the context.
QUESTION_OPENING = (
    "Please extract from the context the span that best answers the question and provide the answer in the "
    'following format: "The answer is: ...".\nContext: '
)


def question_prompt(context: str, question: str) -> str:
    """The paper's user turn for extractive question answering."""
    return f"{QUESTION_OPENING}{context}\nQuestion: {with_mark(question)}"


def question_alone(question: str) -> str:
    """The user turn without the document: what the contrast with and without context (CAD) compares with."""
    return f"Question: {with_mark(question)}"


def with_mark(question: str) -> str:
    """The question, ending in one question mark."""
    return question.strip().rstrip("?").rstrip() + "?"


def chat_ids(tokenizer: Any, messages: Chat, options: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Token ids [S] of a conversation, up to and including the header of the answer.

    Control tokens inside the messages are read as text. options: variables of the chat template, as
    `{"enable_thinking": False}`. Errors: `InputError` for messages that the template refuses.
    """
    return _chat_encoding(tokenizer, messages, options)[0]


def chat_ids_before(
    tokenizer: Any, messages: Chat, end: str, options: Mapping[str, Any] | None = None
) -> tuple[torch.Tensor, int]:
    """(`chat_ids`, how many of them stand before `end`, the end of the last message).

    The count is 0 if the tokenizer does not report the offsets of its tokens.
    """
    ids, offsets = _chat_encoding(tokenizer, messages, options, offsets=tokenizer.is_fast)
    # Without the header of the answer, which could match, too.
    position = rendered(tokenizer, list(messages), options=options).rfind(end.strip())
    return ids, _ending_before(offsets, position)


def text_ids_before(tokenizer: Any, text: str, end: str) -> tuple[Tokens, int]:
    """(a plain text as the tokenizer encodes it, how many of its tokens stand before `end`, the end of the text)."""
    found = encoded(tokenizer, text, return_offsets_mapping=tokenizer.is_fast)
    return Tokens(found["input_ids"]), _ending_before(found.get("offset_mapping", []), len(text) - len(end))


def _chat_encoding(
    tokenizer: Any, messages: Chat, options: Mapping[str, Any] | None, offsets: bool = False
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """(ids [S], where each token begins and ends in the rendered text; empty if not asked for)."""
    _check(messages)
    kwargs, own = dict(options or {}), template(tokenizer)
    if any_control(tokenizer, (str(message["content"]) for message in messages)):
        kwargs["sanitize_control_tokens"] = True
    elif offsets:
        kwargs["tokenizer_kwargs"] = {"return_offsets_mapping": True}
    with ENCODING, explained_refusal():
        found = tokenizer.apply_chat_template(
            list(messages), chat_template=own, add_generation_prompt=True, return_dict=True, **kwargs
        )
    return torch.tensor(found["input_ids"], dtype=torch.int64), found.get("offset_mapping", [])


def _check(messages: Chat) -> None:
    """Errors: `InputError` for what is no chat message, and for halves of characters."""
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f'a chat message is {{"role": ..., "content": ...}}; given {message!r}.')
        require_characters(str(message["content"]), "prompt")


def _ending_before(offsets: Sequence[tuple[int, int]], position: int) -> int:
    """The number of leading tokens that end at or before a position in the text."""
    return sum(1 for _ in itertools.takewhile(lambda offset: offset[1] <= position, offsets))


def token_count(tokenizer: Any, text: str) -> int:
    """The tokens of a bare text, without begin-of-text or a turn around it."""
    return len(encoded(tokenizer, text, add_special_tokens=False, verbose=False)["input_ids"])


def encoder_ids(tokenizer: Any, messages: Chat) -> torch.Tensor:
    """[S]: a conversation as an encoder reads it: by the chat template, or without one the bare texts, one a line."""
    if tokenizer.chat_template is not None:
        return chat_ids(tokenizer, messages)
    _check(messages)
    text = "\n".join(message["content"].strip() for message in messages)
    found = encoded(tokenizer, text, split_special_tokens=any_control(tokenizer, [text]))
    return torch.tensor(found["input_ids"])


def written_tokens(tokenizer: Any, context: str, placement: str, opening: Sequence[int]) -> Tokens:
    """The document as the decoder of an encoder-decoder memorizes it: as an answer that begins with `opening`.

    placement: "assistant" ends with the chat template's end of a turn, if there is one; "text" with end-of-text.
    """
    one_of(placement, ("assistant", "text"), "placement of an encoder-decoder", field="placement")
    turn = placement == "assistant" and tokenizer.chat_template is not None
    after = _turn(tokenizer, placement)[1] if turn else tokenizer.eos_token or ""
    ids = _encode(tokenizer, ("", after), ("", require_text(context), ""), score_after=True).ids
    return Tokens([*opening, *ids.tolist()], [False] * len(opening) + [True] * len(ids))


def memory_tokens(tokenizer: Any, context: str, placement: str = "assistant") -> Tokens:
    """The document as it is memorized, as `Tokens`: its own tokens and the end of its turn are scored.

    placement: "assistant", the paper's (Llama 3: begin-of-text, assistant header, context, end-of-turn, with no
    system or user turn); "user", the same as a user turn; "text", begin-of-text and the bare context with
    end-of-text. "prompt" needs a question: see `in_place`.
    """
    context = require_text(context)
    one_of(placement, PLACEMENTS, "placement", field="placement")
    if placement == "prompt":
        raise InputError(
            'placement "prompt" memorizes the document inside a question\'s prompt: use answer(question, context), '
            "or pass Tokens; accepted here: assistant, user, text."
        )
    if placement == "text":
        before, after = tokenizer.bos_token or "", tokenizer.eos_token or ""
    else:
        before, after = _turn(tokenizer, placement)
    return _encode(tokenizer, (before, after), ("", context, ""), score_after=True)


def in_place(tokenizer: Any, prompt: str, context: str, start: int = 0) -> Tokens:
    """A user turn that contains `context`, ready to be answered; only the context's tokens are scored.

    start: where in the prompt to look for it; what comes before may contain the same words, and so may what follows.
    Memorizing these tokens needs no trunk pass of its own: the answer is decoded from the same one. Errors:
    `InputError` if the prompt or the rendered turn does not contain the context.
    """
    context, turn = require_text(context), prompt.strip()  # templates strip a turn
    whole = rendered(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    in_prompt, of_turn = prompt.find(context, start), whole.rfind(turn)
    if in_prompt < 0 or of_turn < 0:
        raise InputError("placement 'prompt' needs a prompt that contains the document word for word; it does not.")
    start = in_prompt - prompt.index(turn)
    parts = turn[:start], context, turn[start + len(context) :]
    return _encode(tokenizer, (whole[:of_turn], whole[of_turn + len(turn) :]), parts, score_after=False)


def require_text(context: str) -> str:
    """The context, stripped. Errors: `InputError` where there is none, or where it is not one text."""
    if not isinstance(context, str):
        raise InputError(f"the context must be one text or Tokens; given {type(context).__name__}.", field="context")
    if not context.strip():
        raise InputError("the context is empty: give the document to be faithful to, as text.")
    require_characters(context, "context")
    return context.strip()


def require_characters(text: str, what: str) -> None:
    """Errors: `InputError` for half of a character, which no tokenizer reads. what: names the text."""
    if half := half_character(text):
        raise InputError(f"the {what} is not text: {half}; decode it anew.", field=what)


def identity(tokenizer: Any) -> dict[str, str]:
    """SHA-256 of the tokenizer and of its chat template, by the names under which a memory records them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tables: Any = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.added_tokens_encoder.items())]
    else:  # padding and truncation are settings of the last call, not of the tokenizer
        tables = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    return {
        "tokenizer_sha256": sha256(json.dumps(tables, sort_keys=True)),
        "template_sha256": sha256(str(tokenizer.chat_template or PLAIN_TEMPLATE)),
    }


def document_identity(tokens: Tokens, text: str | None = None) -> dict[str, Any]:
    """What a memory records of its document: counts, SHA-256 of the tokens and of the text, and the text."""
    ids = ",".join(f"{i}{'*' * s}" for i, s in zip(tokens.ids.tolist(), tokens.scored.tolist(), strict=True))
    ids += "" if tokens.source is None else f"|{tokens.source.tolist()}"
    found = {"tokens": len(tokens), "scored_tokens": int(tokens.scored.sum()), "tokens_sha256": sha256(ids)}
    return found if text is None else found | {"text_sha256": sha256(require_text(text)), "text": require_text(text)}


def warn_of_another_text(details: Mapping[str, Any], texts: Iterable[str]) -> None:
    """Log a warning if a memory was made from another text than any of these. details: those of the memory."""
    if details.get("text_sha256") not in (None, *(sha256(require_text(text)) for text in texts)):
        log.warning("the memory was made from another text than this context, so it may contradict it.")


def _turn(tokenizer: Any, role: str) -> tuple[str, str]:
    """(begin-of-text and header, end-of-turn) that surround the content of a first turn of `role`."""
    probe = "FastMem-content"
    user = {"role": "user", "content": "FastMem-user"}
    if role == "user":
        before, _, after = rendered(tokenizer, [user | {"content": probe}]).partition(probe)
        return before, _end_of_turn(after)
    # Many templates refuse an assistant turn without a user turn, or put a default system turn first (Qwen), so the
    # assistant turn is what a conversation gains by having one.
    opening = rendered(tokenizer, [user])
    whole = rendered(tokenizer, [user, {"role": "assistant", "content": probe}])
    shared = next((i for i, (a, b) in enumerate(zip(opening, whole, strict=False)) if a != b), len(opening))
    before, _, after = whole[shared:].partition(probe)
    bos = tokenizer.bos_token or ""
    return (bos if bos and opening.startswith(bos) else "") + before, _end_of_turn(after)


def _end_of_turn(after: str) -> str:
    """The end-of-turn without the line break some templates write behind it (Qwen, Gemma)."""
    return after.rstrip() or after


def _encode(tokenizer: Any, around: tuple[str, str], turn: tuple[str, str, str], score_after: bool) -> Tokens:
    """A turn and the template's text around it; tokens that touch its middle (and what follows, if asked) are scored.

    Control tokens in the turn are read as text, those of the template as what they are.
    """
    (opening, ending), (before, content, after) = around, turn
    if any_control(tokenizer, turn):
        # What has no control token stays with its neighbour, since a tokenizer may read text otherwise at an edge.
        opening, before = (opening, before) if any_control(tokenizer, [before]) else (opening + before, "")
        ending, after = (ending, after) if any_control(tokenizer, [after]) else (after + ending, "")
        written = [encoded(tokenizer, t, add_special_tokens=False)["input_ids"] for t in (opening, ending)]
        asked = [ids_as_text(tokenizer, text) if text else [] for text in (before, content, after)]
        pieces = [(written[0], False), *zip(asked, (False, True, False), strict=True), (written[1], score_after)]
        return Tokens([i for ids, _ in pieces for i in ids], [scored for ids, scored in pieces for _ in ids])
    before, after = opening + before, after + ending
    text, start = before + content + after, len(before)
    end = len(text) if score_after else start + len(content)
    if tokenizer.is_fast:
        found = encoded(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
        flags = [right > start and left < end for left, right in found["offset_mapping"]]
        return Tokens(found["input_ids"], flags)
    ids = encoded(tokenizer, text, add_special_tokens=False)["input_ids"]
    first, last = token_count(tokenizer, text[:start]), token_count(tokenizer, text[:end])
    return Tokens(ids, [first <= i < last for i in range(len(ids))])


def sha256(text: str) -> str:
    """The digest of a text, as in `document_identity`."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
