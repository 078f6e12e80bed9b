"""`docs/cli.md`, generated: `python -m fastmem.cli --write-docs FILE`.

Made from names and help texts alone, not from the parser's layout, so that it is the same for every version of typer.
"""

import inspect
from pathlib import Path
from typing import Any

from fastmem.cli import COMMANDS, HELP, command


def write(path: Path) -> None:
    """Write the page."""
    path.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page, Markdown."""
    parts = ["# The command line", "Generated from the help texts: `make docs`.", _prose(HELP)]
    parts += [part for name in COMMANDS for part in _command(f"fastmem {name}", command(name), level="##")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _command(path: str, this: Any, level: str) -> list[str]:
    """The sections of one command and of the commands below it."""
    below = getattr(this, "commands", {})
    arguments = [p for p in this.params if p.param_type_name == "argument"]
    usage = " ".join([path, *(_argument(p) for p in arguments), *(["COMMAND"] if below else []), "[OPTIONS]"])
    parts = [f"{level} {path}", f"```\n{usage}\n```", _prose(this.help or "")]
    sections: dict[str, list[str]] = {}
    for parameter in this.params:
        heading = getattr(parameter, "rich_help_panel", None) or "Options"
        if parameter.param_type_name == "option":
            sections.setdefault(heading, []).append(f"| {_option(parameter)} | {_cell(parameter)} |")
    for heading, rows in sections.items():
        parts.append("\n".join([f"| {heading} | |", "|---|---|", *rows]))
    for name, child in below.items():
        parts += _command(f"{path} {name}", child, level + "#")
    return parts


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar or 'VALUE'}"
    return f"`{names}{value}`"


def _cell(parameter: Any) -> str:
    text = (parameter.help or "").replace("|", "\\|")
    default = parameter.default
    shown = not getattr(parameter, "is_flag", False) and isinstance(default, str | int | float | Path)
    return text + (f" Default: `{default}`." if shown else "") + (" Required." if parameter.required else "")


def _prose(text: str) -> str:
    r"""Paragraphs, with those that begin with `\b` (not to be wrapped) as code."""
    paragraphs = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if not part.startswith("\b"):
            paragraphs.append(" ".join(part.split("\n")))
            continue
        title, _, body = part.removeprefix("\b").strip("\n").partition("\n")
        paragraphs += [title, f"```\n{inspect.cleandoc(body)}\n```"]
    return "\n\n".join(paragraphs)
