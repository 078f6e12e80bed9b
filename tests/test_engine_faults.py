"""Failures stay alone: rows, memories, files, and the worker itself."""

import threading
import weakref

import pytest
import torch

import fastmem.answer.running_batch
import fastmem.answer.sequence_group
import fastmem.model
from fastmem.errors import InputError, MemoryFileError, ResourceError, StorageError
from fastmem.memory.recipe import Recipe
from fastmem.prompts import Tokens
from fastmem.serve.jobs import ActionFinished, AnswerFinished, DrainingError, JobFailed
from fastmem.serve.logs import cause
from serving import RECIPE, Asked, closing_engines, make_llm, source

POISON = (250, 251)  # two tokens that make the forward pass that reads them fail, where a test wants it to


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.fixture
def started(llm):
    """engine(budget, folder, **limits): closed when the test ends."""
    with closing_engines(llm) as engine:
        yield engine


def offline(llm, prompt, text, method, **options):
    """The same answer without a server."""
    memory = llm.memorize(text, RECIPE) if method.startswith("fastmem") else None
    return llm.generate(prompt, memory, method, **{"max_new_tokens": 8} | options)


def poisoned(monkeypatch, llm, error):
    """Forward passes that read POISON fail."""
    real = llm.split_model.forward

    def forward(ids, **kwargs):
        if ((ids[:, :-1] == POISON[0]) & (ids[:, 1:] == POISON[1])).any():
            raise error
        return real(ids, **kwargs)

    monkeypatch.setattr(llm.split_model, "forward", forward)


@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_row_that_fails_is_refused_alone(llm, started, monkeypatch, position):
    engine = started()
    prompts = [f"row {i}" for i in range(5)]
    options = [{"temperature": 1.0, "seed": i} if i % 2 else {} for i in range(5)]
    expected = [llm.generate(p, max_new_tokens=30, **o).text for p, o in zip(prompts, options, strict=True)]
    poisoned(monkeypatch, llm, torch.OutOfMemoryError("CUDA out of memory"))
    asked = [Asked(llm, p, max_new_tokens=30, **o) for p, o in zip(prompts, options, strict=True)]
    bad = Asked(llm, Tokens([1, *POISON, 5]), max_new_tokens=30)
    for one in [*asked[:position], bad, *asked[position:]]:
        one.to(engine)
    end = bad.end()
    assert isinstance(end, JobFailed)
    assert isinstance(end.error, ResourceError)
    assert [one.text() for one in asked] == expected


def test_a_row_that_fails_midway_leaves_the_others_where_they_were(llm, started, monkeypatch):
    """The batch is rebuilt in the middle of sampled answers: their draws go on where they stopped."""
    engine = started()
    prompts = [f"row {i}" for i in range(3)]
    expected = [llm.generate(p, max_new_tokens=60, temperature=1.0, seed=5).text for p in prompts]
    poisoned(monkeypatch, llm, RuntimeError("broken"))
    begun = threading.Event()
    asked = [
        Asked(llm, p, max_new_tokens=60, temperature=1.0, seed=5, on_piece=lambda _: begun.set()) for p in prompts
    ]
    for one in asked:
        one.to(engine)
    assert begun.wait(60)
    bad = Asked(llm, Tokens([1, *POISON])).to(engine)
    assert isinstance(bad.end(), JobFailed)
    assert [one.text() for one in asked] == expected


def test_the_log_of_a_refused_row_has_no_text_of_a_foreign_error(llm, started, monkeypatch, caplog):
    """Such a text can quote the document."""
    poisoned(monkeypatch, llm, ValueError("cannot read 'The vault opens with a song'"))
    assert isinstance(Asked(llm, Tokens([1, *POISON, 5])).to(started()).end(), JobFailed)
    assert "a row was refused: ValueError at " in caplog.text
    assert "vault" not in caplog.text


@pytest.mark.parametrize("cancelled", [False, True])
def test_no_room_to_sort_the_keys_and_values_costs_no_answer_a_token(llm, started, monkeypatch, cancelled):
    """When an answer is complete, or its client has left, those of the others are copied."""
    real, failures = fastmem.answer.sequence_group.selected, [torch.OutOfMemoryError("CUDA out of memory")]

    def selected(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    engine = started()
    lengths = (60, 12, 60)
    expected = [llm.generate(f"row {i}", max_new_tokens=length).text for i, length in enumerate(lengths)]
    monkeypatch.setattr(fastmem.answer.sequence_group, "selected", selected)

    def leave(_):
        if cancelled:
            engine.cancel(asked[1].job)

    asked = [
        Asked(llm, f"row {i}", max_new_tokens=length, on_piece=leave if i == 1 else None)
        for i, length in enumerate(lengths)
    ]
    engine.submit(*(one.job for one in asked))
    assert [asked[i].text() for i in (0, 2)] == [expected[i] for i in (0, 2)]
    assert cancelled or asked[1].text() == expected[1]
    assert not failures


def test_a_memorization_that_fails_is_refused_alone(llm, started, monkeypatch):
    engine = started()
    real = fastmem.model.read

    def read(split_model, ids, *rest):
        if len(ids) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(split_model, ids, *rest)

    monkeypatch.setattr(fastmem.model, "read", read)
    bad = [Asked(llm, want=source(llm, "x" * 80), method="fastmem").to(engine) for _ in range(2)]
    good = Asked(llm, "q", source(llm, "short"), "fastmem").to(engine)
    for one in bad:
        end = one.end()
        assert isinstance(end, JobFailed)
        assert isinstance(end.error, ResourceError)
    assert good.text() == offline(llm, "q", "short", "fastmem").text


@pytest.mark.parametrize("memorizing", [False, True])
def test_a_refusal_holds_no_tensors_of_what_failed(llm, started, monkeypatch, memorizing):
    """A client that does not read its answer would hold those of everybody's answers for as long."""
    held = []

    def fails(*arguments, **options):
        held.append(weakref.ref(weights := torch.zeros(2)))
        raise torch.OutOfMemoryError(f"CUDA out of memory for {len(weights)} numbers")

    engine = started()
    place, name = (fastmem.model, "read") if memorizing else (llm.split_model, "forward")
    with monkeypatch.context() as patched:
        patched.setattr(place, name, fails)
        refused = Asked(llm, "q", source(llm, "none") if memorizing else None).to(engine).end()
    assert Asked(llm, "q").to(engine).text() == llm.generate("q", max_new_tokens=8).text
    assert [one() for one in held] == [None]
    assert isinstance(refused.error, ResourceError)
    assert "fails" in cause(refused.error.__cause__), "the log says where it happened"


def test_a_loss_that_turns_nan_keeps_the_last_good_step(llm, started):
    engine = started()
    wild = Asked(llm, want=source(llm, "wild", recipe=Recipe(learning_rate=10.0, steps=8)), method="fastmem").to(
        engine
    )
    calm = Asked(llm, "q", source(llm, "calm"), "fastmem").to(engine)
    end = wild.end()
    assert isinstance(end, AnswerFinished)
    assert calm.text() == offline(llm, "q", "calm", "fastmem").text


def test_a_damaged_file_is_made_again_by_who_has_the_document(llm, started, tmp_path):
    first = started(None, tmp_path)
    want = source(llm, "kept")
    record = Asked(llm, want=want, act=lambda memory: None, durable=True).to(first).end().memory
    first.close()
    path = tmp_path / f"{want.key}.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    second = started(None, tmp_path)
    named = source(llm, "kept").__class__(want.key, "t", RECIPE)
    end = Asked(llm, want=named, method="fastmem").to(second).end()
    assert isinstance(end, JobFailed)
    assert isinstance(end.error, MemoryFileError)
    again = Asked(llm, "q", want, "fastmem").to(second)
    assert again.text() == offline(llm, "q", "kept", "fastmem").text
    assert record["id"] == want.key
    missing = Asked(llm, want=source(llm, "z").__class__("mem-none", "t", RECIPE), method="fastmem").to(second).end()
    assert isinstance(missing.error, InputError)


def test_draining_finishes_what_runs_and_refuses_the_rest(llm, started):
    engine = started(rows=1)
    running = Asked(llm, max_new_tokens=100, on_piece=lambda _: begun.set())
    begun = threading.Event()
    running.to(engine)
    assert begun.wait(60)
    waiting = Asked(llm).to(engine)
    engine.drain()
    assert isinstance(waiting.end().error, DrainingError)
    with pytest.raises(DrainingError):
        Asked(llm).to(engine)
    end = running.end()
    assert isinstance(end, AnswerFinished)
    assert len(end.answer.token_ids) == 100
    engine.close(timeout_seconds=60)
    assert not engine.alive


def test_a_bug_in_the_worker_fails_the_open_requests_and_no_later_one(llm, started, monkeypatch):
    engine = started()
    real, faults = engine._decode, [ZeroDivisionError()]

    def decode(lowest):
        if len(engine.batch) and faults:
            raise faults.pop()
        real(lowest)

    monkeypatch.setattr(engine, "_decode", decode)
    end = Asked(llm).to(engine).end()
    assert isinstance(end, JobFailed)
    assert isinstance(end.error, ZeroDivisionError)
    assert isinstance(Asked(llm).to(engine).end(), AnswerFinished)


def test_something_done_with_a_memory(llm, started, tmp_path):
    engine = started(None, tmp_path)
    end = Asked(llm, want=source(llm, "a"), act=lambda memory: len(memory.trace), durable=True).to(engine).end()
    assert isinstance(end, ActionFinished)
    assert end.result == 3
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # durable: on disk before it is answered


def test_a_disk_that_is_full_is_said_to_who_asked_for_it_only(llm, started, tmp_path, monkeypatch):
    engine = started(None, tmp_path)

    def full(entry):
        entry.unsaved = False
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine.store, "save", full)
    want = source(llm, "kept in RAM")
    end = Asked(llm, want=want, act=lambda memory: None, durable=True).to(engine).end()
    assert isinstance(end, JobFailed)
    assert isinstance(end.error, StorageError)
    assert Asked(llm, "q", want, "fastmem").to(engine).text() == offline(llm, "q", "kept in RAM", "fastmem").text


def test_text_that_cannot_be_made_fails_loudly_instead_of_going_missing(llm, started, monkeypatch):
    """The rows of that step have moved on: nobody may get an answer with a hole in it."""
    engine = started()
    real, calls = fastmem.answer.running_batch.Detokenizer.add, []

    def add(self, token):
        calls.append(token)
        if len(calls) == 12:
            raise ValueError("no text for this token")
        return real(self, token)

    expected = [llm.generate(f"row {i}", max_new_tokens=30).text for i in range(4)]
    monkeypatch.setattr(fastmem.answer.running_batch.Detokenizer, "add", add)
    asked = [Asked(llm, f"row {i}", max_new_tokens=30).to(engine) for i in range(4)]
    ends = [one.end() for one in asked]
    assert any(isinstance(end, JobFailed) for end in ends)
    for end, text in zip(ends, expected, strict=True):
        assert isinstance(end, JobFailed) or end.answer.text == text
    assert Asked(llm, "row 0", max_new_tokens=30).to(engine).text() == expected[0]
