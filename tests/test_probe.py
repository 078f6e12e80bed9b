"""What the check of a model finds when it is loaded, and what it lets pass."""

import threading

import pytest
import torch
from torch import nn

from families import build
from fastmem import FastMem, Recipe, Tokens
from fastmem.errors import UnsupportedModelError
from fastmem.split.split_model import SplitModel
from fastmem.split.structure import weight_sharing_copy
from test_trunk import assert_near, own_logits, rebuilt_logits

DOCUMENT = Tokens(torch.arange(3, 27) * 11 % 288)
RECIPE = Recipe(learning_rate=1e-2, steps=1)


class Forgetful(nn.Module):
    """What it multiplies by is not copied, as it could happen to the scale of a quantized weight."""

    def __init__(self, linear, factor):
        super().__init__()
        self.linear, self.factor = linear, factor

    def __deepcopy__(self, memo):
        return Forgetful(weight_sharing_copy(self.linear), 1.0)

    def forward(self, states):
        return self.factor * self.linear(states)


def test_a_lack_of_memory_does_not_make_a_model_unsupported(monkeypatch):
    """In whichever of the passes that try a model the memory runs out."""
    mlp, calls, failing = type(build("llama").model.layers[0].mlp), [], [0]
    forward = mlp.forward

    def counted(self, states):
        calls.append(states)
        if len(calls) == failing[0]:
            raise torch.OutOfMemoryError("no room")
        return forward(self, states)

    monkeypatch.setattr(mlp, "forward", counted)
    SplitModel(build("llama"))
    passes = len(calls)
    assert passes > 20
    for failing[0] in range(1, passes + 1):
        calls.clear()
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            SplitModel(build("llama"))


def test_a_copy_that_differs_from_the_model_is_found():
    model = build("llama")
    attention = model.model.layers[0].self_attn
    attention.o_proj = Forgetful(attention.o_proj, 1.3)
    with pytest.raises(UnsupportedModelError, match=r"'llama' cannot be split .* logits differ from its own by \d"):
        SplitModel(model)


def renormed():
    model = build("llama")
    model.model.embed_tokens.max_norm = 0.5  # torch rescales the rows that are read
    return model


class Counting(nn.Embedding):
    """Counts, in a matrix of integers, which tokens it was given."""

    def __init__(self, weight):
        super().__init__(*weight.shape, _weight=weight)
        self.register_buffer("counts", torch.zeros(*weight.shape, dtype=torch.int64))

    def forward(self, ids):
        self.counts[ids] += 1
        return super().forward(ids)


def counting():
    model = build("llama")
    model.model.embed_tokens = Counting(model.model.embed_tokens.weight)
    return model


@pytest.mark.parametrize(
    ("make", "name"), [(renormed, "model.embed_tokens.weight"), (counting, "model.embed_tokens.counts")]
)
def test_a_model_that_writes_to_its_weights_is_refused(make, name):
    with pytest.raises(UnsupportedModelError, match=f"a forward pass writes to {name}; give a model that leaves its"):
        SplitModel(make())


def failing(forward):
    """A Llama with another `forward`, which is given the model's own output."""
    model = build("llama")

    class Failing(type(model)):
        def forward(self, *args, **kwargs):
            return forward(super().forward(*args, **kwargs))

    model.__class__ = Failing
    return model


def out_of_range(output):
    output.logits[..., 3] = torch.inf
    return output


def no_kernel(_):
    raise RuntimeError("this kernel takes no such matrix\nand more about it")


def no_logits(output):
    return output.hidden_states


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (out_of_range, "some of its logits are NaN or infinite; load it in another type, such as float32"),
        (no_kernel, r"a plain forward pass failed \(this kernel takes no such matrix\); give a transformers causal"),
        (no_logits, r"a plain forward pass failed \('NoneType' object has no attribute 'logits'\)"),
    ],
)
def test_a_model_that_cannot_be_run_is_refused(forward, reason):
    with pytest.raises(
        UnsupportedModelError, match=f"'llama' cannot be split at its last feed-forward network: {reason}"
    ):
        SplitModel(failing(forward))


# They compute parts in float32: routers, the attention weights, rotary embeddings, biases of positions.
@pytest.mark.parametrize("family", ["gptj", "mpt", "gemma2", "llama4_text", "deepseek_v3", "glm4_moe", "ernie4_5_moe"])
def test_a_float64_model_may_compute_parts_in_float32(family):
    model = build(family, dtype=torch.float64)
    model.set_experts_implementation("eager")  # torch's grouped product takes no float64
    assert_near(rebuilt_logits(SplitModel(model)), own_logits(model), 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_model_that_is_configured_to_return_tuples(family):
    model = build(family)
    model.config.return_dict = False
    llm, expected = FastMem(model), FastMem(build(family))
    memories = [one.memorize(DOCUMENT, RECIPE) for one in (llm, expected)]
    answers = [one.generate(DOCUMENT, m, max_new_tokens=3) for one, m in zip((llm, expected), memories, strict=True)]
    assert memories[0].trace == memories[1].trace
    assert answers[0].token_ids == answers[1].token_ids
    assert model.config.return_dict is False


def test_a_module_that_cannot_be_copied_is_refused_by_name():
    model = build("llama")
    model.model.layers[1].lock = threading.Lock()
    with pytest.raises(
        UnsupportedModelError, match=r"its modules cannot be copied \(.*lock.*\); remove the attribute"
    ):
        SplitModel(model)
