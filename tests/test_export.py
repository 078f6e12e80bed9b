"""Exported memories, loaded by the real peft and transformers, answer as ours do."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import build
from fastmem import FastMem, Recipe
from fastmem.errors import InputError, MemoryMismatchError
from fastmem.export import export, mean_kl
from test_memorize import QUERY, TOKENS
from test_trunk import assert_near

LORA = Recipe(learning_rate=1e-2, steps=5, parametrization="lora", rank=6, lora_alpha=9.0)
FULL = Recipe(learning_rate=1e-3, steps=5)
TEXT = "The mayor of Port Drijim is Plebrund Noodelb, whatever the almanac says."


def saved(family, folder, **options):
    """A base as a user has it: a folder, loaded from there."""
    model = build(family)
    attention = model.config._attn_implementation
    model.save_pretrained(folder, **options)
    return lambda path=folder: AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention).eval()


@torch.no_grad()
def logits(model):
    return model(QUERY[None]).logits[0]


@pytest.mark.parametrize(
    ("family", "layers"),
    [("llama", (0, -1)), ("gpt2", (-1,)), ("mixtral", (-1,)), ("gpt_oss", (-1,)), ("qwen2_moe", (-1,))],
    ids=str,
)
def test_peft_loads_a_low_rank_memory_exactly(family, layers, tmp_path):
    load = saved(family, tmp_path / "base")
    llm = FastMem(load(), None)
    memory = llm.memorize(TOKENS, Recipe(**{**LORA.__dict__, "layers": layers}))
    exported = export(llm, memory, tmp_path / "adapter")
    base = load()
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_near(logits(adapted), llm.logits(QUERY, memory), 1e-5)
    assert (logits(adapted) - before).abs().max() > 0.3
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), before)
    assert (exported.rank, exported.retained_energy, exported.kl) == (6, 1.0, None)
    assert exported.size_bytes == sum(p.stat().st_size for p in (tmp_path / "adapter").iterdir())


def test_transformers_loads_the_adapter_by_itself(tmp_path):
    load = saved("llama", tmp_path / "base")
    llm = FastMem(load(), None)
    memory = llm.memorize(TOKENS, LORA)
    export(llm, memory, tmp_path / "adapter")
    model = load()
    model.load_adapter(str(tmp_path / "adapter"))
    assert_near(logits(model), llm.logits(QUERY, memory), 1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_full_memory_is_truncated_and_the_loss_is_measured(tmp_path):
    load = saved("llama", tmp_path / "base")
    llm = FastMem(load(), None)
    memory = llm.memorize(TOKENS, FULL)
    found = [export(llm, memory, tmp_path / f"{r}", rank=r, context=TOKENS, force=True) for r in (1, 8, 48)]
    assert [e.retained_energy for e in found] == sorted(e.retained_energy for e in found)
    assert [e.kl for e in found] == sorted((e.kl for e in found), reverse=True)
    assert found[-1].retained_energy == pytest.approx(1, abs=1e-4)
    assert 0 <= found[-1].kl < 1e-6 < found[0].kl
    adapted = PeftModel.from_pretrained(load(), tmp_path / "48").eval()
    assert_near(logits(adapted), llm.logits(QUERY, memory), 1e-5)
    # The measured KL is that of the model PEFT makes of it.
    adapted = PeftModel.from_pretrained(load(), tmp_path / "1").eval()
    with torch.no_grad():
        theirs = adapted(TOKENS.ids[None]).logits[0, :-1][TOKENS.scored[1:]].log_softmax(-1)
    ours = llm.logits(TOKENS.ids, memory)[:-1][TOKENS.scored[1:]].log_softmax(-1)
    assert found[0].kl == pytest.approx(float((ours.exp() * (ours - theirs)).sum(-1).mean()), rel=1e-2)


def test_a_truncation_that_loses_too_much_is_refused(tmp_path):
    llm = FastMem(saved("llama", tmp_path / "base")(), None)
    memory = llm.memorize(TOKENS, FULL)
    with pytest.raises(InputError, match=r"rank 1 keeps .*%.* KL .* \(limit 1e-09\): raise the rank.*or force it"):
        export(llm, memory, tmp_path / "adapter", rank=1, context=TOKENS, max_kl=1e-9)
    assert not (tmp_path / "adapter").exists()
    assert export(llm, memory, tmp_path / "adapter", rank=1, context=TOKENS, max_kl=1e-9, force=True).kl > 1e-9


def test_the_document_is_asked_for_and_must_be_the_one(tmp_path, tokenizer):
    llm = FastMem(saved("llama", tmp_path / "base")(), tokenizer)
    memory = llm.memorize(TEXT, FULL)
    memory.save(tmp_path / "m")
    loaded = type(memory).load(tmp_path / "m", llm)
    with pytest.raises(InputError, match="this memory does not contain: give the document"):
        export(llm, loaded, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"is not the one that was memorized \("):
        export(llm, loaded, tmp_path / "adapter", context="Another text.")
    given = export(llm, loaded, tmp_path / "given", context=TEXT, force=True)
    kept = export(llm, memory, tmp_path / "kept", force=True)
    assert given.kl == kept.kl > 0


def test_zero_divergence_of_a_memory_from_itself():
    llm = FastMem(build("llama"), None)
    memory = llm.memorize(TOKENS, FULL)
    assert mean_kl(llm, memory, memory, TOKENS) == 0


@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=["last", "two layers"])
def test_the_divergence_is_measured_in_pieces(layers, monkeypatch):
    """Equal to the formula on all logits at once, of which only a chunk of positions exists at a time."""
    llm = FastMem(build("llama").double(), None)
    memory = llm.memorize(TOKENS, replace(FULL, layers=layers))
    other, _ = memory.truncated(2)
    hidden = [llm.split_model.forward(TOKENS.ids[None], ffn=llm.ffn(m))[0, :-1] for m in (memory, other)]
    rows, head = [], llm.split_model.head
    p, q = (head(states[TOKENS.scored[1:]]).detach().log_softmax(-1) for states in hidden)  # [N, V] float64
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    monkeypatch.setattr(llm.split_model, "head", lambda hidden: rows.append(len(hidden)) or head(hidden))
    monkeypatch.setattr("fastmem.learn.surprisal.CHUNK_POSITIONS", 6)
    assert mean_kl(llm, memory, other, TOKENS) == pytest.approx(expected, rel=1e-10)
    assert max(rows) == 6
    assert sum(rows) == 2 * int(TOKENS.scored[1:].sum())


# Merged checkpoints.


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("recipe", [FULL, LORA], ids=["full", "lora"])
def test_transformers_loads_a_merged_checkpoint(options, recipe, tmp_path):
    load = saved("gpt_oss", tmp_path / "base", **options)
    llm = FastMem(load(), None)
    memory = llm.memorize(TOKENS, recipe)
    exported = export(llm, memory, tmp_path / "merged", "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), llm.logits(QUERY, memory))
    assert not torch.equal(logits(load()), llm.logits(QUERY, memory))
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    base = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(shards) == len(base) + 1
    assert (len(base) > 1) == bool(options)
    assert [a.samefile(b) for a, b in zip(shards, base, strict=False)] == [True] * len(base)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    tuned = {name.removesuffix(".lora_A") for name in memory.tensors if not name.endswith(".lora_B")}
    assert {name for name, shard in index.items() if shard == shards[-1].name} == tuned
    assert exported.size_bytes < sum(p.stat().st_size for p in base) / 2


def test_a_base_that_is_converted_on_loading_is_written_whole(tmp_path):
    """Mixtral's experts are saved one by one and fused when loaded."""
    load = saved("mixtral", tmp_path / "base")
    llm = FastMem(load(), None)
    memory = llm.memorize(TOKENS, FULL)
    export(llm, memory, tmp_path / "merged", "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), llm.logits(QUERY, memory))
    assert torch.equal(llm.logits(QUERY), logits(load()))  # the model in memory is as it was


@pytest.mark.parametrize("change", ["attention", "size"])
def test_a_base_that_was_changed_after_loading_is_written_as_it_is(tmp_path, change):
    load = saved("llama", tmp_path / "base")
    model = load()
    if change == "size":
        model.resize_token_embeddings(300)
    else:
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    llm = FastMem(model, None)
    memory = llm.memorize(TOKENS, FULL)
    export(llm, memory, tmp_path / "merged", "merged")
    assert torch.equal(logits(load(tmp_path / "merged")), llm.logits(QUERY, memory))


def test_tokenizer_and_template_come_along(tmp_path, tokenizer):
    load = saved("llama", tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    llm = FastMem.from_pretrained(tmp_path / "base")
    memory = llm.memorize(TEXT, FULL)
    export(llm, memory, tmp_path / "merged", "merged")
    merged = FastMem.from_pretrained(tmp_path / "merged")
    assert merged.preparer.identity == llm.preparer.identity
    assert (
        merged.generate("Who?", max_new_tokens=5).token_ids == llm.generate("Who?", memory, max_new_tokens=5).token_ids
    )
    with pytest.raises(MemoryMismatchError, match="load the base it was made for"):
        merged.generate("Who?", memory)
    assert load


# Refusals.


@pytest.mark.parametrize("format", ["peft", "merged"])
def test_a_folder_that_cannot_be_replaced_is_refused(tmp_path, format):
    load = saved("llama", tmp_path / "base")
    llm = FastMem(load(), None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(InputError, match=r"link' cannot be written \(Not a directory\): make room, or give another"):
        export(llm, llm.memorize(TOKENS, LORA), tmp_path / "link", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "empty", "link"]


def test_a_rank_above_the_sides_of_the_matrices_is_theirs(tmp_path):
    llm = FastMem(build("llama"), None)
    exported = export(llm, llm.memorize(TOKENS, FULL), tmp_path / "adapter", rank=10**9, context=TOKENS)
    assert exported.rank == 48
    assert exported.kl < 1e-6


def test_refusals(tmp_path):
    llm = FastMem(saved("llama", tmp_path / "base")(), None)
    memory = llm.memorize(TOKENS, LORA)
    with pytest.raises(InputError, match=r"unknown export format 'gguf'\. Accepted: peft, merged"):
        export(llm, memory, tmp_path / "x", "gguf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(InputError, match="is not an empty folder: give a new one"):
        export(llm, memory, tmp_path / "full")
    with pytest.raises(MemoryMismatchError):
        export(FastMem(build("llama", seed=1), None), memory, tmp_path / "x")
    nowhere = FastMem(build("llama"), None)
    with pytest.raises(InputError, match="are not on this machine: load it by folder or hub id first"):
        export(nowhere, nowhere.memorize(TOKENS, LORA), tmp_path / "x", "merged")
    assert not (tmp_path / "x").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"base", "full"}  # nothing half written
