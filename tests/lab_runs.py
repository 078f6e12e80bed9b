"""A run small enough to be killed and repeated: a tiny random model and a few made-up questions.

As a program, `python lab_runs.py run|search OUTPUT MODEL DATA` starts it and kills it repeatedly.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fastmem import FastMem, Recipe
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.runner import run
from fastmem.lab.search.grid import Space
from fastmem.lab.search.search import search_grid
from fastmem.lab.tasks import Data, load

METHODS = ("base", "cad", "fastmem", "fastmem+adacd")
SPACE = Space(Recipe(), (1e-2, 1e-1), (1, 3), (0.1, 1.0))
UNREPEATABLE = ("seconds", "peak_bytes")  # differs between runs


def write_questions(path: Path, count: int = 6) -> Path:
    """Rows in the paper's form; two of them share a passage."""
    names = ["Ada Quill", "Jon Marsh", "Ilse Brandt", "Tom Reed", "Eva Stone", "Max Field"]
    rows = [
        {
            "input": f"who keeps light {i}",
            "context": f"Light {i // 2 * 2} is kept by {names[i // 2]}.",
            "answer": names[i // 2],
            "sub_context": f"Light {i // 2 * 2} is kept by {names[i // 2 - 1]}.",
            "sub_answer": names[i // 2 - 1],
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows))
    return path


def experiment(methods: tuple[str, ...] = METHODS, **options: Any) -> Experiment:
    recipe = options.pop("recipe", Recipe(learning_rate=1e-2, steps=3))
    options = {"max_new_tokens": 6, "batch_size": 2} | options
    return Experiment("nq_swap", methods, recipe, **options)


def questions(folder: Path, count: int = 6) -> Data:
    return load("nq_swap", write_questions(folder / "rows.json", count))


def repeatable(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in UNREPEATABLE} for row in rows]


def lines(folder: Path) -> int:
    path = folder / "rows.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(rows: int, output: Path, llm: FastMem, data: Data) -> None:
    """Start the run in its own process and kill it (SIGKILL) as soon as there are `rows` rows."""
    process = os.fork()
    if process == 0:
        run(llm, experiment(), data, output)
        os._exit(0)
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while lines(output) < rows and os.waitid(os.P_PID, process, ended) is None:
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def search_killed_and_gone_on(output: Path, llm: FastMem, data: Data) -> None:
    """One process is killed as soon as an example is finished, then another goes on."""
    child = os.fork()
    if not child:
        search_grid(llm, SPACE, data, output, max_new_tokens=4)
        os._exit(0)
    tried = output / "tried.jsonl"
    while not (tried.exists() and tried.stat().st_size):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    search_grid(llm, SPACE, data, output, max_new_tokens=4)


if __name__ == "__main__":
    # Import torch once for all forks; no thread may exist before a fork.
    what, folder, model, rows = sys.argv[1], *map(Path, sys.argv[2:])
    loaded, asked = FastMem.from_pretrained(model), load("nq_swap", rows)
    if what == "search":
        search_killed_and_gone_on(folder, loaded, asked)
    else:
        for count in (1, 3, 4, 7, 12, 13, 19):
            kill_after(count, folder, loaded, asked)
        print(lines(folder))
