"""Search for a recipe, over a whole grid or with TPE. A search can be resumed; one process at a time works on it.

Rows that are reported are never searched: questions are split by their hash, one half is searched, the other is held
out for evaluation. Data with a split for development (the embedded world's "dev") are searched whole.

    search.json    the task, data, model and space; at the end or on an interrupt every point with its mean, the best
                   one, the cost, and how much of the search is done
    tried.jsonl    grid: one line per example with the score of every point
    journal.log    tpe: Optuna's journal; lock is held by the process that writes to it
    recipe.json    the best recipe, as `read_recipe` reads it
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastmem.errors import InputError, RunError
from fastmem.extras import require
from fastmem.lab.run import run_files
from fastmem.lab.run.experiment import digest_of, file_score, model_name, recipe_values, task_score
from fastmem.lab.run.run_files import Appender, Record
from fastmem.lab.scores import grading, statistics, summary
from fastmem.lab.scores.own_metric import try_out
from fastmem.lab.search.grid import Grid, Space
from fastmem.lab.tasks import Data, Example, Task
from fastmem.lab.workers import Lost, ThisProcess, Workers
from fastmem.model import FastMem
from fastmem.model_identity import identity_of_model

TRIED, JOURNAL, RECIPE, LOCK = "tried.jsonl", "journal.log", "recipe.json", "lock"
Part = Literal["searched", "held-out", "all"]
PARTS: tuple[Part, ...] = ("searched", "held-out", "all")
SEED = 0


@dataclass(frozen=True)
class Progress:
    """done: examples (grid) or trials (tpe) that are finished, of `total`."""

    done: int
    total: int
    seconds: float


def is_searched(group: str) -> bool:
    """Whether the rows of this question are in the half that may be searched."""
    return hashlib.sha256(f"fastmem search {group}".encode()).digest()[0] % 2 == 0


def part_of(data: Data, part: Part) -> Data:
    """The rows of one half, or all. All rows of a question are in the same half, in `nq` as in `nq_swap`."""
    if part == "all":
        return data
    kept = tuple(e for e in data.examples if is_searched(e.group or e.id) == (part == "searched"))
    if not kept:
        raise InputError(
            f"none of the {len(data.examples)} rows is in the part {part!r}: raise the limit.", field="limit"
        )
    return replace(data, examples=kept)


def searchable(data: Data, on_test: bool) -> Data:
    """The rows that may be searched; on_test: all of them. Errors: `InputError` for a split made for reporting."""
    if on_test or (data.source == "embedded world" and data.revision == "dev"):
        return data
    if data.source == "embedded world":
        raise InputError(
            "the embedded world's test split is the one that is reported: search the split dev, or allow this one.",
            options=("split", "on_test"),
        )
    return part_of(data, "searched")


def check_examples(data: Data) -> None:
    """What a search needs of its examples, checked before a model is loaded. Errors: `InputError` for one without a
    document, and for a score of the task's own that fails."""
    if bare := next((example for example in data.examples if not example.context), None):
        raise InputError(f"the example {bare.id!r} has no document to memorize, so there is nothing to search for.")
    if own := file_score(data.definition):
        try_out([own], data.examples[0])


def require_packages(task: Task, sampler: str) -> None:
    """What a search on a task needs, checked before anything is loaded. Errors: `MissingPackageError`."""
    if sampler == "tpe":
        require("optuna", extra="search", purpose="the sampler 'tpe'", options=("sampler",))
    if task.kind == "summary" and not task_score(task):
        summary.require_rouge()


def score_of(text: str, example: Example, task: Task) -> float:
    """The score that is maximized: the first of the task's own, if it has some; else the paper's accuracy, and for
    summaries ROUGE-L, which needs no other model. Errors: `InputError` of the file of the task."""
    if (own := task_score(task)) is not None:
        return float(next(iter(own(text, example).values())) or 0.0)
    if example.kind == "summary":
        return summary.rouge([text], [example.reference])["rougeL"][0].value or 0.0
    return float(grading.graded(text, example, task.whole_words)["paper_correct"])


def search_grid(
    llm: FastMem,
    space: Space,
    data: Data,
    folder: Path,
    max_new_tokens: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    workers: Workers | None = None,
) -> Record:
    """Score every point on every example. workers: who does it; by default this process.

    Returns the content of `search.json`. Errors: `RunError` for the folder of another search, or one that another
    process works on; `MissingPackageError`.
    """
    new_tokens = max_new_tokens or data.definition.max_new_tokens
    opened = functools.partial(_open_search_folder, llm, space, data, folder, "grid", new_tokens)
    header, tried, started = opened(), folder / TRIED, time.perf_counter()
    with Appender(tried) as appender:
        opened()  # again: another process may have begun a search here before this one had the folder for itself
        done = {row["id"] for row in appender.rows}
        left = [example for example in data.examples if example.id not in done]

        def report() -> None:
            if on_progress:
                on_progress(Progress(len(appender.rows), len(data.examples), time.perf_counter() - started))

        try:
            report()
            for row in _scored_by(workers or ThisProcess(llm), space, data.definition, new_tokens, left):
                appender.append(row)
                appender.rows.append(row)
                report()
        finally:
            rows = appender.rows
            seconds = sum(row["seconds"] for row in rows)
            result = _write(folder, header, _point_scores(space, rows), seconds, len(rows), len(data.examples))
    return _answered(result)


def _scored_by(
    workers: Workers, space: Space, task: Task, new_tokens: int, examples: Sequence[Example]
) -> Iterator[Record]:
    """The rows of these examples, in any order. One that was given up counts as wrong at every point."""
    make = functools.partial(_scorer, space=space, task=task, new_tokens=new_tokens)
    for found in workers.results(make, examples):
        yield _row(found.unit, space, None, 0.0, found.reason) if isinstance(found, Lost) else found


def _scorer(llm: FastMem, *, space: Space, task: Task, new_tokens: int) -> Callable[[Example], list[Record]]:
    """What a worker does with an example."""
    grid = Grid(llm, space, new_tokens)
    return lambda example: [_scored(grid, example, task)]


def _scored(grid: Grid, example: Example, task: Task) -> Record:
    """The scores of all points on one example. An error is recorded and counts as a wrong answer at every point."""
    started = time.perf_counter()
    try:
        scores, error = [score_of(text, example, task) for text in grid.texts(example)], None
    except Exception as problem:
        scores, error = None, f"{type(problem).__name__}: {problem}"
    return _row(example, grid.space, scores, time.perf_counter() - started, error)


def _row(example: Example, space: Space, scores: list[float] | None, seconds: float, error: str | None) -> Record:
    return {
        "id": example.id,
        "group": example.group or example.id,
        "scores": [0.0] * len(space.points) if scores is None else scores,
        "seconds": round(seconds, 4),
        "error": error,
    }


def search_tpe(
    llm: FastMem,
    space: Space,
    data: Data,
    folder: Path,
    trials: int,
    max_new_tokens: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    workers: Workers | None = None,
) -> Record:
    """Score points suggested by Optuna's TPE until the folder has `trials` of them.

    Rate, KL weight and alpha are suggested between the smallest and the largest of the space's values (rate and KL on
    a logarithmic scale), layers among its values. Each trial scores all of the space's steps in one run, and its value
    is the best of these. workers: who scores the examples. Returns the content of `search.json`. Errors: `RunError`
    for the folder of another search, or one that another process works on; `MissingPackageError`.
    """
    new_tokens = max_new_tokens or data.definition.max_new_tokens
    opened = functools.partial(_open_search_folder, llm, space, data, folder, "tpe", new_tokens)
    header = opened()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started, answering = time.perf_counter(), workers or ThisProcess(llm)
    finished = (optuna.trial.TrialState.COMPLETE,)

    def objective(trial: Any) -> float:
        trial_started = time.perf_counter()
        suggested = replace(
            space,
            rates=(_between(trial, "learning_rate", space.rates, log=True),),
            kls=(_between(trial, "kl_weight", space.kls, log=True),),
            layers=(space.layers[trial.suggest_categorical("layers", list(range(len(space.layers))))],),
            alphas=(_between(trial, "alpha", space.alphas, log=False),),
        )
        rows = list(_scored_by(answering, suggested, data.definition, new_tokens, data.examples))
        points = _point_scores(suggested, rows)
        trial.set_user_attr("points", points)
        trial.set_user_attr("seconds", time.perf_counter() - trial_started)
        return float(max(point["score"] for point in points))

    with Appender(folder / LOCK):
        opened()
        run_files.cut_to_whole_lines(folder / JOURNAL)  # optuna would append to half a line
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
        study = optuna.create_study(study_name="fastmem", direction="maximize", storage=storage, load_if_exists=True)
        try:
            while len(study.get_trials(deepcopy=False, states=finished)) < trials:
                trial = study.ask()
                # The seed contains the trial's number, so a search that goes on does not repeat its draws.
                study.sampler = optuna.samplers.TPESampler(seed=SEED + trial.number, constant_liar=True)
                study.tell(trial, objective(trial))
                done = len(study.get_trials(deepcopy=False, states=finished))
                if on_progress:
                    on_progress(Progress(done, trials, time.perf_counter() - started))
        finally:
            complete = study.get_trials(deepcopy=False, states=finished)
            points = [point for trial in complete for point in trial.user_attrs["points"]]
            seconds = sum(trial.user_attrs["seconds"] for trial in complete)
            result = _write(folder, header, points, seconds, len(complete), trials)
    return _answered(result)


def _between(trial: Any, name: str, values: Sequence[float], log: bool) -> float:
    low, high = min(values), max(values)
    return low if low == high else float(trial.suggest_float(name, low, high, log=log and low > 0))


def _point_scores(space: Space, rows: Sequence[Record]) -> list[Record]:
    """Every point of the space with its mean score, how many examples failed, and the first error.

    rows: one per example, with the scores of all points.
    """
    groups, errors = [row["group"] for row in rows], [row["error"] for row in rows if row["error"]]
    means = [statistics.mean([row["scores"][i] for row in rows], groups) for i in range(len(space.points))]
    return [
        {
            "recipe": recipe_values(point.recipe),
            "alpha": point.alpha,
            "score": mean.value,
            "low": mean.low,
            "high": mean.high,
            "n": mean.n,
            "errors": len(errors),
        }
        | ({"error": errors[0]} if errors else {})
        for point, mean in zip(space.points, means, strict=True)
    ]


def best(points: Sequence[Record]) -> Record:
    """The point with the highest mean; among equal ones the fewest steps, then lowest rate, then lowest alpha."""
    return max(points, key=lambda p: (p["score"], -p["recipe"]["steps"], -p["recipe"]["learning_rate"], -p["alpha"]))


def _open_search_folder(
    llm: FastMem, space: Space, data: Data, folder: Path, sampler: str, max_new_tokens: int
) -> Record:
    """Write `search.json`, or check that it is of the same search. Returns its values without the points."""
    require_packages(data.definition, sampler)
    examples = {"examples": [e.id for e in data.examples], "digest": digest_of(data.examples)}
    header = {
        "task": data.task,
        "data": {"source": data.source, "revision": data.revision} | examples,
        "sampler": sampler,
        "space": json.loads(json.dumps(asdict(space))),
        "max_new_tokens": max_new_tokens,
        "model": identity_of_model(llm, [layer for layers in space.layers for layer in layers]),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.exists() else error.strerror
        raise RunError(f"{folder} cannot be made ({reason}): give another folder.", field="output") from error
    path = folder / run_files.SEARCH
    if path.exists():
        read = run_files.read_json(path)
        for name, _, _ in run_files.differences({name: read.get(name) for name in header}, header):
            raise RunError(
                f"{folder} holds another search: its {name.partition('.')[0]} differs. Give another folder.",
                field="output",
            )
    else:
        run_files.write_json(path, header | {"model_name": model_name(llm), "points": [], "best": None})
    return header | {"model_name": model_name(llm)}


def _write(folder: Path, header: Record, points: list[Record], seconds: float, done: int, total: int) -> Record:
    """Write `search.json` and, when all is done, `recipe.json`. done, total: examples (grid) or trials (tpe)."""
    scored = points if done else []
    some_answered = any(point["errors"] < point["n"] for point in scored)
    result = header | {"points": scored, "best": best(scored) if some_answered else None, "seconds": round(seconds, 3)}
    result |= {"done": done, "total": total}
    run_files.write_json(folder / run_files.SEARCH, result)
    if done >= total and some_answered:
        run_files.write_json(folder / RECIPE, result["best"]["recipe"])
    return result


def _answered(result: Record) -> Record:
    """The result of a search. Errors: `RunError` if every question failed, which leaves nothing to choose by."""
    if result["best"] is None:
        first = result["points"][0]["error"]
        raise RunError(
            f"every question failed, the first with: {first}. Mend this and give a new folder.", field="output"
        )
    return result
