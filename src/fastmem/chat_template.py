"""What a tokenizer's chat template makes of a conversation, as text, and which tokens only the template may write."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastmem.encoding import ENCODING
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
    tokenizer: Any,
    messages: list[dict[str, str]],
    add_generation_prompt: bool = False,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation. options: variables of the template. Errors: `InputError` for messages that the
    template refuses."""
    with explained_refusal():
        return tokenizer.apply_chat_template(
            messages,
            chat_template=template(tokenizer),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **(options or {}),
        )


def any_control(tokenizer: Any, texts: Iterable[str]) -> bool:
    """Whether any of the texts contains an added token, which may be a control token."""
    return any(token in text for text in texts for token in tokenizer.added_tokens_encoder)


def ids_as_text(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text in which control tokens are written: they are read as text.

    Control tokens are all special tokens, and other added tokens that the chat template writes: some tokenizers have
    <|im_start|> as one of these. Errors: `InputError` if the tokenizer cannot read one as text.
    """
    own = PLAIN_TEMPLATE if tokenizer.chat_template is None else tokenizer.get_chat_template()
    # It gives the content alone, and still names the control tokens of the tokenizer's own template.
    content = f"{{% if false %}}{own}{{% endif %}}{{{{ messages[0]['content'] }}}}"
    messages = [{"role": "user", "content": text}]
    with ENCODING, explained_refusal():
        found = tokenizer.apply_chat_template(
            messages, chat_template=content, return_dict=True, sanitize_control_tokens=True
        )
    ids: list[int] = found["input_ids"]
    return ids


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
