"""One worker for all: different memories side by side, memories made in between, failures that stay alone."""

import threading

import pytest

from fastmem.memory.recipe import Recipe
from fastmem.serve.jobs import AnswerFinished, JobFailed, OverloadedError
from fastmem.serve.store import Budget
from serving import RECIPE, Asked, closing_engines, eventually, make_llm, source

METHODS = ("base", "fastmem", "cad", "dola", "fastmem+cd", "fastmem+cad", "fastmem+dola")


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


def test_different_memories_and_methods_share_a_batch_and_answer_as_alone(llm, started):
    engine = started()
    asked, expected = [], []
    for i in range(14):
        method, text, prompt = METHODS[i % 7], f"document {i % 3}", f"question number {i}"
        without = {"without_context": "alone"} if "cad" in method else {}
        want = source(llm, text) if method.startswith("fastmem") else None
        options = {"max_new_tokens": 4 + i} | without
        asked.append(Asked(llm, prompt, want, method, **options).to(engine))
        expected.append(offline(llm, prompt, text, method, **options).text)
    assert [one.text() for one in asked] == expected
    assert len(set(expected)) > 7


def test_one_memory_is_made_once_for_all_who_wait(llm, started):
    engine = started()
    ends = [
        asked.end() for asked in [Asked(llm, want=source(llm, "same"), method="fastmem").to(engine) for _ in range(6)]
    ]
    assert all(isinstance(end, AnswerFinished) for end in ends)
    assert sum(end.made for end in ends) == 1
    assert len({end.memory["id"] for end in ends}) == 1


def test_seeds_and_stop_strings(llm, started):
    engine = started()
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 20}
    alone = llm.generate("p", **options).text
    many = [Asked(llm, "p", **options | {"seed": seed}).to(engine) for seed in (1, 2, 3)]
    texts = [one.text() for one in many]
    assert texts[2] == alone
    assert texts[0] != texts[2]
    greedy = llm.generate("p", max_new_tokens=20).text
    stop = greedy[4:6]
    ended = Asked(llm, "p", max_new_tokens=20, stop=[stop]).to(engine)
    assert ended.text() == greedy[: greedy.index(stop)] == llm.generate("p", max_new_tokens=20, stop=stop).text


def test_a_long_memorization_lets_the_others_go_on(llm, started):
    """Between two updates every running row gets a token; an update more per token is all it costs them."""
    engine = started()
    order = []
    real = llm.memorizing

    def noted(*args, **kwargs):
        running = real(*args, **kwargs)
        while True:
            try:
                step = next(running)
            except StopIteration as end:
                return end.value
            order.append("update")
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm, "memorizing", noted)
        first_piece = threading.Event()

        def on_piece(_):
            order.append("token")
            first_piece.set()

        reader = Asked(llm, "tell", max_new_tokens=120, on_piece=on_piece).to(engine)
        assert first_piece.wait(60)
        slow = Asked(llm, want=source(llm, "slow", recipe=Recipe(learning_rate=1e-3, steps=60)), method="fastmem")
        slow.to(engine)
        assert isinstance(reader.end(), AnswerFinished)
        assert isinstance(slow.end(), AnswerFinished)
    begun = order.index("update")
    until = max(i for i, what in enumerate(order) if what == "update")
    during = order[begun:until]
    longest = max(len(run) for run in "".join("u" if what == "update" else " " for what in during).split())
    # A token may be held back while its character is unfinished: a few tokens of a few bytes each.
    assert longest <= 8
    assert during.count("token") > 10


def test_prefixes_are_reused_within_a_tenant_only(llm, started):
    engine = started()
    prompt = "a document of some length, then a question"
    ends = []
    for tenant, memory in (("a", None), ("a", None), ("b", None), ("a", "text")):
        want = source(llm, memory, tenant) if memory else None
        method = "fastmem" if memory else "base"
        asked = Asked(llm, prompt, want, method, tenant, shared_tokens=30).to(engine)
        ends.append(asked.end())
    assert [end.answer.cached_tokens for end in ends] == [0, 30, 0, 30]
    assert ends[0].answer.token_ids == ends[1].answer.token_ids == ends[2].answer.token_ids
    memory = llm.memorize("text", RECIPE)
    assert ends[3].answer.token_ids == llm.generate(prompt, memory, "fastmem", max_new_tokens=8).token_ids


def test_a_full_queue_refuses_with_a_time_to_come_back(llm, started):
    engine = started(rows=1, waiting=1)
    held = [Asked(llm, max_new_tokens=100).to(engine) for _ in range(2)]
    with pytest.raises(OverloadedError, match="try again in") as refused:
        Asked(llm).to(engine)
    assert 1 <= refused.value.retry_after_seconds <= 60
    assert all(isinstance(asked.end(), AnswerFinished) for asked in held)
    eventually(lambda: engine.waiting == 0)
    assert isinstance(Asked(llm).to(engine).end(), AnswerFinished)


def test_who_waits_too_long_is_refused(llm, started):
    engine = started(rows=1, wait_seconds=0.0)
    end = Asked(llm).to(engine).end()
    assert isinstance(end, JobFailed)
    assert isinstance(end.error, OverloadedError)


def test_memories_that_do_not_fit_together_wait_for_each_other(llm, started, tmp_path):
    size = llm.memorize("x", RECIPE).size_bytes
    engine = started(Budget(device_bytes=2 * size, ram_bytes=2 * size), tmp_path)
    texts = [f"document {i % 5}" for i in range(20)]
    asked = [Asked(llm, "q", source(llm, text), "fastmem").to(engine) for text in texts]
    base = [Asked(llm, "q").to(engine) for _ in range(3)]
    expected = {text: offline(llm, "q", text, "fastmem").text for text in set(texts)}
    assert [one.text() for one in asked] == [expected[text] for text in texts]
    assert all(isinstance(one.end(), AnswerFinished) for one in base)
    assert engine.store.totals()["ram"][1] <= 2 * size
    assert engine.store.evictions["ram"] > 0
    assert engine.store.totals()["disk"][0] == 5


def test_who_holds_a_memory_goes_on_and_who_waits_for_room_gets_it(llm, started):
    """Room comes from those who hold a memory: were they kept back for one they have overtaken, all would wait."""
    size = llm.memorize("x", RECIPE).size_bytes
    engine = started(Budget(ram_bytes=size), rows=1, wait_seconds=30.0, overtaking=1)
    begun = []

    def asked(text, number):
        return Asked(llm, "q", source(llm, text), "fastmem", on_piece=lambda _: begun.append(number))

    several = [asked(text, number) for number, text in enumerate("abaaa")]
    for one in several:
        one.to(engine)
    assert all(isinstance(one.end(), AnswerFinished) for one in several)
    assert list(dict.fromkeys(begun)).index(1) <= 2  # one may overtake it, the others may not


def test_a_client_that_leaves_frees_its_row_and_its_memory(llm, started):
    engine = started()
    asked = Asked(llm, want=source(llm, "left"), method="fastmem", max_new_tokens=300).to(engine)
    eventually(lambda: len(engine.batch) == 1)
    engine.cancel(asked.job)
    eventually(lambda: len(engine.batch) == 0)
    assert asked.job.entry.holders == 0
    assert engine.waiting == 0
    waiting = Asked(llm, want=source(llm, "never", recipe=Recipe(steps=100)), method="fastmem").to(engine)
    engine.cancel(waiting.job)
    eventually(lambda: not engine._open and not len(engine._memorize_queue))
    assert engine.store.find("t", waiting.job.source.key) is None
