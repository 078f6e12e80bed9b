"""The commands for experiments: they print tables, report errors on one line and keep finished rows."""

import json
from pathlib import Path

import pytest

from fastmem.cli import run
from fastmem.lab import tasks
from fastmem.lab.run.run_files import read_rows
from lab_runs import write_questions


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory) -> Path:
    from families import build

    folder = tmp_path_factory.mktemp("model")
    tiny = build("llama")
    tiny.config.max_position_embeddings = 2048
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def typed(model, tmp_path, capsys):
    """`typed("eval", ...)`: (exit code, standard output, standard error) with the tiny model and its rows."""
    rows = write_questions(tmp_path / "rows.json")

    def type_in(command: str, *arguments: str, data: object = rows, task: str = "nq_swap"):
        given = [command, *arguments]
        if command in ("eval", "search"):
            given += ["--task", task, "--data", str(data), "--model", str(model), "--max-new-tokens", "4"]
            if "--output" not in arguments:
                given += ["--output", str(tmp_path / "run")]
        code = run(given)
        return code, *capsys.readouterr()

    return type_in


def test_eval_then_report(typed, tmp_path):
    code, out, _ = typed("eval", "--methods", "base,fastmem", "--learning-rate", "1e-2", "--steps", "2")
    assert code == 0
    assert "| method  | nq_swap" in out
    assert "rate 0.01, 2 steps" in out
    assert len(read_rows(tmp_path / "run")) == 12
    again, regraded, said = typed("report", str(tmp_path / "run"))
    assert (again, regraded) == (0, out)
    assert f"page: {tmp_path / 'run/report.html'}" in said
    assert "<svg" in (tmp_path / "run/report.html").read_text()


def test_several_tasks_are_one_table_and_one_report(typed, tmp_path):
    code, out, _ = typed("eval", "--methods", "base", task="nq,nq_swap")
    assert code == 0
    assert "| method | nq_swap" in out
    assert "### nq (nq)" in out
    for task in ("nq", "nq_swap"):
        assert len(read_rows(tmp_path / "run" / task)) == 6
    again, regraded, said = typed("report", str(tmp_path / "run"))
    assert (again, regraded) == (0, out)
    assert f"page: {tmp_path / 'run/report.html'}" in said
    _, out, _ = typed("eval", "--methods", "base", "--json", task="nq,nq_swap")
    assert set(json.loads(out.splitlines()[-1])) == {"nq", "nq_swap"}
    code, _, err = typed("eval", task="nq,nq")
    assert (code, err) == (2, "error: --task is 'nq,nq': give at least one task, and each task once.\n")


def test_json_is_the_last_line(typed, tmp_path):
    _, out, _ = typed("eval", "--methods", "base", "--json")
    assert json.loads(out.splitlines()[-1])["methods"]["base"]["rows"] == 6
    _, out, _ = typed("report", str(tmp_path / "run"), "--json")
    assert set(json.loads(out)["means"]["run"]["base"]) >= {"paper_correct", "exact_match"}


def test_partial_runs_are_marked_in_json(typed, tmp_path):
    typed("eval", "--methods", "base,cad", "--output", str(tmp_path / "a/run"))
    typed("eval", "--methods", "base,cad", "--output", str(tmp_path / "b/run"))
    rows = tmp_path / "b/run/rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-2]))
    _, out, _ = typed("report", str(tmp_path / "a/run"), str(tmp_path / "b/run"), "--json")
    found = json.loads(out)
    whole, partial = str(tmp_path / "a/run"), str(tmp_path / "b/run")
    assert found["runs"] == {
        whole: {"examples": 6, "complete": True, "rows": {"base": 6, "cad": 6}},
        partial: {"examples": 6, "complete": False, "rows": {"base": 6, "cad": 4}},
    }
    assert set(found["means"]) == {whole, partial}
    _, out, _ = typed("report", str(tmp_path / "a/run"), str(tmp_path / "b/run"))
    assert f"nq_swap ({whole})" in out, "two runs of one name are told apart"


def test_the_papers_rows_are_recorded(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "QUESTION_ROWS", 2)
    code, out, _ = typed("eval", "--methods", "base", "--paper-rows")
    assert code == 0
    assert "2 examples of rows.json, sha256:" in out
    assert ", the first 2 of 6 rows; recipe:" in out
    recorded = json.loads((tmp_path / "run/run.json").read_text())["identity"]["data"]
    assert recorded["selection"] == "the first 2 of 6 rows"


def test_search_then_eval_with_its_recipe_on_the_other_half(typed, tmp_path):
    grid = ["--rates", "1e-2,1e-1", "--steps", "1,2", "--kls", "0.1", "--output", str(tmp_path / "search")]
    code, out, said = typed("search", *grid)
    assert code == 0
    assert "4 points on" in out
    assert "evaluate it with: eval --part held-out --recipe FILE" in said
    recipe = str(tmp_path / "search/recipe.json")
    code, _, _ = typed("eval", "--methods", "base,fastmem", "--recipe", recipe, "--part", "held-out")
    assert code == 0
    searched = set(json.loads((tmp_path / "search/search.json").read_text())["data"]["examples"])
    assert not searched & {row["id"] for row in read_rows(tmp_path / "run")}
    assert len(searched) + len({row["id"] for row in read_rows(tmp_path / "run")}) == 6
    code, out, _ = typed("report", str(tmp_path / "run"), str(tmp_path / "search"), "--html", str(tmp_path / "p.html"))
    assert code == 0
    assert "## Search on nq_swap" in out
    assert "best so far" in (tmp_path / "p.html").read_text()


def damaged(path: Path, **change: object) -> Path:
    rows = json.loads(write_questions(path.with_suffix(".all")).read_text())
    rows[3] |= change
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bad_input_is_one_clear_line(typed, tmp_path):
    whole = (damaged(tmp_path / "whole.jsonl")).read_text()
    (tmp_path / "cut.jsonl").write_text(whole[: len(whole) - 40])
    for arguments, options, said in (
        (["--methods", "base,fastmen"], {}, "unknown method 'fastmen'. Did you mean 'fastmem'?"),
        ([], {"task": "nq_swop"}, "unknown task 'nq_swop'. Did you mean 'nq_swap'?"),
        ([], {"data": tmp_path / "none.json"}, "no data file at"),
        ([], {"data": tmp_path / "cut.jsonl"}, "cut.jsonl, line 6: not JSON"),
        ([], {"data": damaged(tmp_path / "a.jsonl", sub_answer="")}, "line 4: 'sub_answer' holds no answer"),
        ([], {"data": damaged(tmp_path / "b.jsonl", sub_context=None)}, "line 4: 'sub_context' must be a text"),
        (["--part", "rest"], {}, "unknown part 'rest'. Accepted: searched, held-out, all (option --part)."),
        (["--steps", "-1"], {}, "recipe steps is -1: give a whole number, 0 or more (option --steps)."),
    ):
        code, out, err = typed("eval", *arguments, **options)
        assert (code, out) == (2, ""), arguments
        assert said in err
        assert len(err.strip().splitlines()) == 1, err
    code, _, err = typed("search", "--rates", "fast")
    assert (code, "--rates is 'fast': give numbers separated by commas." in err) == (2, True)
    code, _, err = typed("search", "--steps", "10.7")
    assert (code, "--steps is '10.7': give whole numbers separated by commas." in err) == (2, True)
    code, _, err = typed("search", "--trials", "9")
    assert (code, err) == (2, "error: --trials needs --sampler tpe: a grid has all its points (option --sampler).\n")
    code, _, err = typed("report", str(tmp_path))
    assert (code, "run.json does not exist: give a folder that `fastmem eval` wrote." in err) == (2, True)


def test_duplicate_ids(typed, tmp_path):
    rows = [row | {"id": "same"} for row in json.loads(write_questions(tmp_path / "twice.json").read_text())]
    (tmp_path / "twice.json").write_text(json.dumps(rows))
    code, _, err = typed("eval", data=tmp_path / "twice.json")
    assert code == 2
    assert "item 2: the id 'same' was used at twice.json, item 1 already" in err


def test_the_folder_of_another_run(typed, tmp_path):
    typed("eval", "--methods", "base", "--steps", "2")
    code, _, err = typed("eval", "--methods", "base", "--steps", "3")
    assert code == 2
    expected = "holds another run: recipe.steps was 2, now 3. Give another folder, or the old value (option --output)."
    assert expected in err
    assert len(read_rows(tmp_path / "run")) == 6


def test_interrupted(typed, tmp_path, monkeypatch):
    from fastmem.lab.run.evaluate_batch import BatchEvaluator

    whole = BatchEvaluator.rows

    def interrupted(self, batch, method, base_texts):
        if method == "cad":
            raise KeyboardInterrupt
        return whole(self, batch, method, base_texts)

    monkeypatch.setattr(BatchEvaluator, "rows", interrupted)
    code, _, err = typed("eval", "--methods", "base,cad", "--batch-size", "4")
    assert code == 130
    assert err.strip().endswith(
        f"interrupted: 4 rows are finished in {tmp_path / 'run'}; run the same command again to continue."
    )
    assert len(read_rows(tmp_path / "run")) == 4


def test_an_interrupted_search(typed, tmp_path, monkeypatch):
    from fastmem.lab.search.grid import Grid

    whole, asked = Grid.texts, []

    def interrupted(self, example):
        asked.append(example.id)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return whole(self, example)

    monkeypatch.setattr(Grid, "texts", interrupted)
    folder = tmp_path / "search"
    code, _, err = typed("search", "--rates", "1e-2", "--steps", "1", "--kls", "0.1", "--output", str(folder))
    assert code == 130
    assert err.strip().endswith(
        f"interrupted: 1 examples are finished in {folder}; run the same command again to continue."
    )
    assert len((folder / "tried.jsonl").read_text().splitlines()) == 1
    assert not (folder / "recipe.json").exists()
    total = len(json.loads((folder / "search.json").read_text())["data"]["examples"])
    code, out, _ = typed("report", str(folder))
    assert code == 0
    assert f"1 points on 1 of {total} examples of rows.json; not finished: run the same `fastmem search` again." in out
    assert f"1 points on 1 of {total} examples of rows.json; not finished" in (folder / "report.html").read_text()


def test_a_scorer_that_cannot_be_loaded_is_reported_and_the_run_completes(typed, tmp_path):
    rows = [{"article": "Rain fell on the town.", "summary": "Rain."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    nowhere = str(tmp_path / "nowhere")
    code, out, _ = typed(
        "eval", "--methods", "base", "--factkb", nowhere, "--bertscore", "none", data=tmp_path / "a.json", task="xsum"
    )
    assert code == 0
    assert f"- base: factkb is missing: {nowhere} cannot be used (" in out
    assert "- base: bertscore_precision was left out: no model is named for it" in out
    assert "ROUGE-L" in out


@pytest.fixture
def paper(model, tmp_path, capsys, monkeypatch):
    """`paper(*arguments)`: `fastmem paper` with one example per task and a hub that cannot be reached."""
    import datasets

    def refuse(name, *args, **kwargs):
        raise ConnectionError(f"no network to {name}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    command = [
        "paper",
        "--model",
        str(model),
        "--limit",
        "1",
        "--max-new-tokens",
        "3",
        "--output",
        str(tmp_path / "p"),
    ]

    def type_in(*arguments: str):
        code = run([*command, *arguments])
        return code, *capsys.readouterr()

    return type_in


def test_paper_without_data_says_why_for_each_task(paper, tmp_path):
    code, out, err = paper()
    assert (code, out) == (2, "")
    *reasons, last = err.splitlines()
    assert [line.split(": ")[1].removesuffix(" has no data") for line in reasons] == [
        "nq_swap", "memotrap", "nq", "hotpotqa", "cnndm", "xsum", "wikihow"
    ]  # fmt: skip
    for name in ("pminervini/NQ-Swap", "hotpotqa/hotpot_qa", "abisee/cnn_dailymail"):
        assert any(f"no network to {name}" in line for line in reasons)
    assert "give a data file (wikihowAll.csv" in reasons[-1]
    assert last == "error: none of the paper's tasks has data: give local files. Options that help: --data."
    assert not (tmp_path / "p").exists()
    code, _, err = paper("--data", "world=rows.json")
    assert (code, "unknown task of the paper 'world'" in err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "recipes"),
    [
        ((), 6),
        (("--recipe", "paper"), 6),
        (("--learning-rate", "1e-5"), 1),
        (("--steps", "10"), 1),
        (("--recipe", "paper", "--kl-weight", "0.1"), 1),
    ],
)
def test_paper_uses_one_recipe_if_a_flag_is_given_whatever_its_value(paper, monkeypatch, flags, recipes):
    """The values are those of `Recipe()`, which are the paper's for questions only."""
    from fastmem.lab.run import paper as planned_by

    plans, plan = [], planned_by.runs
    monkeypatch.setattr(planned_by, "runs", lambda *a, **k: plans.append(plan(*a, **k)) or plans[-1])
    paper(*flags)
    assert len({each.recipe for each in plans[0]}) == recipes


def test_paper_keeps_finished_tasks_that_have_no_data_any_more(paper, tmp_path):
    rows = write_questions(tmp_path / "rows.json")
    code, out, err = paper("--data", f"nq_swap={rows}")
    assert code == 0
    assert "note: nq has no data: cannot load pminervini/NQ-Swap" in err
    assert "### nq_swap (nq_swap)" in out
    assert "- nq is missing: cannot load pminervini/NQ-Swap" in out
    assert json.loads(paper("--data", f"nq={rows}", "--json")[1])["nq_swap"]["missing"].startswith("cannot load")
    (tmp_path / "p/report.html").unlink()
    code, out, err = paper()
    assert code == 2
    assert err.splitlines()[-1].startswith("error: none of the paper's tasks has data")
    for task in ("nq_swap", "nq"):
        assert f"### {task} ({task})" in out
        assert f"<h2>{task} " in (tmp_path / "p/report.html").read_text()


def test_the_whole_paper_on_real_rows(model, shared, tmp_path, capsys):
    files = {
        "nq": "nq_swap/dev.parquet",
        "nq_swap": "nq_swap/dev.parquet",
        "memotrap": "memotrap/memotrap_936.json",
        "hotpotqa": "hotpotqa/coconflictqa_hotpotqa.jsonl",
        "cnndm": "cnndm/cad_600.jsonl",
        "xsum": "xsum/train_1000.jsonl",
    }
    given = [f"--data={task}={shared / 'data' / file}" for task, file in files.items()]
    command = ["paper", "--model", str(model), *given, "--limit", "1", "--output", str(tmp_path / "paper")]
    command += ["--max-context-tokens", "150", "--max-new-tokens", "3", "--factkb", "none", "--bertscore", "none"]
    assert run(command) == 0
    out = capsys.readouterr().out
    for name in ("nq_swap", "memotrap", "nq", "hotpotqa", "cnndm", "cnndm_cd", "xsum", "xsum_cd"):
        rows = read_rows(tmp_path / "paper" / name)
        assert not any(row["error"] for row in rows), rows
    assert "| nq_swap    | accuracy, format failure" in out or "| nq_swap | accuracy, format failure | 4746 |" in out
    assert "- wikihow is missing: the task 'wikihow' is not on the hub" in out
    assert "one-shot" in out
