"""A head that gives some tokens the logit -inf: everything equals what a head without these tokens gives."""

import math

import pytest
import torch
from torch import nn

from families import build
from fastmem import METHODS, FastMem, Recipe, Tokens
from fastmem.answer.contrast import adaptive_alpha, contrast, divergence, dola
from fastmem.answer.sampling import Sampling, adjusted, choose
from fastmem.learn.objective import losses_and_gradient, plain
from fastmem.surprisal_report import token_surprisals
from test_memorize import LOGIT, LOSS_RELATIVE, losses, run_naive
from test_trunk import assert_near

POSSIBLE = 250  # of 288 tokens
DOCUMENT = Tokens(torch.arange(3, 27) * 11 % POSSIBLE)
PROMPT = Tokens(torch.arange(5, 17) * 13 % POSSIBLE)
RECIPE = Recipe(learning_rate=1e-3, steps=5, kl_weight=0.3)


def masked_by_bias():
    model = build("llama")
    head = nn.Linear(48, 288)
    head.weight = model.lm_head.weight
    head.bias = nn.Parameter(torch.where(torch.arange(288) < POSSIBLE, 0.0, -torch.inf))
    model.lm_head = head
    return model


def masked_by_code():
    model = build("llama")

    class Masked(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.masked_fill(torch.arange(288) >= POSSIBLE, -torch.inf)
            return output

    model.__class__ = Masked
    return model


def cut_off():
    """The truth: the head has no row for the impossible tokens."""
    model = build("llama")
    head = nn.Linear(48, POSSIBLE, bias=False)
    head.weight = nn.Parameter(model.lm_head.weight[:POSSIBLE].detach().clone())
    model.lm_head = head
    return model


@pytest.mark.parametrize("masked", [masked_by_bias, masked_by_code])
def test_memorizing_equals_that_of_a_head_without_them(masked):
    llm = FastMem(masked())
    memory = llm.memorize(DOCUMENT, RECIPE)
    assert memory.stopped is None
    history, _ = run_naive(cut_off(), Tokens(DOCUMENT.ids, torch.arange(24) >= 1))
    torch.testing.assert_close(losses(memory), history, rtol=LOSS_RELATIVE, atol=LOSS_RELATIVE)
    truth = FastMem(cut_off())
    expected = truth.memorize(DOCUMENT, RECIPE)
    logits = llm.logits(PROMPT.ids, memory)
    assert logits[:, POSSIBLE:].isneginf().all()
    assert_near(logits[:, :POSSIBLE], truth.logits(PROMPT.ids, expected), LOGIT)
    surprisals = [token_surprisals(one.split_model, one.read(DOCUMENT)) for one in (llm, truth)]
    assert_near(*surprisals, 1e-5)


def test_memorizing_over_a_shortlist_equals_that_of_a_head_without_them():
    recipe = Recipe(learning_rate=1e-4, steps=3, shortlist=96)
    memory = FastMem(masked_by_bias()).memorize(DOCUMENT, recipe)
    expected = FastMem(cut_off()).memorize(DOCUMENT, recipe)
    assert memory.recipe.shortlist == expected.recipe.shortlist == 96
    torch.testing.assert_close(losses(memory), losses(expected), rtol=LOSS_RELATIVE, atol=LOSS_RELATIVE)


@pytest.mark.parametrize("method", METHODS)
def test_answers_equal_those_of_a_head_without_them(method):
    found = []
    for llm in (FastMem(masked_by_bias()), FastMem(cut_off())):
        memory = llm.memorize(DOCUMENT, RECIPE) if METHODS[method].memorized else None
        without = Tokens(PROMPT.ids[5:]) if METHODS[method].kind == "cad" else None
        found.append(llm.generate(PROMPT, memory, method, max_new_tokens=4, top_logprobs=3, without_context=without))
    answer, expected = found
    assert answer.token_ids == expected.token_ids
    assert [[t for t, _ in top] for _, top in answer.logprobs] == [[t for t, _ in top] for _, top in expected.logprobs]
    numbers = [[value for own, top in a.logprobs for value in (own, *(v for _, v in top))] for a in found]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def test_they_are_never_drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(288, generator=generator).masked_fill(torch.arange(288) >= 5, -torch.inf)
    seen = torch.tensor([1, 100])
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.3}):
        sampling = Sampling(temperature=2.0, **options)
        scores = adjusted(logits, sampling, seen, seen[:0])
        drawn = [choose(scores, sampling, generator).item() for _ in range(20)]
        assert max(drawn) < 5


N, V = 6, 40
TARGETS = torch.arange(N)
IMPOSSIBLE = torch.zeros(N, V, dtype=torch.bool)
IMPOSSIBLE[:, 30:] = True
IMPOSSIBLE[2, 10:20] = True


def two_sides(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(N, V, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


def masked(logits, where=IMPOSSIBLE):
    return logits.masked_fill(where, -torch.inf)


def row_losses(now, base, target):
    """Cross entropy and KL of one position, token by token over those that are possible, in float64."""
    q, p = now.double().softmax(-1).tolist(), base.double().softmax(-1).tolist()
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return -math.log(q[target]), kl


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base_only", [False, True])
def test_the_objective_counts_them_as_nothing(base_only, dtype):
    now, base = two_sides(dtype)
    now, base = now if base_only else masked(now), masked(base)
    expected = torch.tensor([row_losses(*row) for row in zip(now, base, TARGETS, strict=True)], dtype=torch.float64)
    cross_entropy, kl, gradient = losses_and_gradient(now.clone(), base, TARGETS, 0.3)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    assert_near(torch.stack([cross_entropy, kl], -1).double(), expected, tolerance)
    q, p = now.double().softmax(-1), base.double().softmax(-1)
    wanted = q - torch.eye(V)[TARGETS] + 0.3 * (q - p)
    assert_near(gradient.double(), wanted, tolerance if dtype != torch.bfloat16 else 1e-2)
    if not base_only:
        assert not gradient[IMPOSSIBLE].any()


@pytest.mark.parametrize("base_only", [False, True])
def test_the_definition_counts_them_as_nothing(base_only):
    now, base = two_sides()
    now, base = (now if base_only else masked(now)).requires_grad_(), masked(base)
    loss, cross_entropy, kl = plain(now, base, TARGETS, 0.3)
    rows = [row_losses(*row) for row in zip(now.detach(), base, TARGETS, strict=True)]
    expected = torch.tensor(rows, dtype=torch.float64).mean(0)
    assert_near(torch.stack([cross_entropy, kl]).detach(), expected, 1e-12)
    (gradient,) = torch.autograd.grad(loss * N, now)
    assert_near(gradient, losses_and_gradient(now.detach(), base, TARGETS, 0.3)[2], 1e-12)


def test_a_token_that_has_become_impossible_costs_an_infinite_loss():
    now, base = two_sides()
    assert plain(masked(now), base, TARGETS, 0.3)[2].isinf()
    _, kl, _ = losses_and_gradient(masked(now), base, TARGETS, 0.3)
    assert kl.isinf().all()
    assert losses_and_gradient(masked(now), base, torch.full((N,), 35), 0.3)[0].isinf().all()


@pytest.mark.parametrize("side", [0, 1], ids=["now", "untouched"])
def test_a_logit_that_is_no_number_is_seen(side):
    sides = [masked(logits) for logits in two_sides(torch.float32)]
    sides[side][4, 7] = torch.nan
    _, kl, gradient = losses_and_gradient(sides[0].clone(), sides[1], TARGETS, 0.3)
    assert kl.isnan().tolist() == [False] * 4 + [True, False]
    assert gradient[4].isnan().all()
    assert plain(*sides, TARGETS, 0.3)[0].isnan()


ALPHAS = [0.0, 0.5, 20.0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_contrast_leaves_them_impossible(alpha):
    logits, against = two_sides()
    scores = contrast(masked(logits), masked(against), alpha)
    assert torch.equal(scores.isneginf(), IMPOSSIBLE)
    expected = (1 + alpha) * logits - alpha * against
    assert_near(scores[~IMPOSSIBLE], expected[~IMPOSSIBLE], 1e-12)
    assert contrast(masked(logits), against, alpha)[IMPOSSIBLE].isneginf().all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_token_impossible_on_the_other_side_alone_counts_as_the_least_likely_there(alpha):
    logits, against = two_sides()
    scores = contrast(logits, masked(against), alpha)
    least = masked(against).masked_fill(IMPOSSIBLE, torch.inf).amin(-1, keepdim=True).expand(N, V)
    assert_near(scores, (1 + alpha) * logits - alpha * torch.where(IMPOSSIBLE, least, against), 1e-12)


def test_the_divergence_counts_them_as_nothing():
    logits, against = two_sides()
    for one, other in ((masked(logits), masked(against)), (masked(logits), against), (logits, masked(against))):
        p, q = one.softmax(-1), other.softmax(-1)
        expected = [
            sum(a * math.log2(2 * a / (a + b)) for a, b in zip(first, second, strict=True) if a > 0) / 2
            + sum(b * math.log2(2 * b / (a + b)) for a, b in zip(first, second, strict=True) if b > 0) / 2
            for first, second in zip(p.tolist(), q.tolist(), strict=True)
        ]
        assert divergence(one, other).tolist() == pytest.approx(expected, abs=1e-12)
        assert adaptive_alpha(one, other)[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_dola_leaves_them_impossible():
    final, near = two_sides()
    early = torch.stack([near, -3 * final])
    scores = dola(masked(final), torch.stack([masked(near), masked(-3 * final)]), relative_top=0.0)
    assert torch.equal(scores.isneginf(), IMPOSSIBLE)
    for row in range(N):
        kept = ~IMPOSSIBLE[row]
        expected = dola(final[row : row + 1, kept], early[:, row : row + 1, kept], relative_top=0.0)
        assert_near(scores[row : row + 1, kept], expected, 1e-12)
    only_early = dola(final, torch.stack([masked(near), masked(-3 * final)]), relative_top=0.0)
    assert only_early.isfinite().all()
