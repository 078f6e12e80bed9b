"""FastMem in lm-evaluation-harness: a model class, additional tasks, and the harness's command line with both.

    fastmem lm-eval --model fastmem --model_args pretrained=ID,method=fastmem --tasks fastmem_nq_swap --limit 50

All arguments after `lm-eval` are the harness's own. Importing `fastmem.lab.harness.lm_eval_model` registers the model
"fastmem"; `TASKS` is the folder for `--include_path`. `run` does both.
"""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastmem.errors import InputError
from fastmem.extras import require

TASKS = Path(__file__).with_name("tasks")


def run(arguments: Sequence[str]) -> None:
    """Run lm_eval's command line with `arguments`. Errors: `MissingPackageError`."""
    require("lm_eval", "accelerate", extra="lm-eval", purpose="lm-evaluation-harness")
    from lm_eval.__main__ import cli_evaluate

    importlib.import_module("fastmem.lab.harness.lm_eval_model")  # registers "fastmem"
    given = sys.argv
    with with_our_tasks(arguments) as passed_on:
        sys.argv = ["lm-eval", *passed_on]
        try:
            cli_evaluate()
        finally:
            sys.argv = given


@contextmanager
def with_our_tasks(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The arguments, with `TASKS` added to their --include_path if the subcommand takes one.

    lm_eval takes one folder, so the user's and ours become links in a temporary one. Errors: `InputError` if the
    user's is no folder.
    """
    flag = "--include_path"
    given = [part for a in arguments for part in (a.split("=", 1) if a.startswith(f"{flag}=") else [a])]
    if not given or given[0] in ("-h", "--help") or given == ["run"]:
        yield given
    elif flag not in given[:-1]:
        yield [*given, flag, str(TASKS)]
    else:
        at = given.index(flag) + 1
        if not Path(given[at]).is_dir():
            raise InputError(f"{flag} names no folder: {given[at]!r}. Give the folder of your tasks.")
        with tempfile.TemporaryDirectory() as place:
            for name, folder in (("given", Path(given[at])), ("fastmem", TASKS)):
                shutil.copytree(folder.resolve(), Path(place) / name, copy_function=os.symlink)
            yield [*given[:at], place, *given[at + 1 :]]
