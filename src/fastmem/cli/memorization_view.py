"""The effect of memorizing: the losses of each step, and the surprisal of each token before and after.

On a terminal, colours from gray to red show the surprisal. Without colour, a bar is printed below each character.
Surprisal is -log probability in nats; its mean over the tokens is the cross entropy of the steps.
"""

import textwrap
from typing import TYPE_CHECKING

from fastmem.cli.output import can_encode

if TYPE_CHECKING:
    from rich.console import Console

    from fastmem.memory.memory import Memory
    from fastmem.surprisal_report import TokenSurprisal

BARS = " ▁▂▃▄▅▆▇█"
ASCII_BARS = " .:-=+*#@"
COLOURS = ("bright_black", "default", "yellow", "bright_red", "bold white on red")
FULL_NATS = 8.0  # the highest bar and the hottest colour: a probability of 1 in 3,000


def print_steps(console: "Console", memory: "Memory") -> None:
    """Loss, cross entropy and KL of each step."""
    console.print(f"{'step':>4}  {'loss':>8}  {'cross entropy':>13}  {'KL':>9}   (nats per token, before the update)")
    for step in memory.trace:
        console.print(f"{step.index:>4}  {step.loss:>8.4f}  {step.cross_entropy:>13.4f}  {step.kl:>9.5f}")


def print_tokens(console: "Console", tokens: "list[TokenSurprisal]") -> None:
    """The document before and after: coloured if the console has colours, else with bars below the text."""
    means = [sum(values) / len(tokens) for values in zip(*((t.before, t.after) for t in tokens), strict=True)]
    coloured = console.color_system is not None
    scale = "red is most surprising" if coloured else "higher bars are more surprising"
    console.print(f"\nThe document; {scale}; {means[0]:.2f} nats per token before, {means[1]:.2f} after:")
    if coloured:
        _print_coloured(console, tokens)
    else:
        _print_bars(console, tokens)


def _print_coloured(console: "Console", tokens: "list[TokenSurprisal]") -> None:
    from rich.text import Text

    for title, values in (("before", [t.before for t in tokens]), ("after", [t.after for t in tokens])):
        text = Text(f"{title}\n", style="bold", end="\n")
        for token, value in zip(tokens, values, strict=True):
            text.append(token.text, style=f"not bold {COLOURS[_level(value, len(COLOURS))]}")
        console.print(text)


def _print_bars(console: "Console", tokens: "list[TokenSurprisal]") -> None:
    bars = BARS if can_encode(console.encoding, BARS) else ASCII_BARS
    text = "".join(token.text for token in tokens)
    before, after = (
        "".join(bars[_level(value, len(bars))] * len(token.text) for token, value in zip(tokens, values, strict=True))
        for values in ([t.before for t in tokens], [t.after for t in tokens])
    )
    for start, end in _lines(text, console.width - 8):
        shown = text[start:end].replace("\t", " ").replace("\r", " ").replace("\n", " ")
        console.print(f"        {shown}", soft_wrap=True)
        console.print(f"before  {before[start:end]}", soft_wrap=True)
        console.print(f"after   {after[start:end]}\n", soft_wrap=True)


def _level(value: float, levels: int) -> int:
    return min(int(value / FULL_NATS * levels), levels - 1)


def _lines(text: str, width: int) -> list[tuple[int, int]]:
    """Start and end of lines of at most `width` characters, broken at spaces and line ends."""
    lines, start = [], 0
    for line in text.splitlines(keepends=True):
        for part in textwrap.TextWrapper(
            width, drop_whitespace=False, replace_whitespace=False, expand_tabs=False
        ).wrap(line):
            if part.strip():
                lines.append((start, start + len(part.rstrip())))
            start += len(part)
    return lines
