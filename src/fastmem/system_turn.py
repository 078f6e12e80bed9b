"""Prompts without the system turn that some chat templates add of their own accord, such as Qwen1.5's.

The paper's prompts have none (IAAR-Shanghai/FastMem `src/train_and_inference.py`). A conversation that brings a system
turn keeps it. What a template does is found out by rendering, so no family needs an entry.
"""

from typing import Any

from fastmem.chat_template import rendered
from fastmem.errors import InputError

_CUT = "{% set fastmem_turns %}\n"  # begins the templates made here


def remove_system_turn(tokenizer: Any) -> None:
    """Change the tokenizer's chat template: a conversation that begins with a user's turn gets no system turn.

    Nothing changes for a template that adds none. Errors: `InputError` if the turns cannot be told apart.
    """
    if is_removed(tokenizer) or not (header := _header_after_system_turn(tokenizer)):
        return
    own = tokenizer.get_chat_template().removesuffix("\n")  # Jinja drops the last line break of a template
    tokenizer.chat_template = (
        f"{_CUT}{own}{{% endset %}}{{% if messages[0]['role'] == 'user' and not tools %}}"
        "{% set fastmem_bos = bos_token or '' %}"
        "{{ (fastmem_bos if fastmem_turns.startswith(fastmem_bos) else '')"
        f" + fastmem_turns[fastmem_turns.find({header!r}):] }}}}"
        "{% else %}{{ fastmem_turns }}{% endif %}"
    )


def is_removed(tokenizer: Any) -> bool:
    """Whether `remove_system_turn` has changed the tokenizer's template."""
    return str(getattr(tokenizer, "chat_template", "")).startswith(_CUT)


def _header_after_system_turn(tokenizer: Any) -> str:
    """The header of a user's turn, if a system turn stands before the first one unasked; otherwise empty."""
    system, user, reply, more = (
        {"role": role, "content": f"FastMem-{number}"}
        for number, role in enumerate(("system", "user", "assistant", "user"))
    )
    before_user = rendered(tokenizer, [user]).partition(user["content"])[0]
    try:
        before_text = rendered(tokenizer, [system, user]).partition(system["content"])[0]
    except InputError:  # the template has no system turn
        return ""
    # An explicit system turn begins as the unasked one does, if there is one.
    if before_text in ("", tokenizer.bos_token) or not before_user.startswith(before_text):
        return ""
    end_of_reply = rendered(tokenizer, [user, reply]).partition(reply["content"])[2]
    between = rendered(tokenizer, [user, reply, more]).partition(reply["content"])[2].partition(more["content"])[0]
    header = between.removeprefix(end_of_reply)
    if not header or header == between or not before_user.endswith(header):
        raise InputError(
            "the system turn of the chat template cannot be told from the user's turn: give the tokenizer a chat "
            "template without it."
        )
    return header
