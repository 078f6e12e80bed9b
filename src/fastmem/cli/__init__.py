"""The command line: parse, call, print; nothing else. The table of commands, and `main`.

To add a command:
1. write a function in a module of this folder; its docstring is the help, its first line the one in `fastmem --help`;
2. add one line to `COMMANDS`: name -> "module:function" (or "module:app", a `typer.Typer`, for a group of commands);
3. import torch, transformers, rich and everything else that is heavy inside the function, never at the top;
4. take the flags that several commands share as records of `flags.py` (`model: ModelFlags`), under `@with_flags`;
5. refuse by raising a `FastMemError`: `main` prints its text on one line and leaves with exit code 2;
6. data goes to standard output (`output.emit` for `--json`), all else to standard error (`output.say`, logging).
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fastmem.cli import output
from fastmem.errors import FastMemError, one_of

COMMANDS: dict[str, str] = {
    "demo": "fastmem.cli.demo_command:demo",
    "ask": "fastmem.cli.ask_command:ask",
    "memorize": "fastmem.cli.memory_commands:memorize",
    "memories": "fastmem.cli.memory_commands:memories",
    "export": "fastmem.cli.memory_commands:export",
    "serve": "fastmem.cli.serve_command:serve",
    "eval": "fastmem.cli.eval_commands:evaluate",
    "report": "fastmem.cli.eval_commands:report",
    "search": "fastmem.cli.search_commands:search",
    "paper": "fastmem.cli.search_commands:paper",
    "lm-eval": "fastmem.cli.search_commands:lm_eval",
    "bench": "fastmem.cli.bench_command:bench",
    "env": "fastmem.cli.env_command:env",
    "version": "fastmem.cli.env_command:version",
}

HELP = """Make a language model stay faithful to the document it was given.

FastMem memorizes the document in the model's last feed-forward network, then answers with the document in front of it.

\b
Examples:
  fastmem demo
  fastmem ask "Who is the mayor?" --context report.txt --model Qwen/Qwen3-0.6B
  cat report.txt | fastmem ask "Who is the mayor?" --context - --compare
  fastmem eval --task nq_swap --methods base,fastmem --limit 100 --output runs/first
"""

# The base of every refusal of the parser; typer keeps its name private.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

EXIT_BUG, EXIT_REFUSED, EXIT_INTERRUPTED = 1, 2, 130


class Commands(TyperGroup):
    """The commands of `COMMANDS`, each imported when it is asked for (its help included)."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return command(one_of(cmd_name, COMMANDS, "command"))


class Command(TyperCommand):
    """A command whose help has a section for every record of shared flags."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record is not None:
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or own, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def group() -> Any:
    """The whole command line as a click group."""
    app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, help=HELP)
    app.callback()(lambda: None)
    return typer.main.get_command(app)


def command(name: str) -> Any:
    """One command of `COMMANDS` as a click command."""
    module, _, attribute = COMMANDS[name].partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Command)(target)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code: 0, 2 refused with a reason, 130 interrupted, 1 a bug of ours."""
    arguments = ["version"] if list(arguments) == ["--version"] else list(arguments) or ["--help"]
    debug = "--debug" in arguments
    with output.notices(quiet="--quiet" in arguments or "-q" in arguments, debug=debug):
        try:
            app = group()
            with app.make_context("fastmem", arguments) as context:
                app.invoke(context)
        except typer.Exit as leaving:
            return leaving.exit_code
        except (KeyboardInterrupt, typer.Abort):
            output.say("interrupted: the model is as it was, nothing was left half written.")
            return EXIT_INTERRUPTED
        except BrokenPipeError:  # `fastmem ... | head`: the reader has left; Python must not complain on the way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if debug:
                raise
            output.say(f"error: {_line(error, arguments)}")
            return EXIT_REFUSED if isinstance(error, FastMemError | USAGE_ERROR) else EXIT_BUG
    return 0


def _line(error: Exception, arguments: Sequence[str]) -> str:
    """What went wrong, on one line, with the flags of this command that it is about."""
    if isinstance(error, USAGE_ERROR):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "fastmem"
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        return f"{message}. See '{path} --help'."
    if not isinstance(error, FastMemError):
        return f"{type(error).__name__}: {' '.join(str(error).split())} (this is a bug: --debug shows where)"
    text = " ".join(error.text.split())
    flags = _flags(arguments[0]) if arguments and arguments[0] in COMMANDS else set()
    about = [flag for flag in (f"--recipe-{error.field}", f"--{error.field}".replace("_", "-")) if flag in flags]
    if about:
        text += f" (option {about[0]})"
    helpful = [flag for flag in (f"--{name}".replace("_", "-") for name in error.options) if flag in flags]
    return f"{text} Options that help: {', '.join(helpful)}." if helpful else text


def _flags(name: str) -> set[str]:
    """All flags of a command, or of the commands in a group."""
    whole = command(name)
    commands = [whole, *getattr(whole, "commands", {}).values()]
    return {flag for one in commands for parameter in one.params for flag in parameter.opts}
