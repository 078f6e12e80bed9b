"""The tasks by name, and `load`: from the hub, a local file or the embedded world to a tuple of `Example`s.

The only place of the project that may import `datasets`. A task is an entry of `TASKS`; there is no registration.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fastmem.errors import InputError, TaskError, one_of
from fastmem.lab.tasks import cnndm, coconflictqa, embedded_world, hotpotqa, memotrap, nq_swap, one_shot, wikihow, xsum
from fastmem.lab.tasks.example import Example, Kind, Shot, cut, messages
from fastmem.lab.tasks.readers import Hub, digest, file_rows, files_of, hub_rows
from fastmem.lab.tasks.row_schema import Schema, examples_of

__all__ = ["TASKS", "Data", "Example", "Kind", "Shot", "Task", "cut", "load", "messages"]

QUESTION_TOKENS = 100  # most new tokens of an answer, IAAR-Shanghai/FastMem scripts/run_qa.sh
SUMMARY_TOKENS = 400  # and of a summary, the default of its src/train_and_inference.py


@dataclass(frozen=True)
class Task:
    """about: one line for help and reports. schemas: the row shapes it reads, the hub's first.

    hub: where it is loaded from without a file, or None with `obtain`, what to do instead.
    counts_failures: the paper counts output-format failures of this task (of NQ and NQ-SWAP alone).
    """

    kind: Kind
    about: str
    shot: Shot
    schemas: tuple[Schema, ...] = ()
    hub: Hub | None = None
    obtain: str = ""
    max_new_tokens: int = QUESTION_TOKENS
    counts_failures: bool = False


@dataclass(frozen=True)
class Data:
    """What was loaded. source: file, hub id or "embedded world". revision: digest, commit or part; for records."""

    task: str
    examples: tuple[Example, ...]
    source: str
    revision: str


def _question(
    about: str,
    schemas: tuple[Schema, ...] = (),
    hub: Hub | None = None,
    obtain: str = "",
    counts_failures: bool = False,
) -> Task:
    return Task("question", about, one_shot.QUESTION, schemas, hub, obtain, counts_failures=counts_failures)


def _summary(about: str, shot: Shot, schemas: tuple[Schema, ...], hub: Hub | None, obtain: str = "") -> Task:
    return Task("summary", about, shot, schemas, hub, obtain, max_new_tokens=SUMMARY_TOKENS)


def _choice(about: str, hub: Hub | None, obtain: str = "") -> Task:
    return Task("choice", about, one_shot.CHOICE, memotrap.SCHEMAS, hub, obtain)


TASKS: dict[str, Task] = {
    "nq": _question("Natural Questions, the true passage", nq_swap.NQ, nq_swap.HUB, counts_failures=True),
    "nq_swap": _question("NQ, the passage's answer swapped", nq_swap.NQ_SWAP, nq_swap.HUB, counts_failures=True),
    "hotpotqa": _question("HotpotQA as in the paper, without titles", hotpotqa.HOTPOTQA, hotpotqa.HUB),
    "hotpotqa_titles": _question("HotpotQA with paragraph titles", hotpotqa.HOTPOTQA_TITLES, hotpotqa.HUB),
    "coconflictqa": _question(
        "questions on which models contradict the passage",
        coconflictqa.SCHEMAS,
        None,
        obtain="a JSONL file of OpenBMB/ParamMute, or SQuAD rows",
    ),
    "memotrap": _choice("MemoTrap, the paper's 936 rows", memotrap.HUB),
    "memotrap_full": _choice(
        "MemoTrap, all four parts", None, obtain="the folder of the four CSV files of liujch1998/memo-trap"
    ),
    "cnndm": _summary("CNN-DM, 3 sentences", one_shot.CNNDM, cnndm.SCHEMAS, cnndm.HUB),
    "xsum": _summary("XSum, 1 sentence", one_shot.XSUM, xsum.SCHEMAS, xsum.HUB),
    "wikihow": _summary(
        "WikiHow, few steps",
        one_shot.WIKIHOW,
        wikihow.SCHEMAS,
        None,
        obtain="wikihowAll.csv of mahnazkoupaee/WikiHow-Dataset, or JSONL rows of article and summary",
    ),
    "world_open": Task("question", embedded_world.TASKS["world_open"], one_shot.QUESTION_ALONE),
    "world": _question(embedded_world.TASKS["world"]),
    "world_swap": _question(embedded_world.TASKS["world_swap"]),
    "world_new": _question(embedded_world.TASKS["world_new"]),
    "world_turned": _question(embedded_world.TASKS["world_turned"]),
}


def load(
    name: str,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    strip_markup: bool = False,
) -> Data:
    """The first `limit` examples of a task.

    data: a local file (.parquet, .json, .jsonl, .csv), a folder of them or a pattern such as `memotrap/*.csv`; None
        loads from the hub, or makes the embedded world.
    split: another split of the hub's data set than the reported one; "dev" or "test" (the default) of the world.
    strip_markup: take `<P>`-style tags out of passages; the paper leaves them in.
    Errors: `InputError` for an unknown task or a limit below 1; `TaskError` for data that are absent, unreadable, of
        other columns, without an answer, or with an id that comes twice.
    """
    task = TASKS[one_of(name, TASKS, "task")]
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1; given {limit}.")
    found, source, revision = _source(name, task, data, split)
    examples = tuple(islice(found, limit))
    if not examples:
        raise TaskError(f"{source} holds no row for the task {name!r}.")
    if strip_markup:
        examples = tuple(replace(e, context=nq_swap.without_markup(e.context)) for e in examples)
    return Data(name, examples, source, revision)


def _source(name: str, task: Task, data: str | Path | None, split: str | None) -> tuple[Iterator[Example], str, str]:
    """(examples, source, revision); the examples are read as they are taken."""
    if name in embedded_world.TASKS:
        if data is not None:
            raise InputError(
                f"the task {name!r} is made by the embedded world and takes no data file; given {str(data)!r}."
            )
        part = split or "test"
        return embedded_world.examples(name, part), "embedded world", part
    if data is not None:
        if split is not None:
            raise InputError(
                f"a split is chosen on the hub; the file {str(data)!r} is read whole. Leave one of them out."
            )
        path = Path(data)
        files = files_of(path)
        source = path.name if len(files) == 1 else f"{path.parent.name}/{path.name}"
        return examples_of(file_rows(files), task.schemas, name), source, digest(files)
    if task.hub is None:
        raise TaskError(
            f"the task {name!r} is not on the hub in a form that can be loaded: give a data file ({task.obtain})."
        )
    rows, commit = hub_rows(replace(task.hub, split=split) if split else task.hub)
    return examples_of(rows, task.schemas, name), task.hub.id, commit
