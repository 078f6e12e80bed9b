"""`fastmem ask` and `memorize` with documents that are cut into parts, and what they show meanwhile."""

import sys
from pathlib import Path

import pytest

from command_line import Runner, refusal, save
from families import build
from fastmem import FastMem, Recipe
from fastmem.cli import memorization_progress
from fastmem.cli.output import Status
from fastmem.documents import document_parts
from fastmem.memory.memory import Step
from fastmem.prompts import question_prompt, token_count

RECIPE = ("--learning-rate", "1e-2", "--steps", 2)
ANSWER = ("--max-new-tokens", 4, *RECIPE)
FIRST = "The office of Tarn opens at eight and closes at noon. " * 6
SECOND = "The mayor is Bo Lind, who was elected in spring. " * 6
QUESTION = "Who is the mayor?"
TOKENS = 400


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = build("llama")
    llama.config.max_position_embeddings = 600
    return save(llama, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def llm(base: Path) -> FastMem:
    return FastMem.from_pretrained(base)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "handbook.txt"
    path.write_text(f"{FIRST}\n\n{SECOND}")
    return path


def test_a_document_that_is_too_long_is_answered_from_its_part(fastmem: Runner, base, llm, document) -> None:
    refused = refusal(fastmem("ask", QUESTION, "-c", document, "-m", base, *ANSWER))
    assert refused.endswith("Options that help: --truncate, --part-tokens.")
    found = fastmem("ask", QUESTION, "-c", document, "-m", base, "--part-tokens", TOKENS, *ANSWER, "--json")
    assert found.err.splitlines() == [
        'note: answering from part 2 of 2 of the document, whose words fit best; it begins "The mayor is Bo Lind, who '
        'was elected ...".'
    ]
    assert (found.json["part"], found.json["parts"]) == (2, 2)
    text = document_parts(document.read_text(), TOKENS, lambda text: token_count(llm.tokenizer, text))[1]
    assert text == SECOND.strip()
    expected = llm.answer(QUESTION, text, recipe=Recipe(learning_rate=1e-2, steps=2), max_new_tokens=4)
    assert found.json["text"] == expected.text
    assert found.json["prompt_tokens"] == len(llm.ids(question_prompt(text, QUESTION)))
    assert found.json["trace"][0]["loss"] == expected.memory.trace[0].loss


def test_no_part_shares_a_word_with_the_question(fastmem: Runner, base, document) -> None:
    refused = refusal(fastmem("ask", "zzz?", "-c", document, "-m", base, "--part-tokens", TOKENS, *ANSWER))
    assert refused == (
        "none of the 2 parts shares a word with the question: ask in words of the document, or cut it into larger "
        "parts (option --part-tokens)."
    )


def test_a_document_that_fits_is_one_part(fastmem: Runner, base, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(SECOND)
    found = fastmem(
        "ask", QUESTION, "-c", tmp_path / "short.txt", "-m", base, "--part-tokens", TOKENS, *ANSWER, "--json"
    )
    assert found.err == ""
    assert "part" not in found.json


def test_every_part_has_a_memory_that_ask_finds(fastmem: Runner, base, document, tmp_path: Path) -> None:
    memories = tmp_path / "memories"
    call = ("memorize", document, "-o", memories, "-m", base, "--part-tokens", TOKENS, *RECIPE)
    made = fastmem(*call, "--json").json["memories"]
    assert [(Path(row["file"]).name, row["source"], row["part"], row["parts"], row["kept"]) for row in made] == [
        (f"handbook.part-{n}.safetensors", str(document), n, 2, False) for n in (1, 2)
    ]
    assert [line.rsplit(", ")[-1] for line in fastmem(*call).out.splitlines()] == ["kept", "kept"]
    asked = ("ask", QUESTION, "-c", document, "-m", base, "--part-tokens", TOKENS, "--memory", memories, *ANSWER)
    said = fastmem(*asked)
    assert "memory from file" in said.err
    (memories / "handbook.part-2.safetensors").unlink()
    said = fastmem(*asked)
    assert f"note: {memories} has no memory of handbook.part-2: it is memorized now." in said.err.splitlines()
    assert "2 steps in" in said.err


def test_parts_of_documents_in_a_folder(fastmem: Runner, base, document, tmp_path: Path) -> None:
    folder, memories = tmp_path / "policies", tmp_path / "memories"
    folder.mkdir()
    document.rename(folder / "handbook.txt")
    (folder / "dogs.txt").write_text("Dogs may come on Fridays.")
    made = fastmem("memorize", "--documents", folder, "-o", memories, "-m", base, "--part-tokens", TOKENS, *RECIPE)
    assert [line.split("  ")[0] for line in made.out.splitlines()] == [
        "dogs.txt.safetensors",
        "handbook.txt.part-1.safetensors",
        "handbook.txt.part-2.safetensors",
    ]
    call = ("ask", QUESTION, "--documents", folder, "-m", base, "--part-tokens", TOKENS, "--memory", memories, *ANSWER)
    said = fastmem(*call)
    assert said.err.splitlines()[0].startswith("note: answering from handbook.txt, whose words fit best")
    assert said.err.splitlines()[1].startswith(
        "note: answering from part 2 of 2 of the document, whose words fit best"
    )
    assert "memory from file" in said.err


def test_two_documents_never_share_a_memory_file(fastmem: Runner, base, document, tmp_path: Path) -> None:
    (tmp_path / "handbook.part-2.txt").write_text("Another document.")
    said = fastmem(
        "memorize",
        document,
        tmp_path / "handbook.part-2.txt",
        "-o",
        tmp_path / "m",
        "-m",
        base,
        "--part-tokens",
        TOKENS,
        *RECIPE,
    )
    assert said.code == 2
    assert len(said.out.splitlines()) == 2
    assert "handbook.part-2.safetensors is already the memory of another document: rename this one." in said.err


@pytest.mark.parametrize("given", ["0", "-3", "two"])
def test_a_part_needs_a_number_of_tokens(fastmem: Runner, document, given: str) -> None:
    assert "--part-tokens" in refusal(fastmem("ask", QUESTION, "-c", document, "--part-tokens", given))


# progress


def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_memorizing_shows_parts_and_steps(fastmem: Runner, base, document, tmp_path: Path, monkeypatch) -> None:
    terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    call = ("memorize", document, "-o", tmp_path / "m", "-m", base, "--part-tokens", TOKENS, *RECIPE)
    shown = [line.removeprefix("\x1b[K") for line in fastmem(*call).err.split("\r")]
    name = f"{document} (1 of 1)"
    of_parts = [line.partition(", loss")[0] for line in shown if ", part" in line]
    assert of_parts == [
        f"{name}, part {part} of 2: {what}"
        for part in (1, 2)
        for what in ("reading the document ...", "step 1 of 2", "step 2 of 2")
    ]
    asked = fastmem("ask", QUESTION, "-c", document, "-m", base, "--part-tokens", TOKENS, *ANSWER).err
    assert "\x1b[Kmemorizing part 2 of 2: step 2 of 2, loss " in asked
    asked = fastmem("ask", QUESTION, "--text", SECOND, "-m", base, *ANSWER).err
    assert "\x1b[Kmemorizing: reading the document ..." in asked
    assert "memorizing" not in fastmem("ask", QUESTION, "--text", SECOND, "-m", base, *ANSWER, "--method", "base").err


def test_the_time_left_is_that_of_the_steps_before(monkeypatch, capsys) -> None:
    terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    times = iter([100.0, 103.0, 109.0, 109.5])
    monkeypatch.setattr(memorization_progress.time, "monotonic", lambda: next(times))
    on_step = memorization_progress.memorization_progress(Status(), "memorizing", 4)
    for index in range(4):
        on_step(Step(index, 2.0, 2.0, 0.0))
    shown = [line.removeprefix("\x1b[K") for line in capsys.readouterr().err.split("\r")]
    assert shown[2:] == [
        "memorizing: step 1 of 4, loss 2.000",
        "memorizing: step 2 of 4, loss 2.000, about 9 s left",
        "memorizing: step 3 of 4, loss 2.000, about 9 s left",
        "memorizing: step 4 of 4, loss 2.000, about 3 s left",
    ]


def test_nothing_is_shown_where_nobody_looks(capsys) -> None:
    assert memorization_progress.memorization_progress(Status(), "memorizing", 4) is None
    assert capsys.readouterr().err == ""
