"""`examples/naive.py` is the truth of every other numeric test, so it is itself held against the authors' code."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import naive
from families import FAMILIES, build

IDS = torch.arange(3, 27) * 11 % 288
SCORED = torch.arange(24) >= 4


@pytest.mark.parametrize("case_name", ["llama", "qwen2"])
def test_reproduces_the_authors_code(case_name, shared):
    folder = shared / "oracle" / case_name
    case = json.loads((folder / "case.json").read_text())
    model = oracle_model(folder, case)
    expected = load_file(folder / "expected.safetensors")
    query = torch.tensor([case["query_token_ids"]])
    ids = torch.tensor(case["token_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(query).logits[0], expected["query_logits_before"], atol=1e-4, rtol=0)
    history = naive.memorize(
        model,
        ids,
        torch.arange(len(ids)) >= case["header_tokens"],
        naive.ffn_parameters(model),
        **{key: case[key] for key in ("learning_rate", "steps", "kl_weight", "weight_decay", "max_grad_norm")},
    )
    assert [loss for loss, _, _ in history] == pytest.approx(case["loss_per_step"], rel=1e-4)
    for name in naive.ffn_parameters(model):
        torch.testing.assert_close(model.get_parameter(name), expected[name], atol=1e-4, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(query).logits[0], expected["query_logits_after"], atol=1e-4, rtol=0)


def oracle_model(folder, case):
    """The model of a recorded run, float32."""
    shape = dict(case["model"])
    architecture = shape.pop("architecture")
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**shape)).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_last_ffn_changes(family):
    """The plain rule that finds the parameters takes the whole FFN of the last layer, and nothing else moves."""
    model, untouched = build(family), build(family)
    names = naive.ffn_parameters(model)
    history = naive.memorize(model, IDS, SCORED, names, learning_rate=1e-3, steps=3)
    changed = {
        name for name, value in model.named_parameters() if not torch.equal(value, untouched.get_parameter(name))
    }
    assert changed <= set(names)
    assert {name for name in names if "correction_bias" not in name} == changed
    losses = [loss for loss, _, _ in history]
    kls = [kl for _, _, kl in history]
    assert losses == sorted(losses, reverse=True)
    assert kls[0] == 0
    assert min(kls[1:]) > 0


def test_bfloat16_keeps_float32_masters():
    """Updates far below the resolution of bfloat16 add up: without float32 masters this rate would change nothing."""
    model, untouched = build("llama", dtype=torch.bfloat16), build("llama", dtype=torch.bfloat16)
    name = naive.ffn_parameters(model)[0]
    naive.memorize(model, IDS, SCORED, [name], learning_rate=1e-5, steps=100, weight_decay=0.0)
    changed = model.get_parameter(name) != untouched.get_parameter(name)
    assert model.get_parameter(name).dtype == torch.bfloat16
    assert changed.float().mean() > 0.1


def test_earlier_layers_are_found():
    model = build("llama")
    assert {name.split(".")[2] for name in naive.ffn_parameters(model, (0, -1))} == {"0", "2"}
    assert len(naive.ffn_parameters(model, (0, -1))) == 6


def test_document_tokens_scores_the_context_and_the_end_of_its_turn(tokenizer):
    ids, scored = naive.document_tokens(tokenizer, " Fjords are deep. \n")
    assert tokenizer.decode(ids[~scored]) == "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert tokenizer.decode(ids[scored]) == "Fjords are deep.<|eot_id|>"


def test_answer_continues_the_prompt(llama, tokenizer):
    assert isinstance(naive.answer(llama, tokenizer, "How deep?", "Fjords are deep.", max_new_tokens=3), str)
