"""Make a language model stay faithful to the document it was given (FastMem, arXiv 2406.16069).

Importing this loads no torch; the names do, when first used.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = [
    "METHODS",
    "Answer",
    "FastMem",
    "FastMemError",
    "InputError",
    "Memory",
    "MemoryFileError",
    "MemoryMismatchError",
    "MissingPackageError",
    "Recipe",
    "ResourceError",
    "RunError",
    "TaskError",
    "Tokens",
    "UnsupportedModelError",
]

_HOMES = {
    "FastMem": "fastmem.model",
    "Answer": "fastmem.answer.running_batch",
    "Memory": "fastmem.memory.memory",
    "Recipe": "fastmem.memory.recipe",
    "METHODS": "fastmem.answer.contrast",
    "Tokens": "fastmem.prompts",
}

if TYPE_CHECKING:
    from fastmem.answer.contrast import METHODS
    from fastmem.answer.running_batch import Answer
    from fastmem.errors import (
        FastMemError,
        InputError,
        MemoryFileError,
        MemoryMismatchError,
        MissingPackageError,
        ResourceError,
        RunError,
        TaskError,
        UnsupportedModelError,
    )
    from fastmem.memory.memory import Memory
    from fastmem.memory.recipe import Recipe
    from fastmem.model import FastMem
    from fastmem.prompts import Tokens


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'fastmem' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "fastmem.errors")), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
