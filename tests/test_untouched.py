"""The model is never written to: loading, memorizing and generating leave every tensor of it as it was, to the bit.

Truth for the logits is a deep copy that FastMem never sees: some models change state when they first run, so the model
under test must not have run before.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

from families import FAMILIES, UNUSUAL, build, randomize
from fastmem import FastMem, Recipe, Tokens
from fastmem.split.structure import weight_sharing_copy
from quantized_models import bitsandbytes_llama, torchao_llama
from test_trunk import IDS, UNUSUAL_REFUSED, assert_near, own_logits

DOCUMENT = Tokens(torch.arange(3, 27) * 11 % 288)
RECIPE = Recipe(learning_rate=1e-2, steps=1)
BORDER = 64


def rotary(rope_type):
    """Models whose rotary frequencies depend on the length of the sequence, with a border at 64 positions."""
    shape = {"vocab_size": 288, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    rope = {"rope_type": rope_type, "rope_theta": 10_000.0}
    if rope_type == "longrope":
        factors = {"short_factor": [1.0] * 6, "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0]}
        rope |= factors | {"original_max_position_embeddings": BORDER}
        config = Phi3Config(
            **shape, max_position_embeddings=512, original_max_position_embeddings=BORDER, rope_parameters=rope
        )
    else:
        config = LlamaConfig(**shape, max_position_embeddings=BORDER, rope_parameters=rope | {"factor": 4.0})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(AutoModelForCausalLM.from_config(config)).eval()


def after(model, length):
    """The model after it has read a sequence of this length."""
    own_logits(model, torch.arange(length) * 7 % 288)
    return model


CASES = {
    **FAMILIES,
    **{name: partial(build, name) for name in UNUSUAL if name not in UNUSUAL_REFUSED},
    "longrope": lambda: rotary("longrope"),
    "longrope, after a long sequence": lambda: after(rotary("longrope"), BORDER + 8),
    "dynamic": lambda: rotary("dynamic"),
    "dynamic, after a long sequence": lambda: after(rotary("dynamic"), BORDER + 8),
    "bitsandbytes 8-bit": lambda: bitsandbytes_llama(load_in_8bit=True),
    "bitsandbytes 8-bit, after a sequence": lambda: after(bitsandbytes_llama(load_in_8bit=True), 9),
    "bitsandbytes 4-bit": lambda: bitsandbytes_llama(load_in_4bit=True),
    "bitsandbytes 4-bit nested": lambda: bitsandbytes_llama(load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "torchao int8": lambda: torchao_llama("Int8WeightOnlyConfig"),
}


def plain(name, tensor):
    """The tensor under its name; of a tensor subclass, the tensors that it holds."""
    if hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:
            yield from plain(f"{name}.{inner}", getattr(tensor, inner))
    else:
        yield name, tensor.detach()


def tensors(model):
    """Every parameter and buffer, persistent or not, and what quantized linears add to the state dict."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(pair for name, tensor in [*named, *model.state_dict().items()] for pair in plain(name, tensor))


def identities(model):
    """The objects that hold these tensors: replacing one by an equal one is a change, too."""
    return {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def attributes(model):
    """The names of all attributes of all modules, and the values of the simple ones: training flags, lengths seen."""
    simple = bool | int | float | str | None
    return {
        (name, attribute): value if isinstance(value, simple) else type(value)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
    }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = value.dtype == found[name].dtype and value.shape == found[name].shape
        numbers = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], value)]
        assert same, name
        assert torch.equal(*numbers), name


class Untouched:
    """Remembers a model; `check` compares it with what it was."""

    def __init__(self, model):
        self.model = model
        self.tensors = {name: tensor.clone() for name, tensor in tensors(model).items()}
        self.identities, self.attributes = identities(model), attributes(model)

    def check(self):
        assert_same_bits(tensors(self.model), self.tensors)
        assert identities(self.model) == self.identities
        assert attributes(self.model) == self.attributes
        assert all(parameter.grad is None for parameter in self.model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_loading_memorizing_and_generating_leave_the_model_as_it_was(case):
    model = CASES[case]()
    twin = copy.deepcopy(model)
    before = Untouched(model)
    llm = FastMem(model)
    before.check()
    memory = llm.memorize(DOCUMENT, RECIPE)
    llm.generate(DOCUMENT, memory, max_new_tokens=2)
    before.check()
    assert torch.equal(own_logits(model), own_logits(twin))


@pytest.mark.parametrize("read_before", [9, BORDER + 8])
def test_sequences_on_both_sides_of_the_border_leave_the_model_as_it_was(read_before):
    model = after(rotary("longrope"), read_before)
    before, expected = Untouched(model), own_logits(copy.deepcopy(model))
    llm = FastMem(model)
    for length in (BORDER - 20, BORDER - 2, BORDER + 10):  # the second answer crosses it
        ids = Tokens(torch.arange(length) * 11 % 288)
        llm.generate(ids, llm.memorize(ids, RECIPE), "fastmem+cd", max_new_tokens=4)
        before.check()
    assert torch.equal(own_logits(model), expected)


def test_a_model_split_in_inference_mode_can_be_used_outside():
    model = rotary("longrope")
    with torch.inference_mode():
        llm = FastMem(model)
    memory = llm.memorize(DOCUMENT, RECIPE)
    assert len(llm.generate(Tokens(torch.arange(BORDER + 10)), memory, max_new_tokens=2).token_ids) == 2


class Stateful(nn.Module):
    """A norm that also writes, in every call, to whatever a module can hold."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(48), persistent=False)
        self.seen = torch.zeros(3)
        self.longest = 0

    def forward(self, states):
        self.calls += 1
        self.mean.lerp_(states.mean((0, 1)), 0.1)
        self.seen[0] += states.shape[1]
        self.longest = max(self.longest, states.shape[1])
        self.last = states.detach()
        return self.norm(states)


def test_what_a_forward_pass_writes_to_is_put_back():
    model = build("llama")
    model.model.norm = Stateful(model.model.norm)
    before = Untouched(model)
    llm = FastMem(model)
    llm.generate(DOCUMENT, llm.memorize(DOCUMENT, RECIPE), max_new_tokens=2)
    before.check()
    assert torch.equal(own_logits(model), own_logits(build("llama")))


class Merging(nn.Linear):
    """As LoRA layers of loralib do, it writes to its weight when it is switched to evaluation."""

    def train(self, mode=True):
        if self.training and not mode:
            self.weight.data += 0.1
        return super().train(mode)


def test_training_flags_and_random_numbers_stay_as_they_were():
    model = build("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    expected = own_logits(model)
    head = Merging(48, 288, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    model.train()
    model.transformer.h[1].eval()
    before, state = Untouched(model), torch.get_rng_state()
    llm = FastMem(model)
    assert_near(llm.logits(IDS), expected)
    before.check()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_copy_shares_what_is_large_and_no_more():
    model = build("llama")
    part = model.model.layers[0].self_attn
    part.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool))
    part.register_buffer("codes", torch.ones(8, 8).to(torch.float8_e4m3fn))
    part.register_buffer("scale", torch.ones(8))
    part.alias = part.scale
    part.held = [torch.ones(4, 4, dtype=torch.int8), torch.ones(4)]
    twin = weight_sharing_copy(model)
    own = twin.model.layers[0].self_attn

    def shared(one, other):
        return one.data_ptr() == other.data_ptr()

    assert all(map(shared, model.parameters(), twin.parameters()))
    assert not any(p is q or q.requires_grad for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert shared(part.mask, own.mask)
    assert shared(part.codes, own.codes)
    assert shared(part.held[0], own.held[0])
    assert not shared(part.scale, own.scale)
    assert not shared(part.held[1], own.held[1])
    assert own.alias is own.scale
    assert twin.config is model.config


def test_a_copy_shares_the_codes_of_quantized_parameters_and_not_their_state():
    for model in (bitsandbytes_llama(load_in_8bit=True), after(bitsandbytes_llama(load_in_8bit=True), 9)):
        twin = weight_sharing_copy(model)
        part, own = (one.model.layers[0].mlp.up_proj for one in (model, twin))
        codes = [linear.weight.CB if linear.weight.CB is not None else linear.state.CB for linear in (part, own)]
        assert own.weight is not part.weight
        assert own.state is not part.state
        assert len({tensor.data_ptr() for tensor in (*codes, part.weight, own.weight)}) == 1
