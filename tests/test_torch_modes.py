"""Modes of torch around a call change no bit of what it returns, and a call changes no mode of its caller."""

import contextlib
from dataclasses import replace

import pytest
import torch

from families import build
from fastmem import FastMem, Recipe, Tokens, UnsupportedModelError
from fastmem.learn.surprisal import token_surprisals
from test_memorize import QUERY, TOKENS, recipe


def everything() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(torch.inference_mode())
    stack.enter_context(torch.autocast("cpu", torch.bfloat16))
    return stack


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "everything": everything,
}
RECIPES = {
    "plain": recipe(),
    "layers": recipe(layers=(0, -1)),
    "lora": recipe(parametrization="lora"),
    "shortlist": recipe(shortlist=100, learning_rate=1e-4),
    "rules": recipe(max_kl=1e-3),
}
PROMPT = Tokens(QUERY)


@pytest.fixture(params=MODES, name="mode")
def _mode(request):
    return MODES[request.param]


def modes() -> tuple:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


def assert_same(memory, expected) -> None:
    assert memory.trace == expected.trace
    assert memory.stopped == expected.stopped
    for name, tensor in expected.tensors.items():
        assert torch.equal(memory.tensors[name], tensor)
        assert not memory.tensors[name].is_inference()


@pytest.mark.parametrize(
    ("mode", "name"), [*((mode, "plain") for mode in MODES), *(("everything", name) for name in RECIPES)]
)
def test_a_memory_is_the_same_to_the_bit(mode, name, llama):
    mode, llm = MODES[mode], FastMem(llama)
    expected = llm.memorize(TOKENS, RECIPES[name])
    with mode():
        within = modes()
        assert_same(llm.memorize(TOKENS, RECIPES[name]), expected)
        assert modes() == within
    assert_same(llm.memorize(TOKENS, RECIPES[name]), expected)


@pytest.mark.parametrize(
    ("mode", "method"),
    [
        *((mode, "fastmem+cd") for mode in MODES),
        *(("everything", method) for method in ("base", "fastmem+dola", "fastmem+cad")),
    ],
)
def test_an_answer_is_the_same_to_the_bit(mode, method, llama):
    mode = MODES[mode]
    options = {"max_new_tokens": 3, "top_logprobs": 3, "without_context": Tokens(QUERY[:4])}
    llm, again = FastMem(llama), FastMem(llama)
    memories = [llm.memorize(TOKENS, one) for one in (recipe(parametrization="lora"), recipe(layers=(-2,)))]
    for memory in memories:
        expected = llm.generate(PROMPT, memory, method, **options)
        with mode():
            within = modes()
            found = again.generate(PROMPT, memory, method, **options)
            assert torch.equal(again.logits(QUERY, memory), llm.logits(QUERY, memory))
            assert modes() == within
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
        assert torch.equal(again.logits(QUERY, memory), llm.logits(QUERY, memory))


def test_logits_and_surprisals_are_the_same_to_the_bit(mode, llama):
    llm = FastMem(llama)
    memory = llm.memorize(TOKENS, recipe(parametrization="lora"))
    expected = llm.logits(QUERY, memory), token_surprisals(llm.split_model, llm.read(TOKENS), llm.ffn(memory))
    with mode():
        again = FastMem(llama)
        found = again.logits(QUERY, memory), token_surprisals(again.split_model, again.read(TOKENS), again.ffn(memory))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_generator_leaves_the_callers_modes_alone(mode, llama):
    llm = FastMem(llama)
    expected = llm.memorize(TOKENS, recipe())
    run, seen = llm.memorizing(TOKENS, recipe()), []
    with mode():
        within = modes()
        for _ in range(3):
            next(run)
            seen.append(modes())
        stream = iter(llm.stream(PROMPT, expected, max_new_tokens=4))
        next(stream, None)
        seen.append(modes())
    assert seen == [within] * 4
    try:
        while True:  # the rest of the run, in other modes than its beginning
            next(run)
            assert modes() == (True, False, False)
    except StopIteration as end:
        (memory,) = end.value
    assert_same(memory, expected)


def test_a_memory_from_within_can_be_used_outside(mode, tmp_path):
    llm = FastMem(build("llama"))
    with mode():
        memory = llm.memorize(TOKENS, recipe(parametrization="lora"))
        small, energy = llm.memorize(TOKENS, recipe()).truncated(4)
        logits = llm.logits(QUERY, memory)
        memory.save(tmp_path / "memory.safetensors")
    outside = llm.memorize(TOKENS, recipe()).truncated(4)
    assert energy == outside[1]
    assert all(torch.equal(small.tensors[name], tensor) for name, tensor in outside[0].tensors.items())
    with memory.applied(llm.model) as model:
        loss = model(QUERY[None], use_cache=False).logits.sum()
        torch.testing.assert_close(loss, logits.sum(), rtol=1e-4, atol=1e-2)
    with mode():
        loaded = type(memory).load(tmp_path / "memory.safetensors")
    assert torch.equal(llm.logits(QUERY, loaded), logits)


def test_a_model_loaded_within_is_an_ordinary_one():
    with everything():
        llm = FastMem.from_pretrained()
    one = Recipe(steps=1)
    assert llm.memorize(TOKENS, replace(one, steps=0)).trace == ()
    assert llm.memorize(TOKENS, one).trace[0].kl == 0


def test_a_model_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = build("llama")
    for outside in (contextlib.nullcontext, torch.inference_mode):
        with outside(), pytest.raises(UnsupportedModelError) as error:
            FastMem(model)
        assert str(error.value) == (
            "'llama' cannot be split at its last feed-forward network: its weights were made in "
            "torch.inference_mode(), which rules out gradients; load the model outside of it."
        )
