"""Low-rank memories: the loop equals PEFT trained the plain way on the whole model; same seed, same bytes."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

import naive
from families import build
from fastmem import FastMem, Recipe
from fastmem.errors import InputError
from fastmem.learn.memorize import drain
from fastmem.learn.optimize import Optimization
from fastmem.memory import low_rank
from test_memorize import IDS, QUERY, TOKENS, losses
from test_trunk import assert_near, assert_untouched

RECIPE = Recipe(learning_rate=1e-2, steps=5, kl_weight=0.3, parametrization="lora", rank=4, lora_alpha=12.0)


def matrices(model, layers=(-1,)):
    return {
        name: parameter
        for name in naive.ffn_parameters(model, layers)
        if low_rank.is_matrix(name, parameter := model.get_parameter(name))
    }


def peft_model(model, weights, start, transposed):
    """The model under PEFT, its factors set to where our loop starts; their names in PEFT, in the order of ours."""
    config = LoraConfig(
        r=RECIPE.rank,
        lora_alpha=RECIPE.lora_alpha,
        target_modules=[name.removesuffix(".weight") for name in weights],
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config)
    names = []
    for name in weights:
        a, b = start[f"{name}.lora_A"], start[f"{name}.lora_B"]
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        for end, value in (("lora_A", b.mT), ("lora_B", a.mT)) if transposed else (("lora_A", a), ("lora_B", b)):
            names.append(f"{stem}.{end}.default.weight")
            wrapped.get_parameter(names[-1]).data.copy_(value)
    return wrapped, names


@pytest.mark.parametrize(
    ("family", "layers"), [("llama", (-1,)), ("gpt2", (-1,)), ("phi", (-1,)), ("opt", (0, -1))], ids=str
)
def test_equals_peft_on_the_whole_model(family, layers):
    llm = FastMem(build(family), None)
    recipe = replace(RECIPE, layers=layers)
    memory = llm.memorize(TOKENS, recipe)
    weights = matrices(build(family), layers)
    start = low_rank.start(llm.split_model.parameters(layers), recipe.rank, recipe.seed)
    assert set(low_rank.names(start)) == set(weights)
    wrapped, names = peft_model(build(family), weights, start, transposed=family == "gpt2")
    history = naive.memorize(wrapped, IDS, TOKENS.scored, names, recipe.learning_rate, recipe.steps, recipe.kl_weight)
    torch.testing.assert_close(losses(memory), torch.tensor(history), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        expected = wrapped(QUERY[None]).logits[0]
    assert_near(llm.logits(QUERY, memory), expected, 1e-4)
    assert (expected - llm.logits(QUERY)).abs().max() > 0.3
    assert_untouched(llm.model, build(family))


# One of each layout: gated, transposed, fused, bare linears, experts in one tensor, with biases, beside a shared one.
LAYOUTS = ["llama", "gpt2", "phi3", "opt", "bloom", "lfm2", "mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3"]


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_layout_learns_from_exactly_the_original(family):
    model = build(family)
    llm = FastMem(model, None)
    memory = llm.memorize(TOKENS, RECIPE)
    assert memory.trace[0].kl == 0
    assert memory.trace[-1].cross_entropy < memory.trace[0].cross_entropy
    assert low_rank.names(memory.tensors)
    assert all(t.ndim == llm.split_model.parameters((-1,))[n[:-7]].ndim for n, t in memory.tensors.items())
    nothing = llm.memorize(TOKENS, replace(RECIPE, steps=0))
    assert torch.equal(llm.logits(QUERY, nothing), llm.logits(QUERY))
    assert_untouched(model, build(family))


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_gradients_of_the_factors_are_those_of_autograd(family):
    torch.manual_seed(0)
    originals = FastMem(build(family), None).split_model.parameters((-1,))
    # In float64: sums of products in float32 differ by the order of a kernel, up to 4e-5 of their value.
    factors = {
        n: torch.randn_like(t, dtype=torch.float64).requires_grad_()
        for n, t in low_rank.start(originals, 3, 0).items()
    }
    pull = {name: torch.randn_like(d) for name, d in low_rank.differences(factors, 2.5).items()}
    total = sum((d * pull[name]).sum() for name, d in low_rank.differences(factors, 2.5).items())
    expected = torch.autograd.grad(total, list(factors.values()))
    with torch.no_grad():
        found = low_rank.factor_gradients(pull | {"some.bias": torch.zeros(3)}, factors, 2.5)
    for name, gradient in zip(factors, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


def test_same_seed_same_bytes_and_another_seed_another_memory():
    first, second = (FastMem(build("llama"), None).memorize(TOKENS, RECIPE) for _ in range(2))
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    other = FastMem(build("llama"), None).memorize(TOKENS, replace(RECIPE, seed=1))
    assert not any(torch.equal(first.tensors[name], other.tensors[name]) for name in first.tensors)


def test_the_random_state_of_others_is_left_alone():
    state = torch.random.get_rng_state()
    FastMem(build("llama"), None).memorize(TOKENS, RECIPE)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_are_the_original_plus_the_scaled_product():
    llm = FastMem(build("gpt2"), None)
    memory = llm.memorize(TOKENS, RECIPE)
    originals = llm.split_model.parameters((-1,))
    for name, weight in memory.weights(originals).items():
        b, a = memory.tensors[f"{name}.lora_B"], memory.tensors[f"{name}.lora_A"]
        assert torch.equal(weight, originals[name] + RECIPE.lora_alpha / RECIPE.rank * (b @ a))
    with memory.applied(llm.model):
        inside = llm.model(QUERY[None]).logits[0].detach()
    assert torch.equal(inside, llm.logits(QUERY, memory))


def test_biases_stay_and_experts_have_factors_of_their_own():
    llm = FastMem(build("gpt_oss"), None)
    memory = llm.memorize(TOKENS, RECIPE)
    assert not [name for name in low_rank.names(memory.tensors) if "bias" in name]
    shapes = {name.split("mlp.")[1]: list(t.shape) for name, t in memory.tensors.items()}
    assert shapes["experts.gate_up_proj.lora_A"] == [4, 4, 160]
    assert shapes["experts.gate_up_proj.lora_B"] == [4, 48, 4]


def test_rank_is_capped_by_the_smaller_side():
    memory = FastMem(build("llama"), None).memorize(TOKENS, replace(RECIPE, rank=1000, steps=1))
    assert memory.tensors["model.layers.2.mlp.up_proj.weight.lora_A"].shape == (48, 48)


def test_a_path_and_a_stop_give_what_a_run_of_that_length_gives():
    llm = FastMem(build("llama"), None)
    three, five = drain(llm.memorizing(TOKENS, RECIPE, at=(3, 5)))
    assert_same_tensors(three, llm.memorize(TOKENS, replace(RECIPE, steps=3)))
    stopped = llm.memorize(TOKENS, replace(RECIPE, target_loss=five.trace[3].loss))
    assert stopped.stopped is not None
    assert_same_tensors(stopped, three)


def assert_same_tensors(a, b):
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_bfloat16_base_keeps_float32_factors():
    llm = FastMem(build("llama", dtype=torch.bfloat16), None)
    memory = llm.memorize(TOKENS, RECIPE)
    assert all(t.dtype == torch.float32 for t in memory.tensors.values())
    assert memory.trace[0].kl == 0
    assert memory.trace[-1].loss < memory.trace[0].loss - 0.1
    assert not torch.equal(llm.logits(QUERY, memory), llm.logits(QUERY))


def test_factors_of_one_layer_of_a_document_weigh_less_than_the_weights():
    llm = FastMem(build("llama"), None)
    full, low = llm.memorize(TOKENS, Recipe(steps=0)), llm.memorize(TOKENS, replace(RECIPE, steps=0))
    assert low.size_bytes == 4 * 3 * 4 * (48 + 80)
    assert full.size_bytes == 4 * 3 * 48 * 80
    assert len(Optimization(llm.split_model, llm.read(TOKENS), RECIPE).masters) == 6


def test_truncated_is_the_best_of_its_rank():
    memory = FastMem(build("llama"), None).memorize(TOKENS, Recipe(learning_rate=1e-3, steps=5))
    name = "model.layers.2.mlp.up_proj.weight"
    energies = [memory.truncated(rank)[1] for rank in (1, 4, 16, 48)]
    assert energies == sorted(energies)
    assert energies[-1] == pytest.approx(1, abs=1e-5)
    small, _ = memory.truncated(4)
    error = float((small.differences()[name] - memory.tensors[name]).square().sum())
    assert error == pytest.approx(torch.linalg.svdvals(memory.tensors[name])[4:].square().sum().item(), rel=1e-4)
    whole = memory.truncated(48)[0].differences()
    assert all((whole[n] - d).abs().max() < 1e-6 for n, d in memory.tensors.items())
    assert small.truncated(2)[0] is small


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("parametrization", "lorra", r"unknown parametrization 'lorra'. Did you mean 'lora'\?"),
        ("rank", 0, r"recipe rank is 0: give a whole number, 1 or more"),
        ("rank", 1.5, "give a whole number"),
        ("lora_alpha", -1.0, r"recipe lora_alpha is -1.0"),
        ("seed", -1, r"recipe seed is -1"),
    ],
)
def test_recipe_out_of_range(field, value, text):
    with pytest.raises(InputError, match=text):
        replace(RECIPE, **{field: value})
