"""A model that its owner changes after `FastMem(model)`: followed where it was written to in place, refused otherwise.

Never are the old weights used in silence.
"""

import copy
import threading
from contextlib import suppress

import pytest
import torch

from families import build
from fastmem import FastMem, InputError, MemoryMismatchError, Recipe, Tokens

RECIPE = Recipe(learning_rate=3e-3, steps=3)
DOCUMENT, PROMPT = Tokens(range(10, 40)), Tokens(range(50, 70))
REFUSED = r"the model was changed after FastMem was constructed: .* Construct FastMem again with the changed model\."


@pytest.fixture
def llm():
    return FastMem(build("llama"), prefix_bytes=2**24)


def write_in_place(model):
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(1.5)


def write_through_data(model):
    model.model.layers[-1].mlp.down_proj.weight.data.mul_(1.5)


def write_below(model):
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)


def write_through_data_below(model):
    model.model.layers[0].self_attn.q_proj.weight.data.mul_(1.5)


def take_a_step(model, **options):
    parameters = [p for name, p in model.named_parameters() if "layers.2.mlp" not in name]  # not the last FFN
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=1e-3, **options).step()
    model.zero_grad()


def take_a_fused_step(model):
    take_a_step(model, fused=True)


def take_a_step_for_each(model):
    take_a_step(model, foreach=True)


def load_other_weights(model):
    state = build("llama", seed=5).state_dict()
    model.load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [
        write_in_place,
        write_through_data,
        write_below,
        write_through_data_below,
        take_a_fused_step,
        take_a_step_for_each,
        load_other_weights,
    ],
)
def test_a_write_in_place_is_followed(llm, change):
    memory = llm.memorize(DOCUMENT, RECIPE)
    before = llm.base().digest
    llm.generate(PROMPT, memory, max_new_tokens=4)
    change(llm.model)
    fresh = FastMem(copy.deepcopy(llm.model))
    assert torch.equal(llm.logits(PROMPT.ids), fresh.logits(PROMPT.ids))
    again, expected = llm.memorize(DOCUMENT, RECIPE), fresh.memorize(DOCUMENT, RECIPE)
    assert again.base.digest == expected.base.digest
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in again.tensors.items())
    answer = llm.generate(PROMPT, again, max_new_tokens=4)
    assert answer.cached_tokens == 0
    assert answer.token_ids == fresh.generate(PROMPT, expected, max_new_tokens=4).token_ids
    if again.base.digest != before:
        with pytest.raises(MemoryMismatchError, match="memorize the document again"):
            llm.generate(PROMPT, memory)


def cast(model):
    model.to(torch.bfloat16)


def assign(model):
    model.load_state_dict(build("llama", seed=5).state_dict(), assign=True)


def replace_a_parameter(model):
    model.model.norm.weight = torch.nn.Parameter(model.model.norm.weight.detach() + 1)


@pytest.mark.parametrize("change", [cast, assign, replace_a_parameter])
def test_replaced_weights_are_refused(llm, change):
    memory = llm.memorize(DOCUMENT, RECIPE)
    change(llm.model)
    for use in (
        lambda: llm.memorize(DOCUMENT, RECIPE),
        lambda: llm.generate(PROMPT),
        lambda: llm.generate(PROMPT, memory),
        lambda: llm.logits(PROMPT.ids),
        lambda: llm.base(),
    ):
        with pytest.raises(InputError, match=REFUSED):
            use()
    FastMem(llm.model).generate(PROMPT, max_new_tokens=2)


def write_to_a_buffer(buffer):
    buffer.mul_(1.5)


def write_to_a_buffer_through_data(buffer):
    buffer.data[-1:] += 1


@pytest.mark.parametrize("change", [write_to_a_buffer, write_to_a_buffer_through_data])
@pytest.mark.parametrize(
    ("family", "name"), [("deepseek_v3", "mlp.gate.e_score_correction_bias"), ("gemma4_text", "layer_scalar")]
)
def test_a_buffer_with_other_values_is_refused(family, name, change):
    """The split has copies of buffers, so it would go on with the old values."""
    model = build(family)
    buffer = model.get_buffer(f"model.layers.1.{name}")
    buffer.add_(0.5)
    llm = FastMem(model)
    llm.generate(PROMPT, max_new_tokens=2)
    change(buffer)
    with pytest.raises(InputError, match=REFUSED):
        llm.generate(PROMPT)
    fresh = FastMem(model)
    model.set_submodule("model", copy.deepcopy(model.model))
    with pytest.raises(InputError, match=REFUSED):
        fresh.generate(PROMPT)


def test_a_buffer_that_was_replaced_is_refused():
    llm = FastMem(build("gemma4_text"))
    llm.model.model.layers[1].layer_scalar = llm.model.model.layers[1].layer_scalar * 2
    with pytest.raises(InputError, match=REFUSED):
        llm.generate(PROMPT)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("method", ["base", "fastmem"])
def test_a_stream_does_not_go_on_with_other_weights(tokenizer, method, begun):
    llm = FastMem(build("llama"), tokenizer, recipe=RECIPE)
    options = {"max_new_tokens": 6, "logit_bias": {97: 100}}  # every token is text
    stream = llm.ask("who?", "The mayor is Bo.", method, **options)
    if begun:
        next(iter(stream))
    write_below(llm.model)
    with pytest.raises(InputError, match=r"the model was changed while this answer was written: .* Ask again\."):
        stream.run()
    whole = llm.ask("who?", "The mayor is Bo.", method, **options)
    assert len("".join(whole)) == 6
    write_below(llm.model)
    assert whole.run().text == whole.answer.text, "it is complete"


def test_adapters_that_are_switched_are_refused():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        build("llama"), peft.LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    )
    llm = FastMem(adapted)
    with_adapter = llm.logits(PROMPT.ids)
    with adapted.disable_adapter():
        with pytest.raises(InputError, match=REFUSED):
            llm.logits(PROMPT.ids)
        assert not torch.equal(FastMem(adapted).logits(PROMPT.ids), with_adapter)
    assert torch.equal(llm.logits(PROMPT.ids), with_adapter)
    adapted.merge_adapter()
    with pytest.raises(InputError, match=REFUSED):
        llm.logits(PROMPT.ids)


def test_no_thread_uses_what_another_one_is_dropping(llm, monkeypatch):
    """The first thread has noticed a change and has not dropped the old modules yet when the second one asks."""
    memory = llm.memorize(DOCUMENT, RECIPE)
    old = llm.ffn(memory)
    write_in_place(llm.model)
    noticed, asked, found = threading.Event(), threading.Event(), []
    forget = llm.split_model.forget_weights

    def slowly():
        noticed.set()
        asked.wait(0.5)
        forget()

    def ask():
        noticed.wait()
        with suppress(MemoryMismatchError):  # the memory does not fit the new weights
            found.append(llm.ffn(memory))
        asked.set()

    monkeypatch.setattr(llm.split_model, "forget_weights", slowly)
    second = threading.Thread(target=ask)
    second.start()
    llm.logits(PROMPT.ids)
    second.join()
    assert old not in found


def test_an_unchanged_model_keeps_its_caches(llm):
    memory = llm.memorize(DOCUMENT, RECIPE)
    first = llm.ffn(memory)
    llm.model(PROMPT.ids[None])
    llm.model.train()
    llm.model.eval()
    assert llm.ffn(memory) is first
