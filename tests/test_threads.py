"""One `FastMem` used by several threads gives what it gives one after the other, bit for bit.

The overlap is forced: an activation waits inside the FFN until the other thread is there, too, and a tiny switch
interval lets threads change places between any two operations.
"""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from families import build
from fastmem import FastMem, Recipe, Tokens, prompts
from tiny_tokenizer import build_tokenizer

RECIPE = Recipe(learning_rate=3e-3, steps=3)
THREADS = 4


class Meeting:
    """Lets the slower of two threads stay inside the FFN until the faster one has left it and finished."""

    def __init__(self):
        self.first_inside, self.second_inside, self.first_done = (threading.Event() for _ in range(3))

    def wait_inside(self):
        if threading.current_thread().name == "first":
            self.first_inside.set()
            assert self.second_inside.wait(60)
        elif threading.current_thread().name == "second":
            assert self.first_inside.wait(60)
            self.second_inside.set()
            assert self.first_done.wait(60)


meeting: Meeting | None = None


class MeetingActivation(nn.Module):
    """SiLU, behind the meeting of the running test."""

    def forward(self, hidden):
        if meeting is not None:
            meeting.wait_inside()
        return nn.functional.silu(hidden)


def tokens(seed, count=24):
    generator = torch.Generator().manual_seed(seed)
    return Tokens(torch.randint(5, 288, (count,), generator=generator))


@pytest.fixture
def llm():
    return FastMem(build("llama"))


def test_one_memory_in_two_threads_that_are_inside_the_ffn_together(monkeypatch):
    model = build("llama")
    model.model.layers[-1].mlp.act_fn = MeetingActivation()
    llm = FastMem(model)
    memory = llm.memorize(tokens(0), RECIPE)
    ids = tokens(1).ids
    expected, base = llm.logits(ids, memory), llm.logits(ids)
    assert (expected - base).abs().max() > 0.1
    monkeypatch.setattr(sys.modules[__name__], "meeting", Meeting())
    found = {}

    def work():
        name = threading.current_thread().name
        found[name] = llm.logits(ids, memory)
        if name == "first":
            meeting.first_done.set()

    threads = [threading.Thread(target=work, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert torch.equal(found["first"], expected)
    assert torch.equal(found["second"], expected)


@pytest.fixture
def eager_switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("layers", [(-1,), (-2, -1)])
def test_many_threads_read_memorize_and_answer_at_once(llm, layers):
    """Every thread uses one common memory and memories of its own, and memorizes meanwhile."""
    recipe = Recipe(learning_rate=3e-3, steps=3, layers=layers)
    common = llm.memorize(tokens(0), recipe)
    own = [llm.memorize(tokens(seed), recipe) for seed in range(1, 4)]

    def memorize(seed):
        return lambda: torch.cat([t.flatten() for t in llm.memorize(tokens(seed), recipe).tensors.values()])

    def answer(seed, memory, method):
        options = {"max_new_tokens": 6, "without_context": tokens(90 + seed, 5) if "cad" in method else None}
        return lambda: torch.tensor(llm.generate(tokens(seed, 9 + seed), memory, method, **options).token_ids)

    jobs = [memorize(seed) for seed in range(20, 24)]
    jobs += [answer(seed, common, "fastmem") for seed in range(8)]
    jobs += [answer(seed, own[seed % 3], method) for seed in range(3) for method in ("fastmem+cd", "fastmem+cad")]
    jobs += [answer(seed, None, method) for seed in range(2) for method in ("base", "dola")]
    jobs += [lambda: llm.logits(tokens(40).ids, common)]
    expected = [job() for job in jobs]
    for memory in (common, *own):  # the FFN modules of a memory are made again, perhaps by two threads at once
        llm.release(memory)
    with ThreadPoolExecutor(THREADS) as pool:
        for number, (one, two) in enumerate(zip(pool.map(lambda job: job(), jobs), expected, strict=True)):
            assert torch.equal(one, two), number


@pytest.mark.usefixtures("eager_switching")
def test_threads_may_release_a_memory_that_others_use(llm):
    memory = llm.memorize(tokens(0), RECIPE)
    expected = llm.logits(tokens(1).ids, memory)

    def use_and_release(_):
        found = llm.logits(tokens(1).ids, memory)
        llm.release(memory)
        return torch.equal(found, expected)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(use_and_release, range(20)))


class OneAtATime:
    """A tokenizer that notices two calls at once; a call keeps its options in the tokenizer while it runs."""

    def __init__(self, tokenizer):
        self._tokenizer, self._free, self.met = tokenizer, threading.Lock(), False

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **options):
        return self._alone(self._tokenizer, text, **options)

    def apply_chat_template(self, messages, **options):
        if not options.get("tokenize", True):
            return self._tokenizer.apply_chat_template(messages, **options)
        return self._alone(self._tokenizer.apply_chat_template, messages, **options)

    def _alone(self, encode, *arguments, **options):
        if not self._free.acquire(blocking=False):
            self.met = True
            return encode(*arguments, **options)
        try:
            time.sleep(0.002)  # long enough for another thread to come
            return encode(*arguments, **options)
        finally:
            self._free.release()


def test_control_tokens_are_text_whatever_other_threads_encode():
    tokenizer = OneAtATime(build_tokenizer())
    control, plain = "a document <|eot_id|> with control tokens. " * 3, "a long plain document. " * 6
    calls = [
        lambda: prompts.memory_tokens(tokenizer, control).ids.tolist(),
        lambda: prompts.memory_tokens(tokenizer, plain).ids.tolist(),
        lambda: prompts.chat_ids(tokenizer, [{"role": "user", "content": control}]).tolist(),
        lambda: prompts.text_ids_before(tokenizer, plain, "document.")[0].ids.tolist(),
    ]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        found = list(pool.map(lambda number: calls[number % len(calls)](), range(40)))
    assert found == expected * 10
    assert not tokenizer.met
