"""Prompts with documents: a conversation or a plain prompt, with the documents in front of the last message.

There are two templates:

- `context`:   `Context: {documents}`, an empty line, the message;
- `question`:  the paper's prompt for questions (`prompts.question_prompt`), which asks for `The answer is: ...`.

Only the text of the documents is memorized, without template and question, so one memory serves all questions. For CAD
the prompt without documents is the same conversation with the message alone (`Question: ...` in the second template).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastmem import prompts
from fastmem.answer.contrast import method_named
from fastmem.errors import InputError
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.serve.limits import Limits
from fastmem.serve.schemas import Document, FastMemOptions, Template

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class DocumentPrompt:
    """prompt, without: with and without the documents. shared_tokens: tokens before the message, which all prompts
    about
    these documents begin with."""

    prompt: Tokens
    without: Tokens | None
    shared_tokens: int


def documents_text(documents: Sequence[Document], limits: Limits) -> str:
    """All documents as one text, titles above them, separated by empty lines. Errors: `InputError`."""
    if len(documents) > limits.documents:
        raise InputError(f"{len(documents)} documents are too many: this server allows at most {limits.documents}.")
    texts = [prompts.require_text(document.text) for document in documents]
    return "\n\n".join(
        f"{d.title.strip()}\n{text}" if d.title else text for d, text in zip(documents, texts, strict=True)
    )


def chat_prompt(
    llm: FastMem, messages: Messages, documents: Sequence[Document], template: Template, method: str, limits: Limits
) -> DocumentPrompt:
    """A conversation whose last message is the user's. Errors: `InputError`."""
    if not documents:
        return DocumentPrompt(Tokens(llm.ids(messages)), None, 0)
    if messages[-1]["role"] != "user":
        raise InputError("documents are put in front of the last message, which must be the user's.")
    text, message = documents_text(documents, limits), messages[-1]["content"]
    if template == "question":
        turn, end, alone = (
            prompts.question_prompt(text, message),
            prompts.with_mark(message),
            prompts.question_alone(message),
        )
    else:
        turn, end, alone = _with_context(text, message), message, message
    ids, shared = prompts.chat_ids_before(llm.tokenizer, _with_last(messages, turn), end)
    without = Tokens(llm.ids(_with_last(messages, alone))) if method_named(method).kind == "cad" else None
    return DocumentPrompt(Tokens(ids), without, shared)


def completion_prompt(
    llm: FastMem, prompt: str | list[int], documents: Sequence[Document], method: str, limits: Limits
) -> DocumentPrompt:
    """A plain prompt, with the documents in front in the template `context`. Errors: `InputError`."""
    if not isinstance(prompt, str):
        if documents:
            raise InputError("documents cannot be put in front of token ids: give the prompt as text.")
        vocabulary_size = llm.split_model.vocabulary_size
        if not prompt or not all(0 <= token < vocabulary_size for token in prompt):
            raise InputError(f"prompt takes token ids from 0 to {vocabulary_size - 1}, at least one.")
        return DocumentPrompt(Tokens(prompt), None, 0)
    if not prompt:
        raise InputError("the prompt is empty: give a text to continue.")
    if not documents:
        return DocumentPrompt(prompts.text_ids_before(llm.tokenizer, prompt, "")[0], None, 0)
    whole = _with_context(documents_text(documents, limits), prompt)
    ids, shared = prompts.text_ids_before(llm.tokenizer, whole, prompt)
    cad = method_named(method).kind == "cad"
    return DocumentPrompt(ids, prompts.text_ids_before(llm.tokenizer, prompt, "")[0] if cad else None, shared)


def requested_method(options: FastMemOptions, with_memory: bool, with_documents: bool) -> str:
    """The name of the method. Errors: `InputError` if it is unknown or lacks the documents or memory it needs."""
    name = options.method or ("fastmem" if with_memory or with_documents else "base")
    method = method_named(name)
    if method.memorized and not (with_memory or with_documents):
        raise InputError(f'method {name!r} needs documents=[...] or model="<memory>": give one, or method "base".')
    if method.kind == "cad" and not with_documents:
        raise InputError(f"method {name!r} compares with the prompt without documents: give documents=[...].")
    return name


def _with_context(text: str, message: str) -> str:
    return f"Context: {text}\n\n{message}"


def _with_last(messages: Messages, content: str) -> Messages:
    return [*messages[:-1], messages[-1] | {"content": content}]
