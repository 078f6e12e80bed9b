"""An interrupted run ends with the same rows, another run is refused, and errors are counted."""

import errno
import functools
import json
import os
import subprocess
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lab_runs
from fastmem import FastMem, Recipe
from fastmem.errors import InputError, RunError
from fastmem.lab.report import load_results, tables
from fastmem.lab.run import evaluate_batch, run_files, runner
from fastmem.lab.run.evaluate_batch import BatchEvaluator
from fastmem.lab.run.experiment import Experiment
from fastmem.lab.run.planned_runs import Run, do_runs
from fastmem.lab.run.run_files import Appender, read_examples, read_rows
from fastmem.lab.run.runner import run
from fastmem.lab.scores.summary import Scorers
from fastmem.lab.tasks import load
from fastmem.split.fingerprint import SAMPLED_NUMBERS
from lab_runs import METHODS, experiment, questions, repeatable, write_questions
from tiny_tokenizer import build_tokenizer


@pytest.fixture
def llm(llama, tokenizer):
    return FastMem(llama, tokenizer)


def test_one_row_for_every_example_and_method(llm, tmp_path):
    seen = []
    summary = run(llm, experiment(), questions(tmp_path), tmp_path / "run", seen.append)
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 24 == len({(row["id"], row["method"]) for row in rows})
    assert summary == json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["complete"]
    assert list(summary["methods"]) == list(METHODS)
    for method, found in summary["methods"].items():
        assert (found["rows"], found["errors"]) == (6, 0)
        assert found["scores"]["paper_correct"]["n"] == 6
        assert found["peak_bytes"] > 0
        assert found["seconds"]["decode"] > 0
        assert (found["seconds"]["steps"] > 0) == (method.startswith("fastmem"))
    assert summary["environment"]["packages"]["torch"]
    assert summary["environment"]["device"] == "cpu"
    memorized = [row for row in rows if row["method"] == "fastmem"]
    assert all(len(row["trace"]) == 3 and row["trace"][0][2] == 0 for row in memorized)
    assert [p.rows for p in seen] == sorted(p.rows for p in seen)
    assert (seen[0].rows, seen[0].seconds_left, seen[-1].rows, seen[-1].seconds_left) == (0, None, 24, 0)
    assert [e.question for e in read_examples(tmp_path / "run")] == [f"who keeps light {i}" for i in range(6)]


def test_a_run_that_another_process_began_at_the_same_time_is_refused(llm, tmp_path, monkeypatch):
    class Late(Appender):
        def __init__(self, path):
            about = json.loads((path.parent / run_files.RUN).read_text())
            about["identity"]["recipe"]["steps"] = 77  # the other process was faster
            run_files.write_json(path.parent / run_files.RUN, about)
            super().__init__(path)

    monkeypatch.setattr(runner, "Appender", Late)
    with pytest.raises(RunError, match=r"holds another run: recipe\.steps was 77"):
        run(llm, experiment(), questions(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / run_files.ROWS).read_text()


def test_answers_are_those_of_the_model_alone(llm, tmp_path):
    data = questions(tmp_path)
    run(llm, experiment(), data, tmp_path / "run")
    rows = {(row["id"], row["method"]): row for row in read_rows(tmp_path / "run")}
    for example in data.examples:
        for method in METHODS:
            alone = llm.answer(example.question, example.context, method, experiment().recipe, max_new_tokens=6)
            assert rows[example.id, method]["text"] == alone.text, method


def test_moved_tokens_carry_both_log_probabilities(llm, tmp_path):
    wild = experiment(("base", "fastmem"), recipe=Recipe(learning_rate=0.1, steps=5))
    run(llm, wild, questions(tmp_path), tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    base = {row["id"]: row for row in rows if row["method"] == "base"}
    changed = [row for row in rows if row["method"] == "fastmem" and row["text"] != base[row["id"]]["text"]]
    assert changed
    row = changed[0]
    example = next(e for e in read_examples(tmp_path / "run") if e.id == row["id"])
    memory = llm.memorize(example.context, wild.recipe)
    ids = llm.ids(example.prompt).tolist() + row["token_ids"]
    at = len(ids) - len(row["token_ids"]) - 1
    for number, logits in ((1, llm.logits(ids)), (2, llm.logits(ids, memory))):
        wanted = [float(logits[at + i].log_softmax(-1)[t]) for i, t in enumerate(row["token_ids"])]
        assert [entry[number] for entry in row["moved"]] == pytest.approx(wanted, abs=1e-3)


def test_rows_of_one_document_share_its_memory(llm, tmp_path, monkeypatch):
    made = []

    def counting(*args, whole=llm.memorizing, **kwargs):
        made.append(1)
        return whole(*args, **kwargs)

    monkeypatch.setattr(llm, "memorizing", counting)
    run(llm, experiment(), questions(tmp_path), tmp_path / "run")
    assert len(made) == 3 + 2  # six questions of three passages; both methods that memorize were warmed up


def test_what_a_first_run_costs_once_is_counted_for_no_row(llm, tmp_path, monkeypatch):
    """On a clock that moves by 100 s when a method first answers, and when memorizing is first done; else by 1 s."""
    clock, known = [0.0], set()

    def costly(name, work):
        def done(*args):
            what = name or args[1][0].method
            clock[0] += 1 if what in known else 100
            known.add(what)
            return work(*args)

        return done

    @contextmanager
    def timed(device):
        seconds, started = [], clock[0]
        yield seconds
        seconds.append(clock[0] - started)

    monkeypatch.setattr(evaluate_batch, "timed", timed)
    monkeypatch.setattr(evaluate_batch, "answers", costly(None, evaluate_batch.answers))
    monkeypatch.setattr(evaluate_batch, "drain", costly("drain", evaluate_batch.drain))
    one_by_one = replace(experiment(), batch_size=1)
    run(llm, one_by_one, questions(tmp_path), tmp_path / "run")
    rows = read_rows(tmp_path / "run")
    assert {row["seconds"]["decode"] for row in rows} == {1.0}
    assert {row["seconds"]["steps"] for row in rows if row["method"].startswith("fastmem")} == {1.0}
    assert known == {*METHODS, "drain"}


def test_killed_again_and_again_it_ends_with_the_same_rows(llama, tokenizer, tmp_path):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data, output = write_questions(tmp_path / "rows.json"), tmp_path / "killed"
    command = [sys.executable, lab_runs.__file__, "run", str(output), str(tmp_path / "model"), str(data)]
    killed = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    assert int(killed.stdout) >= 19
    # The worst instant: half a line on the disk.
    with (output / run_files.ROWS).open("a") as rows:
        rows.write('{"id": "row-1", "meth')
    summary = run(FastMem.from_pretrained(tmp_path / "model"), experiment(), load("nq_swap", data), output)
    assert summary["complete"]
    run(FastMem.from_pretrained(tmp_path / "model"), experiment(), questions(tmp_path), tmp_path / "undisturbed")
    assert repeatable(read_rows(output)) == repeatable(read_rows(tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"recipe": Recipe(learning_rate=1e-2, steps=4)}, "recipe.steps was 3, now 4"),
        ({"recipe": Recipe(learning_rate=1e-2, steps=3, layers=(-2,))}, r"recipe.layers was \[-1\], now \[-2\]"),
        ({"max_new_tokens": 7}, "decoding.max_new_tokens was 6, now 7"),
        ({"alpha": 1.0}, "decoding.alpha was 0.5, now 1.0"),
    ],
)
def test_another_run_is_not_resumed(llm, tmp_path, change, difference):
    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    with pytest.raises(RunError, match=f"holds another run: {difference}. Give another folder"):
        run(llm, experiment(("base",), **change), questions(tmp_path), tmp_path / "run")
    assert len(read_rows(tmp_path / "run")) == 6


def test_another_model_or_other_data_is_refused(llm, tokenizer, tmp_path):
    from families import build

    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    other = FastMem(build("llama", seed=5), tokenizer)
    with pytest.raises(RunError, match=r"holds another run: model.digest was"):
        run(other, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    with pytest.raises(RunError, match=r"holds another run: data.revision was"):
        run(llm, experiment(("base",)), questions(tmp_path, 4), tmp_path / "run")


def nudged(model, name: str):
    """The model with another value in one matrix; `name` ends the name of its parameter."""
    (parameter,) = [p for n, p in model.named_parameters() if n.endswith(name)]
    with torch.no_grad():
        parameter.view(-1)[0] += 1
    return model


@pytest.mark.parametrize("part", ["layers.0.self_attn.q_proj.weight", "layers.1.mlp.up_proj.weight"])
def test_a_model_that_differs_outside_of_the_last_network_is_refused(llm, tokenizer, tmp_path, part):
    from families import build

    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    other = FastMem(nudged(build("llama"), part), tokenizer)
    assert other.base() == llm.base()
    with pytest.raises(RunError, match=r"holds another run: model.sampled_weights was '\w{16}', now '"):
        run(other, experiment(("base",)), questions(tmp_path), tmp_path / "run")


def test_other_weights_of_the_tuned_layer_are_refused_though_no_sample_shows_them(llm, tokenizer, tmp_path):
    from families import build

    earlier = experiment(("base",), recipe=Recipe(learning_rate=1e-2, steps=3, layers=(-2,)))
    run(llm, earlier, questions(tmp_path), tmp_path / "run")
    model = build("llama")
    weight = model.model.layers[1].mlp.up_proj.weight
    assert weight.numel() > 2 * SAMPLED_NUMBERS
    with torch.no_grad():
        weight.view(-1)[1] += 1  # between two of the numbers that are sampled
    with pytest.raises(RunError, match=r"holds another run: model.tuned_weights was '\w{16}', now '"):
        run(FastMem(model, tokenizer), earlier, questions(tmp_path), tmp_path / "run")


def test_another_tokenizer_and_another_template_are_refused(llm, llama, tokenizer, tmp_path):
    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    for name, change in (
        ("template", lambda own: setattr(own, "chat_template", own.chat_template + " ")),
        ("tokenizer", lambda own: own.add_tokens(["harbour"])),
    ):
        other = build_tokenizer()
        change(other)
        with pytest.raises(RunError, match=rf"holds another run: model.{name} was '\w{{16}}', now '"):
            run(FastMem(llama, other), experiment(("base",)), questions(tmp_path), tmp_path / "run")


def test_what_an_old_run_did_not_record_is_unknown(llm, tmp_path):
    data, folder = questions(tmp_path), tmp_path / "run"
    run(llm, experiment(("base",)), data, folder)
    about = json.loads((folder / run_files.RUN).read_text())
    model = about["identity"]["model"]
    about["identity"]["model"] = {name: model[name] for name in ("family", "digest", "dtype")}
    run_files.write_json(folder / run_files.RUN, about)
    assert run(llm, experiment(("base", "fastmem")), data, folder)["complete"]
    with pytest.raises(RunError, match=r"decoding.repetition_penalty was None, now 1.2"):  # recorded unless it is 1
        run(llm, experiment(("base",), repetition_penalty=1.2), data, folder)


def test_other_scorers_of_summaries_are_refused(llm, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"article": "Rain fell on the town.", "summary": "Rain."}]))
    data, none = load("xsum", tmp_path / "a.json"), Scorers(bertscore=None, factkb=None)
    summaries = functools.partial(Experiment, "xsum", ("base",), Recipe(), max_new_tokens=3)
    run(llm, summaries(scorers=none), data, tmp_path / "run")
    run(llm, summaries(scorers=replace(none, batch_size=1)), data, tmp_path / "run")
    with pytest.raises(RunError, match=r"holds another run: scorers.factkb was None, now 'some/model'"):
        run(llm, summaries(scorers=replace(none, factkb="some/model")), data, tmp_path / "run")


def test_methods_are_added_to_a_run(llm, tmp_path):
    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    summary = run(llm, experiment(("fastmem",)), questions(tmp_path), tmp_path / "run")
    assert {m: found["rows"] for m, found in summary["methods"].items()} == {"fastmem": 6, "base": 6}


@pytest.mark.parametrize("stage", ["memorize", "generate"])
def test_a_broken_example_is_a_counted_error(llm, tmp_path, monkeypatch, stage):
    data = questions(tmp_path)
    broken = data.examples[2]
    if stage == "memorize":
        whole = llm.memory_tokens

        def fails(context, *args):
            if context == broken.context:
                raise RuntimeError("tokenizer exploded")
            return whole(context, *args)

        monkeypatch.setattr(llm, "memory_tokens", fails)
        wrong = 2  # the two examples of that document
    else:
        target, whole = llm.ids(broken.prompt).tolist(), evaluate_batch.answers

        def fails(batch, requests, *args):
            if any(request.prompt.tolist() == target for request in requests):
                raise RuntimeError("tokenizer exploded")
            return whole(batch, requests, *args)

        monkeypatch.setattr(evaluate_batch, "answers", fails)
        wrong = 1
    summary = run(llm, experiment(("fastmem",)), data, tmp_path / "run")
    found = summary["methods"]["fastmem"]
    assert (found["rows"], found["errors"], found["scores"]["paper_correct"]["n"]) == (6, wrong, 6)
    row = next(row for row in read_rows(tmp_path / "run") if row["id"] == broken.id)
    assert row["error"] == "RuntimeError: tokenizer exploded"
    assert (row["scores"]["paper_correct"], row["scores"]["failure"]) == (False, True)


def test_a_batch_that_failed_holds_nothing_while_its_rows_are_answered_one_by_one(llm, tmp_path, monkeypatch):
    batches, held, head, start = [], [], llm.split_model.head, llm.batch

    def starting():
        held.extend(batch() for batch in batches if batch() is not None)
        batches.append(weakref.ref(batch := start()))
        return batch

    def failing(hidden):
        if len(hidden) > 1 and len(batches) == 1:
            raise RuntimeError("[enforce fail] can't allocate memory")
        return head(hidden)

    evaluator = BatchEvaluator(llm, experiment(("base",)))
    monkeypatch.setattr(llm, "batch", starting)
    monkeypatch.setattr(llm.split_model, "head", failing)
    rows = evaluator.rows(questions(tmp_path).examples[:2], "base", {})
    assert [row["error"] for row in rows] == [None, None]
    assert (len(batches), held) == (3, [])


def test_a_document_that_could_not_be_memorized_holds_nothing_for_the_other_methods(llm, tmp_path, monkeypatch):
    held = []

    def failing(run):
        held.append(weakref.ref(weights := torch.zeros(2)))
        try:
            raise MemoryError(f"no room for {len(weights)} numbers")
        except MemoryError as error:
            raise RuntimeError("out of memory") from error

    monkeypatch.setattr(evaluate_batch, "drain", failing)
    evaluator = BatchEvaluator(llm, experiment(("fastmem",)))
    rows = evaluator.rows(questions(tmp_path).examples[:2], "fastmem", {})
    assert [row["error"] for row in rows] == ["RuntimeError: out of memory"] * 2
    assert [work() for work in held] == [None]
    (error,) = evaluator._memories.values()
    assert error.__traceback__ is None


def test_the_repetition_penalty_of_the_authors_dola(llm, tmp_path):
    data, options = questions(tmp_path, 2), {"repetition_penalty": 1.2}
    run(llm, experiment(("dola",), **options), data, tmp_path / "run")
    texts = {row["id"]: row["text"] for row in read_rows(tmp_path / "run")}
    for e in data.examples:
        assert texts[e.id] == llm.answer(e.question, e.context, "dola", max_new_tokens=6, **options).text
        assert texts[e.id] != llm.answer(e.question, e.context, "dola", max_new_tokens=6).text
    assert "alpha 0.5, repetition penalty 1.2, float32" in tables([load_results(tmp_path / "run")])
    with pytest.raises(RunError, match=r"decoding.repetition_penalty was 1.2, now None"):
        run(llm, experiment(("dola",)), data, tmp_path / "run")
    with pytest.raises(InputError, match=r"repetition_penalty is 0: give a number, 0.001 to 1000"):
        experiment(("dola",), repetition_penalty=0)


def test_a_too_long_document_is_one_error(llm, tmp_path):
    data = questions(tmp_path)
    long = replace(data.examples[0], context="far too long " * 60)
    summary = run(llm, experiment(("base",)), replace(data, examples=(long, *data.examples[1:])), tmp_path / "run")
    assert summary["methods"]["base"]["errors"] == 1
    assert "positions" in read_rows(tmp_path / "run")[0]["error"]
    cut = run(
        llm,
        experiment(("base",), max_context_tokens=50),
        replace(data, examples=(long, *data.examples[1:])),
        tmp_path / "cut",
    )
    assert cut["methods"]["base"]["errors"] == 0


def test_an_interrupted_run_keeps_finished_rows(llm, tmp_path):
    def interrupt(progress):
        if progress.rows >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(llm, experiment(), questions(tmp_path), tmp_path / "run", interrupt)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert not summary["complete"]
    assert summary["methods"]["base"]["rows"] == 2
    again = run(llm, experiment(), questions(tmp_path), tmp_path / "run")
    assert again["complete"]
    run(llm, experiment(), questions(tmp_path), tmp_path / "whole")
    assert repeatable(read_rows(tmp_path / "run")) == repeatable(read_rows(tmp_path / "whole"))


def test_a_full_disk_is_reported_and_finished_rows_are_kept(llm, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a device that is always full")
    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    with Appender(tmp_path / "run" / run_files.ROWS) as appender:
        appender._file.close()
        appender._file = open("/dev/full", "w")  # noqa: SIM115 - closed by the appender
        with pytest.raises(RunError, match=r"the disk of .* is full: what was finished is kept; make room and start"):
            appender.append({"id": "x"})
    assert len(read_rows(tmp_path / "run")) == 6


def test_folders_that_cannot_be_used(llm, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file is a file: give a folder"):
        run(llm, experiment(), questions(tmp_path), tmp_path / "file")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / run_files.ROWS).write_text("{}\n")
    with pytest.raises(RunError, match=r"holds rows but no run.json: give another folder"):
        run(llm, experiment(), questions(tmp_path), tmp_path / "rows")
    with pytest.raises(RunError, match=r"holds no run: there is no rows.jsonl"):
        read_rows(tmp_path)
    run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")
    rows = tmp_path / "run" / run_files.ROWS
    with Appender(rows), pytest.raises(RunError, match=r"another process is writing to"):
        Appender(rows)
    rows.write_text("{broken\n" + rows.read_text())
    with pytest.raises(RunError, match=r"rows.jsonl, line 1 is damaged .*: delete that line to go on"):
        run(llm, experiment(("base",)), questions(tmp_path), tmp_path / "run")


def test_a_file_system_without_locks_is_explained(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_files.fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"cannot be locked \(No locks available\).*give a folder on another disk"):
        Appender(tmp_path / run_files.ROWS)


def test_a_damaged_line_leaves_the_folder_free(tmp_path):
    rows = tmp_path / run_files.ROWS
    rows.write_text("{broken\n")
    with pytest.raises(RunError, match=r"line 1 is damaged") as kept:  # which holds the frames, as a caller may
        Appender(rows)
    rows.write_text("")
    Appender(rows).close()
    assert kept.value


def test_the_cost_of_a_planned_run_is_that_of_its_methods(llm, tmp_path):
    data, recipe = questions(tmp_path), Recipe(learning_rate=1e-2, steps=3)
    for methods in (("base", "fastmem"), ("base",)):
        planned = Run("nq", "a table", "nq_swap", methods, recipe)
        (outcome,) = do_runs(llm, tmp_path / "runs", [planned], {"nq_swap": data}, max_new_tokens=6)
    summary = json.loads((tmp_path / "runs/nq/summary.json").read_text())
    assert outcome.seconds_per_example == summary["methods"]["base"]["seconds"]["decode"]


def test_experiments_that_make_no_sense():
    recipe = Recipe()
    with pytest.raises(InputError, match=r"unknown method 'fastmen'. Did you mean 'fastmem'"):
        Experiment("nq", ("fastmen",), recipe)
    with pytest.raises(InputError, match=r"unknown task 'nqswap'. Did you mean 'nq_swap'"):
        Experiment("nqswap", ("base",), recipe)
    with pytest.raises(InputError, match=r"no method is given. Accepted: base, "):
        Experiment("nq", (), recipe)
    with pytest.raises(InputError, match=r"a method is named twice: base, base"):
        Experiment("nq", ("base", "base"), recipe)
    with pytest.raises(InputError, match=r"batch_size is 0: give 1 or more"):
        Experiment("nq", ("base",), recipe, batch_size=0)
    with pytest.raises(InputError, match=r"'world_open' asks without a context, which 'fastmem' needs"):
        Experiment("world_open", ("base", "fastmem"), recipe)
