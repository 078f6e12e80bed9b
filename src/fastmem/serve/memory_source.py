"""Which memory a request needs, and what to make it from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fastmem.errors import InputError
from fastmem.memory.recipe import Recipe, changed_recipe
from fastmem.model import FastMem
from fastmem.prompts import Tokens
from fastmem.serve.document_prompts import documents_text
from fastmem.serve.limits import Limits
from fastmem.serve.schemas import Document, FastMemOptions


@dataclass(frozen=True)
class MemorySource:
    """A memory that is found if it exists, and otherwise made from `tokens`.

    key: its id, a hash of the tenant, the base, the recipe and the tokens. name: chosen by its owner. about: further
    content of its record. tokens: None if the memory must exist already.
    """

    key: str
    tenant: str
    recipe: Recipe
    tokens: Tokens | None = None
    name: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def requested_recipe(llm: FastMem, options: FastMemOptions, limits: Limits) -> Recipe:
    """The default recipe with the request's changes. Errors: `InputError` that names the field."""
    recipe = changed_recipe(llm.recipe, options.recipe)
    if recipe.steps > limits.recipe_steps:
        raise InputError(
            f"recipe steps is {recipe.steps}: this server allows at most {limits.recipe_steps}.", field="steps"
        )
    llm.split_model.indices(recipe.layers)
    return recipe


def source_of(
    llm: FastMem, documents: list[Document], recipe: Recipe, tenant: str, limits: Limits, name: str | None = None
) -> MemorySource:
    """The memory of these documents, with this recipe, for this tenant. Errors: `InputError`."""
    text = documents_text(documents, limits)
    tokens = llm.memory_tokens(text, recipe)
    if len(tokens) > limits.document_tokens:
        raise InputError(
            f"the documents are {len(tokens)} tokens long: this server allows at most {limits.document_tokens}."
        )
    base = llm.base(recipe.layers)
    reader = llm.reader.get("tokenizer_sha256")
    identity = [tenant, base.name, base.digest, reader, asdict(recipe), tokens.ids.tolist(), tokens.scored.tolist()]
    key = "mem-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    about = {"titles": [d.title for d in documents], "tokens": len(tokens), "text_sha256": text_digest(text)}
    return MemorySource(key, tenant, recipe, tokens, name, about)


def text_digest(text: str) -> str:
    """SHA-256 of the text of a memory's documents, as its record holds it."""
    return hashlib.sha256(text.encode()).hexdigest()
