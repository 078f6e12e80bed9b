"""`MemorySource`: which memory a request needs, and what to make it from."""

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
from fastmem.serve.tenants import Quota, Tenant


@dataclass(frozen=True)
class MemorySource:
    """A memory, which is made from `tokens` if it does not exist.

    key: its id, a hash of the tenant, the base, the recipe and the tokens. tokens: None if the memory must exist
    already. name: chosen by the client. about: further content of its record. account, quota: whose memories are
    counted together, whatever their salts, and how many there may be.
    """

    key: str
    tenant: str
    recipe: Recipe
    tokens: Tokens | None = None
    name: str | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    account: str = ""
    quota: Quota = field(default_factory=Quota)


def requested_recipe(llm: FastMem, options: FastMemOptions, limits: Limits) -> Recipe:
    """The server's recipe with the request's changes. Errors: `InputError` with the field."""
    layers = options.recipe.get("layers")
    if isinstance(layers, list) and len(layers) > llm.split_model.depth:
        text = f"recipe layers has {len(layers)} entries: the model has {llm.split_model.depth} layers."
        raise InputError(text, field="layers")
    recipe = changed_recipe(llm.recipe, options.recipe)
    check_placement(recipe)
    # Others would have to be read for their digest, and a quantized model's would need float copies that are kept.
    own = llm.split_model.indices(llm.recipe.layers)
    if not {*recipe.layers} <= {*own, *(index - llm.split_model.depth for index in own)}:
        accepted = f"this server allows only layers of its own recipe, {[*llm.recipe.layers]}."
        raise InputError(f"recipe layers is {[*recipe.layers]}: {accepted}", field="layers")
    if recipe.steps > limits.recipe_steps:
        text = f"recipe steps is {recipe.steps}: this server allows at most {limits.recipe_steps}."
        raise InputError(text, field="steps")
    tuned = llm.split_model.parameters(recipe.layers).values()
    widest = max(min(tensor.shape[-2:]) for tensor in tuned if tensor.ndim >= 2)
    if recipe.parametrization == "lora" and recipe.rank > widest:
        raise InputError(f"recipe rank is {recipe.rank}: the tuned matrices have rank {widest} at most.", field="rank")
    check_adapter(recipe, limits)
    return recipe


def check_placement(recipe: Recipe) -> None:
    """Errors: `InputError` for a memory that only one question could use."""
    if recipe.placement == "prompt":
        raise InputError(
            "placement 'prompt' memorizes a document in the prompt of one question, but a server's memories answer any "
            "question: give assistant, user or text.",
            field="placement",
        )


def check_adapter(recipe: Recipe, limits: Limits) -> None:
    """Errors: `InputError` for a memory that cannot be an adapter of vLLM, where it has to be one."""
    if limits.adapter_rank is not None and (recipe.parametrization != "lora" or recipe.rank > limits.adapter_rank):
        raise InputError(
            "memories are adapters of vLLM here: the recipe needs the parametrization 'lora' and a rank of at most "
            f"{limits.adapter_rank}.",
            field="rank" if recipe.parametrization == "lora" else "parametrization",
        )


def source_of(
    llm: FastMem,
    documents: list[Document],
    recipe: Recipe,
    sender: Tenant,
    salt: str | None,
    limits: Limits,
    name: str | None = None,
) -> MemorySource:
    """The source of a memory of these documents. Errors: `InputError`."""
    text = documents_text(documents)
    tokens = llm.memory_tokens(text, recipe)
    if len(tokens) > limits.document_tokens:
        raise InputError(
            f"the documents are {len(tokens)} tokens long: this server allows at most {limits.document_tokens}."
        )
    base, tenant = llm.base(recipe.layers), sender.salted(salt)
    reader = llm.reader.get("tokenizer_sha256")
    identity = [tenant, base.name, base.digest, reader, asdict(recipe), tokens.ids.tolist(), tokens.scored.tolist()]
    key = "mem-" + hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    about = {"titles": [d.title for d in documents], "tokens": len(tokens), "text_sha256": text_digest(text)}
    return MemorySource(key, tenant, recipe, tokens, name, about, sender.salted(None), sender.quota)


def text_digest(text: str) -> str:
    """SHA-256 of the documents' text, as in a record."""
    return hashlib.sha256(text.encode()).hexdigest()
