"""`fastmem memorize`, `fastmem memories`, `fastmem export`: memory files on the command line."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from command_line import DOCUMENT, QUESTION, Runner, in_a_process, refusal, save
from families import build
from fastmem import FastMem, Memory, Recipe
from fastmem.memory import memory_file

QUERY = torch.arange(5, 17) * 13 % 261


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "harbour.txt").write_text(DOCUMENT)
    (folder / "tarn.txt").write_text("The office of Tarn closes at four.")
    return folder


def memorize(fastmem: Runner, base: Path, documents: Path, *more: object):
    sources = sorted(documents.glob("*.txt"))
    return fastmem("memorize", *sources, "-o", documents / "memories", "-m", base, "--learning-rate", "1e-2", *more)


def test_memorize_list_show_verify_ask(fastmem: Runner, base: Path, documents: Path) -> None:
    said = memorize(fastmem, base, documents)
    assert (said.code, said.err) == (0, "")
    assert [line.split(",")[1:3] for line in said.out.splitlines()] == [[" full", " 10 steps"]] * 2
    folder = documents / "memories"
    assert sorted(p.name for p in folder.iterdir()) == ["harbour.safetensors", "tarn.safetensors"]

    llm = FastMem.from_pretrained(base)
    expected = llm.memorize(DOCUMENT, Recipe(learning_rate=1e-2))
    assert torch.equal(
        llm.logits(QUERY, Memory.load(folder / "harbour.safetensors", llm)), llm.logits(QUERY, expected)
    )

    listed = fastmem("memories", "list", folder)
    assert (listed.code, listed.err, listed.out.count("\n")) == (0, "", 2)
    assert listed.out.startswith("harbour.safetensors  ")
    found = fastmem("memories", "list", folder, "--json").json["memories"]
    assert [row["bytes"] for row in found] == [p.stat().st_size for p in sorted(folder.iterdir())]
    assert found[0]["first_loss"] == expected.trace[0].loss

    shown = fastmem("memories", "show", folder / "tarn.safetensors").out
    for part in ("learning_rate    0.01", "family           llama", "up_proj.weight [80, 48]", "step   loss"):
        assert part in shown
    record = fastmem("memories", "show", folder / "harbour.safetensors", "--json").json
    assert len(record["trace"]) == 10
    assert record["base"]["digest"] == llm.base().digest

    assert fastmem("memories", "verify", folder, "-m", base).out.splitlines() == [
        "good  harbour.safetensors",
        "good  tarn.safetensors",
    ]
    said = fastmem(
        "ask", QUESTION, "--text", DOCUMENT, "-m", base, "--memory", folder / "harbour.safetensors", "--json",
        "--max-new-tokens", 6,
    )  # fmt: skip
    assert said.json["text"] == llm.answer(QUESTION, DOCUMENT, memory=expected, max_new_tokens=6).text
    assert "made from another text" not in said.err
    other = ("ask", QUESTION, "--text", "Another text.", "-m", base, "--memory", folder / "harbour.safetensors")
    assert "note: the memory was made from another text than this context" in fastmem(*other).err
    compared = fastmem(*other, "--compare", "--max-new-tokens", 1)
    assert compared.err.count("note: the memory was made from another text") == 1, "said once, not for every method"


def test_running_the_command_again_continues(fastmem: Runner, base: Path, documents: Path) -> None:
    memorize(fastmem, base, documents)
    folder = documents / "memories"
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "tarn.safetensors").unlink()
    said = memorize(fastmem, base, documents, "--json")
    assert [row["kept"] for row in said.json["memories"]] == [True, False]
    assert (folder / "harbour.safetensors").stat().st_mtime_ns == before["harbour.safetensors"]
    # For a damaged file, another text or another recipe, the memory is made again.
    damaged = (folder / "tarn.safetensors").read_bytes()[:-1]
    (folder / "tarn.safetensors").write_bytes(damaged)
    (documents / "harbour.txt").write_text(DOCUMENT + " It rains.")
    assert [row["kept"] for row in memorize(fastmem, base, documents, "--json").json["memories"]] == [False, False]
    again = memorize(fastmem, base, documents, "--json", "--steps", 3)
    assert [row["kept"] for row in again.json["memories"]] == [False, False]
    again = memorize(fastmem, base, documents, "--json", "--steps", 3, "--store", "bfloat16")
    assert [row["kept"] for row in again.json["memories"]] == [False, False]
    again = memorize(fastmem, base, documents, "--json", "--steps", 3, "--store", "bfloat16")
    assert [row["kept"] for row in again.json["memories"]] == [True, True]
    for flags in (["--keep-text"], []):  # with the text, then without it again
        for kept in (False, True):
            again = memorize(fastmem, base, documents, "--json", "--steps", 3, "--store", "bfloat16", *flags)
            assert [row["kept"] for row in again.json["memories"]] == [kept, kept]
        assert ("text" in Memory.load(folder / "tarn.safetensors").details) is bool(flags)


def test_a_closed_pipe_stops_the_command(base: Path, documents: Path) -> None:
    memories = documents / "memories"
    words = ("memorize", *sorted(documents.glob("*.txt")), "-o", memories, "-m", base, "--steps", 1, "-q")
    stopped = in_a_process(*words, closed=True)
    assert (stopped.code, len(list(memories.iterdir()))) == (141, 1)
    assert stopped.err == "stopped, since standard output was closed: run the same command again to go on.\n"
    assert [", kept" in line for line in in_a_process(*words).out.splitlines()] == [True, False]


def test_a_file_is_no_folder_of_memories(fastmem: Runner, documents: Path, tmp_path: Path) -> None:
    for given, folder in (("m.safetensors", "m"), (f"{tmp_path}/kept/m.safetensors", f"{tmp_path}/kept")):
        said = refusal(fastmem("memorize", documents / "a.txt", "--output", given))
        assert said == (
            "--output is the folder of the memories, which are named after their documents; given the file "
            f"{given!r}. Give a folder, such as {folder!r}."
        )
    assert not (tmp_path / "kept").exists()


def test_an_unknown_stored_type_is_refused_before_anything_is_memorized(fastmem: Runner, documents: Path) -> None:
    line = refusal(
        fastmem("memorize", documents / "tarn.txt", "-o", documents / "m", "--model", "absent", "--store", "int4")
    )
    assert line.startswith("unknown stored type 'int4'")
    assert line.endswith("(option --store).")


def test_one_bad_document_does_not_stop_the_others(fastmem: Runner, base: Path, documents: Path) -> None:
    (documents / "empty.txt").touch()
    said = memorize(fastmem, base, documents)
    assert said.code == 2
    assert said.out.count("\n") == 2
    first, last = said.err.splitlines()
    assert first.startswith(f"error: {documents / 'empty.txt'}: the context is empty")
    assert last == "error: 1 of 3 documents were not memorized: see above."


def test_low_rank_rounded_with_text(fastmem: Runner, base: Path, documents: Path) -> None:
    lora = ("--parametrization", "lora", "--rank", 2, "--store", "bfloat16", "--keep-text")
    assert memorize(fastmem, base, documents, *lora).code == 0
    memory = Memory.load(documents / "memories" / "harbour.safetensors")
    assert (memory.recipe.parametrization, memory.recipe.rank) == ("lora", 2)
    assert memory.details["text"] == DOCUMENT
    assert memory.details["stored"]["dtype"] == "bfloat16"
    assert memory.size_bytes == 2 * 3 * 2 * (48 + 80)


def test_damage_is_found(fastmem: Runner, base: Path, documents: Path) -> None:
    memorize(fastmem, base, documents)
    path = documents / "memories" / "tarn.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    said = fastmem("memories", "verify", documents / "memories")
    assert said.code == 2
    assert said.out.splitlines()[0] == "good  harbour.safetensors"
    assert said.out.splitlines()[1].startswith("BAD   tarn.safetensors  memory file")
    assert "1 of 2 memories" in said.err
    path.write_bytes(b"no memory")
    listed = fastmem("memories", "list", documents / "memories")
    assert listed.code == 0
    assert "it is not a safetensors file" in listed.out


def test_verify_against_another_model(fastmem: Runner, base: Path, documents: Path, tmp_path: Path) -> None:
    memorize(fastmem, base, documents)
    other = save(build("llama", seed=1), tmp_path / "other")
    said = fastmem("memories", "verify", documents / "memories", "-m", other, "--json")
    assert said.code == 2
    assert "load the base it was made for" in said.json["memories"][0]["error"]


def test_export_both_ways(fastmem: Runner, base: Path, documents: Path, tmp_path: Path) -> None:
    memorize(fastmem, base, documents)
    source = documents / "memories" / "harbour.safetensors"
    refused = refusal(fastmem("export", source, "-m", base, "-o", tmp_path / "a"))
    assert "give the document, or memorize with" in refused
    assert refused.endswith("Options that help: --context.")
    said = fastmem(
        "export", source, "-m", base, "-o", tmp_path / "a", "--rank", 16, "-c", documents / "harbour.txt", "--json"
    )
    assert (said.code, said.err) == (0, "")
    assert 0 < said.json["retained_energy"] < 1
    assert 0 < said.json["kl"] < 0.05
    text = fastmem("export", source, "-m", base, "-o", tmp_path / "b", "-c", documents / "harbour.txt", "--force").out
    assert "energy kept" in text
    assert "nats per token" in text
    assert fastmem("export", source, "-m", base, "-o", tmp_path / "m", "--format", "merged").code == 0
    llm = FastMem.from_pretrained(base)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")(QUERY[None]).logits[0]
    assert torch.equal(merged, llm.logits(QUERY, Memory.load(source)))


def test_refusals(fastmem: Runner, base: Path, documents: Path, tmp_path: Path) -> None:
    assert "does not exist: give a folder of memories" in refusal(fastmem("memories", "list", tmp_path / "absent"))
    assert "contains no memory" in refusal(fastmem("memories", "verify", documents))
    assert "cannot be read" in refusal(fastmem("memories", "show", tmp_path / "absent"))
    twice = fastmem("memorize", "a/x.txt", "b/x.txt", "-o", tmp_path / "out", "-m", base)
    assert "two documents are named 'x'" in refusal(twice)
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(fastmem("memorize", "a.txt", "-o", tmp_path / "file" / "sub", "-m", base))


def test_options_that_would_have_no_effect_are_refused_before_a_model_is_loaded(
    fastmem: Runner, base: Path, documents: Path, tmp_path: Path
) -> None:
    absent = ("-m", tmp_path / "no model", "-o", tmp_path / "out")
    said = refusal(fastmem("memorize", documents / "tarn.txt", *absent, "--placement", "prompt"))
    assert said == (
        "placement 'prompt' lays the document out inside a question, and memorize has none: give assistant, "
        "user or text, or ask the question with 'fastmem ask' (option --placement)."
    )
    for flag in ("--rank", "--lora-alpha", "--recipe-seed"):
        said = refusal(fastmem("memorize", documents / "tarn.txt", *absent, flag, 4))
        assert said == f"{flag} needs --parametrization lora (option --parametrization)."
    assert not (tmp_path / "out").exists()
    said = refusal(fastmem("serve", *absent[:2], "--placement", "prompt"))
    assert said == (
        "placement 'prompt' memorizes a document in the prompt of one question, but a server's memories answer any "
        "question: give assistant, user or text (option --placement)."
    )
    # A request to a server may ask for lora.
    assert "no model' does not exist" in refusal(fastmem("serve", *absent[:2], "--rank", 4))
    memorize(fastmem, base, documents, "--parametrization", "lora", "--rank", 2)
    source = documents / "memories" / "harbour.safetensors"
    for option in (("--rank", 1), ("--context", documents / "tarn.txt"), ("--max-kl", 0.1), ("--force",)):
        said = refusal(fastmem("export", source, *absent, *option))
        assert said == f"{option[0]} needs a full memory: {source} is low-rank, and is exported exactly."
    assert refusal(fastmem("export", source, *absent, "--format", "peff", "--force")) == (
        "unknown export format 'peff'. Did you mean 'peft'? Accepted: peft, merged (option --format)."
    )
    for option in (("--rank", 4), ("--context", documents / "tarn.txt"), ("--max-kl", 0.1), ("--force",)):
        said = refusal(fastmem("export", source, *absent, "--format", "merged", *option))
        assert said == (
            f"{option[0]} needs --format peft: a merged checkpoint contains the whole memory (option --format)."
        )


def test_a_recipe_file_that_is_low_rank_takes_a_rank(
    fastmem: Runner, base: Path, documents: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text('{"parametrization": "lora"}')
    assert memorize(fastmem, base, documents, "--recipe", tmp_path / "recipe.json", "--rank", 3).code == 0
    assert Memory.peek(documents / "memories" / "harbour.safetensors").recipe.rank == 3


def test_peek_is_what_list_reads(
    fastmem: Runner, base: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memorize(fastmem, base, documents)
    monkeypatch.setattr(memory_file.MemoryFile, "tensors", None)
    assert fastmem("memories", "list", documents / "memories").code == 0
