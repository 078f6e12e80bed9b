"""`fastmem report --format`: the scores of every run as CSV, LaTeX and JSON, with intervals and special characters."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from command_line import refusal
from fastmem import FastMem
from fastmem.lab.report import load_results
from fastmem.lab.report.result_formats import FORMATS, escaped, formatted
from fastmem.lab.run import run_files
from fastmem.lab.run.runner import run
from lab_runs import experiment, questions

HOSTILE = '[a]_b, 50% & "c" {d} $e #f \\g ~h ^i <j|k>'


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A run of 6 examples: the base is right on the first 2, fastmem on none and without its last row."""
    from families import build

    place = tmp_path_factory.mktemp("formats")
    run(FastMem(build("llama"), tokenizer), experiment(("base", "fastmem")), questions(place), place / "run")
    golds = {e.id: e.answers[0] for e in run_files.read_examples(place / "run")}
    rows = run_files.read_rows(place / "run")
    base = [row | {"text": "no"} for row in rows if row["method"] == "base"]
    base[:2] = [row | {"text": f"The answer is: {golds[row['id']]}"} for row in base[:2]]
    rows = base + [row | {"text": "no"} for row in rows if row["method"] == "fastmem"][:-1]
    (place / "run" / run_files.ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "run"


def test_every_score_is_a_row_of_csv_with_its_interval(folder, fastmem):
    done = fastmem("report", folder, "--format", "csv")
    assert (done.code, done.err.strip()) == (0, f"page: {folder / 'report.html'}")
    rows = {(row["method"], row["score"]): row for row in csv.DictReader(io.StringIO(done.out))}
    assert len(rows) == len(done.out.splitlines()) - 1
    right = rows["base", "paper_correct"]
    assert (right["run"], right["task"], right["n"], right["rows"], right["examples"]) == (
        "run", "nq_swap", "6", "6", "6"
    )  # fmt: skip
    assert float(right["value"]) == pytest.approx(2 / 6)
    assert 0 <= float(right["low"]) < 2 / 6 < float(right["high"]) <= 1
    partial = rows["fastmem", "exact_match"]
    assert (partial["n"], partial["rows"], partial["examples"], partial["interval"]) == ("5", "5", "6", "exact")
    # Clopper-Pearson for 0 of n, of the 5 questions.
    assert float(partial["high"]) == pytest.approx(stats.beta.ppf(0.975, 1, 5))
    assert float(partial["low"]) == 0
    constant = rows["fastmem", "f1"]
    assert (constant["value"], constant["low"], constant["high"], constant["interval"]) == ("0.0", "", "", "none")


def test_json_holds_the_same_rows_as_csv(folder, fastmem):
    found = fastmem("report", folder, "--format", "json").json
    assert found["confidence"] == 0.95
    from_csv = csv.DictReader(io.StringIO(fastmem("report", folder, "--format", "csv").out))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in found["results"]] == list(from_csv)


def test_latex_is_a_booktabs_tabular_with_intervals_and_marks(folder, fastmem):
    lines = fastmem("report", folder, "--format", "latex").out.splitlines()
    assert lines[1] == r"\begin{tabular}{lllllr}"
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert all(line.count(" & ") == 5 and line.endswith(r" \\") for line in body)
    assert re.fullmatch(
        r"run & nq\\_swap & base & accuracy \(paper\) & 0\.333 \[0\.\d{3}, 0\.\d{3}\] & 6 \\\\", body[0]
    )
    assert any(
        line.startswith(r"run & nq\_swap & fastmem (5 of 6 rows) & accuracy (paper) & 0.000 [") for line in body
    )


def test_special_characters_survive(folder):
    results = [replace(load_results(folder), name=HOSTILE + "\nsecond line")]
    rows = list(csv.DictReader(io.StringIO(formatted(results, "csv"), newline="")))
    assert {row["run"] for row in rows} == {HOSTILE + "\nsecond line"}
    lines = formatted(results, "latex").splitlines()
    for line in lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]:
        assert line[0] not in "[*", "an argument of the line break before"
        plain = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", line.removesuffix(r"\\")).replace("{[}", "")
        assert not re.search(r"[\\%$#_~^<>|\"]", plain), plain
        assert plain.count("&") == 5
    assert escaped("a_b & 50% of {x}") == r"a\_b \& 50\% of \{x\}"
    assert escaped("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"


def test_markdown_is_the_default_and_unknown_formats_are_refused(folder, fastmem):
    assert fastmem("report", folder).out == fastmem("report", folder, "--format", "markdown").out
    refused = refusal(fastmem("report", folder, "--format", "latx"))
    assert refused == f"unknown format 'latx'. Did you mean 'latex'? Accepted: {', '.join(FORMATS)} (option --format)."
    refused = refusal(fastmem("report", folder, "--format", "csv", "--json"))
    assert refused == "--json and --format csv both print the figures: give one of them."


def test_a_search_has_no_rows(folder, fastmem, tmp_path):
    search = tmp_path / "search"
    search.mkdir()
    (search / run_files.SEARCH).write_text("{}")
    refused = refusal(fastmem("report", search, "--format", "csv"))
    assert refused == f"{search} holds a search, which only --format markdown shows (option --format)."
