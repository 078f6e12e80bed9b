"""`fastmem suite`: several data sets with one command, resumed after an interruption, in one report."""

import os
import subprocess
from pathlib import Path

import pytest

from command_line import Runner
from conftest import ROOT
from fastmem.cli import command
from fastmem.lab.report.results import load_results
from fastmem.lab.run.evaluate_batch import BatchEvaluator
from fastmem.lab.run.run_files import read_rows
from fastmem.lab.run.suite import METHODS, TASK_NAMES
from fastmem.lab.tasks import TASKS as TASKS_BY_NAME
from lab_runs import repeatable
from task_rows import write
from test_data_sets import CONFIQA, SQUAD

TASKS = ("confiqa", "squad2")


@pytest.fixture
def suite(fastmem, tmp_path, monkeypatch) -> Runner:
    """`suite(*arguments)`: the embedded model on two tiny tasks, and a hub that cannot be reached."""
    import datasets

    def refuse(name, *args, **kwargs):
        raise ConnectionError(f"no network to {name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    data = tmp_path / "data"
    (data / "confiqa").mkdir(parents=True)
    names = ("Jon Marsh", "Eva Stone", "Tom Reed")
    rows = [CONFIQA | {"cf_answer": name, "cf_context": f"The light is kept by {name}."} for name in names]
    write(data / "confiqa" / "ConFiQA-QA.json", rows[:2])
    write(data / "confiqa" / "ConFiQA-MR.json", rows[2:])
    write(data / "squad2.jsonl", [SQUAD, SQUAD | {"id": "s2", "answers": {"text": []}}])
    options = ["--max-new-tokens", "4", "--steps", "1", "--batch-size", "2"]

    def type_in(*arguments):
        return fastmem("suite", "--data", data, *options, *arguments)

    return type_in


def test_the_suite_goes_on_after_an_interruption(suite, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    chosen = ["--tasks", "confiqa,squad2,nomiracl", "--methods", "base,fastmem"]
    done = suite(*chosen, "--output", whole)
    assert done.code == 0, done.err
    assert "note: nomiracl has no data: cannot load miracl/nomiracl (english, test.relevant+" in done.err
    assert "- nomiracl is missing: cannot load miracl/nomiracl" in done.out
    assert "| method  | confiqa Pc " in done.out
    header = next(line for line in done.out.splitlines() if line.startswith("| method  | confiqa Pc "))
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["method", "confiqa Pc", "squad2 EM"]
    assert "| confiqa | ConFiQA, passages that contradict the facts | 3 |" in done.out
    assert all(f"<h2>{task} " in (whole / "report.html").read_text() for task in TASKS)

    rows, calls = BatchEvaluator.rows, []

    def interrupted(self, batch, method, base_texts):
        calls.append(method)
        if len(calls) == 6:  # in the second task
            raise KeyboardInterrupt
        return rows(self, batch, method, base_texts)

    monkeypatch.setattr(BatchEvaluator, "rows", interrupted)
    left = suite(*chosen, "--output", stopped)
    assert left.code == 130
    assert "squad2: 2 rows are finished" in left.err
    assert len(read_rows(stopped / "squad2")) == 2
    monkeypatch.setattr(BatchEvaluator, "rows", rows)
    assert suite(*chosen, "--output", stopped).code == 0
    for task in TASKS:
        assert repeatable(read_rows(stopped / task)) == repeatable(read_rows(whole / task))
        results = load_results(stopped / task)
        assert results.complete
        assert results.methods == ["base", "fastmem"]


def test_all_methods_by_default_and_the_cost_alone(suite, tmp_path):
    done = suite("--tasks", "squad2", "--limit", "1", "--output", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert list(done.json) == ["squad2"]
    assert done.json["squad2"]["examples"] == 2
    assert {row["method"] for row in read_rows(tmp_path / "run/squad2")} == set(METHODS)
    assert len(METHODS) == 11


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "nq"], "unknown task of the suite 'nq'"),
        (["--tasks", ","], "--tasks is ',': give at least one of confiqa, "),
        (["--methods", "fastmen"], "unknown method 'fastmen'"),
        (
            ["--data", "nowhere"],
            "there is no folder nowhere: give one with files such as confiqa.json (option --data).",
        ),
        (["--tasks", "cub"], "error: none of the suite's tasks has data: give a folder of local files."),
    ],
)
def test_bad_arguments(suite, arguments, said, tmp_path):
    done = suite(*arguments, "--output", tmp_path / "run")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run").exists()


def test_each_task_of_the_suite_has_a_line_in_the_documents():
    text = (ROOT / "docs" / "reference" / "scores.md").read_text()
    assert [name for name in TASK_NAMES if f"`{name}`" not in text] == []


def test_the_script_for_one_gpu_gives_commands_that_exist(tmp_path):
    """With programs in place of pip, curl, hf, python and fastmem that write down their arguments."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    for name in ("pip", "curl", "hf", "python", "fastmem"):
        program = programs / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\t" {name} "$@" >> {log}\necho >> {log}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    script = ROOT / "examples" / "one_gpu.sh"
    done = subprocess.run(
        ["bash", script, tmp_path / "out"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    commands = [line.split("\t")[:-1] for line in log.read_text().splitlines()]
    ours = [arguments[1:] for arguments in commands if arguments[0] == "fastmem"]
    assert [name for name, *_ in ours] == [*["paper", "suite"] * 2, "calibrate", *["paper", "suite"] * 2]
    for name, *arguments in ours:
        command(name).make_context(name, arguments)  # raises for options that do not exist
    outputs = [arguments[arguments.index("--output") + 1] for arguments in ours]
    assert len(set(outputs)) == len(outputs)
    downloaded = [Path(arguments[-2].removesuffix(".part")) for arguments in commands if arguments[0] == "curl"]
    found = {path.relative_to(tmp_path / "out/data").parts[0].split(".")[0] for path in downloaded}
    assert found == {"confiqa", "clasheval", "cub", "nomiracl"}
    assert found == {name for name in TASK_NAMES if TASKS_BY_NAME[name].hub is None} | {"nomiracl"}
