"""A metric of one's own, one Python file: the documented example runs, its scores are means with intervals."""

import json
from pathlib import Path

import pytest

from command_line import refusal, save
from conftest import ROOT
from fastmem.lab.run.run_files import read_examples, read_rows
from fastmem.lab.scores import statistics
from lab_runs import write_questions

EXAMPLE = ROOT / "examples" / "my_metric.py"


def metric(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def command(llama, tmp_path) -> list:
    data, model = write_questions(tmp_path / "rows.json"), save(llama, tmp_path / "model")
    options = ["--methods", "base,fastmem", "--steps", "2", "--learning-rate", "0.1", "--max-new-tokens", "6"]
    return ["eval", "--task", "nq_swap", "--data", data, "--model", model, *options, "--output", tmp_path / "run"]


def test_the_example_with_eval(fastmem, command, tmp_path):
    done = fastmem(*command, "--metric", EXAMPLE)
    assert done.code == 0, done.err
    header, _, base, _ = table(done.out)
    assert header[-2:] == ["grounded words", "all grounded"]
    rows = [row for row in read_rows(tmp_path / "run") if row["method"] == "base"]
    own, examples = namespace(EXAMPLE), {example.id: example for example in read_examples(tmp_path / "run")}
    for name, cell in zip(header[-2:], base[-2:], strict=True):
        values = [own["score"](row["text"], examples[row["id"]])[name] for row in rows]
        assert [row["scores"][name] for row in rows] == values
        mean = statistics.mean(values, [row["group"] for row in rows])
        assert cell.startswith(f"{mean.value:.3f}")
        assert ("[" in cell) == (mean.low is not None)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(summary["methods"]["fastmem"]["scores"]) > {"grounded words", "all grounded", "exact_match"}
    assert json.loads((tmp_path / "run/run.json").read_text())["identity"]["metrics"].keys() == {"my_metric.py"}
    assert fastmem("report", tmp_path / "run").out == done.out
    assert "grounded words, with 95 % intervals" in (tmp_path / "run/report.html").read_text()
    means = fastmem("report", tmp_path / "run", "--json").json["means"]["run"]["base"]
    assert means["grounded words"] == summary["methods"]["base"]["scores"]["grounded words"]["value"]


def namespace(path: Path) -> dict:
    values: dict = {}
    exec(path.read_text(), values)
    return values


def table(out: str) -> list[list[str]]:
    """The cells of the table with all scores."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if "| n | errors |" in line)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start : start + 4]]


def test_the_example_with_report(fastmem, command, tmp_path):
    """A metric is added to a finished run, from its rows: the same numbers as with eval."""
    fastmem(*command)
    added = fastmem("report", tmp_path / "run", "--metric", EXAMPLE)
    assert added.code == 0, added.err
    assert "- grounded words, all grounded: computed by my_metric.py for this report." in added.out
    assert not any("grounded words" in row["scores"] for row in read_rows(tmp_path / "run"))
    command[-1] = tmp_path / "other"
    assert table(fastmem(*command, "--metric", EXAMPLE).out) == table(added.out)


def test_a_report_can_replace_the_scores_of_a_run(fastmem, command, tmp_path):
    own = metric(tmp_path / "m.py", "def score(text, example): return 1 if example.id != 'row-3' else 1 / 0\n")
    done = fastmem(*command, "--metric", own)
    assert "- base: m is missing in 1 rows; its mean is that of the others." in done.out
    assert table(done.out)[2][-1] == "1.000"
    metric(own, "def score(text, example): return 2\n")
    again = fastmem("report", tmp_path / "run", "--metric", own)
    assert table(again.out)[2][-1] == "2.000"
    assert "missing" not in again.out
    metric(own, "def score(text, example): return 1 / len(text)\n")
    assert "Tried with the answer ''" in refusal(fastmem("report", tmp_path / "run", "--metric", own))
    metric(own, "def score(text, example): return 3 if text in ('', *example.answers) else 1 / 0\n")
    again = fastmem("report", tmp_path / "run", "--metric", own)
    assert "- base, fastmem: m is missing: m.py, line 1: ZeroDivisionError: division by zero" in again.out
    assert table(again.out)[0][-1] != "m", "no value of the run is taken for one of the new file"


def test_several_metrics_and_what_a_run_records(fastmem, command, tmp_path):
    first = metric(tmp_path / "a.py", "def score(text, example): return len(text)\n")
    second = metric(tmp_path / "b.py", "import numpy\ndef score(text, example): return {'c': numpy.bool_(1)}\n")
    both = ["--metric", first, "--metric", second]
    done = fastmem(*command, *both)
    assert table(done.out)[0][-2:] == ["a", "c"]
    assert table(done.out)[2][-1].startswith("1.000 ["), "booleans have exact intervals"
    said = refusal(fastmem(*command))
    assert f"{tmp_path / 'run'} holds another run: metrics was {{'a.py': '" in said
    metric(first, first.read_text() + "# changed\n")
    assert "holds another run: metrics.a.py was '" in refusal(fastmem(*command, *both))
    metric(second, "def score(text, example): return {'a': 1}\n")
    assert "b.py: another file has a score 'a', too" in refusal(fastmem(*command, *both))
    (tmp_path / "c").mkdir()
    same = metric(tmp_path / "c/a.py", "def score(text, example): return {'d': 1}\n")
    assert "two files are called a.py: give each its own name (option --metric)." in refusal(
        fastmem(*command, "--metric", first, "--metric", same)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def scores(): pass\n",
            "m.py: it defines no function 'score': a metric needs `def score(text, exam",
        ),
        ("def score(text, example):\n    return text.nothing\n", "m.py, line 2: AttributeError: 'str' object has"),
        (
            "def score(text, example):\n    return {'x': [1]}\n",
            "the score 'x' is [1]; give a number, True, False",
        ),
        (
            "def score(text, example):\n    return {7: 1}\n",
            "the score is called 7; give a short text on one line",
        ),
        ("import sys\ndef score(text, example):\n    sys.exit()\n", "m.py, line 3: SystemExit"),
    ],
)
def test_a_bad_metric_is_refused_before_a_model_is_loaded(text, said, fastmem, command, tmp_path):
    own = metric(tmp_path / "m.py", text)
    command[command.index("--model") + 1] = tmp_path / "no-model"
    found = refusal(fastmem(*command, "--metric", own))
    assert said in found
    assert found.endswith("(option --metric).")
    assert not (tmp_path / "run").exists()
    assert "there is no metric file" in refusal(fastmem(*command, "--metric", tmp_path / "gone.py"))


def test_summaries_have_it_too(fastmem, command, tmp_path):
    rows = [{"article": "Rain fell on the town.", "summary": "Rain."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    own = metric(tmp_path / "m.py", "def score(text, example): return len(example.context)\n")
    command[2], command[4] = "xsum", tmp_path / "a.json"
    done = fastmem(*command, "--metric", own, "--factkb", "none", "--bertscore", "none")
    assert done.code == 0, done.err
    assert table(done.out)[0][-1] == "m"
    assert table(done.out)[2][-1] == "22.000"


def test_rows_that_ended_in_an_error_keep_their_score(fastmem, command, tmp_path, monkeypatch):
    from fastmem import FastMem

    own = metric(tmp_path / "m.py", "def score(text, example): return len(text) + 0.5\n")
    monkeypatch.setattr(FastMem, "prepare", lambda *args, **options: 1 / 0)
    done = fastmem(*command, "--metric", own)
    assert done.code == 0, done.err
    assert table(done.out)[2][2:4] == ["6", "0.000 [0.000, 0.459]"], "wrong by our scores"
    assert table(done.out)[2][-1] == "0.500", "and by one's own an empty answer"
