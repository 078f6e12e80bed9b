"""Check that a memory was made for a model and its tokenizer."""

import logging
from collections.abc import Mapping

from torch import Tensor

from fastmem.errors import MemoryMismatchError
from fastmem.memory.memory import Base, Memory

log = logging.getLogger("fastmem")


def require_same(memory: Memory, own: Base, originals: Mapping[str, Tensor], reader: Mapping[str, str]) -> None:
    """Check a memory against the model that will use it. Another chat template only causes a warning.

    own: the model. originals: its weights of the memory's layers by name. reader: digests of the tokenizer and its
    template, as in a memory's details. Errors: `MemoryMismatchError` with the memory's base and the model.
    """
    if own.digest != memory.base.digest:
        raise MemoryMismatchError(
            f"this memory was made on {memory.base.name} ({memory.base.family}, FFN "
            f"{memory.base.digest[:12]}), this model is {own.name} ({own.family}, FFN {own.digest[:12]}): "
            "load the base it was made for."
        )
    memory.require(originals)
    for name, digest in reader.items():
        if (recorded := memory.details.get(name, digest)) != digest:
            part = name.removesuffix("_sha256").replace("_", " ")
            message = (
                f"this memory was made with another {part} ({str(recorded)[:12]}) than that of {own.name} "
                f"({digest[:12]})"
            )
            if name == "tokenizer_sha256":
                raise MemoryMismatchError(f"{message}: load the tokenizer it was made with.")
            log.warning("%s: the document may be laid out differently in the prompt.", message)
