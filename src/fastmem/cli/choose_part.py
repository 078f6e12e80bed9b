"""`--part-tokens N`: a long document in parts, and the part that a question is answered from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastmem.cli.output import say

if TYPE_CHECKING:
    from fastmem.model import FastMem


@dataclass(frozen=True)
class Part:
    """A part of a document. number: from 1, of `count`."""

    text: str
    number: int
    count: int

    def name(self, document: str) -> str:
        """Its name beside the other parts of that document; a document that is one part keeps its name."""
        return document if self.count == 1 else f"{document}.part-{self.number}"

    @property
    def place(self) -> str:
        """Its place among the parts, in words."""
        return f"part {self.number} of {self.count}"

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"part": self.number, "parts": self.count}


def parts_of(llm: "FastMem", document: str, most: int | None) -> list[Part]:
    """The parts of a document, of at most `most` tokens each; one part if None. Errors: `InputError`."""
    from fastmem.documents import document_parts
    from fastmem.prompts import token_count

    if most is None:
        return [Part(document, 1, 1)]
    texts = document_parts(document, most, lambda text: token_count(llm.preparer.require_tokenizer(), text))
    return [Part(text, number, len(texts)) for number, text in enumerate(texts, 1)]


def fitting_part_of(llm: "FastMem", document: str, most: int | None, question: str, quiet: bool) -> Part:
    """The part that shares most with the question in words, and a notice that says which it is.

    Errors: `InputError` if there are several and none shares a word.
    """
    from fastmem.documents import fitting_part

    parts = parts_of(llm, document, most)
    if len(parts) == 1:
        return parts[0]
    part = parts[fitting_part(question, [part.text for part in parts])]
    if not quiet:
        say(f"note: answering from {part.place} of the document, whose words fit best; it begins {_beginning(part)}.")
    return part


def _beginning(part: Part) -> str:
    """A few words, quoted."""
    words = " ".join(part.text.split()[:8])
    return f'"{words[:60]} ..."'
