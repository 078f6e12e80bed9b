"""The template syntax of the invented world: `[one|another]` alternatives and `{slot}` values.

`{a:slot}` writes the value with its indefinite article ("a baker", "an engraver"). The first letter of every sentence
is made a capital, so that a value such as "the Copper Kettle" can begin one.
"""

import re
from collections.abc import Mapping
from functools import cache
from random import Random

SLOT = re.compile(r"\{(a:)?([a-z_]+\d*)\}")
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_START = re.compile(r"""(?:^|\n|(?<!\b[ap]\.m)(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?:[.?!]|\.["'])\s+)["'(]*[a-z]""")
_SOUNDS_LIKE_A_CONSONANT = re.compile(r"(?:uni|use|usu|eu|ewe|one\b|uku)", re.IGNORECASE)


@cache
def _pieces(template: str) -> tuple[tuple[str, ...], ...]:
    """The template as a row of choices; fixed text is a choice of one."""
    parts = _ALTERNATIVES.split(template)
    return tuple((part,) if index % 2 == 0 else tuple(part.split("|")) for index, part in enumerate(parts))


def choose(template: str, random: Random) -> str:
    """The template with one alternative of each `[one|another]`, drawn by `random`.

    An empty alternative between two spaces takes one of them along.
    """
    pieces = _pieces(template)
    if len(pieces) == 1:
        return template
    text = "".join(piece[0] if len(piece) == 1 else piece[int(random.random() * len(piece))] for piece in pieces)
    return text.replace("  ", " ")


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with `values` in its slots. Errors: `KeyError` for a slot without a value."""

    def value_of(match: re.Match[str]) -> str:
        value = values[match[2]]
        return with_article(value) if match[1] else value

    return _possessives(SLOT.sub(value_of, template))


def _possessives(text: str) -> str:
    """A name that ends in s takes the apostrophe alone: "the Velvet Foxes' singer"."""
    return text.replace("s's ", "s' ") if "s's" in text else text


def with_article(noun: str) -> str:
    """ "a baker", "an engraver", "a ukulele"."""
    vowel = noun[0].lower() in "aeiou" and not _SOUNDS_LIKE_A_CONSONANT.match(noun)
    return f"{'an' if vowel else 'a'} {noun}"


def capitalized(text: str) -> str:
    """The text with a capital letter at the beginning of each sentence and each line.

    What follows a quoted question stays as it is: `"Who?" asked Clara`.
    """
    return _START.sub(lambda match: match[0][:-1] + match[0][-1].upper(), text)


def sentence_start(clause: str) -> str:
    """The clause with a capital first letter, also behind an opening quotation mark."""
    return clause[0].upper() + clause[1:] if clause[0] not in "\"'(" else clause[0] + sentence_start(clause[1:])


def slots(template: str) -> tuple[str, ...]:
    """The slots of a template, also those in its alternatives, in the order of their first occurrence."""
    return tuple(dict.fromkeys(name for _, name in SLOT.findall(template)))
