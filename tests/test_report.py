"""Reports: grading again from the raw texts without torch, the paper's figures, and a self-contained page."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import in_a_process, refusal
from fastmem import FastMem, Recipe
from fastmem.errors import RunError
from fastmem.lab.report import load_results, page, tables
from fastmem.lab.report.paper_figures import FIGURES, paper_model, published
from fastmem.lab.run import run_files
from fastmem.lab.run.runner import run
from lab_runs import experiment, questions


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A finished run. A report must depend on nothing but its files."""
    from families import build

    place = tmp_path_factory.mktemp("report")
    recipe = Recipe(learning_rate=0.1, steps=4)
    llm = FastMem(build("llama"), tokenizer)
    run(llm, experiment(("base", "fastmem", "cad"), recipe=recipe), questions(place), place / "run")
    return place / "run"


@pytest.fixture
def answered(folder, tmp_path) -> Path:
    """A copy in which the base is always wrong and fastmem is right on every second row."""
    target = tmp_path / "edited"
    target.mkdir()
    for name in (run_files.RUN, run_files.EXAMPLES, run_files.SUMMARY):
        (target / name).write_text((folder / name).read_text())
    golds = {e.id: e.answers[0] for e in run_files.read_examples(folder)}
    lines = []
    for i, row in enumerate(run_files.read_rows(folder)):
        right = row["method"] == "fastmem" and i % 2
        row["text"] = f"The answer is: {golds[row['id']]}" if right else "The answer is: <b>nobody</b>"
        if row["method"] == "fastmem":
            row["moved"] = [["The", -0.1, -0.05], [" answer", -3.0, -0.1]]
        lines.append(json.dumps(row) + "\n")
    (target / run_files.ROWS).write_text("".join(lines))
    return target


def test_rows_are_graded_again_from_their_raw_text(answered):
    results = load_results(answered)
    assert results.mean("base", "paper_correct").value == 0
    assert results.mean("fastmem", "paper_correct").value == 0.5
    found = results.against_base("fastmem", "paper_correct")
    assert (found.only_first, found.only_second, found.test) == (0, 3, "mcnemar")
    assert re.search(r"\| fastmem +\| \+0\.500 \[", tables([results]))


def test_an_error_stays_in_the_denominator(answered):
    rows = run_files.read_rows(answered)
    rows[0] |= {"error": "RuntimeError: broke", "text": ""}
    (answered / run_files.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = load_results(answered)
    method = rows[0]["method"]
    assert results.mean(method, "paper_correct").n == 6
    assert f"- {method}: 1 errors, counted as wrong; the first: RuntimeError: broke" in tables([results])


def test_an_unfinished_run_is_reported_as_such(answered):
    rows = (answered / run_files.ROWS).read_text().splitlines(keepends=True)
    (answered / run_files.ROWS).write_text("".join(rows[:-2]))
    text = tables([load_results(answered)])
    assert "Not finished: 2 rows are missing; run the same `fastmem eval` again to continue." in text


def test_a_partial_run_is_marked_wherever_its_figures_stand(folder, answered):
    rows = (answered / run_files.ROWS).read_text().splitlines(keepends=True)
    (answered / run_files.ROWS).write_text("".join(rows[:-2]))  # the last batch of cad
    whole, partial = load_results(folder), load_results(answered)
    text = tables([partial, whole])
    overview, of_partial, of_whole = re.split("### .*\n", text)
    header, _, *lines = [line.split("|")[2:-1] for line in overview.splitlines() if line.startswith("|")]
    assert [title.strip() for title in header] == ["nq_swap (edited)", "nq_swap (run)"]
    assert [[", 4 of 6 rows" in cell for cell in line] for line in lines] == [
        [False, False],
        [True, False],
        [False] * 2,
    ]
    assert len(re.findall(r"^\| cad \(4 of 6 rows\) ", of_partial, re.MULTILINE)) == 3  # scores, differences, seconds
    assert len(re.findall(r"^\| cad ", of_partial, re.MULTILINE)) == 3
    assert "of 6 rows" not in of_whole
    (answered / run_files.ROWS).write_text("".join(row for row in rows if '"base"' not in row or row is not rows[0]))
    assert "| against base (5 of 6 rows) |" in tables([load_results(answered)])
    marked = page([partial])
    assert marked.count("4 of 6 rows</text>") == 4  # two charts of means, the outcomes, the seconds
    assert "<th>cad (4 of 6 rows)</th>" in marked
    assert "of 6 rows" not in page([whole])


def test_regrading_loads_no_model_and_no_torch(folder):
    program = (
        "import sys; from pathlib import Path; from fastmem.lab.report import *; "
        f"r = load_results(Path({str(folder)!r})); tables([r]); page([r]); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("format", ["markdown", "json"])
def test_a_folder_whose_name_the_encoding_of_the_output_lacks(answered, format):
    target = answered.rename(
        answered.with_name(os.fsdecode(b"\xff\xe2\x86\x92"))
    )  # a byte that is no UTF-8, and an arrow
    said = in_a_process("report", target, "--format", format, PYTHONIOENCODING="ascii")
    assert (said.code, "\\udcff\\u2192" in said.out) == (0, True), said.err
    assert "\\udcff→" in (target / "report.html").read_text()


def test_the_page_is_self_contained(answered):
    text = page([load_results(answered)])
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert not re.search(r"https?://", text)
    assert "<script" not in text
    assert "<b>nobody</b>" not in text  # a model's answer is text, not markup
    assert "&lt;b&gt;nobody&lt;/b&gt;" in text
    for expected in ("repaired 3", "cross entropy of the document", "KL to the untouched model", "0.050 → 0.905"):
        assert expected in text, expected
    assert text.count("<svg") >= 4
    assert '<mark class="gold">' in text


def test_the_papers_figures_are_shown_for_its_models_only(answered):
    assert paper_model("meta-llama/Meta-Llama-3-8B-Instruct") == "Llama-3-8B-Instruct"
    assert paper_model("Llama-3-8B-Instruct") == "Llama-3-8B-Instruct"
    assert paper_model("meta-llama/Llama-3.1-8B-Instruct") is None
    assert paper_model("fastmem-tiny") is None
    assert published("Qwen/Qwen1.5-7B-Chat", "nq_swap", "fastmem+cd", "paper_correct") == 0.752
    assert published("Qwen/Qwen1.5-7B-Chat", "nq_swap", "cad", "paper_correct") is None
    about = json.loads((answered / run_files.RUN).read_text())
    about["model"]["name"] = "meta-llama/Meta-Llama-3-8B-Instruct"
    (answered / run_files.RUN).write_text(json.dumps(about))
    text = tables([load_results(answered)])
    assert "in brackets what arXiv 2406.16069 publishes for Llama-3-8B-Instruct" in text
    assert re.search(r"\| fastmem \| 0\.500 \[0\.\d{3}, 0\.\d{3}\] \(0\.715\) *\|", text)


def test_format_failures_are_shown_beside_the_papers(answered):
    about = json.loads((answered / run_files.RUN).read_text())
    about["model"]["name"] = "Qwen/Qwen1.5-4B-Chat"
    (answered / run_files.RUN).write_text(json.dumps(about))
    rows = (answered / run_files.ROWS).read_text().replace('"method": "cad"', '"method": "one-shot"')
    (answered / run_files.ROWS).write_text(rows)
    results = load_results(answered)
    for text in (tables([results]), page([results])):
        assert "(0.251)" in text, "accuracy of one-shot on NQ-SWAP"
        assert "(0.578)" in text, "its format failures"
    assert published("Qwen/Qwen1.5-4B-Chat", "nq", "one-shot", "paper_failure") == 0.600


def test_published_figures_are_shares():
    assert all(0 < value < 1 for figures in FIGURES.values() for value in figures.values())
    assert {task for figures in FIGURES.values() for task, _, _ in figures} == {
        "nq", "nq_swap", "memotrap", "hotpotqa", "cnndm", "xsum", "wikihow",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "change", "text"),
    [
        ("run.json", 0, {"identity": None}, "run.json: identity must be an object; it is missing or null"),
        ("run.json", 0, {"identity.format": 2}, "run.json: identity.format must be 1; found 2"),
        (
            "run.json",
            0,
            {"identity.recipe.steps": "4"},
            "run.json: identity.recipe.steps must be a whole number; found '4'",
        ),
        ("run.json", 0, {"kind": "quiz"}, "kind must be 'choice' or 'question' or 'summary'; found 'quiz'"),
        ("summary.json", 0, {"environment": []}, "summary.json: environment must be an object; found []"),
        (
            "rows.jsonl",
            2,
            {"seconds": {"trunk": 1}},
            "rows.jsonl, line 3: seconds.steps must be a number; it is missing",
        ),
        (
            "rows.jsonl",
            2,
            {"scores.f1": "high"},
            "line 3: scores.f1 must be a number, true, false or null; found 'high'",
        ),
        ("rows.jsonl", 2, {"moved": [["a", 1]]}, "line 3: moved[0] must be a list of 3; found ['a', 1]"),
        ("rows.jsonl", 2, None, "rows.jsonl, line 3: it must be an object; it is missing or null"),
        ("rows.jsonl", 2, {"error": "absent"}, "rows.jsonl, line 3: error is missing"),
        ("examples.jsonl", 1, {"answers": "Bo"}, "examples.jsonl, line 2: answers must be a list; found 'Bo'"),
        (
            "examples.jsonl",
            1,
            {"kind": "summary", "answers": []},
            "line 2: answers is empty; it must hold the reference",
        ),
    ],
)
def test_a_value_that_was_edited_is_named_with_its_place(answered, fastmem, name, line, change, text):
    lines = (answered / name).read_text().splitlines() if name.endswith("l") else [(answered / name).read_text()]
    value = json.loads(lines[line])
    for path, new in (change or {}).items():
        *parents, last = path.split(".")
        functools.reduce(dict.__getitem__, parents, value)[last] = new
        if new == "absent":
            del value[last]
    lines[line] = json.dumps(None if change is None else value)
    (answered / name).write_text("\n".join(lines) + "\n")
    for command in (("report", answered), ("compare", answered, "--method-a", "base", "--method-b", "cad")):
        said = refusal(fastmem(*command, "-q"))
        assert text in said
        assert said.endswith(
            ("Undo what was changed there, or run it again in a new folder.", "the reference summary.")
        )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("summary.json", {"environment": None}),
        ("summary.json", {"environment": {"packages": None, "git": {"commit": None}}}),
        ("rows.jsonl", {"scores": {}}),
    ],
)
def test_values_that_a_report_can_do_without(answered, fastmem, name, change):
    whole = (answered / name).read_text()
    first, *others = whole.splitlines() if name.endswith("l") else [whole]
    (answered / name).write_text("\n".join([json.dumps(json.loads(first) | change), *others]) + "\n")
    said = fastmem("report", answered, "-q")
    assert said.code == 0, said.err


@pytest.mark.parametrize("name", ["rows.jsonl", "examples.jsonl"])
def test_lines_that_are_there_twice_or_cut(answered, fastmem, name):
    whole = (answered / name).read_text()
    first, second, *others = whole.splitlines(keepends=True)
    (answered / name).write_text(first + second + first + "".join(others))
    said = refusal(fastmem("report", answered))
    assert f"{name}, line 3: " in said
    assert "line 1: delete one." in said
    (answered / name).write_text(first[:-9] + "\n" + second + "".join(others))
    assert f"{name}, line 1 is damaged (" in refusal(fastmem("report", answered))
    (answered / name).write_text("[" * 100_000 + "\n" + whole)
    assert f"{name}, line 1 is damaged (" in refusal(fastmem("report", answered))
    (answered / name).write_text("")
    assert "no" in refusal(fastmem("report", answered))


def test_folders_that_hold_no_run(answered, tmp_path):
    with pytest.raises(RunError, match=r"run.json does not exist: give a folder that `fastmem eval` wrote"):
        load_results(tmp_path / "nowhere")
    (answered / run_files.ROWS).write_text("")
    with pytest.raises(RunError, match=r"has no finished rows yet: run the same `fastmem eval` again"):
        load_results(answered)
