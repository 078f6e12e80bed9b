"""A search gives the same points when it is killed and goes on, and never uses reported rows."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lab_runs
from fastmem import FastMem, Recipe
from fastmem.errors import InputError, RunError
from fastmem.lab.report.search_landscape import landscape, search_table
from fastmem.lab.run.run_files import Appender, complete_rows
from fastmem.lab.search.grid import Space
from fastmem.lab.search.search import best, part_of, search_grid, search_tpe, searchable
from fastmem.lab.tasks import load
from fastmem.lab.workers import Lost, ThisProcess
from lab_runs import SPACE, questions, write_questions


@pytest.fixture
def llm(llama, tokenizer):
    return FastMem(llama, tokenizer)


def test_the_parts_are_split_by_question(shared):
    rows = shared / "models/nq-mini/nq_swap_dev_333.json"
    searched, held_out = (part_of(load("nq_swap", rows), part) for part in ("searched", "held-out"))
    assert len(searched.examples) + len(held_out.examples) == 333
    assert 130 < len(searched.examples) < 203
    assert not {e.group for e in searched.examples} & {e.group for e in held_out.examples}
    agreeing = part_of(load("nq", rows), "searched")
    assert [e.id for e in agreeing.examples] == [e.id for e in searched.examples]


def test_a_split_that_is_reported_is_not_searched():
    with pytest.raises(
        InputError, match=r"test split is the one that is reported: search the split dev, or allow this one"
    ) as caught:
        searchable(load("world_swap", split="test", limit=5), on_test=False)
    assert caught.value.options == ("split", "on_test")
    dev, test = load("world_swap", split="dev", limit=5), load("world_swap", split="test", limit=5)
    assert searchable(dev, on_test=False) == dev
    assert searchable(test, on_test=True) == test


def test_the_grid_keeps_every_point_and_the_best_recipe(llm, tmp_path):
    found = search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4)
    assert len(found["points"]) == 8
    assert all(point["n"] == 6 for point in found["points"])
    assert found == json.loads((tmp_path / "run/search.json").read_text())
    assert Recipe(**json.loads((tmp_path / "run/recipe.json").read_text())) in [p.recipe for p in SPACE.points]
    assert "8 points on 6 examples" in search_table(tmp_path / "run")
    assert landscape(tmp_path / "run").count("<svg") == 3  # two numbers of steps, and the order
    again = search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4)
    assert again == found  # nothing was done twice
    with pytest.raises(RunError, match=r"holds another search: its space differs. Give another folder"):
        search_grid(llm, Space(Recipe()), questions(tmp_path), tmp_path / "run", max_new_tokens=4)


def test_a_search_of_other_texts_under_the_same_ids_is_refused(llm, tmp_path):
    data, folder = questions(tmp_path), tmp_path / "run"
    search_grid(llm, SPACE, data, folder, max_new_tokens=4)
    other = replace(data, examples=tuple(replace(e, context=e.context.upper()) for e in data.examples))
    with pytest.raises(RunError, match=r"holds another search: its data differs. Give another folder"):
        search_grid(llm, SPACE, other, folder, max_new_tokens=4)


def test_a_search_with_other_weights_elsewhere_is_refused(llm, llama, tokenizer, tmp_path):
    data, folder = questions(tmp_path), tmp_path / "run"
    search_grid(llm, SPACE, data, folder, max_new_tokens=4)
    with torch.no_grad():
        llama.model.layers[0].self_attn.q_proj.weight.view(-1)[0] += 1
    with pytest.raises(RunError, match=r"holds another search: its model differs. Give another folder"):
        search_grid(FastMem(llama, tokenizer), SPACE, data, folder, max_new_tokens=4)


def test_a_search_that_an_older_version_began_goes_on(llm, tmp_path):
    """It recorded neither a digest of the examples nor more of the model than its last network."""
    data, folder = questions(tmp_path), tmp_path / "run"
    found = search_grid(llm, SPACE, data, folder, max_new_tokens=4)
    old = json.loads((folder / "search.json").read_text())
    del old["data"]["digest"]
    old["model"] = {name: old["model"][name] for name in ("family", "digest", "dtype")}
    (folder / "search.json").write_text(json.dumps(old))
    assert search_grid(llm, SPACE, data, folder, max_new_tokens=4)["points"] == found["points"]


def test_a_killed_search_goes_on_in_another_process(llama, tokenizer, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = write_questions(tmp_path / "rows.json")
    command = [sys.executable, lab_runs.__file__, "search", str(tmp_path / "many"), str(tmp_path / "model"), str(data)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    model = FastMem.from_pretrained(tmp_path / "model")
    one = search_grid(model, SPACE, load("nq_swap", data), tmp_path / "one", max_new_tokens=4)
    many = json.loads((tmp_path / "many/search.json").read_text())
    assert many["points"] == one["points"]
    ids = [json.loads(line)["id"] for line in (tmp_path / "many/tried.jsonl").read_text().splitlines()]
    assert sorted(ids) == sorted(e.id for e in load("nq_swap", data).examples)


def test_a_second_process_on_one_folder_is_refused(llm, tmp_path):
    found = search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4)
    with (
        Appender(tmp_path / "run" / "tried.jsonl"),
        pytest.raises(RunError, match="another process is writing") as said,
    ):
        search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4)
    assert "--workers N" in str(said.value)
    assert search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4) == found


def test_an_example_that_is_given_up_counts_as_wrong_everywhere(llm, tmp_path):
    class Losing(ThisProcess):
        def results(self, make, units):
            first, *others = units
            yield Lost(first, "its worker died 3 times")
            yield from super().results(make, others)

    workers = Losing(llm)
    found = search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4, workers=workers)
    assert all((point["n"], point["errors"]) == (6, 1) for point in found["points"])
    (row,) = [row for row in complete_rows(tmp_path / "run" / "tried.jsonl")[1] if row["error"]]
    assert row["error"] == "its worker died 3 times"
    assert set(row["scores"]) == {0.0}


def test_tpe_goes_on_from_its_journal(llm, tmp_path):
    pytest.importorskip("optuna", reason="TPE needs the extra fastmem[search]")
    space = Space(Recipe(), (1e-3, 1e-1), (1, 3), (0.01, 1.0), alphas=(0.0, 1.0))
    first = search_tpe(llm, space, questions(tmp_path, 2), tmp_path / "run", 2, max_new_tokens=3)
    with (tmp_path / "run" / "journal.log").open("a") as journal:
        journal.write('{"op_code": 4, "worker')  # what a full disk leaves
    second = search_tpe(llm, space, questions(tmp_path, 2), tmp_path / "run", 4, max_new_tokens=3)
    assert second["points"][:4] == first["points"]
    assert len(second["points"]) == 8  # four trials, each with both numbers of steps
    for point in second["points"]:
        assert 1e-3 <= point["recipe"]["learning_rate"] <= 1e-1
        assert 0 <= point["alpha"] <= 1
    assert len({point["recipe"]["learning_rate"] for point in second["points"]}) == 4


def test_among_equals_the_one_that_changes_least_wins():
    def point(score, rate, steps, alpha=0.0):
        return {"score": score, "recipe": {"learning_rate": rate, "steps": steps}, "alpha": alpha}

    points = [point(0.5, 1e-3, 50), point(0.6, 1e-2, 20), point(0.6, 1e-3, 20, 0.5), point(0.6, 1e-3, 20)]
    assert best(points) == points[3]


def test_a_broken_example_counts_as_wrong_everywhere(llm, tmp_path, monkeypatch):
    data = questions(tmp_path)
    broken, whole = data.examples[0].context, llm.memory_tokens

    def fails(context, *args):
        if context == broken:
            raise RuntimeError("tokenizer exploded")
        return whole(context, *args)

    monkeypatch.setattr(llm, "memory_tokens", fails)
    found = search_grid(llm, SPACE, data, Path(tmp_path / "run"), max_new_tokens=4)
    assert all((point["n"], point["errors"]) == (6, 2) for point in found["points"])
    said = (
        "on 6 examples of rows.json. 2 of them failed with an error and count as wrong; the first: RuntimeError: token"
    )
    assert said in search_table(tmp_path / "run")
    assert "2 of them failed" in landscape(tmp_path / "run")


def test_a_search_that_was_edited_is_refused(llm, tmp_path):
    search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4)
    file = tmp_path / "run" / "search.json"
    found = json.loads(file.read_text())
    del found["points"][2]["low"], found["done"]
    found["points"][1]["errors"] = None
    file.write_text(json.dumps(found))
    assert "8 points" in search_table(tmp_path / "run")
    found["points"][3]["recipe"]["steps"] = "ten"
    file.write_text(json.dumps(found))
    with pytest.raises(RunError, match=r"points\[3\].recipe.steps must be a whole number; found 'ten'"):
        search_table(tmp_path / "run")


def test_a_search_in_which_every_question_failed_has_no_best(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(llm, "memory_tokens", lambda *_: 1 / 0)
    with pytest.raises(RunError, match="every question failed, the first with: ZeroDivisionError: division by zero"):
        search_grid(llm, SPACE, questions(tmp_path), tmp_path / "run", max_new_tokens=4)
    assert not (tmp_path / "run" / "recipe.json").exists()
    with pytest.raises(RunError, match="every question that the search in "):
        search_table(tmp_path / "run")
