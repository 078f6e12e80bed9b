"""What tells models apart: a run, a search, a worker or a memory file is only used with the model it was begun with.

The device is not in it, since the same weights may be read on another one.
"""

from collections.abc import Sequence

from fastmem.memory.memory import Memory
from fastmem.model import FastMem
from fastmem.system_turn import is_removed

_DIGITS = 16  # of a digest
_IN_A_MEMORY = {
    "tokenizer": "tokenizer_sha256",
    "template": "template_sha256",
    "sampled_weights": "sampled_weights_sha256",
}  # name here -> in the details of a memory, and in `FastMem.reader`


def identity_of_model(llm: FastMem, layers: Sequence[int] = (-1,)) -> dict[str, str]:
    """Family, type, and digests of weights, tokenizer and template; name or folder may change.

    layers: those that are tuned. Their FFNs are read as a whole (tuned_weights), as is the last one (digest); of all
    other weights a sample. Weights that are offloaded have none, so it is left out.
    """
    last, tuned = llm.base(), llm.base(layers)
    reader = {name: llm.reader[key] for name, key in _IN_A_MEMORY.items() if key in llm.reader}
    if any(parameter.device.type == "meta" for parameter in llm.model.parameters()):
        del reader["sampled_weights"]
    digests = {"digest": last.digest, "tuned_weights": tuned.digest} | reader
    system_turn = {"system_turn": "removed"} if is_removed(llm.tokenizer) else {}
    about = {"family": last.family, "dtype": str(llm.split_model.dtype)} | system_turn
    return about | {name: digest[:_DIGITS] for name, digest in digests.items()}


def is_of_model(memory: Memory, llm: FastMem) -> bool:
    """Whether a memory was made on this very model, as far as it records that."""
    found = {name: str(memory.details[key]) for name, key in _IN_A_MEMORY.items() if key in memory.details}
    found |= {"tuned_weights": memory.base.digest}
    now = identity_of_model(llm, memory.recipe.layers)
    return all(now.get(name, digest[:_DIGITS]) == digest[:_DIGITS] for name, digest in found.items())
