"""Files that version 0.1.0 (commit f23b68b) wrote are read: memories, and the folder of a run.

`data/written-by-0.1.0` was written on one thread with torch 2.13.0: two memories of `recorded_memories.CASES`, and
`fastmem eval --task world_swap --methods base,fastmem --limit 3`, of whose summary only the name of the platform was
shortened.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from command_line import Runner
from conftest import ROOT
from families import build
from fastmem import FastMem, Memory, Recipe, Tokens
from fastmem.lab.run.run_files import read_examples, read_rows
from recorded_memories import CASES, DOCUMENT

WRITTEN = ROOT / "tests" / "data" / "written-by-0.1.0"
PROMPT = Tokens(DOCUMENT.ids[:9])


@pytest.mark.parametrize("case", ["llama", "lora"])
def test_a_memory_file_gives_the_same_answers(case: str) -> None:
    family, changes = CASES[case]
    llm = FastMem(build(family), None)
    read = Memory.load(WRITTEN / f"memory-{case}.safetensors")
    made = llm.memorize(DOCUMENT, Recipe(**changes))
    assert read.recipe == made.recipe
    assert read.base == made.base
    for name, tensor in made.tensors.items():
        torch.testing.assert_close(read.tensors[name], tensor, rtol=0, atol=1e-6)
    options = {"max_new_tokens": 6, "ignore_eos": True}
    answers = [llm.generate(PROMPT, memory=memory, **options).token_ids for memory in (read, made)]
    assert answers[0] == answers[1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / "run", tmp_path / "run"))


def test_the_folder_of_a_run_is_reported(run: Path, capsys) -> None:
    found = Runner(capsys)("report", run, "--format", "json", "-q")
    assert found.code == 0, found.err
    right = {}
    for method in ("base", "fastmem"):
        rows = [row for row in read_rows(run) if row["method"] == method]
        right[method] = sum(row["scores"]["paper_correct"] for row in rows) / len(rows)
    assert right == {"base": pytest.approx(1 / 3), "fastmem": 1.0}
    text = json.dumps(json.loads(found.out))
    assert "0.333" in text
    assert "0.1.0" in (run / "summary.json").read_text()


def test_a_run_of_another_embedded_model_is_not_continued(run: Path, capsys) -> None:
    """The model and its questions are others since 0.2.0."""
    before = (run / "rows.jsonl").read_text()
    arguments = ("--task", "world_swap", "--methods", "base,fastmem", "--limit", 3, "--output", run, "-q")
    found = Runner(capsys)("eval", *arguments)
    assert found.code == 2
    assert "holds another run: data.digest was '0e87cc35112e8e3c', now " in found.err
    assert "Give another folder, or the old value" in found.err
    assert (run / "rows.jsonl").read_text() == before


def test_a_run_is_continued_whose_folder_was_written_by_0_1_0(run: Path, tmp_path: Path, capsys) -> None:
    """Its files hold a run of today: the same names and fields, filled with what is answered now."""
    arguments = ("--task", "world_swap", "--methods", "base,fastmem", "--limit", 3, "-q")
    arguments += ("--learning-rate", 5e-4)  # as it was recommended for the model of 0.1
    assert Runner(capsys)("eval", *arguments, "--output", tmp_path / "now").code == 0
    now = json.loads((tmp_path / "now" / "run.json").read_text())
    about = json.loads((run / "run.json").read_text())
    for name in ("data", "model"):
        about["identity"][name] = {key: now["identity"][name][key] for key in about["identity"][name]}
    (run / "run.json").write_text(json.dumps(about))
    filled = {}
    for name in ("examples.jsonl", "rows.jsonl"):
        lines = zip(*((folder / name).read_text().splitlines() for folder in (run, tmp_path / "now")), strict=True)
        filled[name] = [{k: json.loads(new).get(k) for k in json.loads(old)} for old, new in lines]
        (run / name).write_text("".join(json.dumps(line) + "\n" for line in filled[name]))
    (run / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in filled["rows.jsonl"][:-1]))
    found = Runner(capsys)("eval", *arguments, "--output", run)
    assert found.code == 0, found.err
    texts = {(row["id"], row["method"]): row["text"] for row in filled["rows.jsonl"]}
    assert {(row["id"], row["method"]): row["text"] for row in read_rows(run)} == texts
    assert len(read_examples(run)) == 3
