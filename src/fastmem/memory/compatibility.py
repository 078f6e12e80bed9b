"""Check that a memory is one, and was made for a model and its tokenizer."""

import logging
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fastmem.errors import InputError, MemoryMismatchError
from fastmem.memory.memory import Base, Memory
from fastmem.ranges import Other, checked, instance_of

log = logging.getLogger("fastmem")
# Digests in a memory's details that another model may have: what differs then, and what follows.
LESS_FITTING = {
    "template_sha256": ("another template", "the document may be laid out differently in the prompt"),
    "sampled_weights_sha256": ("other weights outside of the tuned network", "its changes may fit this model less"),
}
MEMORY = Other("a Memory, as memorize returns it and Memory.load reads it from a file", instance_of(Memory))


def require_memory(memory: Memory) -> Memory:
    """The memory. Errors: `InputError` for anything else, such as the path of a file."""
    return checked(memory, MEMORY, "memory")


def require_same(
    memory: Memory,
    base: Callable[[Sequence[int]], Base],
    parameters: Callable[[Sequence[int]], Mapping[str, Tensor]],
    reader: Mapping[str, str],
) -> None:
    """Check a memory against the model that will use it. A warning is enough for another chat template, and for other
    weights elsewhere.

    base, parameters: layers to the model as a memory records it, and to its weights by name. reader: digests of the
    tokenizer, its template, and a sample of all weights, as in a memory's details. Errors: `MemoryMismatchError` with
    the memory's base and the model.
    """
    made_on = f"this memory was made on {memory.base.name} ({memory.base.family}, FFN {memory.base.digest[:12]})"
    try:
        own, originals = base(memory.recipe.layers), parameters(memory.recipe.layers)
    except InputError as error:
        reason, _, _ = error.text.partition(":")
        raise MemoryMismatchError(f"{made_on}, in this model {reason}: load the base it was made for.") from error
    if own.digest != memory.base.digest:
        another = "another " if own.name == memory.base.name else ""  # such as the embedded model of another version
        this = f"{another}{own.name} ({own.family}, FFN {own.digest[:12]})"
        remedy = "load the base it was made for, or memorize the document again"
        raise MemoryMismatchError(f"{made_on}, this model is {this}: {remedy}.")
    memory.require(originals)
    for name, digest in reader.items():
        if (recorded := memory.details.get(name, digest)) == digest:
            continue
        what, consequence = LESS_FITTING.get(name, ("another tokenizer", ""))
        message = f"this memory was made with {what} ({str(recorded)[:12]}) than that of {own.name} ({digest[:12]})"
        if not consequence:
            raise MemoryMismatchError(f"{message}: load the tokenizer it was made with.")
        log.warning("%s: %s.", message, consequence)
