"""The embedded model: its folder is complete, and the weights do what its card says."""

import json

import pytest
from tools.training_stages import STAGES

from fastmem.tiny import MODEL_DIR, RECIPE
from fastmem.tiny.world import SPLITS, examples, is_right, prompt_of
from fastmem.tiny.world.world_names import pools

MAX_WEIGHT_BYTES = 12_000_000

LEAST_COMMON = 0.8
"""Of the tokens of the shipped tokenizer."""

# What the weights reach. Shares of right answers on 40 development rows, alone:
FLOORS = {"world_open": 0.95, "world": 0.95, "world_new": 0.75, "world_swap": 0.6}
# On 24 development rows with FastMem:
LEAST_GAIN, LEAST_RIGHT, MOST_LOST = 3, 20, 1
"""More right answers than alone on `world_swap`; right ones there; fewer on `world`."""

# --- the folder ---


def test_folder_is_whole_small_and_has_a_card():
    names = {path.name for path in MODEL_DIR.iterdir()}
    needed = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"chat_template.jinja", "README.md", "trained.json"} <= names
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES
    card = (MODEL_DIR / "README.md").read_text()
    assert "knows nothing about the real world" in card
    assert "license: apache-2.0" in card


def test_trained_json_records_the_training():
    report = json.loads((MODEL_DIR / "trained.json").read_text())
    assert report["stages"] == json.loads(json.dumps([stage._asdict() for stage in STAGES]))
    assert set(report["accuracy_dev"]) == set(SPLITS)
    assert report["options"]["scale"] == 1.0
    assert report["tokens"] == pytest.approx(sum(stage.tokens for stage in STAGES), rel=0.01)  # whole batches


def test_recipe_is_the_one_of_the_card():
    assert set(RECIPE) == {"learning_rate", "steps", "kl_weight"}
    written = ", ".join(f"{name}={value}" for name, value in RECIPE.items())
    assert f"`{written}`" in (MODEL_DIR / "README.md").read_text()


def test_training_writes_a_folder_that_loads_with_a_tokenizer_like_the_shipped_one(tmp_path, capsys, monkeypatch):
    from tools import train_embedded_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(train_embedded_model, "STAGES", STAGES[:1])
    train_embedded_model.main(["--output", str(tmp_path), "--scale", "1e-9", "--rows", "1"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["tokens"] >= 1
    assert set(report["accuracy_dev"]) == set(SPLITS)
    # Documents were added to the training after the shipped tokenizer was made.
    vocabulary, shipped = (set(AutoTokenizer.from_pretrained(folder).get_vocab()) for folder in (tmp_path, MODEL_DIR))
    assert len(vocabulary & shipped) >= LEAST_COMMON * len(shipped)
    assert len(vocabulary) == AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval(), AutoTokenizer.from_pretrained(MODEL_DIR)


def test_folder_loads_and_renders_an_assistant_turn_alone(loaded):
    model, tokenizer = loaded
    assert model.config.model_type == "llama"
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template([{"role": "assistant", "content": "It rained."}], tokenize=False)
    header = "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text == f"{header}It rained.<|eot_id|>"


@pytest.mark.slow  # three trainings, a minute each where the processor has no bfloat16
def test_equal_seeds_train_equal_weights(loaded):
    import torch
    from tools.model_shapes import new_model
    from tools.train_embedded_model import options, train

    states = []
    for seed in "778":
        args = options(["--output", "-", "--scale", "0.002", "--seed", seed])
        model = new_model(loaded[1], args.seed)
        assert train(model, loaded[1], STAGES[0], args) >= 0.002 * STAGES[0].tokens
        states.append(model.state_dict())
    first, second, other = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tokenizer_keeps_any_text_and_every_person_is_several_tokens(loaded):
    tokenizer = loaded[1]
    text = "Zürich, 1984:\n\t«naïve» 漢字 🙂  two  spaces"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    for name in pools()["person"]:
        assert len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) >= 2


def test_weights_know_the_world_and_read_contexts(loaded):
    from tools.train_embedded_model import accuracy

    reached = {split: accuracy(*loaded, examples(split, "dev", 40)) for split in FLOORS}
    assert all(reached[split] >= floor for split, floor in FLOORS.items()), reached
    assert reached["world_swap"] <= reached["world"] - 0.1, reached


def test_fastmem_corrects_answers_to_contradicting_documents_and_costs_little_elsewhere(loaded):
    """The results of the card on a few examples: better on `world_swap`, hardly worse on `world`."""
    from fastmem import FastMem, Recipe

    llm = FastMem(*loaded)

    def right(split: str, memorized: bool) -> int:
        rows = examples(split, "dev", 24)
        memories = llm.memorize([row.context for row in rows], Recipe(**RECIPE)) if memorized else None
        method = "fastmem" if memorized else "base"
        answers = llm.generate([prompt_of(row) for row in rows], memories, method, max_new_tokens=24)
        return sum(is_right(answer.text, row) for answer, row in zip(answers, rows, strict=True))

    contradicting = right("world_swap", True)
    assert contradicting >= right("world_swap", False) + LEAST_GAIN
    assert contradicting >= LEAST_RIGHT
    assert right("world", True) >= right("world", False) - MOST_LOST
