"""The tasks by name, and `load`, which reads examples from the hub, a local file, the embedded world or a task file.

Only this folder may import `datasets`. To add a task, add an entry to `TASKS`.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fastmem.errors import InputError, TaskError, one_of
from fastmem.lab.python_file import PythonFile, is_python_file, load_file
from fastmem.lab.tasks import (
    clasheval,
    cnndm,
    coconflictqa,
    confiqa,
    cub,
    embedded_world,
    faitheval,
    hotpotqa,
    memotrap,
    nomiracl,
    nq_swap,
    one_shot,
    own_questions,
    own_task,
    squad2,
    wikihow,
    xsum,
)
from fastmem.lab.tasks.example import Example, Kind, Score, Shot, cut, messages
from fastmem.lab.tasks.readers import Hub, digest, file_rows, files_of, hub_rows
from fastmem.lab.tasks.row_schema import Schema, examples_of

__all__ = ["TASKS", "Data", "Example", "Kind", "Shot", "Task", "cut", "load", "messages", "task_named"]

# Most new tokens of an answer: IAAR-Shanghai/FastMem `scripts/run_qa.sh`; of a summary: the default of its
# `src/train_and_inference.py`.
QUESTION_TOKENS, SUMMARY_TOKENS = 100, 400
# Most rows that the authors' code reads: `num_data` in its scripts, and files of 3,000 sampled test rows
# (`eval/data/Summary/*_sample_test_3000.jsonl`).
QUESTION_ROWS, SUMMARY_ROWS = 4000, 3000


@dataclass(frozen=True)
class Task:
    """about: one line for help and reports. schemas: the row schemas it reads, the hub's first.

    hub: the data set on the hub; None if it must be given as a file, which `obtain` describes. shot: the worked
    example for one-shot; None if there is none. counts_failures: the paper reports failures of the output format (for
    NQ and NQ-SWAP only). file: the Python file of a task of one's own. tokens: the most new tokens of an answer, if
    not those of the paper's code. score: how answers are graded, if the data set has metrics of its own. whole_words:
    an accepted answer such as "A", of which the paper's normalization leaves nothing, is right only where it stands;
    the paper's code, which the tasks of data sets follow, finds it in every reply.
    """

    kind: Kind
    about: str
    schemas: tuple[Schema, ...] = ()
    hub: Hub | None = None
    obtain: str = ""
    shot: Shot | None = one_shot.QUESTION
    counts_failures: bool = False
    file: PythonFile | None = None
    tokens: int | None = None
    score: Score | None = None
    whole_words: bool = False

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""
        if self.tokens is not None:
            return self.tokens
        return SUMMARY_TOKENS if self.kind == "summary" else QUESTION_TOKENS


@dataclass(frozen=True)
class Data:
    """Loaded examples. source: file, hub id or "embedded world". revision: digest, commit or part, for the records.
    selection: which rows of the source these are, if `load` chose some with paper_rows. own_task: the task,
    if it is not one of `TASKS`."""

    task: str
    examples: tuple[Example, ...]
    source: str
    revision: str
    selection: str = ""
    own_task: Task | None = None

    @property
    def definition(self) -> Task:
        """The task itself."""
        return self.own_task or TASKS[self.task]


TASKS: dict[str, Task] = {
    "nq": Task("question", "Natural Questions, the true passage", nq_swap.NQ, nq_swap.HUB, counts_failures=True),
    "nq_swap": Task(
        "question", "NQ, the passage's answer swapped", nq_swap.NQ_SWAP, nq_swap.HUB, counts_failures=True
    ),
    "hotpotqa": Task("question", "HotpotQA as in the paper, without titles", hotpotqa.HOTPOTQA, hotpotqa.HUB),
    "hotpotqa_titles": Task("question", "HotpotQA with paragraph titles", hotpotqa.HOTPOTQA_TITLES, hotpotqa.HUB),
    "coconflictqa": Task(
        "question",
        "questions on which models contradict the passage",
        coconflictqa.SCHEMAS,
        obtain="a JSONL file of OpenBMB/ParamMute, or SQuAD rows",
    ),
    "memotrap": Task("choice", "MemoTrap, the paper's 936 rows", memotrap.SCHEMAS, memotrap.HUB, shot=one_shot.CHOICE),
    "memotrap_full": Task(
        "choice",
        "MemoTrap, all four parts",
        memotrap.SCHEMAS,
        obtain="the folder of the four CSV files of liujch1998/memo-trap",
        shot=one_shot.CHOICE,
    ),
    "cnndm": Task("summary", "CNN-DM, 3 sentences", cnndm.SCHEMAS, cnndm.HUB, shot=one_shot.CNNDM),
    "xsum": Task("summary", "XSum, 1 sentence", xsum.SCHEMAS, xsum.HUB, shot=one_shot.XSUM),
    "wikihow": Task(
        "summary",
        "WikiHow, few steps",
        wikihow.SCHEMAS,
        obtain="wikihowAll.csv of mahnazkoupaee/WikiHow-Dataset, or JSONL rows of article and summary",
        shot=one_shot.WIKIHOW,
    ),
    "confiqa": Task(
        "question",
        "ConFiQA, passages that contradict the facts",
        confiqa.SCHEMAS,
        obtain=confiqa.OBTAIN,
        score=confiqa.score,
    ),
    "faitheval_unanswerable": Task(
        "question",
        "FaithEval, contexts without the answer",
        faitheval.UNANSWERABLE,
        faitheval.UNANSWERABLE_HUB,
        shot=one_shot.question_shot(faitheval.UNANSWERABLE_TEMPLATE),
        score=faitheval.unanswerable_score,
    ),
    "faitheval_inconsistent": Task(
        "question",
        "FaithEval, contexts with two answers",
        faitheval.INCONSISTENT,
        faitheval.INCONSISTENT_HUB,
        shot=one_shot.question_shot(faitheval.INCONSISTENT_TEMPLATE),
        score=faitheval.inconsistent_score,
    ),
    "faitheval_counterfactual": Task(
        "question",
        "FaithEval, contexts against common knowledge",
        faitheval.COUNTERFACTUAL,
        faitheval.COUNTERFACTUAL_HUB,
        shot=one_shot.OPTIONS,
        score=faitheval.counterfactual_score,
    ),
    "squad2": Task(
        "question",
        "SQuAD 2.0, half of its questions unanswerable",
        squad2.SCHEMAS,
        squad2.HUB,
        shot=one_shot.question_shot(squad2.TEMPLATE),
        score=squad2.score,
    ),
    "clasheval": Task(
        "question",
        "ClashEval, contexts with a changed answer",
        clasheval.SCHEMAS,
        obtain=clasheval.OBTAIN,
        score=clasheval.score,
    ),
    "nomiracl": Task(
        "question",
        "NoMIRACL, passages with and without the answer",
        nomiracl.SCHEMAS,
        nomiracl.HUB,
        shot=one_shot.question_shot(nomiracl.TEMPLATE, nomiracl.PRESENT),
        score=nomiracl.score,
    ),
    "cub": Task(
        "question",
        "CUB, gold, conflicting and irrelevant contexts",
        cub.SCHEMAS,
        obtain=cub.OBTAIN,
        score=cub.score,
    ),
    own_questions.TASK: Task(
        "question",
        "questions of your own",
        obtain="questions, answers and documents in a file",
        whole_words=True,
    ),
    **{
        name: Task("question", about, shot=one_shot.of_world(name), score=embedded_world.SCORES.get(name))
        for name, about in embedded_world.TASKS.items()
    },
}


def task_named(name: str) -> Task:
    """The task of `TASKS` with this name, or that of a Python file (see `own_task`).

    Errors: `InputError` that suggests the nearest name, or says what is wrong with the file and where.
    """
    if not is_python_file(name):
        return TASKS[one_of(name, TASKS, "task")]
    file = load_file(name, "task")
    file.function("examples", own_task.USE)
    kind, tokens, shot = own_task.kind_of(file), own_task.tokens_of(file), own_task.shot_of(file)
    return Task(kind, file.label, shot=shot, file=file, tokens=tokens, whole_words=True)


def load(
    name: str,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    strip_markup: bool = False,
    paper_rows: bool = False,
    columns: Mapping[str, str] | None = None,
    documents: str | Path | None = None,
) -> Data:
    """The first `limit` examples of a task. name: a key of `TASKS`, or the path of a Python file.

    data: a local file (.parquet, .json, .jsonl, .csv, .tsv), a folder of them or a pattern such as `memotrap/*.csv`;
        None loads from the hub, or from the embedded world.
    split: a split of the hub's data set, by default the one that is reported; for the embedded world "dev" or "test"
        (the default).
    strip_markup: remove `<P>`-style tags from passages; the paper keeps them.
    paper_rows: only as many rows as the authors' code reads: the first `QUESTION_ROWS`, or for summaries a sample of
        `SUMMARY_ROWS`. `limit` counts these.
    columns, documents: for the task "qa", as for `own_questions.read_questions`.
    Errors: `InputError` for an unknown task, a limit below 1 or options that exclude each other; `TaskError` if the
        data are absent or unreadable, columns or answers are missing, or an id is used twice.
    """
    task = task_named(name)
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1; given {limit}.", field="limit")
    for option, given in (("columns", columns), ("documents", documents)):
        if given is not None and name != own_questions.TASK:
            text = f"{option} belongs to the task {own_questions.TASK!r}; the task {name!r} has its own data."
            raise InputError(text, field=option)
    own = (columns, None if documents is None else Path(documents), None if paper_rows else limit)
    rows, source, revision = _source(name, task, data, split, own)
    selection = ""
    if paper_rows:
        rows, selection = _paper_rows(tuple(rows), task.kind)
    examples = tuple(islice(rows, limit))
    if not examples:
        raise TaskError(f"{source} holds no row for the task {name!r}.")
    if strip_markup:
        examples = tuple(replace(e, context=nq_swap.without_markup(e.context)) for e in examples)
    label = name if task.file is None else task.file.label
    return Data(label, examples, source, revision, selection, task if task.file else None)


def _paper_rows(rows: tuple[Example, ...], kind: Kind) -> tuple[Iterator[Example], str]:
    """(the rows that the authors' code would read, what they are; empty if they are all)."""
    most = SUMMARY_ROWS if kind == "summary" else QUESTION_ROWS
    if len(rows) <= most:
        return iter(rows), ""
    if kind != "summary":
        return iter(rows[:most]), f"the first {most} of {len(rows)} rows"
    drawn = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:most]
    chosen = {row.id for row in drawn}
    return (row for row in rows if row.id in chosen), f"a sample of {most} of {len(rows)} rows"


def _source(
    name: str,
    task: Task,
    data: str | Path | None,
    split: str | None,
    own: tuple[Mapping[str, str] | None, Path | None, int | None],
) -> tuple[Iterator[Example], str, str]:
    """(examples, source, revision); the examples are read while they are iterated.

    own: columns, documents and limit for `read_questions`.
    """
    if name in embedded_world.TASKS:
        if data is not None:
            raise InputError(
                f"the task {name!r} comes from the embedded world and takes no data file; given {str(data)!r}."
            )
        part = split or "test"
        return embedded_world.examples(name, part), "embedded world", part
    if task.file is not None:
        for option, given in (("data", data), ("split", split)):
            if given is not None:
                raise InputError(
                    f"the task {task.file.label} makes its own examples and takes no {option}; given {str(given)!r}.",
                    field=option,
                )
        return own_task.examples_of_file(task.file), task.file.label, f"sha256:{task.file.digest}"
    if data is not None:
        if split is not None:
            raise InputError(
                f"a split can be chosen on the hub only; the file {str(data)!r} is read whole. Leave one of them out."
            )
        path = Path(data)
        if name == own_questions.TASK:
            columns, documents, limit = own
            questions = own_questions.read_questions(path, columns, documents, limit=limit)
            return iter(questions.examples), questions.source, questions.revision
        files = files_of(path)
        source = path.name if len(files) == 1 else f"{path.parent.name}/{path.name}"
        return examples_of(file_rows(files), task.schemas, name), source, digest(files)
    if task.hub is None:
        raise TaskError(
            f"the task {name!r} is not on the hub in a form that can be loaded: give a data file ({task.obtain})."
        )
    rows, commit = hub_rows(replace(task.hub, split=split) if split else task.hub)
    return examples_of(rows, task.schemas, name), task.hub.id, commit
