"""Public data sets about faithfulness to a document, each with all methods and its own metrics, for one model."""

from collections.abc import Iterable
from pathlib import Path

from fastmem.answer.contrast import METHODS as CONTRASTS
from fastmem.errors import InputError
from fastmem.lab.run.experiment import ONE_SHOT
from fastmem.lab.run.planned_runs import Run
from fastmem.lab.tasks import TASKS, embedded_world
from fastmem.lab.tasks.readers import SUFFIXES
from fastmem.memory.recipe import Recipe

TASK_NAMES = tuple(name for name, task in TASKS.items() if task.score is not None and name not in embedded_world.TASKS)
METHODS = ("base", ONE_SHOT, *(name for name in CONTRASTS if name != "base"))


def runs(tasks: Iterable[str], methods: tuple[str, ...], recipe: Recipe) -> tuple[Run, ...]:
    """One run per task, in a folder of its name."""
    return tuple(Run(task, TASKS[task].about, task, methods, recipe) for task in tasks)


def files_in(folder: Path, tasks: Iterable[str]) -> dict[str, Path]:
    """Task -> the file `TASK.jsonl` (or another format) or the folder `TASK` in `folder`, for the tasks that have one.

    Errors: `InputError` if the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one with files such as confiqa.json.", field="data")
    found = {}
    for task in tasks:
        names = [folder / f"{task}{suffix}" for suffix in SUFFIXES]
        if path := next((path for path in [*names, folder / task] if path.exists()), None):
            found[task] = path
    return found
