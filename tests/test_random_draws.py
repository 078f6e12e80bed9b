"""Draw a model, memories and a course of events at random, and compare with the slow way.

Every draw takes a family, two memories of different recipes, and a few requests with methods, prompts that may share a
beginning, and options of their own. They join running batches in several threads, at different steps; some leave
early, some batches are restarted. The memories are compared with `examples/naive.py`, every token and every
log-probability with `reference.py`: one prompt at a time, no cache, whole models with the tuned weights written in.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import naive
import reference
from families import FAMILIES, build
from fastmem import FastMem, Memory, Recipe, Tokens
from fastmem.answer.contrast import METHODS
from test_longrope import build_longrope

# Early states go through a bare matrix in the reference, through the whole head with its scale or cap in the model.
SCALED_HEADS = ("cohere2", "cohere", "gemma2", "granite", "granitemoe")
LONGROPE = "phi3_longrope"
# Units: nats. Scores reach about 10 and go through other kernels with a cache and in a batch.
ROUNDING = 2e-3
# Share of a memory's change. AdamW's first steps move a number by the rate in the direction of a gradient's sign,
# which is rounding where the gradient is 0.
MEMORY = 0.05


@dataclass(frozen=True)
class Asked:
    """One request of a draw."""

    method: str
    length: int
    shared: int  # tokens at the start that all prompts of the draw have in common
    new_tokens: int
    memory: int
    alpha: float
    relative_top: float | None
    joins_at: int
    leaves_at: int | None
    thread: int


@st.composite
def asked(draw):
    length = draw(st.integers(2, 80))
    return Asked(
        method=draw(st.sampled_from(sorted(METHODS))),
        length=length,
        shared=draw(st.integers(0, length)),
        new_tokens=draw(st.integers(1, 6)),
        memory=draw(st.integers(0, 1)),
        alpha=draw(st.sampled_from([0.0, 0.5, 2.0])),
        relative_top=draw(st.sampled_from([None, 0.0, 0.1])),
        joins_at=draw(st.integers(0, 3)),
        leaves_at=draw(st.one_of(st.none(), st.integers(1, 4))),
        thread=draw(st.integers(0, 2)),
    )


recipes = st.builds(
    Recipe,
    learning_rate=st.sampled_from([1e-3, 3e-3]),
    steps=st.integers(0, 3),
    kl_weight=st.sampled_from([0.0, 0.1, 1.0]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    max_grad_norm=st.sampled_from([0.1, 1.0, 100.0]),
    layers=st.sampled_from([(-1,), (-2,), (-2, -1)]),
)

draws = st.fixed_dictionaries(
    {
        "family": st.sampled_from([*FAMILIES, LONGROPE]),
        "recipes": st.tuples(recipes, recipes),
        "requests": st.lists(asked(), min_size=1, max_size=5),
        "prefix_bytes": st.sampled_from([0, 2**20]),
        "restart_at": st.one_of(st.none(), st.integers(1, 3)),
        "seed": st.integers(0, 2**16),
    }
)


def model_of(family):
    return build_longrope() if family == LONGROPE else build(family)


def ids(seed, count):
    return torch.randint(5, 288, (count,), generator=torch.Generator().manual_seed(seed))


def check_memory(family: str, document: torch.Tensor, recipe: Recipe, memory: Memory) -> None:
    """The memory against the plain way."""
    model, start = model_of(family), model_of(family)
    names = naive.ffn_parameters(model, recipe.layers)
    history = naive.memorize(
        model, document, Tokens(document).scored, names, recipe.learning_rate, recipe.steps, recipe.kl_weight,
        recipe.weight_decay, recipe.max_grad_norm,
    )  # fmt: skip
    assert [(s.loss, s.cross_entropy, s.kl) for s in memory.trace] == [pytest.approx(h, abs=2e-3) for h in history]
    for name, tensor in memory.tensors.items():
        expected = model.get_parameter(name).detach() - start.get_parameter(name).detach()
        assert (tensor - expected).norm() <= MEMORY * expected.norm() + 1e-7, name


def true_scores(one: Asked, model, tuned, prompt: list[int], without: list[int]):
    """The method's scores as a function of the answer so far, see `reference.py`."""
    method = METHODS[one.method]
    strong = tuned if method.memorized else model
    cut = one.relative_top if one.relative_top is not None else 0.1 if method.kind == "dola" else 0.0
    if method.kind is None:
        return reference.base(strong, prompt)
    if method.kind == "dola":
        return reference.dola(strong, prompt, relative_top=max(cut, 1e-38))
    other = without if method.kind == "cad" else prompt

    def scores(answer):
        ours, against = reference.next_logits(strong, prompt + answer), reference.next_logits(model, other + answer)
        bits = reference.jensen_shannon(ours.log_softmax(-1), against.log_softmax(-1)) / math.log(2)
        alpha = min(max(bits, 0.0), 1.0) if method.adaptive else one.alpha
        found = (1 + alpha) * ours - alpha * against
        return found.masked_fill(ours < ours.max() + math.log(cut), -torch.inf) if cut else found

    return scores


def check_answer(scores, tokens: list[int], logprobs) -> None:
    """Every token is the best one after those before it, up to rounding, and has its log-probability."""
    for position, (token, (logprob, _)) in enumerate(zip(tokens, logprobs, strict=True)):
        expected = scores(tokens[:position])
        scale = max(1.0, expected[expected.isfinite()].abs().max().item())
        assert expected[token] >= expected.max() - ROUNDING * scale
        assert abs(expected.log_softmax(-1)[token].item() - logprob) <= ROUNDING * scale


def decode_in_events(llm: FastMem, requests, events: list[Asked], restart_at: int | None):
    """Rows of one running batch whose requests join and leave at given steps."""
    batch, rows = llm.batch(), {}
    for step in range(20):
        joining = [i for i, one in enumerate(events) if one.joins_at == step]
        rows |= dict(zip(joining, batch.join([requests[i] for i in joining]), strict=True))
        if step == restart_at:
            batch.restart(list(batch.rows))
        if batch.rows:
            batch.step()
        leaving = [
            rows[i]
            for i, one in enumerate(events)
            if i in rows and one.leaves_at == step and any(row is rows[i] for row in batch.rows)
        ]
        batch.leave(leaving)
    assert not batch.rows
    return [rows[i] for i in range(len(events))]


def check(draw) -> None:
    family, seed = draw["family"], draw["seed"]
    llm = FastMem(model_of(family), prefix_bytes=draw["prefix_bytes"])
    # 1. Memories, against the plain way.
    documents = [ids(seed + i, 20 + 30 * i) for i in range(2)]
    memories = [llm.memorize(Tokens(document), r) for document, r in zip(documents, draw["recipes"], strict=True)]
    for document, recipe, memory in zip(documents, draw["recipes"], memories, strict=True):
        check_memory(family, document, recipe, memory)
    # 2. Requests, decoded by several threads at once.
    common, asked_for = ids(seed + 5, 80), []
    for number, one in enumerate(draw["requests"]):
        if METHODS[one.method].kind == "dola" and family in SCALED_HEADS:
            continue
        prompt = torch.cat([common[: one.shared], ids(seed + 10 + number, one.length - one.shared)])
        without = ids(seed + 50 + number, 1 + one.length // 3)
        memory = memories[one.memory] if METHODS[one.method].memorized else None
        request = llm.request(
            Tokens(prompt), memory, one.method, max_new_tokens=one.new_tokens, alpha=one.alpha,
            relative_top=one.relative_top, top_logprobs=1,
            without_context=Tokens(without) if METHODS[one.method].kind == "cad" else None,
        )  # fmt: skip
        asked_for.append((one, request, prompt.tolist(), without.tolist()))
    groups = [[entry for entry in asked_for if entry[0].thread == thread] for thread in range(3)]
    with ThreadPoolExecutor(3) as pool:
        rows = list(
            pool.map(
                lambda group: decode_in_events(
                    llm, [entry[1] for entry in group], [entry[0] for entry in group], draw["restart_at"]
                ),
                groups,
            )
        )
    # 3. Tokens and log-probabilities, against whole models.
    originals = [llm.split_model.parameters(memory.recipe.layers) for memory in memories]
    tuned = [reference.memorized(llm.model, m.weights(o)) for m, o in zip(memories, originals, strict=True)]
    for group, found in zip(groups, rows, strict=True):
        for (one, _, prompt, without), row in zip(group, found, strict=True):
            assert row.reason is None or len(row.token_ids) in (one.new_tokens, *range(one.new_tokens))
            check_answer(true_scores(one, llm.model, tuned[one.memory], prompt, without), row.token_ids, row.logprobs)


RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@settings(max_examples=12, **RELAXED)
@given(draws)
def test_a_few_draws(draw):
    check(draw)


@pytest.mark.slow
@settings(max_examples=1000, **RELAXED)
@given(draws)
def test_a_thousand_draws(draw):
    check(draw)
