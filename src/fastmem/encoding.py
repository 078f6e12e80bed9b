"""Text to token ids, in one thread at a time.

A fast tokenizer keeps options of a call, such as `split_special_tokens`, as settings of its own. A second thread that
encodes at the same time would do so with the settings of the first: with two threads, in some of 2,000 calls the
control tokens of a document became real ones.
"""

import re
import threading
from collections.abc import Mapping
from typing import Any

ENCODING = threading.RLock()
"""To hold while a tokenizer encodes."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def half_character(text: str) -> str | None:
    """Why no tokenizer reads a text, and no file holds it: where half of a character stands. None if all are whole."""
    found = _SURROGATE.search(text)
    return found and f"character {found.start()} is half of a surrogate pair"


def encoded(tokenizer: Any, text: str, **options: Any) -> Mapping[str, Any]:
    """What the tokenizer gives for a text: `input_ids`, and what the options ask for."""
    with ENCODING:
        found: Mapping[str, Any] = tokenizer(text, **options)
    return found
