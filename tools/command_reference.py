"""Write the reference of the command line: `python -m tools.command_reference FILE`, as `make docs` does.

The page is made from option names and help texts, so it does not depend on how a version of typer lays out its help.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any

from fastmem.cli import COMMANDS, HELP, command


def main(arguments: list[str] | None = None) -> None:
    """Write the page. arguments: None takes those of the process."""
    parser = argparse.ArgumentParser(prog="python -m tools.command_reference", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="page to write, such as docs/reference/cli.md")
    parser.parse_args(arguments).file.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page as Markdown."""
    parts = ["# The command line", "Generated from the help texts: `make docs`.", _prose(HELP)]
    parts += [part for name in COMMANDS for part in _command(f"fastmem {name}", command(name), level="##")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _command(path: str, parsed: Any, level: str) -> list[str]:
    """The sections of a command and of its subcommands. path: as typed. level: the Markdown heading marks."""
    subcommands = getattr(parsed, "commands", {})
    arguments = [_argument(p) for p in parsed.params if p.param_type_name == "argument"]
    usage = " ".join([path, *arguments, *(["COMMAND"] if subcommands else []), "[OPTIONS]"])
    parts = [f"{level} {path}", f"```\n{usage}\n```", _prose(parsed.help or "")]
    sections: dict[str, list[str]] = {}
    for parameter in parsed.params:
        heading = getattr(parameter, "rich_help_panel", None) or "Options"
        if parameter.param_type_name == "option":
            sections.setdefault(heading, []).append(f"| {_option(parameter)} | {_cell(parameter)} |")
    for heading, rows in sections.items():
        parts.append("\n".join([f"| {heading} | |", "|---|---|", *rows]))
    for name, child in subcommands.items():
        parts += _command(f"{path} {name}", child, level + "#")
    return parts


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    value = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar or 'VALUE'}"
    return f"`{names}{value}`".replace("|", "\\|")


def _cell(parameter: Any) -> str:
    text = (parameter.help or "").replace("|", "\\|")
    default = parameter.default
    shown = not getattr(parameter, "is_flag", False) and isinstance(default, str | int | float | Path)
    return text + (f" Default: `{default}`." if shown else "") + (" Required." if parameter.required else "")


def _prose(text: str) -> str:
    r"""A help text as Markdown. Paragraphs that begin with `\b`, which are not wrapped, become code blocks."""
    paragraphs = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if not part.startswith("\b"):
            paragraphs.append(" ".join(part.split("\n")))
            continue
        title, _, body = part.removeprefix("\b").strip("\n").partition("\n")
        paragraphs += [title, f"```\n{inspect.cleandoc(body)}\n```"]
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    main()
