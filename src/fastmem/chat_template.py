"""What a tokenizer's chat template makes of a conversation, as text."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastmem.errors import InputError

log = logging.getLogger("fastmem")

# Used where a tokenizer brings no chat template (base models): one turn a line, nothing to learn.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m['role'] | capitalize + ': ' + m['content'] | trim }}"
    "{{ eos_token or '' if m['role'] == 'assistant' else '' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def template(tokenizer: Any) -> str | None:
    """None for the tokenizer's own chat template, `PLAIN_TEMPLATE` (with a notice, once) where it has none."""
    if tokenizer.chat_template is not None:
        return None
    if not getattr(tokenizer, "_fastmem_noticed", False):
        tokenizer._fastmem_noticed = True
        log.warning("the tokenizer has no chat template: using plain 'User: ... / Assistant: ...' turns.")
    return PLAIN_TEMPLATE


def rendered(
    tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool = False, **options: Any
) -> str:
    """The text of a conversation. Errors: `InputError` for messages that the template refuses."""
    with explained_refusal():
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template(tokenizer),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **options,
        )


@contextmanager
def explained_refusal() -> Iterator[None]:
    """Turn an error of a chat template, which has its own wording, into an `InputError`."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the model's chat template refuses these messages ({error}): give messages that it accepts, or a "
            "tokenizer with another template."
        ) from error
