"""From a request to what the engine takes: the prompt, the prompt without documents, the memory it wants.

Documents stand in front of the last user message, in one of two templates:

- `context`:   `Context: {documents}`, an empty line, the message;
- `question`:  the paper's prompt for questions (`prompts.question_prompt`), which asks for `The answer is: ...`.

What is memorized is the documents' text alone, without template and question, so that one memory serves all questions.
The prompt without documents, for CAD, is the same conversation with the bare message (`Question: ...` in the second).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from fastmem import prompts
from fastmem.core.contrast import method_named
from fastmem.core.memory import Recipe
from fastmem.errors import InputError, one_of
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.serve.records import Wish
from fastmem.serve.schemas import Document, FastMemOptions, Template

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. answers: n times its prompts."""

    body_bytes: int = 4 * 2**20
    documents: int = 32
    document_tokens: int = 16_384
    answers: int = 16
    max_tokens: int = 1024
    default_tokens: int = 256
    recipe_steps: int = 100


@dataclass(frozen=True)
class Composed:
    """prompt, without: ids [S]. shared_tokens: leading tokens that all questions on these documents begin with."""

    prompt: torch.Tensor
    without: torch.Tensor | None
    shared_tokens: int


def documents_text(documents: Sequence[Document]) -> str:
    """All documents as one text, titles above them, empty lines between. Errors: `InputError` where one is blank."""
    for document in documents:
        prompts.require_text(document.text)
    return "\n\n".join(f"{d.title.strip()}\n{d.text.strip()}" if d.title else d.text.strip() for d in documents)


def tenant_of(api_key: str, salt: str | None) -> str:
    """Whose memories: neither the key nor the salt can be read from it, and no other pair gives the same."""
    return hashlib.sha256(json.dumps(["fastmem tenant", api_key, salt]).encode()).hexdigest()


def recipe_of(llm: FastMem, options: FastMemOptions, limits: Limits) -> Recipe:
    """The default recipe with the request's changes. Errors: `InputError` naming the field."""
    accepted = [f.name for f in fields(Recipe)]
    for name in options.recipe:
        one_of(name, accepted, "recipe field")
    recipe = replace(llm.recipe, **options.recipe)
    if recipe.steps > limits.recipe_steps:
        raise InputError(f"recipe steps is {recipe.steps}: this server takes at most {limits.recipe_steps}.")
    llm.trunk.indices(recipe.layers)
    return recipe


def wish_for(
    llm: FastMem, documents: Sequence[Document], recipe: Recipe, tenant: str, limits: Limits, name: str | None = None
) -> Wish:
    """The memory of these documents, made with this recipe, for this tenant. Errors: `InputError`."""
    if len(documents) > limits.documents:
        raise InputError(f"{len(documents)} documents are too many: this server takes at most {limits.documents}.")
    tokens = llm.memory_tokens(documents_text(documents), recipe)
    if len(tokens) > limits.document_tokens:
        raise InputError(
            f"the documents are {len(tokens)} tokens long: this server takes at most {limits.document_tokens}."
        )
    base = llm.base(recipe.layers)
    reader = llm.reader.get("tokenizer_sha256")
    identity = [tenant, base.name, base.digest, reader, asdict(recipe), tokens.ids.tolist(), tokens.scored.tolist()]
    key = "mem-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    about = {"titles": [d.title for d in documents], "tokens": len(tokens), "text_sha256": _digest(documents)}
    return Wish(key, tenant, recipe, tokens, name, about)


def same_documents(record: dict[str, Any], documents: Sequence[Document]) -> bool:
    """Whether a memory's record is of these documents."""
    return record["about"]["text_sha256"] == _digest(documents)


def chat(llm: FastMem, messages: Messages, documents: Sequence[Document], template: Template) -> Composed:
    """A conversation whose last message is the user's. Errors: `InputError`."""
    if not documents:
        return Composed(llm.ids(messages), None, 0)
    if messages[-1]["role"] != "user":
        raise InputError("documents are put in front of the last message, which must be the user's.")
    text, question = documents_text(documents), messages[-1]["content"]
    prompt = llm.ids(_with_last(messages, _turn(text, question, template)))
    other = llm.ids(_with_last(messages, _turn(text, "\N{HORIZONTAL ELLIPSIS}", template)))
    alone = prompts.question_alone(question) if template == "question" else question
    return Composed(prompt, llm.ids(_with_last(messages, alone)), _common(prompt, other))


def completion(llm: FastMem, prompt: str | list[int], documents: Sequence[Document]) -> Composed:
    """A bare prompt, with the documents in front in the template `context`. Errors: `InputError`."""
    if not isinstance(prompt, str):
        if documents:
            raise InputError("documents cannot be put in front of token ids: give the prompt as text.")
        if not prompt or not all(0 <= token < llm.trunk.vocabulary for token in prompt):
            raise InputError(f"prompt takes token ids from 0 to {llm.trunk.vocabulary - 1}, at least one.")
        return Composed(Tokens(prompt).ids, None, 0)
    if not prompt:
        raise InputError("the prompt is empty: give a text to go on from.")
    if not documents:
        return Composed(_raw(llm, prompt), None, 0)
    text = documents_text(documents)
    ids, other = (_raw(llm, _turn(text, p, "context")) for p in (prompt, "\N{HORIZONTAL ELLIPSIS}"))
    return Composed(ids, _raw(llm, prompt), _common(ids, other))


def method_of(options: FastMemOptions, with_memory: bool, with_documents: bool) -> str:
    """The method's name. Errors: `InputError` for one that is unknown or lacks what it works on."""
    name = options.method or ("fastmem" if with_memory or with_documents else "base")
    method = method_named(name)
    if method.memorized and not (with_memory or with_documents):
        raise InputError(f'method {name!r} needs documents=[...] or model="<memory>": give one, or method "base".')
    if method.kind == "cad" and not with_documents:
        raise InputError(f"method {name!r} compares with the prompt without documents: give documents=[...].")
    return name


def _turn(text: str, message: str, template: Template) -> str:
    return prompts.question_prompt(text, message) if template == "question" else f"Context: {text}\n\n{message}"


def _with_last(messages: Messages, content: str) -> Messages:
    return [*messages[:-1], messages[-1] | {"content": content}]


def _common(ids: torch.Tensor, other: torch.Tensor) -> int:
    length = min(len(ids), len(other))
    differing = (ids[:length] != other[:length]).nonzero()
    return int(differing[0]) if len(differing) else length


def _raw(llm: FastMem, text: str) -> torch.Tensor:
    return Tokens(llm.tokenizer(text)["input_ids"]).ids


def _digest(documents: Sequence[Document]) -> str:
    return hashlib.sha256(documents_text(documents).encode()).hexdigest()
