"""The command line: it parses arguments, calls the library and prints results. The table of commands, and `main`.

To add a command:
1. Write a function in a module of this folder. Its docstring is the help text; `fastmem --help` shows the first line.
2. Add one line to `COMMANDS`: name -> "module:function", or "module:app" with a `typer.Typer` for a group of commands.
3. Import torch, transformers, rich and other heavy packages inside the function, so that `--help` stays fast.
4. Take flags that several commands share as dataclasses of `flags.py` (`model: ModelFlags`), with `@with_flags`.
5. Report invalid input by raising a `FastMemError`: `main` prints it on one line and exits with code 2.
6. Write data to standard output (`output.emit` for `--json`), all else to standard error (`output.say`, logging).
"""

import functools
import importlib
import sys
from collections.abc import Sequence
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from fastmem.cli import output
from fastmem.errors import FastMemError, InputError, one_of

COMMANDS: dict[str, str] = {
    "demo": "fastmem.cli.demo_command:demo",
    "ask": "fastmem.cli.ask_command:ask",
    "memorize": "fastmem.cli.memorize_command:memorize",
    "memories": "fastmem.cli.memory_commands:memories",
    "export": "fastmem.cli.memory_commands:export",
    "serve": "fastmem.cli.serve_command:serve",
    "eval": "fastmem.cli.eval_commands:evaluate",
    "report": "fastmem.cli.report_command:report",
    "check": "fastmem.cli.check_command:check",
    "calibrate": "fastmem.cli.calibrate_command:calibrate",
    "compare": "fastmem.cli.compare_command:compare",
    "search": "fastmem.cli.search_commands:search",
    "paper": "fastmem.cli.paper_suite_commands:paper",
    "suite": "fastmem.cli.paper_suite_commands:suite",
    "lm-eval": "fastmem.cli.search_commands:lm_eval",
    "bench": "fastmem.cli.bench_command:bench",
    "env": "fastmem.cli.env_command:env",
    "version": "fastmem.cli.env_command:version",
}

HELP = """Make a language model stay faithful to the document it was given.

FastMem memorizes the document in the model's last feed-forward network, then answers with the document in the prompt.

\b
Examples:
  fastmem demo
  fastmem ask "Who is the mayor?" --context report.txt --model Qwen/Qwen3-0.6B --recipe auto
  cat report.txt | fastmem ask "Who is the mayor?" --context - --compare
  fastmem eval --task nq_swap --methods base,fastmem --limit 100 --output runs/first
"""

# The base class of the parser's errors; typer does not export it.
USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

# Where an argument of Python helps, a flag that only the command line has helps, too.
ALSO_HELPFUL = {"truncate": ("part_tokens",)}
# Names that people try for the options that take a file or a folder.
FILE_WORDS = {"file", "files", "document", "documents", "doc", "docs", "input", "path", "dir", "folder"}
# What the help calls the value of an option or argument that is a path.
PATHS = {"FILE": "a file", "DIR": "a folder", "MEMORY": "a memory file", "RUN_A": "a folder", "RUN_B": "a folder"}
EXIT_BUG, EXIT_INVALID, EXIT_INTERRUPTED, EXIT_UNREAD = 1, 2, 130, 141


class Commands(TyperGroup):
    """The commands of `COMMANDS`. A command's module is imported when the command or its help is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup:
        return command(one_of(cmd_name, COMMANDS, "command"))


class Command(TyperCommand):
    """A command whose help has a section for each class of shared flags, and that refuses an empty text as a path."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, list(args))
        given = self.make_parser(ctx).parse_args(args=list(args))[0]  # before "" became the current folder
        for parameter in self.get_params(ctx):
            values = given.get(parameter.name or "")
            if (path := _path(parameter)) and "" in (values if isinstance(values, list | tuple) else (values,)):
                is_option = parameter.param_type_name == "option"
                name = parameter.opts[0] if is_option else str(parameter.metavar).removesuffix("...")
                raise InputError(f"{name} is an empty text: give {path}.")
        return left

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            own = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record is not None:
                names = record[0].partition(" <")[0]  # typer adds the Python type to an argument: DIR... <list[Path]>
                heading = getattr(parameter, "rich_help_panel", None) or own
                sections.setdefault(heading, []).append((names, record[1]))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def group() -> TyperGroup:
    """The whole command line."""
    settings = {"help_option_names": ["-h", "--help"]}  # the commands inherit them
    app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, help=HELP, context_settings=settings)
    app.callback()(lambda: None)
    return cast(TyperGroup, typer.main.get_command(app))


@functools.cache
def command(name: str) -> TyperCommand | TyperGroup:
    """One command or group of `COMMANDS`."""
    module, _, attribute = COMMANDS[name].partition(":")
    target = getattr(importlib.import_module(module), attribute)
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, cls=Command)(target)
    return cast(TyperCommand | TyperGroup, typer.main.get_command(app))


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the console script. arguments: None takes those of the process."""
    output.escape_what_cannot_be_encoded()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns the exit code: 0 success, 1 a bug, 2 invalid input, 130 interrupted, 141 nobody reads the output.
    """
    code = _run(arguments)
    return EXIT_UNREAD if output.reader_left() and code == 0 else code


def _run(arguments: Sequence[str]) -> int:
    """`run`, with output that may not be written yet."""
    arguments = ["version"] if list(arguments) == ["--version"] else list(arguments) or ["--help"]
    debug = "--debug" in arguments
    with output.log_messages(quiet="--quiet" in arguments or "-q" in arguments, debug=debug):
        try:
            app = group()
            with app.make_context("fastmem", list(arguments)) as context:  # the parser empties its list
                app.invoke(context)
        except typer.Exit as leaving:
            return leaving.exit_code
        except (KeyboardInterrupt, typer.Abort):
            output.say("interrupted: the model is unchanged and no file is incomplete.")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            return EXIT_UNREAD
        except Exception as error:
            if debug:
                raise
            output.say(f"error: {error_text(error, arguments[0])}")
            return EXIT_INVALID if isinstance(error, FastMemError | USAGE_ERROR) else EXIT_BUG
    return 0


def error_text(error: Exception, command_name: str) -> str:
    """The message of an error on one line, with the flags of the command that the error concerns."""
    if isinstance(error, USAGE_ERROR):
        return _usage_text(error)
    if not isinstance(error, FastMemError):
        return f"{type(error).__name__}: {' '.join(str(error).split())} (this is a bug: --debug shows the traceback)"
    text = " ".join(error.text.split())
    flags = _flags(command_name) if command_name in COMMANDS else set()
    if (refused := _flag(error.field or "")) in flags:
        text = f"{text.removesuffix('.')} (option {refused})."
    options = [name for option in error.options for name in (option, *ALSO_HELPFUL.get(option, ()))]
    helpful = [flag for flag in map(_flag, options) if flag in flags]
    return f"{text} Options that help: {', '.join(helpful)}." if helpful else text


def _usage_text(error: Any) -> str:
    """What the parser refuses, and what it accepts instead."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    file_word = getattr(error, "option_name", "").lstrip("-") in FILE_WORDS
    message = (error.message if file_word else error.format_message()).rstrip(".")
    if message == "Missing command" and context:
        message += f". Accepted: {', '.join(context.command.list_commands(context))}"
    if message.startswith("Missing option") and parameter:
        what = parameter.help.rstrip(".")
        message = f"Missing option {parameter.opts[0]} {parameter.metavar} ({what[0].lower()}{what[1:]})"
    extra = "unexpected extra argument" in message  # the arguments are taken; only options can help
    if (file_word or extra) and (ways := _ways_to_give_files(context, with_arguments=not extra)):
        message += f". Files and folders are given as {', '.join(ways)}"
    command_path = context.command_path if context else "fastmem"
    return f"{message}{'' if message.endswith('?') else '.'} See '{command_path} --help'."


def _ways_to_give_files(context: Any, with_arguments: bool) -> list[str]:
    """The options of a command that take a file or a folder, and its arguments that do, as its help writes them."""
    parameters = context.command.params if context else []
    taking = [one for one in parameters if _path(one)]
    arguments = [one.metavar for one in taking if one.param_type_name == "argument"] if with_arguments else []
    return [*arguments, *(f"{one.opts[0]} {one.metavar}" for one in taking if one.param_type_name == "option")]


def _path(parameter: Any) -> str | None:
    """`a file` or the like if the parameter takes a path."""
    return PATHS.get((parameter.metavar or "").removesuffix("..."))


def _flag(argument: str) -> str:
    """`learning_rate` as `--learning-rate`, `recipe.seed` as `--recipe-seed`."""
    return "--" + argument.replace("_", "-").replace(".", "-")


def _flags(name: str) -> set[str]:
    """All flags of a command, or of the commands in a group."""
    parsed = command(name)
    commands = [parsed, *getattr(parsed, "commands", {}).values()]
    return {flag for one in commands for parameter in one.params for flag in parameter.opts}
