"""Models quantized by bitsandbytes and torchao, on a CPU: the tuned FFN stands for the same weights, as floats.

Truth: the weights as the library itself dequantizes them. Where a library is not installed, its tests skip.
"""

from functools import partial

import pytest
import torch
from torch import nn

from families import build
from fastmem import FastMem, Recipe, Tokens
from fastmem.errors import InputError, UnsupportedModelError
from quantized_models import bitsandbytes_llama, torchao_llama
from test_memorize import losses
from test_speed_paths import Int8Linear, quantized
from test_trunk import assert_near

DOCUMENT = Tokens(torch.arange(3, 27) * 11 % 288)
RECIPE = Recipe(learning_rate=1e-3, steps=3)


def eight_bit_weight(linear):
    codes, scale = (getattr(linear.weight if linear.weight.CB is not None else linear.state, n) for n in ("CB", "SCB"))
    return codes * scale[:, None] / 127


def four_bit_weight(linear):
    functional = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    return functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)


def torchao_weight(linear):
    return linear.weight.dequantize()


# bitsandbytes multiplies in float16: 11 bits. The weights reach 0.5.
CASES = {
    "bitsandbytes 8-bit": (partial(bitsandbytes_llama, load_in_8bit=True), eight_bit_weight, 5e-4),
    "bitsandbytes fp4": (partial(bitsandbytes_llama, load_in_4bit=True), four_bit_weight, 1e-6),
    "bitsandbytes nf4, nested": (
        partial(bitsandbytes_llama, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        four_bit_weight,
        1e-6,
    ),
    "bitsandbytes 4-bit in floats": (
        partial(bitsandbytes_llama, load_in_4bit=True, bnb_4bit_quant_storage=torch.float32),
        four_bit_weight,
        1e-6,
    ),
    "torchao int8": (partial(torchao_llama, "Int8WeightOnlyConfig"), torchao_weight, 1e-6),
    "torchao int8, head, too": (partial(torchao_llama, "Int8WeightOnlyConfig", head=True), torchao_weight, 1e-6),
    "torchao int8 in bfloat16": (
        partial(torchao_llama, "Int8WeightOnlyConfig", torch.bfloat16),
        torchao_weight,
        4e-3,
    ),
    "torchao int8 activations": (
        partial(torchao_llama, "Int8DynamicActivationInt8WeightConfig"),
        torchao_weight,
        1e-6,
    ),
    "torchao float8": (partial(torchao_llama, "Float8WeightOnlyConfig"), torchao_weight, 1e-6),
    "torchao intx": (partial(torchao_llama, "IntxWeightOnlyConfig"), torchao_weight, 1e-6),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tuned_ffn_stands_for_the_weights_of_the_library(case):
    make, weight, tolerance = CASES[case]
    model = make()
    llm = FastMem(model)
    found = llm.split_model.parameters((-1,))
    floats = make()
    for name in ("gate_proj", "up_proj", "down_proj"):
        expected = weight(getattr(model.model.layers[2].mlp, name)).to(model.dtype)
        assert_near(found[f"model.layers.2.mlp.{name}.weight"], expected, tolerance)
        linear = nn.Linear(*reversed(expected.shape), bias=False)
        linear.weight = nn.Parameter(found[f"model.layers.2.mlp.{name}.weight"])
        setattr(floats.model.layers[2].mlp, name, linear)
    memory, expected = llm.memorize(DOCUMENT, RECIPE), FastMem(floats).memorize(DOCUMENT, RECIPE)
    assert memory.trace[0].kl == 0
    assert memory.trace[-1].loss < memory.trace[0].loss
    torch.testing.assert_close(losses(memory), losses(expected), rtol=1e-2 if "16" in case else 1e-5, atol=1e-5)
    answer = llm.generate(DOCUMENT, memory, "fastmem+cd", max_new_tokens=3)
    assert len(answer.token_ids) == 3


def test_what_needs_float_weights_is_refused_for_a_quantized_one():
    model = torchao_llama("Int8WeightOnlyConfig", head=True)
    llm = FastMem(model)
    memory = llm.memorize(DOCUMENT, RECIPE)
    with pytest.raises(InputError, match=r"keeps model.layers.2.mlp.* quantized, in Linear"), memory.applied(model):
        pass
    with pytest.raises(InputError, match="needs an output embedding with float rows; 'llama' has Linear"):
        llm.memorize(DOCUMENT, Recipe(shortlist=40))


class Float8Linear(nn.Linear):
    """Codes in a parameter, and one scale: how transformers' own float8 linears look."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.scale = nn.Parameter(linear.weight.detach().abs().max() / 448, requires_grad=False)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).to(torch.float8_e4m3fn), requires_grad=False)

    def forward(self, states):
        return torch.nn.functional.linear(states, self.weight.to(states.dtype) * self.scale)


def test_float8_codes_are_quantized_weights():
    model = build("llama")
    ffn = model.model.layers[2].mlp
    for name in ("gate_proj", "up_proj", "down_proj"):
        setattr(ffn, name, Float8Linear(getattr(ffn, name)))
    llm = FastMem(model)
    found = llm.split_model.parameters((-1,))["model.layers.2.mlp.up_proj.weight"]
    assert_near(found, ffn.up_proj.weight.float() * ffn.up_proj.scale, 1e-6)
    memory = llm.memorize(DOCUMENT, RECIPE)
    assert memory.trace[-1].loss < memory.trace[0].loss


class Unshaped(Int8Linear):
    """Quantized, but it does not say how wide its input is."""

    in_features = property()


class Narrow(Int8Linear):
    """Quantized, with a kernel for a few rows only."""

    def forward(self, states):
        if states.numel() > 24 * 48:
            raise NotImplementedError("at most 24 rows\nand more about it")
        return super().forward(states)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Unshaped, r"its quantized weights are not in linear layers, but in Unshaped"),
        (Narrow, r"no float copy of a quantized Narrow could be made \(at most 24 rows\)"),
    ],
)
def test_a_format_that_cannot_be_tuned_is_refused(kind, reason):
    model, _ = quantized("llama")
    for linear in model.model.layers[2].mlp.children():
        if isinstance(linear, Int8Linear):
            linear.__class__ = kind
    with pytest.raises(UnsupportedModelError, match=rf"'llama' cannot be split .*: {reason}; load the model with its"):
        FastMem(model)
