"""An invented world in plain English: names, facts, texts about them, questions, and what is measured.

Everything is derived from a seed and the files of this folder, without network or torch. `examples(split, part)` gives
measured rows; what the splits are stands in `world_splits.py`. `tools/training_mixture.py` in the repository makes the
texts for training.
"""

from fastmem.tiny.world.world_facts import PARTS, Part
from fastmem.tiny.world.world_formats import (
    INSTRUCTION,
    UNANSWERABLE,
    Example,
    Format,
    is_right,
    items_of,
    object_of,
    prompt_of,
)
from fastmem.tiny.world.world_mentions import mentions, normalize
from fastmem.tiny.world.world_splits import SPLITS, contradicted, examples, shown_examples, subject_of

__all__ = [
    "INSTRUCTION",
    "PARTS",
    "SPLITS",
    "UNANSWERABLE",
    "Example",
    "Format",
    "Part",
    "contradicted",
    "examples",
    "is_right",
    "items_of",
    "mentions",
    "normalize",
    "object_of",
    "prompt_of",
    "shown_examples",
    "subject_of",
]
