"""`fastmem ask` and `fastmem memorize` with files of several formats, and with a folder of them."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import QUESTION, Runner, in_a_process, refusal, save
from document_samples import Picture, docx, paragraph, pdf, table
from families import build
from fastmem import FastMem, Memory, Recipe

LEAVE = "Everyone has 27 days of annual leave."
TRAVEL = "A hotel costs at most 140 euros. The mayor is Bo Lind."
RECIPE = ("--learning-rate", "1e-2", "--steps", 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = build("llama")
    llama.config.max_position_embeddings = 512
    return save(llama, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    (folder / "hr").mkdir(parents=True)
    (folder / "hr" / "leave.pdf").write_bytes(pdf([LEAVE]))
    (folder / "travel policy.docx").write_bytes(docx(paragraph("Trips") + table(("What", "Rule"), ("all", TRAVEL))))
    (folder / "dogs.md").write_text("Dogs may come on Fridays.")
    (folder / "scan.pdf").write_bytes(pdf([Picture()]))
    (folder / "photo.png").write_bytes(b"\x89PNG")
    return folder


NAMES = ["dogs.md", "hr/leave.pdf", "travel policy.docx"]
SKIPPED = {
    "photo.png": ".png files are not read",
    "scan.pdf": "it is a scanned PDF without text: run OCR on it first, for example with ocrmypdf",
}


def memorize(fastmem: Runner, base: Path, policies: Path, output: Path, *more: object):
    return fastmem("memorize", "--documents", policies, "-o", output, "-m", base, *RECIPE, *more)


# Names that a terminal cannot show


def test_names_that_the_encoding_of_the_output_lacks(fastmem: Runner, base: Path, tmp_path: Path) -> None:
    files = [tmp_path / os.fsdecode(b"\xff.txt"), tmp_path / "a→b.txt"]
    for file in files:
        file.write_text(LEAVE)
    command, ascii_only = ("-o", tmp_path / "memories", "-m", base, "--steps", 1), {"PYTHONIOENCODING": "ascii"}
    said = in_a_process("memorize", *files, *command, **ascii_only)
    names = ["\\ufffd.safetensors", "a\\u2192b.safetensors"]
    assert (said.code, [line.split("  ")[0] for line in said.out.splitlines()]) == (0, names), said.err
    said = in_a_process("memorize", *files, *command, "--json", PYTHONIOENCODING="utf-8")
    assert [record["source"] for record in said.json["memories"]] == list(map(str, files))
    said = in_a_process("memories", "list", tmp_path / "memories", "--json", PYTHONIOENCODING="latin-1")
    assert [record.get("error") for record in said.json["memories"]] == [None, None]
    asked = ("--context", files[0], "--memory", tmp_path / "memories", "-m", base, "--max-new-tokens", 1)
    assert "fastmem: memory from file; " in fastmem("ask", QUESTION, *asked).err


# memorize --documents


def test_a_memory_of_every_document(fastmem: Runner, base: Path, policies: Path, tmp_path: Path) -> None:
    memories = tmp_path / "memories"
    said = memorize(fastmem, base, policies, memories)
    assert said.code == 0
    assert [line.split("  ")[0] for line in said.out.splitlines()] == [f"{name}.safetensors" for name in NAMES]
    assert said.err.splitlines() == [
        *(f"skipped: {name}: {reason}." for name, reason in SKIPPED.items()),
        f"3 memories in {memories}: 3 made, 0 kept; 2 skipped.",
    ]
    llm = FastMem.from_pretrained(base)
    expected = llm.memorize(LEAVE, Recipe(learning_rate=1e-2, steps=3))
    found = Memory.load(memories / "hr" / "leave.pdf.safetensors", llm)
    assert found.details["text_sha256"] == expected.details["text_sha256"]
    assert [step.loss for step in found.trace] == [step.loss for step in expected.trace]
    listed = fastmem("memories", "list", memories)
    assert [line.split("  ")[0] for line in listed.out.splitlines()] == [f"{name}.safetensors" for name in NAMES]
    verified = fastmem("memories", "verify", memories, "-m", base)
    assert verified.out.splitlines() == [f"good  {name}.safetensors" for name in NAMES]


def test_memories_are_kept_if_nothing_changed(fastmem: Runner, base: Path, policies: Path) -> None:
    memories = policies / "memories"  # inside: not taken for documents
    assert memorize(fastmem, base, policies, memories).code == 0
    said = memorize(fastmem, base, policies, memories)
    assert said.err.splitlines()[-1] == f"3 memories in {memories}: 0 made, 3 kept; 2 skipped."
    assert [line.rsplit(", ")[-1] for line in said.out.splitlines()] == ["kept"] * 3
    (policies / "dogs.md").write_text("Dogs may come on Mondays.")
    again = memorize(fastmem, base, policies, memories, "--json").json
    assert [row["kept"] for row in again["memories"]] == [False, True, True]
    assert [row["source"] for row in again["memories"]] == NAMES
    assert again["failed"] == []
    assert {row["source"]: row["reason"] for row in again["skipped"]} == SKIPPED
    beside = memorize(fastmem, base, policies, policies)
    beside = memorize(fastmem, base, policies, policies)
    assert beside.err.splitlines()[-1].endswith(f"3 memories in {policies}: 0 made, 3 kept; 2 skipped.")


def test_memories_whose_shortlist_was_replaced_are_kept(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path
) -> None:
    memories, short = tmp_path / "memories", ("--learning-rate", "0.1", "--shortlist", 20)
    made = memorize(fastmem, base, policies, memories, *short)
    assert "recipe shortlist 20 is too small" in made.err
    again = memorize(fastmem, base, policies, memories, *short)
    assert again.err.splitlines()[-1] == f"3 memories in {memories}: 0 made, 3 kept; 2 skipped."
    other = memorize(fastmem, base, policies, memories, *short[:2], "--shortlist", 21)
    assert other.err.splitlines()[-1] == f"3 memories in {memories}: 3 made, 0 kept; 2 skipped."


def test_memories_of_a_model_with_other_weights_elsewhere_are_made_again(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path
) -> None:
    memories, other = tmp_path / "memories", build("llama")
    other.config.max_position_embeddings = 512
    assert memorize(fastmem, base, policies, memories).code == 0
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.view(-1)[0] += 1
    changed = save(other, tmp_path / "changed")
    said = memorize(fastmem, changed, policies, memories)
    assert said.err.splitlines()[-1] == f"3 memories in {memories}: 3 made, 0 kept; 2 skipped."
    assert memorize(fastmem, changed, policies, memories).err.splitlines()[-1].endswith("0 made, 3 kept; 2 skipped.")


def test_memories_that_do_not_record_the_sampled_weights_are_kept(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path
) -> None:
    memories = tmp_path / "memories"
    assert memorize(fastmem, base, policies, memories).code == 0
    for path in memories.rglob("*.safetensors"):
        memory = Memory.load(path)
        details = {name: value for name, value in memory.details.items() if name != "sampled_weights_sha256"}
        replace(memory, details=details).save(path)
    said = memorize(fastmem, base, policies, memories)
    assert said.err.splitlines()[-1] == f"3 memories in {memories}: 0 made, 3 kept; 2 skipped."


def test_an_interrupted_folder_goes_on(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memorize_one, made = FastMem.memorize, []

    def interrupted(self: FastMem, context: str, *rest: object, **options: object) -> object:
        made.append(context)
        if len(made) == 2:
            raise KeyboardInterrupt
        return memorize_one(self, context, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(FastMem, "memorize", interrupted)
        said = memorize(fastmem, base, policies, tmp_path / "memories")
    assert said.code == 130
    assert [path.name for path in (tmp_path / "memories").rglob("*.*")] == ["dogs.md.safetensors"]
    again = memorize(fastmem, base, policies, tmp_path / "memories", "--json").json
    assert [row["kept"] for row in again["memories"]] == [True, False, False]


def test_a_document_that_is_too_long_is_named(fastmem: Runner, base: Path, policies: Path, tmp_path: Path) -> None:
    (policies / "handbook.txt").write_text("rule " * 1000)
    said = memorize(fastmem, base, policies, tmp_path / "memories")
    assert said.code == 0
    assert len(said.out.splitlines()) == 3
    (line,) = [line for line in said.err.splitlines() if "handbook" in line]
    assert line.startswith("skipped: handbook.txt: ")
    assert "too many: the model has 512 positions" in line
    assert line.endswith("Options that help: --truncate, --part-tokens.")
    cut = memorize(fastmem, base, policies, tmp_path / "memories", "--truncate", "--json").json
    assert [row["kept"] for row in cut["memories"]] == [True, False, True, True]


def test_a_memory_that_cannot_be_written_is_an_error(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path
) -> None:
    (tmp_path / "memories").mkdir()
    (tmp_path / "memories" / "dogs.md.safetensors").mkdir()
    said = memorize(fastmem, base, policies, tmp_path / "memories")
    assert said.code == 2
    assert said.err.splitlines()[0].startswith("error: dogs.md: ")
    assert said.err.splitlines()[-1] == "error: 1 of 4 documents were not memorized: see above."
    assert len(said.out.splitlines()) == 2


def test_quiet_prints_memories_only(fastmem: Runner, base: Path, policies: Path, tmp_path: Path) -> None:
    said = memorize(fastmem, base, policies, tmp_path / "memories", "--quiet")
    assert (said.code, said.err, len(said.out.splitlines())) == (0, "", 3)


def test_a_name_that_cannot_be_printed(fastmem: Runner, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    for byte in (b"\xe9", b"\xe8"):
        with open(os.fsencode(folder) + b"/caf" + byte + b".txt", "w") as file:
            file.write(LEAVE)
        said = memorize(fastmem, base, folder, tmp_path / "memories")
        if byte == b"\xe9":
            assert said.out.startswith("caf\ufffd.txt.safetensors  ")
            assert fastmem("memories", "verify", tmp_path / "memories").code == 0
    assert "two documents are named 'caf\ufffd.txt' once unprintable characters are replaced" in refusal(said)


def test_nothing_to_memorize(fastmem: Runner, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    line = refusal(memorize(fastmem, base, folder, tmp_path / "memories"))
    assert line == (
        f"'{folder}' contains no document; FastMem reads files that end in .txt, .text, .md, .markdown, .html, .htm, "
        ".xhtml, .pdf, .docx (option --documents)."
    )
    for i in range(7):
        (folder / f"{i}.jpg").touch()
    line = refusal(memorize(fastmem, base, folder, tmp_path / "memories"))
    assert "Skipped: 0.jpg: .jpg files are not read; 1.jpg: " in line
    assert "4.jpg: .jpg files are not read; and 2 more" in line
    assert not (tmp_path / "memories").exists()
    (folder / "scan.pdf").write_bytes(pdf([Picture()]))
    said = memorize(fastmem, base, folder, tmp_path / "memories")
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines()[-1] == f"error: no document in '{folder}' was memorized (option --documents)."
    assert "skipped: scan.pdf: it is a scanned PDF" in said.err


def test_files_or_a_folder(fastmem: Runner, base: Path, policies: Path, tmp_path: Path) -> None:
    both = fastmem("memorize", policies / "dogs.md", "--documents", policies, "-o", tmp_path / "m", "-m", base)
    assert refusal(both) == "documents are given twice: give FILE..., or a folder with --documents."
    none = fastmem("memorize", "-o", tmp_path / "m", "-m", base)
    assert refusal(none) == "no document is given: give FILE..., or a folder with --documents."
    file = memorize(fastmem, base, policies / "dogs.md", tmp_path / "m")
    assert "is not a folder: give a folder of documents (option --documents)." in refusal(file)
    said = fastmem("memorize", policies, "-o", tmp_path / "m", "-m", base)
    assert said.err.splitlines()[0].endswith("is a folder: give one file. Options that help: --documents.")
    one = fastmem("memorize", policies / "hr" / "leave.pdf", "-o", tmp_path / "m", "-m", base, *RECIPE)
    assert one.out.startswith("leave.safetensors  ")


# ask


def ask(fastmem: Runner, base: Path, question: str, *more: object):
    return fastmem("ask", question, "-m", base, "--max-new-tokens", 3, *RECIPE, *more)


def test_a_file_of_another_format_as_context(fastmem: Runner, base: Path, policies: Path) -> None:
    text = ask(fastmem, base, QUESTION, "--text", LEAVE, "--json").json
    from_pdf = ask(fastmem, base, QUESTION, "-c", policies / "hr" / "leave.pdf", "--json").json
    assert from_pdf["text"] == text["text"]
    assert from_pdf["trace"] == text["trace"]
    assert "document" not in from_pdf
    line = refusal(ask(fastmem, base, QUESTION, "-c", policies / "scan.pdf"))
    assert line == f"context file '{policies / 'scan.pdf'}' cannot be read: {SKIPPED['scan.pdf']}."
    for name, reason in (
        ("word " * 70, "File name too long"),
        ("~nobody", "does not exist"),
        ("a\0b", "embedded null"),
    ):
        assert reason in refusal(ask(fastmem, base, QUESTION, "-c", name))
    line = refusal(ask(fastmem, base, QUESTION, "-c", policies / "absent.pdf"))
    assert line.endswith("does not exist: give a file, or - for standard input.")
    (policies / "half.pdf").write_bytes(pdf([LEAVE, Picture()]))
    said = ask(fastmem, base, QUESTION, "-c", policies / "half.pdf")
    assert "half.pdf': page 2 is a picture without text: run OCR on it.\n" in said.err


def test_the_document_with_the_words_of_the_question(fastmem: Runner, base: Path, policies: Path) -> None:
    question = "How many days of leave does everyone have?"
    said = ask(fastmem, base, question, "--documents", policies)
    assert said.code == 0
    first, second = said.err.splitlines()[:2]
    assert first == "note: 1 file not read: scan.pdf; --json says why."
    assert second.startswith("note: answering from hr/leave.pdf, whose words fit best (score ")
    found = ask(fastmem, base, question, "--documents", policies, "--json").json
    assert found["document"]["name"] == "hr/leave.pdf"
    assert found["document"]["score"] > 0
    assert found["other_documents"] == []
    assert {row["name"]: row["reason"] for row in found["skipped"]} == SKIPPED
    alone = ask(fastmem, base, question, "--text", LEAVE, "--json").json
    assert (found["text"], found["trace"]) == (alone["text"], alone["trace"])
    next_best = ask(fastmem, base, "May a dog come to the hotel of the mayor?", "--documents", policies)
    assert "note: answering from travel policy.docx, whose words fit best (score " in next_best.err
    assert "); next: dogs.md (" in next_best.err
    assert "). --document NAME chooses another.\n" in next_best.err
    by_name = ask(fastmem, base, "What does the travel policy say?", "--documents", policies, "--json").json
    assert by_name["document"]["name"] == "travel policy.docx"
    quiet = ask(fastmem, base, question, "--documents", policies, "--quiet")
    assert quiet.err == ""


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hr/leave.pdf", "hr/leave.pdf"),
        ("leave.pdf", "hr/leave.pdf"),
        ("Leave", "hr/leave.pdf"),
        ("travel policy", "travel policy.docx"),
        ("cafe\u0301", "caf\u00e9.txt"),
    ],
)
def test_a_document_by_name(fastmem: Runner, base: Path, policies: Path, name: str, found: str) -> None:
    (policies / "caf\u00e9.txt").write_text("The caf\u00e9 closes at noon.")
    said = ask(fastmem, base, "zzz", "--documents", policies, "--document", name, "--json").json
    assert said["document"]["name"] == found
    assert said["document"]["score"] is None


def test_a_document_by_its_path(fastmem: Runner, base: Path, policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(policies.parent)
    said = ask(fastmem, base, "zzz", "--documents", "policies", "--document", "policies/hr/leave.pdf")
    assert "note: answering from hr/leave.pdf.\n" in said.err


def test_no_document_is_chosen(fastmem: Runner, base: Path, policies: Path) -> None:
    def refused(question: str, *more: object) -> str:
        return refusal(ask(fastmem, base, question, "--documents", policies, *more))

    assert refused("zzz").endswith(
        "shares a word with the question: choose one by its name. Options that help: --document."
    )
    assert "is named 'trawel'. Did you mean travel policy.docx? (option --document)" in refused(
        "zzz", "--document", "trawel"
    )
    assert "is named 'xyz'. It has dogs.md, hr/leave.pdf, scan.pdf, travel policy.docx" in refused(
        "zzz", "--document", "xyz"
    )
    assert refused("zzz", "--document", "scan") == f"scan.pdf cannot be read: {SKIPPED['scan.pdf']}."
    line = refused("zzz", "--document", "photo.png")
    assert line == "photo.png cannot be read: .png files are not read (option --document)."
    (policies / "leave.md").write_text(LEAVE)
    line = refused("zzz", "--document", "leave")
    assert line == "2 documents are named 'leave': give one of hr/leave.pdf, leave.md (option --document)."
    assert refused("zzz", "-c", policies / "dogs.md").startswith("documents are given twice: give one of --documents")
    line = refusal(ask(fastmem, base, "zzz", "--document", "leave", "-c", policies / "dogs.md"))
    assert line.startswith("--document names a document of --documents")
    line = refusal(ask(fastmem, base, "zzz", "--documents", policies / "absent"))
    assert line.endswith("does not exist: give a folder of documents (option --documents).")


def test_the_only_document_needs_no_shared_word(fastmem: Runner, base: Path, policies: Path) -> None:
    said = ask(fastmem, base, "zzz", "--documents", policies / "hr")
    assert said.code == 0
    assert "note: answering from leave.pdf.\n" in said.err


def test_the_memory_of_the_chosen_document(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = tmp_path / "memories"
    memorize(fastmem, base, policies, memories)
    question = ("How many days of leave does everyone have?", "--documents", policies, "--memory", memories)
    made = ask(fastmem, base, *question[:3], "--json").json
    with monkeypatch.context() as patched:
        patched.setattr(FastMem, "_memorized", lambda *_: pytest.fail("memorized again"))
        kept = ask(fastmem, base, *question, "--json").json
    assert kept["text"] == made["text"]
    (memories / "hr" / "leave.pdf.safetensors").unlink()
    said = ask(fastmem, base, *question)
    assert f"note: {memories} has no memory of hr/leave.pdf: it is memorized now.\n" in said.err
    assert said.code == 0


def test_the_memory_of_a_file_that_was_memorized_with_its_folder(
    fastmem: Runner, base: Path, policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories, kept = tmp_path / "memories", "fastmem: memory from file; "
    (policies / "dogs.md").write_text("Dogs may come on Fridays.\n")
    memorize(fastmem, base, policies, memories)
    (tmp_path / "dogs.md").write_text("Dogs may come on Mondays.")
    document = ("--context", policies / "hr" / "leave.pdf", "--memory", memories)
    assert kept in ask(fastmem, base, "How many days?", *document).err
    assert kept in ask(fastmem, base, "How many days?", "--documents", policies / "hr", "--memory", memories).err
    monkeypatch.chdir(policies)
    assert kept in ask(fastmem, base, "When?", "--context", "dogs.md", "--memory", memories).err
    said = ask(fastmem, base, "When?", "--context", "../dogs.md", "--memory", memories)
    assert f"note: {memories} has no memory of dogs: it is memorized now.\n" in said.err  # another text
    (memories / "leave.safetensors").write_text("damaged")
    assert kept in ask(fastmem, base, "How many days?", *document).err


def test_a_folder_of_memories_that_cannot_be_made_is_an_error(
    fastmem: Runner, base: Path, policies: Path, tmp_path
) -> None:
    memories = tmp_path / "memories"
    memories.mkdir()
    (memories / "hr").write_text("in the way")
    said = memorize(fastmem, base, policies, memories)
    assert said.code == 2
    assert f"--output '{memories / 'hr'}' is not a folder" in said.err
    assert "documents were not memorized: see above." in said.err
