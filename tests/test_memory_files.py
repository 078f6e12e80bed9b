"""A memory on disk: the same bytes back, another base refused, a damaged file refused, a killed writer harmless."""

import json
import os
import random
import resource
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from families import build
from fastmem import FastMem, Memory, Recipe, atomic_write
from fastmem.errors import InputError, MemoryFileError, MemoryMismatchError
from fastmem.memory import memory_file
from fastmem.memory.compression import relative_error
from fastmem.memory.memory import Base, Step
from test_trunk import assert_untouched

TEXT = "The mayor of Port Drijim is Plebrund Noodelb, whatever the almanac says."
QUERY = torch.arange(5, 17) * 13 % 261
FULL = Recipe(learning_rate=1e-3, steps=3)
LORA = replace(FULL, learning_rate=1e-2, parametrization="lora", rank=4)
RECIPES = {"full": FULL, "lora": LORA}


@pytest.fixture(scope="module")
def llm(tokenizer):
    return FastMem(build("llama"), tokenizer)


@pytest.fixture(scope="module")
def memories(llm):
    return {name: llm.memorize(TEXT, recipe) for name, recipe in RECIPES.items()}


def assert_same(loaded, memory):
    assert loaded.recipe == memory.recipe
    assert loaded.base == memory.base
    assert loaded.trace == memory.trace
    assert loaded.stopped == memory.stopped
    assert loaded.tensors.keys() == memory.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], t) for name, t in memory.tensors.items())


# The same back.


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip_to_the_bit(llm, memories, name, tmp_path):
    path, memory = tmp_path / "policy.safetensors", memories[name]
    memory.save(path)
    loaded = Memory.load(path, model=llm)
    assert_same(loaded, memory)
    assert loaded.details == {k: v for k, v in memory.details.items() if k != "text"}
    assert torch.equal(llm.logits(QUERY, loaded), llm.logits(QUERY, memory))
    assert not torch.equal(llm.logits(QUERY, loaded), llm.logits(QUERY))
    assert_untouched(llm.model, build("llama"))


def test_same_memory_same_bytes(memories, tmp_path):
    for name in ("a", "b"):
        memories["lora"].save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_any_safetensors_reader_reads_it(memories, tmp_path):
    memories["full"].save(tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors").keys() == memories["full"].tensors.keys()
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        record = json.loads(file.metadata()["memory"])
    assert record["base"]["family"] == "llama"
    assert record["recipe"]["steps"] == 3
    assert len(record["trace"]) == 3
    assert record["details"]["tokens"] > 50
    assert {"text_sha256", "tokens_sha256", "tokenizer_sha256", "template_sha256"} <= record["details"].keys()


@pytest.mark.parametrize("model_dtype", [torch.bfloat16, torch.float64])
def test_round_trip_for_other_types_of_base(model_dtype, tmp_path):
    llm = FastMem(build("gpt2", dtype=model_dtype), None)
    for recipe in RECIPES.values():
        memory = llm.memorize(_tokens(), recipe)
        memory.save(tmp_path / "m")
        assert_same(Memory.load(tmp_path / "m", llm), memory)


def _tokens():
    from fastmem import Tokens

    return Tokens(torch.arange(3, 27) * 11 % 261)


def test_the_text_is_kept_only_if_asked(memories, tmp_path):
    memories["lora"].save(tmp_path / "without")
    assert TEXT.encode() not in (tmp_path / "without").read_bytes()
    memories["lora"].save(tmp_path / "with", text=True)
    assert Memory.load(tmp_path / "with").details["text"] == TEXT


def test_text_of_a_memory_of_token_ids(llm, tmp_path):
    memory = llm.memorize(_tokens(), LORA)
    with pytest.raises(InputError, match=r"made from token ids.*leave out text=True"):
        memory.save(tmp_path / "m", text=True)
    assert list(tmp_path.iterdir()) == []


def test_details_that_are_no_json(memories, tmp_path):
    with pytest.raises(InputError, match="must be JSON"):
        replace(memories["lora"], details={"when": object()}).save(tmp_path / "m")


def test_peek_reads_no_numbers(memories, tmp_path):
    path = tmp_path / "m"
    memories["full"].save(path)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\1\2\3")  # damage that only the digest can tell
    peeked = Memory.peek(path)
    assert peeked.trace == memories["full"].trace
    assert {n: t.shape for n, t in peeked.tensors.items()} == {n: t.shape for n, t in memories["full"].tensors.items()}
    assert all(t.is_meta for t in peeked.tensors.values())
    with pytest.raises(MemoryFileError, match="SHA-256 differs"):
        Memory.load(path)


# Fewer bytes.


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("dtype", "share", "most"), [("bfloat16", 0.5, 4e-3), ("int8", 0.25, 1e-2)])
def test_rounding_states_its_error(llm, memories, name, dtype, share, most, tmp_path):
    memory = memories[name]
    memory.save(tmp_path / "whole")
    memory.save(tmp_path / "m", dtype=dtype)
    loaded = Memory.load(tmp_path / "m", llm)
    stored = loaded.details["stored"]
    error = relative_error(memory.differences(), loaded.differences())
    assert stored["dtype"] == dtype
    assert stored["relative_error"] == pytest.approx(error)
    assert 0 < error < most
    tensors = memory.size_bytes
    # int8 adds a scale of 4 bytes for each row of 4 (low rank) to 80 numbers
    assert (tmp_path / "m").stat().st_size < share * tensors * (1 if name == "full" else 1.6) + 6000
    change = (llm.logits(QUERY, loaded) - llm.logits(QUERY, memory)).abs().max()
    assert change <= 20 * error * (llm.logits(QUERY, memory) - llm.logits(QUERY)).abs().max()


def test_float32_has_no_error(memories, tmp_path):
    memories["full"].save(tmp_path / "m", dtype="float32")
    assert Memory.load(tmp_path / "m").details["stored"] == {"dtype": "float32", "relative_error": 0.0}


def test_unknown_type(memories, tmp_path):
    with pytest.raises(InputError, match=r"unknown stored type 'int7'. Did you mean 'int8'\?"):
        memories["full"].save(tmp_path / "m", dtype="int7")


def test_zero_memory_in_int8(llm, tmp_path):
    llm.memorize(TEXT, replace(FULL, steps=0)).save(tmp_path / "m", dtype="int8")
    loaded = Memory.load(tmp_path / "m", llm)
    assert torch.equal(llm.logits(QUERY, loaded), llm.logits(QUERY))


# Refused.


def test_another_base_is_refused_before_a_tensor_is_read(memories, tmp_path, tokenizer, monkeypatch):
    memories["full"].save(tmp_path / "m")
    other = FastMem(build("llama", seed=1), tokenizer)
    own, theirs = memories["full"].base.digest[:12], other.base().digest[:12]
    monkeypatch.setattr(memory_file.MemoryFile, "tensors", None)
    with pytest.raises(MemoryMismatchError, match=rf"made on .*{own}.*this model is .*{theirs}.*load the base"):
        Memory.load(tmp_path / "m", model=other)


def test_a_memory_of_the_embedded_model_of_another_version_says_so_and_what_to_do(tmp_path, fastmem):
    llm = FastMem.from_pretrained()
    memory = llm.memorize(TEXT, replace(LORA, steps=1))
    former = replace(memory, base=replace(memory.base, digest="acffa8093222edd0" + memory.base.digest[16:]))
    former.save(tmp_path / "m.safetensors")
    now = llm.base().digest[:12]
    said = (
        f"this memory was made on fastmem-tiny (llama, FFN acffa8093222), this model is another fastmem-tiny "
        f"(llama, FFN {now}): load the base it was made for, or memorize the document again."
    )
    with pytest.raises(MemoryMismatchError) as error:
        Memory.load(tmp_path / "m.safetensors", model=llm)
    assert str(error.value) == said
    asked = fastmem("ask", "Who?", "--text", TEXT, "--memory", tmp_path / "m.safetensors")
    assert (asked.code, said in asked.err) == (2, True)


def test_another_tokenizer_is_refused_and_another_template_noticed(
    memories, tmp_path, tokenizer, plain_tokenizer, caplog
):
    memories["full"].save(tmp_path / "m")
    Memory.load(tmp_path / "m", FastMem(build("llama"), plain_tokenizer))
    assert "another template" in caplog.text
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["Drijim"])
    with pytest.raises(MemoryMismatchError, match=r"another tokenizer \(.*load the tokenizer it was made with"):
        Memory.load(tmp_path / "m", FastMem(build("llama"), changed))


def test_a_model_with_other_weights_elsewhere_is_noticed(memories, tmp_path, tokenizer, caplog):
    """As after a LoRA was merged into attention: the tuned network is the same, what it receives is not."""
    memories["full"].save(tmp_path / "m")
    Memory.load(tmp_path / "m", FastMem(build("llama"), tokenizer))
    assert caplog.text == ""
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.add_(0.01)
    llm = FastMem(model, tokenizer)
    Memory.load(tmp_path / "m", llm)
    assert "made with other weights outside of the tuned network" in caplog.text
    caplog.clear()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.copy_(build("llama").model.layers[0].self_attn.q_proj.weight)
    llm.generate("Who?", Memory.load(tmp_path / "m"), "fastmem", max_new_tokens=2)
    assert caplog.text == "", "the weights are the memory's again"


def test_padding_and_truncation_do_not_make_another_tokenizer(tokenizer):
    from fastmem.prompts import identity

    before = identity(tokenizer)
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=3)
    assert identity(tokenizer) == before


def test_tensors_of_another_shape(llm, memories, tmp_path):
    for name, change in {
        "full": {"model.layers.2.mlp.up_proj.weight": torch.zeros(80, 47)},
        "lora": {"model.layers.2.mlp.up_proj.weight.lora_A": torch.zeros(4, 47)},
    }.items():
        replace(memories[name], tensors={**memories[name].tensors, **change}).save(tmp_path / name)
        with pytest.raises(MemoryMismatchError, match=r"up_proj.weight \[80, 47\], the model has \[80, 48\]"):
            Memory.load(tmp_path / name, llm)
    odd = {**memories["lora"].tensors, "model.layers.2.mlp.up_proj.weight.lora_B": torch.zeros(80, 3)}
    replace(memories["lora"], tensors=odd).save(tmp_path / "odd")
    with pytest.raises(MemoryMismatchError, match="low-rank factors do not fit each other"):
        Memory.load(tmp_path / "odd", llm)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format_version": "2"}, "format version is 2, this FastMem reads 1; upgrade fastmem"),
        ({"format_version": "x"}, "format version is unreadable"),
        ({"format": "other"}, "it is not a FastMem memory"),
        ({"memory": "{"}, "its header is damaged"),
        ({"memory": '{"recipe": {"surprise": 1}}'}, "its header is damaged"),
        ({"sha256": "0" * 64}, "its content is not what was written"),
    ],
)
def test_changed_metadata(memories, tmp_path, change, text):
    memories["full"].save(tmp_path / "m")
    with safe_open(tmp_path / "m", "pt") as file:
        metadata = file.metadata()
    save_file(dict(memories["full"].tensors), tmp_path / "m", metadata | change)
    with pytest.raises(MemoryFileError, match=text) as caught:
        Memory.load(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def test_what_is_no_memory_at_all(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "weights")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("The mayor of Port Drijim is Plebrund Noodelb.")
    no_file = "not a safetensors file"
    for name, text in {"weights": "not a FastMem memory", "empty": no_file, "text": no_file}.items():
        with pytest.raises(MemoryFileError, match=text):
            Memory.load(tmp_path / name)
    with pytest.raises(MemoryFileError, match=r"cannot be read \(No such file or directory\)"):
        Memory.load(tmp_path / "absent")
    with pytest.raises(OSError, match="refused"):  # also the standard kind
        Memory.load(tmp_path / "absent")


def test_values_that_are_not_finite(memories, tmp_path):
    name = next(iter(memories["full"].tensors))
    broken = memories["full"].tensors[name].clone()
    broken[0, 0] = torch.nan
    replace(memories["full"], tensors={**memories["full"].tensors, name: broken}).save(tmp_path / "m")
    with pytest.raises(MemoryFileError, match="not finite"):
        Memory.load(tmp_path / "m")


def test_a_folder_that_cannot_be_written_to(memories, tmp_path):
    with pytest.raises(MemoryFileError, match=r"cannot be written \(No such file or directory\)"):
        memories["full"].save(tmp_path / "absent" / "m")


# Damage of every kind: refused, or the same memory. Small, so that thousands fit into seconds.


def small_memory():
    tensors = {"ffn.up.weight": torch.randn(3, 5), "ffn.up.bias": torch.randn(3), "ffn.down.weight": torch.randn(2, 2)}
    trace = (Step(0, 2.5, 2.5, 0.0), Step(1, 2.0, 1.9, 1.0))
    return Memory(tensors, Recipe(), Base("base", "llama", "0" * 64), trace, details={"tokens": 7})


def mutated(data: bytes, rng: random.Random) -> bytes:
    header = 8 + int.from_bytes(data[:8], "little")
    kind = rng.choice(["flip", "flips", "cut", "insert", "delete", "length", "header", "edit", "swap", "grow"])
    at = rng.randrange(len(data))
    out = bytearray(data)
    if kind == "flip":
        out[at] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randrange(2, 20)):
            out[rng.randrange(len(out))] = rng.randrange(256)
    elif kind == "cut":
        del out[at:]
    elif kind == "insert":
        out[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == "delete":
        del out[at : at + rng.randrange(1, 9)]
    elif kind == "length":
        out[:8] = rng.choice([rng.randrange(2 * len(data)), 2**63, 2**64 - 1, 2**40, 0, 1]).to_bytes(8, "little")
    elif kind == "header":
        where = rng.randrange(8, header)
        out[where] = rng.choice(b'{}[]",:0123456789eE+-. \x00\xff')
    elif kind == "edit":  # a valid header that claims something else
        claims = json.loads(data[8:header])
        entry = claims[rng.choice([k for k in claims if k != "__metadata__"])]
        numbers = [0, 1, -1, 5, 12, 2**31, 2**62, 2**200, 1.5, True, None, "3", [3], 10**4000]
        field = rng.choice(["dtype", "shape", "data_offsets"])
        if field == "dtype":
            entry["dtype"] = rng.choice(["F16", "F64", "BF16", "I8", "U8", "", 7, None, []])
        else:
            entry[field] = [rng.choice([*numbers, *entry[field]]) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 9]))]
        text = json.dumps(claims).encode()
        out = bytearray(len(text).to_bytes(8, "little") + text + data[header:])
    elif kind == "swap":
        there = rng.randrange(len(data))
        out[at : at + 4], out[there : there + 4] = out[there : there + 4], out[at : at + 4]
    else:
        out += rng.randbytes(rng.randrange(1, 50))
    return bytes(out)


def test_thousands_of_damaged_files(tmp_path):
    torch.manual_seed(0)
    memory, path, rng = small_memory(), tmp_path / "m", random.Random(5)
    memory.save(path)
    data = path.read_bytes()
    refused = 0
    for _ in range(6000):
        path.unlink()  # ext4 flushes a file that is truncated and written anew: thousands of waits on a busy disk
        path.write_bytes(mutated(data, rng))
        try:
            loaded = Memory.load(path)
        except MemoryFileError:
            refused += 1
            continue
        assert_same(loaded, memory)
        assert loaded.details == memory.details
    assert refused > 5500


def test_header_bombs(tmp_path):
    path = tmp_path / "m"
    for bomb in (
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
        b"1e999999",
        b'{"__metadata__": {"format": "fastmem-memory", "format_version": "1", "memory": "' + b"[" * 99_999 + b'"}}',
    ):
        path.write_bytes(len(bomb).to_bytes(8, "little") + bomb)
        with pytest.raises(MemoryFileError):
            Memory.load(path)


def test_claims_of_a_header_are_not_allocated(memories, tmp_path):
    """A file of 300 kB whose header claims 64 GB, loaded by a process that may not have 1 GB more than it has."""
    path = tmp_path / "m"
    memories["full"].save(path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    claims = json.loads(data[8:header])
    name = next(k for k in claims if k != "__metadata__")
    claims[name] |= {"shape": [2**17, 2**17], "data_offsets": [0, 2**36]}
    text = json.dumps(claims).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[header:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MemoryFileError, match="not a safetensors file, or a damaged one"):
        Memory.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# A writer killed at any instant.

WRITER = textwrap.dedent("""
    import os, random, signal, sys, time
    import torch
    from fastmem import Memory, Recipe
    from fastmem.memory.memory import Base
    path, kills = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    both = [
        Memory({"w": torch.full((256, 512), float(i))}, Recipe(), Base("base", "llama", "0" * 64), details={"i": i})
        for i in (1, 2)
    ]
    both[0].save(path)
    rng, seen, end, longest = random.Random(3), set(), time.monotonic() + 30, 0.03
    for _ in range(kills):
        if time.monotonic() > end and len(seen) == 2:  # a disk under load flushes slowly
            break
        if len(seen) < 2:  # on a busy machine the second memory may not be reached in that time
            longest = min(longest * 1.2, 1.0)
        child = os.fork()
        if child == 0:
            while True:
                for memory in both:
                    memory.save(path)
        time.sleep(rng.uniform(0.001, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = Memory.load(path)
        assert torch.equal(loaded.tensors["w"], torch.full((256, 512), float(loaded.details["i"])))
        seen.add(loaded.details["i"])
    assert seen == {1, 2}, seen
    print(len([n for n in os.listdir(os.path.dirname(path)) if n.endswith(".tmp")]))
""")


def test_a_writer_killed_at_any_instant_leaves_a_whole_file(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path / "m.safetensors"), "60"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0  # it was indeed killed in the middle of writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(memories, tmp_path, monkeypatch):
    path = tmp_path / "m"
    memories["lora"].save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_write.os, "fsync", full)
    with pytest.raises(MemoryFileError, match=r"cannot be written \(No space left on device\)"):
        memories["full"].save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
