"""Unusable data are refused with the place, what was found and what is accepted."""

import json
from pathlib import Path

import pytest

from fastmem.errors import FastMemError, InputError, TaskError
from fastmem.lab.tasks import load
from fastmem.lab.tasks.row_schema import as_list
from task_rows import HOTPOT_ROW, HUB_ROW, PAPER_ROW, TRAP_ROW, write


def refused(name: str, path: Path, kind: type[FastMemError] = TaskError) -> str:
    with pytest.raises(kind) as caught:
        load(name, path)
    return str(caught.value)


def test_unknown_task():
    with pytest.raises(InputError, match=r"unknown task 'nqswap'\. Did you mean 'nq_swap'"):
        load("nqswap")


def test_missing_column_names_found_and_expected(tmp_path):
    row = {key: value for key, value in HUB_ROW.items() if key != "sub_answer"}
    text = refused("nq_swap", write(tmp_path / "a.jsonl", [row]))
    assert text == (
        "a.jsonl, line 1: no column 'sub_answer', which nq_swap needs. Found: question, org_context, "
        "org_answer, sub_context. Accepted: question, sub_context, sub_answer, org_answer (the hub's); "
        "input, sub_context, sub_answer, answer (the paper's)."
    )


def test_missing_column_further_down(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(PAPER_ROW) + "\n\n" + json.dumps({"input": "who"}) + "\n")
    assert refused("nq", path) == "a.jsonl, line 3: no column 'context'; found input."


@pytest.mark.parametrize("answer", ["", "  ", [], [""], None])
def test_row_without_an_answer(answer, tmp_path):
    path = write(tmp_path / "a.jsonl", [PAPER_ROW, PAPER_ROW | {"answer": answer}])
    assert refused("nq", path) == f"a.jsonl, line 2: 'answer' holds no answer; found {answer!r}."


def test_row_without_a_context(tmp_path):
    path = write(tmp_path / "a.json", [PAPER_ROW | {"context": ""}])
    assert refused("nq", path) == "a.json, item 1: 'context' must be a text; found ''."


@pytest.mark.parametrize(
    ("task", "row", "named"),
    [
        ("nq", PAPER_ROW | {"context": "The \ud83d light"}, "'context' is not text (character 4"),
        ("nq", PAPER_ROW | {"answer": ["Ada", "A\udc00"]}, "'answer' is not text (character 1"),
        ("nq", PAPER_ROW | {"answer": '["A\\ud800"]'}, "'answer' is not text (character 1"),
        ("hotpotqa", HOTPOT_ROW | {"id": "\ud83d"}, "'id' is not text (character 0"),
        # Read in the task's own way: the part of the example is named.
        (
            "hotpotqa",
            HOTPOT_ROW | {"context": {"title": ["T"], "sentences": [["Half \ud83d."]]}},
            "'context' is not text (character ",
        ),
        ("squad2", {"question": "q", "context": "c", "answers": {"text": ["\ud83d"]}}, "'answers' is not text (cha"),
    ],
)
def test_half_of_a_character_names_row_and_column(tmp_path, task, row, named):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    said = refused(task, path)
    assert said.startswith(f"a.jsonl, line 1: {named}"), said
    assert said.endswith(" is half of a surrogate pair).")


def test_duplicate_ids(tmp_path):
    path = write(tmp_path / "a.jsonl", [HOTPOT_ROW, HOTPOT_ROW | {"id": "6"}, HOTPOT_ROW])
    assert refused("hotpotqa", path) == (
        "a.jsonl, line 3: the id '5a7' was used at a.jsonl, line 1 already; ids must be unique in a task."
    )


def test_truncated_jsonl_names_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAPER_ROW] * 3)
    path.write_text(path.read_text()[:-40])
    assert refused("nq", path).startswith("a.jsonl, line 3: not JSON (Unterminated string")


def test_truncated_json_names_the_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([PAPER_ROW] * 3, indent=1)[:-40])
    assert refused("nq", path).startswith("a.json, line 20: not JSON")


def test_truncated_csv_names_the_line_of_the_row(tmp_path):
    path = write(tmp_path / "a.csv", [PAPER_ROW | {"context": "two\nlines"}] * 2)
    path.write_text(path.read_text()[:-30])
    assert refused("nq", path).startswith("a.csv, line 4: 5 columns are named in line 1, this row has fewer.")
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("lines")])
    assert refused("nq", path).startswith("a.csv, line 4: not CSV (unexpected end of data)")


def test_truncated_parquet(tmp_path):
    path = write(tmp_path / "a.parquet", [HUB_ROW])
    path.write_bytes(path.read_bytes()[:-50])
    assert refused("nq", path).startswith("a.parquet is not a complete parquet file (")


def test_other_bad_files(tmp_path):
    gone = tmp_path / "gone.jsonl"
    assert refused("nq", gone).startswith(f"no data file at {gone}: check the path, or leave it out")
    (tmp_path / "a.txt").write_text("x")
    accepted = ".jsonl, .json, .csv, .tsv, .parquet, .pqt"
    assert refused("nq", tmp_path / "a.txt") == f"cannot read a.txt: accepted are {accepted}."
    (tmp_path / "a.json").write_text('{"input": 1}')
    assert "expected a list of rows; found dict" in refused("nq", tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_text("[1]\n")
    assert refused("nq", tmp_path / "b.jsonl") == "b.jsonl, line 1: expected an object with columns; found '[1]'."
    (tmp_path / "c.jsonl").write_bytes(b'{"input": "\xff"}')
    assert refused("nq", tmp_path / "c.jsonl").startswith("c.jsonl is not UTF-8 text (byte 11)")
    (tmp_path / "empty.jsonl").write_text("")
    assert refused("nq", tmp_path / "empty.jsonl") == "empty.jsonl holds no row for the task 'nq'."
    assert "mixes .json and .jsonl files: name one file, or a pattern such as" in refused("nq", tmp_path)


def test_a_pattern_names_several_files(tmp_path):
    for number in (2, 1):
        write(tmp_path / f"{number}-part.csv", [TRAP_ROW | {"prompt": f"Say {number}: so"}])
    (tmp_path / "notes.jsonl").write_text("{}")
    data = load("memotrap_full", tmp_path / "*.csv")
    assert [(e.id, e.context) for e in data.examples] == [("row-1", "Say 1."), ("row-2", "Say 2.")]
    assert {e.subset for e in data.examples} == {"part"}
    assert data.source == f"{tmp_path.name}/*.csv"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompt": "no seam"}, "no colon to split instruction and sentence at; found 'no seam'"),
        ({"classes": "[' one']"}, "'classes' must be two candidates"),
        ({"answer_index": "2"}, "'answer_index' must be 0 or 1; found '2'"),
    ],
)
def test_bad_memotrap_rows(change, text, tmp_path):
    assert text in refused("memotrap", write(tmp_path / "a.csv", [TRAP_ROW | change]))


PLAIN = "Mail first.  The office of Tarn closes at noon.\nIt has no phone."
CONFLICT_ROW = {"question": "When?", "answers": ["noon"], "parametric_answer": "six"}


@pytest.mark.parametrize(
    ("suffix", "row", "text"),
    [
        ("csv", {"question": "When?", "context": PLAIN, "answer": "noon"}, "line 2: 'context' must hold titles and"),
        ("jsonl", HOTPOT_ROW | {"context": [["Fog", "Fog is a book."]]}, "line 1: 'context' must hold titles and"),
        ("jsonl", HOTPOT_ROW | {"context": None}, "line 1: 'context' must hold titles and lists of sentences"),
        (
            "jsonl",
            CONFLICT_ROW | {"context": PLAIN},
            "separated by two spaces, as in CoConflictQA's HotpotQA rows; found",
        ),
    ],
    ids=["a text", "sentences as one text", "nothing", "a line without a title"],
)
def test_hotpotqa_reads_no_other_shape(suffix, row, text, tmp_path):
    said = refused("hotpotqa", write(tmp_path / f"a.{suffix}", [row]))
    assert text in said
    assert said.endswith("use the task coconflictqa, with the columns question, context and answers.")


def test_options_that_exclude_each_other(tmp_path):
    with pytest.raises(TaskError, match=r"'wikihow' is not on the hub .* give a data file \(wikihowAll.csv"):
        load("wikihow")
    with pytest.raises(InputError, match="takes no data file"):
        load("world", tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="a split can be chosen on the hub only"):
        load("nq", write(tmp_path / "a.jsonl", [PAPER_ROW]), split="dev")
    with pytest.raises(InputError, match="at least 1; given 0"):
        load("nq", write(tmp_path / "a.jsonl", [PAPER_ROW]), limit=0)
    with pytest.raises(InputError, match="unknown part of the embedded world 'train'"):
        load("world", split="train")


def test_the_text_of_an_answer_is_one_answer():
    assert as_list({"text": "Zebulon Quixote"}) == ["Zebulon Quixote"]
    assert as_list({"text": ["a", "b"]}) == ["a", "b"]
