"""Who has used less of the worker's time goes first, and nobody's answer changes by it."""

import time
from dataclasses import replace

import pytest

from fastmem.memory.recipe import Recipe
from fastmem.serve.fair_share import HALF_LIFE_SECONDS, FairShare
from fastmem.serve.isolated_batch import IsolatedBatch
from fastmem.serve.memorize_queue import MOST_BEGUN, MemorizeQueue
from fastmem.serve.memory_budget import Entry
from serving import RECIPE, Asked, closing_engines, eventually, make_llm, source


@pytest.fixture(scope="module")
def llm():
    return make_llm()


@pytest.fixture
def started(llm):
    """engine(**limits): closed when the test ends. Its worker remembers that `heavy` has used five minutes."""
    with closing_engines(llm) as make:

        def engine(**limits):
            made = make(**limits)
            made._share.add("heavy", 300.0)
            return made

        yield engine


def test_use_is_forgotten():
    now = [0.0]
    share = FairShare(lambda: now[0])
    share.add("a", 8.0)
    share.add("b", 0.9)
    assert [share.level(name) for name in "abc"] == [8, 0, 0]
    now[0] = HALF_LIFE_SECONDS
    assert share.seconds("a") == pytest.approx(4.0)
    share.add("a", 1.0)
    assert share.seconds("a") == pytest.approx(5.0)
    now[0] = 20 * HALF_LIFE_SECONDS
    assert share.level("a") == 0
    for number in range(2000):
        share.add(str(number), 1e-9)
    assert len(share._used) <= 1001


def test_a_lighter_account_overtakes_running_answers(llm, started):
    """The long answers fill all rows; the short one gets a row before they end, and all are as they would be alone."""
    engine = started(rows=2)
    ended = []
    texts = [llm.generate(f"long {i}", max_new_tokens=200).text for i in range(3)]
    heavy = [Asked(llm, f"long {i}", max_new_tokens=200, account="heavy").to(engine) for i in range(3)]
    eventually(lambda: len(engine.batch) == 2)
    light = Asked(llm, "short", source(llm, "a document"), "fastmem", account="light").to(engine)
    real = engine._end

    def noted(job, event):
        ended.append(job)
        real(job, event)

    engine._end = noted
    memory = llm.memorize("a document", RECIPE)
    assert light.text() == llm.generate("short", memory, "fastmem", max_new_tokens=8).text
    assert [one.text() for one in heavy] == texts
    assert ended[0] is light.job


def test_heavy_rows_pause_while_a_lighter_one_is_answered(llm, started, monkeypatch):
    stepped = []
    real = IsolatedBatch.step

    def noted(batch):
        stepped.append({job.account for job in batch.jobs})
        return real(batch)

    monkeypatch.setattr(IsolatedBatch, "step", noted)
    engine = started()
    heavy = Asked(llm, "long", max_new_tokens=120, account="heavy").to(engine)
    eventually(lambda: len(engine.batch) == 1)
    light = Asked(llm, "short", max_new_tokens=30, account="light").to(engine)
    assert light.text() == llm.generate("short", max_new_tokens=30).text
    assert heavy.text() == llm.generate("long", max_new_tokens=120).text
    assert {"light"} in stepped
    assert {"heavy", "light"} not in stepped


def test_the_memory_of_a_lighter_account_is_made_first(llm, started):
    engine = started()
    made = []
    real = engine.store.put

    def noted(entry, memory):
        made.append(entry.source.account)
        real(entry, memory)

    engine.store.put = noted
    long = Recipe(learning_rate=1e-3, steps=100)
    asked = []
    for account, recipe in (("heavy", long), ("light", RECIPE)):
        want = replace(source(llm, f"document of {account}", account, recipe), account=account)
        asked.append(Asked(llm, "q", want, "fastmem", account=account).to(engine))
    expected = [
        llm.generate("q", llm.memorize(f"document of {account}", recipe), "fastmem", max_new_tokens=8).text
        for account, recipe in (("heavy", long), ("light", RECIPE))
    ]
    assert [one.text() for one in asked] == expected
    assert made == ["light", "heavy"]


def test_a_client_that_leaves_while_its_answer_pauses_frees_everything(llm, started, monkeypatch):
    real = llm.split_model.forward

    def slower(*given, **named):  # so that the pause lasts, even where this thread is late
        time.sleep(0.005)
        return real(*given, **named)

    monkeypatch.setattr(llm.split_model, "forward", slower)
    engine = started()
    heavy = Asked(llm, "long", source(llm, "x"), "fastmem", max_new_tokens=480, account="heavy").to(engine)
    eventually(lambda: len(engine.batch) == 1)
    light = Asked(llm, "short", max_new_tokens=300, account="light").to(engine)
    eventually(lambda: engine.batch.paused)
    engine.cancel(heavy.job)
    found = light.text()
    monkeypatch.undo()
    assert found == llm.generate("short", max_new_tokens=300).text
    eventually(lambda: not engine._open)
    assert heavy.job.entry.holders == 0
    assert not engine.batch._batch._batch._paused_groups


def test_a_fault_while_answers_pause_costs_none_of_them(llm, started, monkeypatch):
    engine = started()
    heavy = Asked(llm, "long", max_new_tokens=60, account="heavy").to(engine)
    eventually(lambda: len(engine.batch) == 1)
    light = Asked(llm, "short", max_new_tokens=40, account="light").to(engine)
    eventually(lambda: engine.batch.paused)
    faults = [RuntimeError("once")]
    real = llm.split_model.forward

    def forward(*given, **named):
        if faults:
            raise faults.pop()
        return real(*given, **named)

    monkeypatch.setattr(llm.split_model, "forward", forward)
    assert light.text() == llm.generate("short", max_new_tokens=40).text
    assert heavy.text() == llm.generate("long", max_new_tokens=60).text
    assert not faults


@pytest.mark.parametrize("happens", ["drain", "no more waiting"])
def test_an_answer_that_left_its_row_is_finished_whatever_happens_to_the_queue(llm, started, happens):
    engine = started(rows=1)
    heavy = Asked(llm, "long", max_new_tokens=200, account="heavy").to(engine)
    eventually(lambda: len(engine.batch) == 1)
    waiting = []

    def on_piece(_):  # in the worker's thread, while the long answer waits for the row that it had
        if not waiting:
            waiting.extend(engine._waiting)
            if happens == "drain":
                engine.drain()
            else:
                engine.limits = replace(engine.limits, wait_seconds=0.0)

    light = Asked(llm, "short", max_new_tokens=20, account="light", on_piece=on_piece).to(engine)
    assert light.text() == llm.generate("short", max_new_tokens=20).text
    assert heavy.text() == llm.generate("long", max_new_tokens=200).text
    assert waiting == [heavy.job]


def test_only_so_many_memories_are_begun(llm):
    """Each account is lighter than the one before; a fifth memory waits for one of those that have begun."""
    queue, level = MemorizeQueue(llm), {}
    for number in range(MOST_BEGUN + 1):
        account = f"account {number}"
        level[account] = -number
        want = replace(source(llm, account, recipe=Recipe(learning_rate=1e-3, steps=5)), account=account)
        queue.add(Entry(want, 0, 0, holders=1), want)
        making = queue.next_up(level.__getitem__)
        assert making.entry.source.account == f"account {min(number, MOST_BEGUN - 1)}"
        queue.step(making)
    while making.memory is None:
        queue.step(making)
    assert queue.next_up(level.__getitem__).entry.source.account == f"account {MOST_BEGUN}"
