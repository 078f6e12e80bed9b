"""A model that `torch.compile` has wrapped, whole or in part, has the names, digests and memories of the plain one."""

import json

import pytest
import torch

from families import build
from fastmem import FastMem, Memory, Recipe, Tokens
from fastmem.export import export
from fastmem.split.fingerprint import sampled_digest

DOCUMENT, PROMPT = Tokens(range(10, 40)), Tokens(range(50, 70))
RECIPE = Recipe(learning_rate=1e-2, steps=3)
LORA = Recipe(learning_rate=1e-2, steps=3, parametrization="lora", rank=4)


def compiled(module):
    return torch.compile(module, backend="eager")  # no compiler is needed


def whole(model):
    return compiled(model)


def in_place(model):
    model.compile(backend="eager")
    return model


def body(model):
    model.model = compiled(model.model)
    return model


def layers(model):
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = compiled(layer)
    return model


def layers_in_place(model):
    for layer in model.model.layers:
        layer.compile(backend="eager")
    return model


def ffn(model):
    model.model.layers[-1].mlp = compiled(model.model.layers[-1].mlp)
    return model


def matrices(model):
    mlp = model.model.layers[-1].mlp
    mlp.gate_proj, mlp.down_proj = compiled(mlp.gate_proj), compiled(mlp.down_proj)
    return model


def head(model):
    model.lm_head = compiled(model.lm_head)
    return model


def one_in_another(model):
    return compiled(layers(ffn(model)))


@pytest.fixture(scope="module")
def plain():
    return FastMem(build("llama"))


@pytest.fixture(autouse=True)
def without_compiled_code():
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "compile_", [whole, in_place, body, layers, layers_in_place, ffn, matrices, head, one_in_another]
)
def test_it_shares_memories_with_the_plain_model(plain, compile_, tmp_path):
    model = compile_(build("llama"))
    before = list(model.state_dict())
    llm = FastMem(model)
    assert (llm.name, llm.base()) == (plain.name, plain.base())
    assert sampled_digest(model) == sampled_digest(plain.model)
    memory, expected = llm.memorize(DOCUMENT, RECIPE), plain.memorize(DOCUMENT, RECIPE)
    assert memory.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(memory.tensors[name], tensor)
    assert torch.equal(llm.logits(PROMPT.ids, expected), plain.logits(PROMPT.ids, expected))
    expected.save(tmp_path / "m")
    assert torch.equal(Memory.load(tmp_path / "m", llm).tensors[name], expected.tensors[name])
    assert torch.equal(plain.logits(PROMPT.ids, memory), llm.logits(PROMPT.ids, memory))
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("compile_", [whole, body, ffn, matrices])
def test_applied_reaches_the_weights_inside(plain, compile_):
    model = compile_(build("llama"))
    memory = plain.memorize(DOCUMENT, RECIPE)
    with torch.no_grad():
        own = model(PROMPT.ids[None]).logits[0]
        with memory.applied(model):
            tuned = model(PROMPT.ids[None]).logits[0]
        assert torch.equal(model(PROMPT.ids[None]).logits[0], own)
    assert torch.allclose(tuned, plain.logits(PROMPT.ids, memory), atol=1e-5)
    assert not torch.allclose(tuned, own, atol=1e-2)


@pytest.mark.parametrize("compile_", [whole, ffn, matrices])
def test_an_exported_adapter_has_the_plain_names(plain, compile_, tmp_path):
    export(plain, plain.memorize(DOCUMENT, LORA), tmp_path / "plain")
    llm = FastMem(compile_(build("llama")))
    export(llm, llm.memorize(DOCUMENT, LORA), tmp_path / "compiled")
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("plain", "compiled")]
    assert configs[0] == configs[1]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "compiled")]
    assert weights[0] == weights[1]
