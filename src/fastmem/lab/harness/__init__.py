"""FastMem in lm-evaluation-harness: a model class, additional tasks, and the harness's command line with both.

    fastmem lm-eval --model fastmem --model_args pretrained=ID,method=fastmem --tasks fastmem_nq_swap --limit 50

All arguments after `lm-eval` are the harness's own. Importing `fastmem.lab.harness.lm_eval_model` registers the model
"fastmem"; `TASKS` is the folder for `--include_path`. `run` does both.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from fastmem.extras import require

TASKS = Path(__file__).with_name("tasks")


def run(arguments: Sequence[str]) -> None:
    """Run lm_eval's command line with `arguments`. Errors: `MissingPackageError`."""
    require("lm_eval", "accelerate", extra="lm-eval", purpose="lm-evaluation-harness")
    from lm_eval.__main__ import cli_evaluate

    importlib.import_module("fastmem.lab.harness.lm_eval_model")  # registers "fastmem"
    given = sys.argv
    sys.argv = ["lm-eval", *with_our_tasks(arguments)]
    try:
        cli_evaluate()
    finally:
        sys.argv = given


def with_our_tasks(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `TASKS` added to their --include_path if the subcommand takes one."""
    given = list(arguments)
    if not given or given[0] in ("-h", "--help") or given == ["run"]:
        return given
    if "--include_path" in given[:-1]:
        at = given.index("--include_path") + 1
        return [*given[:at], f"{given[at]}:{TASKS}", *given[at + 1 :]]
    return [*given, "--include_path", str(TASKS)]
