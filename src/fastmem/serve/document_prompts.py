"""Prompts with documents: a conversation, or a plain prompt, with the documents before the last message.

There are two templates:

- `context`:   `Context: {documents}`, an empty line, the message;
- `question`:  the paper's prompt for questions (`prompts.question_prompt`), which asks for `The answer is: ...`.

Only the text of the documents is memorized, without template and question, so one memory serves all questions. For CAD
the prompt without documents is the same conversation with the message alone (`Question: ...` in the second template).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastmem import prompts
from fastmem.answer.contrast import method_named
from fastmem.encoding import encoded
from fastmem.errors import InputError
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.serve.schemas import Document, FastMemOptions, Template

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class DocumentPrompt:
    """prompt, without: with and without the documents; without is None if the method does not need it. shared_tokens:
    how many tokens stand before the message, where all prompts about these documents are equal."""

    prompt: Tokens
    without: Tokens | None
    shared_tokens: int


def documents_text(documents: Sequence[Document]) -> str:
    """All documents as one text, titles above them, separated by empty lines. Errors: `InputError`."""
    texts = [prompts.require_text(document.text) for document in documents]
    return "\n\n".join(
        f"{d.title.strip()}\n{text}" if d.title else text for d, text in zip(documents, texts, strict=True)
    )


def chat_prompt(
    llm: FastMem,
    messages: Messages,
    documents: Sequence[Document],
    template: Template,
    method: str,
    options: Mapping[str, Any] | None = None,
) -> DocumentPrompt:
    """A conversation whose last message is the user's. options: variables of the template. Errors: `InputError`."""
    if not documents:
        return DocumentPrompt(Tokens(prompts.chat_ids(llm.tokenizer, messages, options)), None, 0)
    if messages[-1]["role"] != "user":
        raise InputError("documents are put before the last message, which must be the user's.")
    text, message = documents_text(documents), messages[-1]["content"]
    if template == "question":
        turn, alone = prompts.question_prompt(text, message), prompts.question_alone(message)
        end = prompts.with_mark(message)
    else:
        turn, alone, end = _with_context(text, message), message, message
    ids, shared = prompts.chat_ids_before(llm.tokenizer, _with_last(messages, turn), end, options)
    without = None
    if method_named(method).kind == "cad":
        without = Tokens(prompts.chat_ids(llm.tokenizer, _with_last(messages, alone), options))
    return DocumentPrompt(Tokens(ids), without, shared)


# Arguments of `apply_chat_template` that are ours, and no variables of a template.
_OURS = {
    "messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "sanitize_control_tokens", "tools", "documents",
}  # fmt: skip


def template_options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables for the chat template. Errors: `InputError` for a name that is no variable of a template."""
    for name in given:
        if name in _OURS or not name.isidentifier():
            text = f"chat_template_kwargs has {name!r}, which cannot be set: leave it out."
            raise InputError(text, field="chat_template_kwargs")
    return given


def completion_prompt(
    llm: FastMem, prompt: str | list[int], documents: Sequence[Document], method: str
) -> DocumentPrompt:
    """A plain prompt, after the documents in the template `context`. Errors: `InputError`."""
    if not isinstance(prompt, str):
        if documents:
            raise InputError("documents cannot be put before token ids: give the prompt as text.")
        vocabulary_size = llm.split_model.vocabulary_size
        if not prompt or not all(0 <= token < vocabulary_size for token in prompt):
            raise InputError(f"prompt takes token ids from 0 to {vocabulary_size - 1}, at least one.")
        return DocumentPrompt(Tokens(prompt), None, 0)
    if not prompt:
        raise InputError("the prompt is empty: give a text to continue.")
    if not documents:
        return DocumentPrompt(_plain_tokens(llm, prompt), None, 0)
    text = _with_context(documents_text(documents), prompt)
    tokens, shared = prompts.text_ids_before(llm.tokenizer, text, prompt)
    without = _plain_tokens(llm, prompt) if method_named(method).kind == "cad" else None
    return DocumentPrompt(tokens, without, shared)


def requested_method(options: FastMemOptions, with_memory: bool, with_documents: bool) -> str:
    """The name of the method: by default `fastmem` with documents or a memory, otherwise `base`.

    Errors: `InputError` if it is unknown, or if the documents or the memory that it needs are missing.
    """
    name = options.method or ("fastmem" if with_memory or with_documents else "base")
    method = method_named(name)
    if method.memorized and not (with_memory or with_documents):
        raise InputError(f'method {name!r} needs documents=[...] or model="<memory>": give one, or method "base".')
    if method.kind == "cad" and not with_documents:
        raise InputError(f"method {name!r} compares with the prompt without documents: give documents=[...].")
    return name


def _plain_tokens(llm: FastMem, text: str) -> Tokens:
    return Tokens(encoded(llm.tokenizer, text)["input_ids"])


def _with_context(text: str, message: str) -> str:
    return f"Context: {text}\n\n{message}"


def _with_last(messages: Messages, content: str) -> Messages:
    return [*messages[:-1], messages[-1] | {"content": content}]
