"""Look for a recipe: the whole grid, or TPE; resumable, in several processes, never on the rows that are reported.

Rows are cut by question: every second question, by its hash, is searched, the others are held out for `eval`. Data
that are already a split of their own for this (the embedded world's "dev") are searched whole.

    search.json    what is searched, and in the end every point with its mean, the best one and the cost
    tried.jsonl    grid: one line per example with the score of every point
    journal.log    tpe: Optuna's journal
    recipe.json    the best recipe, as `ask --recipe` and `eval --recipe` take it
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastmem.errors import InputError, RunError
from fastmem.lab.run import run_files
from fastmem.lab.run.experiment import identity_of_model, model_name, recipe_values
from fastmem.lab.scores import grading, statistics, summary
from fastmem.lab.search.grid import Grid, Point, Space
from fastmem.lab.tasks import TASKS, Data, Example
from fastmem.model import FastMem

SEARCH, TRIED, JOURNAL, RECIPE = "search.json", "tried.jsonl", "journal.log", "recipe.json"
Part = Literal["searched", "held-out", "all"]
PARTS: tuple[Part, ...] = ("searched", "held-out", "all")
SEED = 0


@dataclass(frozen=True)
class Progress:
    """examples (grid) or trials (tpe) finished, by all processes, of `total`."""

    done: int
    total: int
    seconds: float


def is_searched(group: str) -> bool:
    """Whether the rows of this question belong to the half that may be searched."""
    return hashlib.sha256(f"fastmem search {group}".encode()).digest()[0] % 2 == 0


def part_of(data: Data, part: Part) -> Data:
    """The rows of one half. Rows of one question are never in both, nor those of `nq` and `nq_swap`."""
    if part == "all":
        return data
    kept = tuple(e for e in data.examples if is_searched(e.group or e.id) == (part == "searched"))
    if not kept:
        raise InputError(
            f"none of the {len(data.examples)} rows is in the part {part!r}: raise the limit.", field="limit"
        )
    return replace(data, examples=kept)


def searchable(data: Data, on_test: bool) -> Data:
    """What may be searched. Errors: `InputError` for a split made for reporting, unless `on_test` says so."""
    if on_test or (data.source == "embedded world" and data.revision == "dev"):
        return data
    if data.source == "embedded world":
        raise InputError(
            "the embedded world's test split is the one that is reported: search the split dev, or allow this one.",
            options=("split", "on_test"),
        )
    return part_of(data, "searched")


def score_of(text: str, example: Example) -> float:
    """What is maximized: the paper's accuracy; for summaries ROUGE-L, the one score that needs no other model."""
    if example.kind == "summary":
        return summary.rouge([text], [example.reference])["rougeL"][0].value or 0.0
    return float(grading.graded(text, example)["paper_correct"])


def search_grid(
    llm: FastMem,
    space: Space,
    data: Data,
    folder: Path,
    max_new_tokens: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Every point on every example. Several processes may share a folder; each takes the next free example.

    Returns what `search.json` holds. Errors: `RunError` for a folder of another search.
    """
    new_tokens = max_new_tokens or TASKS[data.task].max_new_tokens
    about = _claim(llm, space, data, folder, "grid", new_tokens)
    grid, tried, started = Grid(llm, space, new_tokens), folder / TRIED, time.perf_counter()
    tried.touch()
    while True:
        done = {row["id"] for row in _complete_lines(tried)}
        left = [(i, e) for i, e in enumerate(data.examples) if e.id not in done]
        if on_progress:
            on_progress(Progress(len(done), len(data.examples), time.perf_counter() - started))
        if not left:
            break
        taken = False
        for index, example in left:
            with _claimed(folder, index) as mine:
                if not mine or example.id in {row["id"] for row in _complete_lines(tried)}:
                    continue
                taken = True
                _append(tried, _tried(grid, example))
                break
        if not taken:  # all that is left is in the hands of other processes
            time.sleep(0.2)
    rows = _complete_lines(tried)
    points = [_judged(p, [row["scores"][i] for row in rows], rows) for i, p in enumerate(space.points)]
    seconds = sum(row["seconds"] for row in rows)
    return _finish(folder, about, points, seconds)


def _tried(grid: Grid, example: Example) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        scores, error = [score_of(text, example) for text in grid.texts(example)], None
    except Exception as problem:  # one broken example counts as wrong everywhere, and is said
        scores, error = [0.0] * len(grid.space.points), f"{type(problem).__name__}: {problem}"
    return {
        "id": example.id,
        "group": example.group or example.id,
        "scores": scores,
        "seconds": round(time.perf_counter() - started, 4),
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
) -> dict[str, Any]:
    """`trials` points in all, suggested by Optuna's TPE: rate, KL weight and alpha between the ends of the space's
    values (rate and KL on a logarithmic scale), steps and layers among them.

    The journal is shared by all processes of a folder. Every trial gives the steps on its way for free: the best of
    the space's steps is its value.
    """
    optuna = _optuna()
    new_tokens = max_new_tokens or TASKS[data.task].max_new_tokens
    about = _claim(llm, space, data, folder, "tpe", new_tokens)
    started = time.perf_counter()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(study_name="fastmem", direction="maximize", storage=storage, load_if_exists=True)
    finished = (optuna.trial.TrialState.COMPLETE,)

    def objective(trial: Any) -> float:
        begun = time.perf_counter()
        narrowed = replace(
            space,
            rates=(_between(trial, "learning_rate", space.rates, log=True),),
            kls=(_between(trial, "kl_weight", space.kls, log=True),),
            layers=(space.layers[trial.suggest_categorical("layers", list(range(len(space.layers))))],),
            alphas=(_between(trial, "alpha", space.alphas, log=False),),
        )
        grid = Grid(llm, narrowed, new_tokens)
        rows = [_tried(grid, example) for example in data.examples]
        points = [_judged(p, [row["scores"][i] for row in rows], rows) for i, p in enumerate(narrowed.points)]
        trial.set_user_attr("points", points)
        trial.set_user_attr("seconds", time.perf_counter() - begun)
        return float(max(point["score"] for point in points))

    while len(study.get_trials(deepcopy=False, states=finished)) < trials:
        trial = study.ask()
        # Seeded by the trial's number, which all processes and starts count together: none repeats another's draws.
        study.sampler = optuna.samplers.TPESampler(seed=SEED + trial.number, constant_liar=True)
        study.tell(trial, objective(trial))
        done = len(study.get_trials(deepcopy=False, states=finished))
        if on_progress:
            on_progress(Progress(done, trials, time.perf_counter() - started))
    complete = study.get_trials(deepcopy=False, states=finished)
    found = [point for trial in complete for point in trial.user_attrs["points"]]
    return _finish(folder, about, found, sum(trial.user_attrs["seconds"] for trial in complete))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError("TPE needs Optuna: pip install 'fastmem[search]', or use the sampler grid.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _between(trial: Any, name: str, values: Sequence[float], log: bool) -> float:
    low, high = min(values), max(values)
    return low if low == high else float(trial.suggest_float(name, low, high, log=log and low > 0))


def _judged(point: Point, scores: Sequence[float], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = statistics.mean(scores, [row["group"] for row in rows])
    return {
        "recipe": recipe_values(point.recipe),
        "alpha": point.alpha,
        "score": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "errors": sum(bool(row["error"]) for row in rows),
    }


def best(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest mean; among equals the one that changes least: fewest steps, lowest rate, no contrast."""
    return max(points, key=lambda p: (p["score"], -p["recipe"]["steps"], -p["recipe"]["learning_rate"], -p["alpha"]))


def _claim(llm: FastMem, space: Space, data: Data, folder: Path, sampler: str, max_new_tokens: int) -> dict[str, Any]:
    """Write or check `search.json`."""
    about = {
        "task": data.task,
        "data": {"source": data.source, "revision": data.revision, "examples": [e.id for e in data.examples]},
        "model": identity_of_model(llm),
        "sampler": sampler,
        "space": json.loads(json.dumps(asdict(space))),
        "max_new_tokens": max_new_tokens,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SEARCH
    if path.exists():
        found = run_files.read_json(path)
        for name, now in about.items():
            if found.get(name) != now:
                raise RunError(
                    f"{folder} holds another search: its {name} differs. Give another folder.", field="output"
                )
    else:
        run_files.write_json(path, about | {"model_name": model_name(llm), "points": [], "best": None})
    return about | {"model_name": model_name(llm)}


def _finish(folder: Path, about: dict[str, Any], points: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    winner = best(points)
    result = about | {"points": points, "best": winner, "seconds": round(seconds, 3)}
    run_files.write_json(folder / SEARCH, result)
    run_files.write_json(folder / RECIPE, winner["recipe"])
    return result


@contextmanager
def _claimed(folder: Path, index: int) -> Iterator[bool]:
    """Whether this process alone works on example `index`: a lock on one byte, which its death releases."""
    with (folder / "claims").open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, index)


def _append(path: Path, row: dict[str, Any]) -> None:
    """One line by one of several processes; what a killed one left behind is cut off first."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        file.seek(whole)
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
