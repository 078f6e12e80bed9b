"""Text to token ids, in one thread at a time.

A fast tokenizer keeps options of a call, such as `split_special_tokens`, as settings of its own. A second thread that
encodes at the same time would do so with the settings of the first: with two threads, in some of 2,000 calls the
control tokens of a document became real ones.
"""

import threading
from collections.abc import Mapping
from typing import Any

ENCODING = threading.RLock()
"""To hold while a tokenizer encodes."""


def encoded(tokenizer: Any, text: str, **options: Any) -> Mapping[str, Any]:
    """What the tokenizer gives for a text: `input_ids`, and what the options ask for."""
    with ENCODING:
        found: Mapping[str, Any] = tokenizer(text, **options)
    return found
