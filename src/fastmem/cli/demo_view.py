"""How `fastmem demo` looks on a page of 80 columns, and the command that it suggests."""

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastmem.cli.output import can_encode
from fastmem.tiny.world import mentions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

EXCERPT = 220  # characters of a document that are shown around the sentence with the answer
BAR = 40  # cells
INDENT = "   "
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Conflict:
    """An example and both answers. stated: the sentence with the answer `gold`. known: the answer trained on."""

    question: str
    document: str
    stated: str
    gold: str
    known: str
    alone: str
    fastmem: str
    alone_right: bool
    fastmem_right: bool


def stated_in(document: str, answer: str) -> str:
    """The first sentence of a document that mentions the answer; the document itself if none does."""
    return next((one for one in _SENTENCE_END.split(document) if mentions(one, answer)), document)


def excerpt(document: str, sentence: str, dots: str = "...") -> str:
    """The sentence with those around it, in turn before and after it, as far as `EXCERPT` characters allow.

    dots: stand for what is left out. A text that is no sentence of the document is shown as it is.
    """
    sentences = _SENTENCE_END.split(document)
    if sentence not in sentences:
        return sentence
    first = last = sentences.index(sentence)
    while True:
        wider = [(first - 1, last), (first, last + 1)]
        wider = [(a, b) for a, b in wider if a >= 0 and b < len(sentences)]
        wider = [(a, b) for a, b in wider if len(" ".join(sentences[a : b + 1])) <= EXCERPT]
        if not wider:
            break
        first, last = min(wider, key=lambda one: abs(one[0] + one[1] - 2 * sentences.index(sentence)))
    shown = [*([dots] if first else []), *sentences[first : last + 1], *([dots] if last + 1 < len(sentences) else [])]
    return " ".join(shown)


def print_conflicts(page: "Console", found: list[Conflict]) -> None:
    """Each question with its document, in which the answer is marked, and both answers."""
    from rich.text import Text

    right, wrong = ("✓", "✗") if can_encode(page.encoding, "✓✗") else ("yes:", "no: ")
    documents = "1 document that contradicts" if len(found) == 1 else f"{len(found)} documents that contradict"
    page.print(f"{documents} what the embedded model was trained on\n", style="bold")
    page.print("The prompt has the document both times. Shown are cases where the model alone")
    page.print("answers what it was trained on.\n")
    for number, one in enumerate(found, 1):
        page.print(Text(f"{number}. {one.question}", "bold"))
        for line in _marked(page, one).wrap(page, page.width - len(INDENT)):
            line.rstrip()
            page.print(Text(INDENT).append(line))
        for title, answer, is_right in (
            ("alone", one.alone, one.alone_right),
            ("with FastMem", one.fastmem, one.fastmem_right),
        ):
            style = "green" if is_right else "red"
            page.print(Text(f"{INDENT}{right if is_right else wrong} {title:<13} {answer}", style))
        page.print()


def _marked(page: "Console", one: Conflict) -> "Text":
    """The document around the answer, which is bold, or between asterisks where nothing can be bold."""
    from rich.text import Text

    shown = excerpt(one.document, one.stated, "…" if can_encode(page.encoding, "…") else "...")
    answer = re.compile(rf"(?<!\w){re.escape(one.gold)}(?!\w)", re.IGNORECASE)
    if page.color_system is None:
        return Text(f"The document: {answer.sub(lambda found: f'**{found[0]}**', shown)}")
    text = Text(f"The document: {shown}")
    text.highlight_regex(answer, "bold underline")
    return text


def print_accuracies(page: "Console", rows: int, alone: float, with_memory: float) -> None:
    """A bar for the share of right answers alone and with FastMem."""
    from rich.text import Text

    full, empty = ("█", "░") if can_encode(page.encoding, "█░") else ("#", ".")
    page.print(f"{rows} more examples, not selected: share of answers that agree with the document\n", style="bold")
    for title, share, style in (("alone", alone, "red"), ("with FastMem", with_memory, "green")):
        cells = int(share * BAR)  # only a share of 1 fills the bar
        page.print(
            Text(f"{title:<13} ").append(full * cells, style).append(empty * (BAR - cells), "dim"), f"{share:.2f}"
        )


def command_to_ask(question: str, document: str) -> str:
    """The command that asks all methods about a document."""
    return f"fastmem ask {shlex.quote(question)} --compare --text {shlex.quote(document)}"


def print_example(page: "Console") -> None:
    """A document of the embedded model's world, and the command that asks about it."""
    from fastmem.tiny.world import shown_examples

    (one,) = shown_examples("dev")
    page.print("No question was given. This document contradicts what the embedded model knows:\n")
    page.print(f"{one.context}\n", style="bold")
    page.print("Ask about it with:\n")
    page.print(command_to_ask(one.question, one.context), soft_wrap=True)
    page.print("\nFor documents of your own, see fastmem ask --help.")
