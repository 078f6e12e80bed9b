"""Questions of one's own: every form a file comes in, and what is refused before a model is loaded."""

import csv
import json
from pathlib import Path

import pytest

from command_line import Runner, refusal, save
from document_samples import Picture, pdf
from fastmem.errors import FastMemError, InputError, TaskError
from fastmem.lab.report import load_results
from fastmem.lab.run.run_files import read_rows
from fastmem.lab.search.search import score_of
from fastmem.lab.tasks import load
from fastmem.lab.tasks.document_folder import MOST_CHARACTERS
from fastmem.lab.tasks.own_questions import named_columns, read_questions
from task_rows import write

ROW = {"question": "Who keeps the light?", "answer": "Ada Quill", "document": "The light is kept by Ada Quill."}


def read(path: Path, rows: list[dict], **options) -> tuple:
    return load("qa", write(path, rows), **options).examples


def refused(path: Path, kind: type[FastMemError] = TaskError, **options) -> str:
    with pytest.raises(kind) as caught:
        load("qa", path, **options)
    return str(caught.value)


def of_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    docs = tmp_path / "docs"
    (docs / "old").mkdir(parents=True)
    (docs / "a.txt").write_text("The light is kept by Ada.\n")
    (docs / "b c.txt").write_bytes(b"\xef\xbb\xbfThe light is kept by Bo.")
    (docs / "old/a.txt").write_text("The light was kept by Cy.")
    (docs / ".hidden").write_bytes(b"\xff")
    return docs


# What is read


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_example(suffix, tmp_path):
    (example,) = read(tmp_path / f"rows{suffix}", [ROW])
    assert (example.question, example.answers, example.context) == (ROW["question"], ("Ada Quill",), ROW["document"])
    assert (example.id, example.kind) == ("row-1", "question")
    assert example.context in example.prompt


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")], ids=repr
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_spreadsheets_of_other_countries(name, delimiter, encoding, tmp_path):
    row = ROW | {"question": "Wer hütet es, und wo; wann?", "answer": '3,5 "Lux"', "document": "Zeile 1\nZeile 2"}
    with (tmp_path / name).open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, row.keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows([row, dict.fromkeys(row, "")])  # spreadsheets leave empty rows behind
    (example,) = load("qa", tmp_path / name).examples
    assert (example.question, example.answers, example.context) == (row["question"], ('3,5 "Lux"',), row["document"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark(name, tmp_path):
    path = write(tmp_path / name, [ROW])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load("qa", path).examples[0].answers == ("Ada Quill",)


@pytest.mark.parametrize(
    "names",
    [
        ("Question", "ANSWERS", "Context"),
        ("query", "expected", "passage"),
        (" prompt", "gold ", "text"),
        ("q", "a", "d"),
        ("Who, and what?", "so=so", "text"),
    ],
)
def test_columns_by_usual_names_and_named(names, tmp_path):
    usual = names[0].strip().casefold() in ("question", "query", "prompt")
    given = None if usual else named_columns(f"question={names[0]},answer={names[1]}, document = {names[2]}")
    (example,) = read(tmp_path / "a.csv", [dict(zip(names, ROW.values(), strict=True)) | {"id": "x"}], columns=given)
    assert (example.question, example.answers, example.context) == (ROW["question"], ("Ada Quill",), ROW["document"])
    assert example.id == "x"


@pytest.mark.parametrize(
    ("name", "given", "answers"),
    [
        ("a.csv", "Ada|Ada Quill | ", ("Ada", "Ada Quill")),
        ("a.csv", '["a|b", "Ada"]', ("a|b", "Ada")),
        ("a.csv", "['Ada', \"Ada's\"]", ("Ada", "Ada's")),
        ("a.csv", "[sic", ("[sic",)),
        ("a.jsonl", "a|b", ("a|b",)),
        ("a.jsonl", ["Ada", "a|b", "", None, "Ada"], ("Ada", "a|b")),
        ("a.jsonl", 1962, ("1962",)),
        ("a.jsonl", [1.5, "x"], ("1.5", "x")),
        ("a.json", {"text": ["Ada"], "answer_start": [3]}, ("Ada",)),
        ("a.parquet", ["Ada", "Bo"], ("Ada", "Bo")),
        ("a.parquet", 1962.0, ("1962",)),
    ],
)
def test_answers(name, given, answers, tmp_path):
    assert read(tmp_path / name, [ROW | {"answer": given}])[0].answers == answers


def test_answers_may_be_absent_where_the_caller_allows_it(tmp_path):
    rows = [ROW | {"answer": ""}, ROW | {"question": "Why?"}]
    found = read_questions(write(tmp_path / "a.csv", rows), answers_required=False)
    assert [example.answers for example in found.examples] == [(), ("Ada Quill",)]
    bare = write(tmp_path / "b.jsonl", [{"question": "Why?", "document": "So."}])
    assert read_questions(bare, answers_required=False).examples[0].answers == ()
    late = write(tmp_path / "c.jsonl", [{"question": "Why?", "document": "So."}, ROW])
    with pytest.raises(TaskError, match=r"c.jsonl, line 2: this row has a column for the answer, the first has none"):
        read_questions(late, answers_required=False)


def test_documents_by_file_name(folder, tmp_path):
    rows = [
        ROW | {"document": name}
        for name in ("a.txt", "b c.txt ", "old/a.txt", "./a.txt", "Line 1\nLine 2", "x " * 200)
    ]
    contexts = [example.context for example in read(tmp_path / "a.csv", rows, documents=folder)]
    ada = "The light is kept by Ada."
    assert contexts[:4] == [ada, "The light is kept by Bo.", "The light was kept by Cy.", ada]
    assert contexts[4:] == ["Line 1\nLine 2", ("x " * 200).strip()]


def test_a_document_in_utf_16_and_one_of_another_ending(folder, tmp_path):
    (folder / "notepad.txt").write_text("Der Leuchtturm gehört Ada.", encoding="utf-16")
    (folder / "notes.rst").write_text("The light is kept by Dee.")
    rows = [ROW | {"document": name} for name in ("notepad.txt", "notes.rst")]
    contexts = [example.context for example in read(tmp_path / "a.csv", rows, documents=folder)]
    assert contexts == ["Der Leuchtturm gehört Ada.", "The light is kept by Dee."]


def test_what_cannot_be_read_of_a_document_is_said_once(folder, tmp_path, caplog):
    (folder / "scan.pdf").write_bytes(pdf(["The light is kept by Ada.", Picture()]))
    rows = [ROW | {"document": name} for name in ("scan.pdf", "a.txt", "scan.pdf")]
    assert read(tmp_path / "a.csv", rows, documents=folder)[0].context == "The light is kept by Ada."
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("fastmem")]
    assert said.startswith("scan.pdf: ")
    assert "page 2" in said


def test_the_only_document(folder, tmp_path):
    rows = [{"question": "Who?", "answer": "Cy"}]
    for only in (folder / "old", folder / "old/a.txt"):
        assert read(tmp_path / "a.csv", rows, documents=only)[0].context == "The light was kept by Cy."


def test_rows_that_ask_the_same_of_one_document_are_one_group(tmp_path):
    same = read(tmp_path / "a.jsonl", [ROW, ROW, ROW | {"document": "Other."}, ROW | {"question": "Why?"}])
    groups = [example.group for example in same]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3


def test_the_record_covers_file_columns_and_documents(folder, tmp_path):
    rows = [{"question": "Who?", "query": "Whose?", "answer": "Ada", "document": "a.txt"}]

    def revision(column: str = "question") -> str:
        data = load("qa", write(tmp_path / "a.csv", rows), columns={"question": column}, documents=folder)
        assert (data.source, data.task) == ("a.csv", "qa")
        return data.revision

    first = revision()
    assert first.startswith("sha256:")
    assert revision() == first
    assert revision("query") != first
    (folder / "b c.txt").write_text("not used")
    assert revision() == first
    (folder / "a.txt").write_text("The light is kept by Eva.")
    assert revision() != first
    rows[0]["answer"] = "Eva"
    assert len({first, revision()}) == 2


def test_a_limit_reads_no_more_than_it_needs(folder, tmp_path):
    rows = [ROW | {"document": "a.txt"}, ROW | {"document": "gone.txt"}]
    path = write(tmp_path / "a.csv", rows)
    assert len(load("qa", path, documents=folder, limit=1).examples) == 1
    assert "no document 'gone.txt'" in refused(path, documents=folder)


# What is refused


def test_columns_that_are_absent_ambiguous_or_misnamed(tmp_path):
    german = of_text(tmp_path / "de.csv", "Frage;Antwort;Text\nWer?;Ada;So.\n")
    assert refused(german) == (
        "de.csv has no column called question, query or prompt; its columns: Frage, Antwort, Text. Name the one that "
        "holds the question, as in question=Frage."
    )
    assert "holds the answer, as in answer=Antwort" in refused(german, columns={"question": "Frage"})
    both = of_text(tmp_path / "two.csv", "question,prompt,answer,text\na,b,c,d\n")
    assert refused(both) == (
        "two.csv has 2 columns that could hold the question: question, prompt. Name one of them, as in "
        "question=question."
    )
    assert refused(both, columns={"question": "Prompt"}) == (
        "two.csv has no column 'Prompt' for the question; its columns: question, prompt, answer, text."
    )
    assert "unknown part of a row 'context'. " in refused(both, InputError, columns={"context": "text"})
    assert "'answer' is named for two parts" in refused(both, columns={"question": "answer", "answer": "answer"})
    pipes = of_text(tmp_path / "pipes.csv", "question|answer|text\na|b|c\n")
    assert "Are columns separated by commas, semicolons or tabs?" in refused(pipes)
    assert "the column 'answer' is named twice" in refused(
        of_text(tmp_path / "t.csv", "answer,question,answer\n1,2,3\n")
    )
    for given in ("question", "question=", "question=a,question=b", ""):
        with pytest.raises(InputError, match=r"give question=NAME, answer=NAME and document=NAME, separated by"):
            named_columns(given)


def test_no_document(folder, tmp_path):
    path = write(tmp_path / "a.csv", [{"question": "Who?", "answer": "Ada"}])
    text = refused(path)
    assert (
        "a.csv has no column called document, context, passage, text, file, source, and no documents are given" in text
    )
    assert "Add a column 'document' with the text to every row" in text
    text = refused(path, documents=folder)
    assert f"and {folder} has several documents (a.txt, b c.txt, old/a.txt). Its columns: question, answer. " in text
    assert text.endswith(
        "Add a column 'document' with the name of a file to every row, or name the one that has it, as in "
        "document=NAME."
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../a.txt", "the document '../a.txt' is outside of"),
        ("old/../../rows.csv", "is outside of"),
        ("/etc/hostname", "the document '/etc/hostname' is outside of"),
        ("link.txt", "the document 'link.txt' is outside of"),
        ("a.tx", "no document 'a.tx' in"),
        ("A light is kept.", "no document 'A light is kept.' in"),
        ("old", "no document 'old' in"),
        ("a\0b", "is not text (it contains zero bytes)"),
        ("x" * 255, "no document 'xxx"),
        ("empty.txt", "the document 'empty.txt' contains no text"),
        ("latin.txt", "latin.txt cannot be read: byte 0xfc at position 1 is not UTF-8: save it as UTF-8"),
        ("zero.txt", "zero.txt cannot be read: it contains zero bytes. Give a text, HTML, PDF or Word file."),
    ],
)
def test_bad_documents(name, said, folder, tmp_path):
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("bücher".encode("latin-1"))
    (folder / "zero.txt").write_bytes(b"a\0b")
    text = refused(
        write(tmp_path / "rows.jsonl", [ROW | {"document": "a.txt"}, ROW | {"document": name}]), documents=folder
    )
    assert text.startswith("rows.jsonl, line 2: ")
    assert said in text


def test_other_bad_folders(folder, tmp_path):
    path = write(tmp_path / "a.csv", [ROW])
    assert "no folder of documents at" in refused(path, documents=tmp_path / "gone")
    (tmp_path / "nothing").mkdir()
    assert "has no file" in refused(path, documents=tmp_path / "nothing")
    assert "Did you mean 'a.txt'?" in refused(
        write(tmp_path / "b.csv", [ROW | {"document": "a.text"}]), documents=folder
    )
    names = write(tmp_path / "c.csv", [ROW | {"document": "policy.pdf"}])
    assert refused(names) == (
        "c.csv, line 2: 'document' holds a file name, 'policy.pdf': give the folder of the documents. Options that "
        "help: documents."
    )


def test_files_that_are_no_table(tmp_path):
    assert refused(of_text(tmp_path / "empty.csv", "")) == "empty.csv holds no row with a value."
    assert (
        refused(of_text(tmp_path / "head.csv", "question,answer,text\n,,\n")) == "head.csv holds no row with a value."
    )
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    assert refused(tmp_path / "binary.csv") == "binary.csv is not UTF-8 text (byte 0 is zero): save it as UTF-8."
    (tmp_path / "wide.csv").write_text("question,answer,text\na,b,c\n", encoding="utf-16")
    assert "wide.csv is not UTF-8 text (byte 3 is zero)" in refused(tmp_path / "wide.csv")
    (tmp_path / "latin.csv").write_bytes("question,answer,text\nWo?,Köln,So.\n".encode("latin-1"))
    assert "latin.csv is not UTF-8 text (byte 26)" in refused(tmp_path / "latin.csv")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert refused(tmp_path / "a.xlsx").endswith(".parquet, .pqt. Save the spreadsheet as CSV in UTF-8.")
    assert "not CSV" in refused(of_text(tmp_path / "open.csv", 'question,answer,text\na,b,"c\n'))
    assert "not TSV" in refused(of_text(tmp_path / "q.tsv", 'question\tanswer\ttext\na\tb\t"c" d\n'))
    assert "this row has more" in refused(of_text(tmp_path / "more.csv", "question,answer,text\na,b,c,d\n"))
    (tmp_path / "p.parquet").write_bytes(b"question,answer,text\n")
    assert "not a complete parquet file" in refused(tmp_path / "p.parquet")
    assert "JSON that cannot be read" in refused(of_text(tmp_path / "deep.jsonl", "[" * 100_000 + "\n"))
    assert "JSON that cannot be read" in refused(of_text(tmp_path / "n.jsonl", '{"answer": ' + "1" * 5000 + "}\n"))
    with pytest.raises(TaskError, match=r"'qa' .* give a data file \(questions, answers and documents in a file\)"):
        load("qa")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": ""}, "'question' must be a text; found ''."),
        ({"question": None}, "'question' must be a text; found None."),
        ({"question": 7}, "'question' must be a text; found 7."),
        ({"answer": " "}, "'answer' holds no answer; found ' '."),
        ({"answer": None}, "'answer' holds no answer; found None."),
        ({"answer": float("nan")}, "'answer' holds no answer; found None."),
        ({"answer": []}, "'answer' holds no answer; found []."),
        ({"answer": {"text": None}}, "'answer' holds no answer; found {'text': None}."),
        ({"answer": True}, "'answer' must hold a text, a number or a list of them; found True."),
        ({"answer": {"a": 1}}, "'answer' must hold a text, a number or a list of them; found {'a': 1}."),
        ({"answer": [["a"]]}, "'answer' must hold a text, a number or a list of them; found ['a']."),
        ({"answer": "[" * 20_000}, None),
        ({"document": ""}, "'document' must be a text; found ''."),
        ({"document": ["a"]}, "'document' must be a text; found ['a']."),
        ({"question": "\ud800"}, "'question' is not text (character 0 is half of a surrogate pair)."),
        ({"question": "a\0b"}, "'question' is not text (it contains zero bytes)."),
        ({"question": "x" * 10**7}, "'question' has 10,000,000 characters; accepted are at most 100,000."),
        ({"answer": "x" * 10**7}, "'answer' has 10,000,000 characters; accepted are at most 100,000."),
        (
            {"document": "x" * 10**7},
            f"'document' has 10,000,000 characters; accepted are at most {MOST_CHARACTERS:,}.",
        ),
        ({"id": "x" * 256}, "'id' has 256 characters; accepted are at most 255."),
        ({"id": "\ud800"}, "'id' is not text"),
    ],
    ids=lambda value: f"{value!r:.40}",
)
def test_bad_rows(change, said, tmp_path):
    path = write(tmp_path / "a.jsonl", [ROW, ROW | change])
    if said is None:
        assert len(load("qa", path).examples) == 2
    else:
        assert refused(path).startswith(f"a.jsonl, line 2: {said}")


def test_nan_in_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = {"question": ["Who?", "Why?"], "answer": [1962.0, float("nan")], "document": ["So.", "So."]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet") == "a.parquet, row 2: 'answer' holds no answer; found None."
    table = {"question": ["Who?", None], "answer": ["a", "b"], "document": ["So.", "So."]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "b.parquet")
    assert refused(tmp_path / "b.parquet") == "b.parquet, row 2: 'question' must be a text; found None."


def test_ids(tmp_path):
    twice = write(tmp_path / "a.jsonl", [ROW | {"id": "x"}, ROW | {"id": "y"}, ROW | {"id": "x"}])
    assert "a.jsonl, line 3: the id 'x' was used at a.jsonl, line 1 already" in refused(twice)
    assert [e.id for e in read(tmp_path / "b.jsonl", [ROW | {"id": 7}, ROW | {"id": float("nan")}])] == ["7", "row-2"]


def test_the_options_belong_to_the_task(tmp_path):
    for option in ({"columns": {"question": "q"}}, {"documents": tmp_path}):
        with pytest.raises(InputError, match=r"belongs to the task 'qa'; the task 'nq' has its own data"):
            load("nq", write(tmp_path / "a.csv", [ROW]), **option)
    with pytest.raises(InputError, match="a split can be chosen on the hub only"):
        load("qa", write(tmp_path / "a.csv", [ROW]), split="dev")


def test_a_folder_of_files(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "all").mkdir(exist_ok=True)
        write(tmp_path / f"all/{name}.jsonl", [json.loads(json.dumps(ROW)) | {"answer": name}])
    data = load("qa", tmp_path / "all")
    assert [e.answers for e in data.examples] == [("a",), ("b",)]
    assert data.source == f"{tmp_path.name}/all"


# The commands


@pytest.fixture
def files(folder, tmp_path) -> list[str]:
    rows = [{"Frage": f"Who keeps light {i}?", "Antwort": "Ada|Bo", "Datei": "a.txt"} for i in range(4)]
    data = of_text(
        tmp_path / "q.csv", "Frage;Antwort;Datei\n" + "".join(";".join(row.values()) + "\n" for row in rows)
    )
    columns = "question=Frage,answer=Antwort,document=Datei"
    return ["--task", "qa", "--data", str(data), "--columns", columns, "--documents", str(folder)]


def test_eval_report_and_search(files, folder, llama, tmp_path, capsys):
    model = ["--model", str(save(llama, tmp_path / "model")), "--max-new-tokens", "3"]
    fastmem = Runner(capsys)
    command = ["eval", *files, *model, "--methods", "base,fastmem", "--steps", "1", "--output", tmp_path / "run"]
    done = fastmem(*command)
    assert (done.code, "| method  | qa " in done.out) == (0, True), done.err
    assert "4 examples of q.csv, sha256:" in done.out
    assert fastmem("report", tmp_path / "run").out == done.out
    (folder / "a.txt").write_text("Another document.")
    said = refusal(fastmem(*command))
    assert "holds another run: data.revision was 'sha256:" in said
    grid = ["--rates", "1e-2", "--steps", "1", "--kls", "0.1", "--output", tmp_path / "search"]
    done = fastmem("search", *files, *model, *grid)
    assert (done.code, "of q.csv" in done.out) == (0, True), done.err


def test_a_bad_file_is_refused_before_a_model_is_loaded(files, capsys, tmp_path):
    fastmem, gone = Runner(capsys), ["--model", str(tmp_path / "no-model"), "--output", str(tmp_path / "run")]
    for command in ("eval", "search"):
        said = refusal(fastmem(command, "--task", "qa", "--data", files[3], *gone))
        assert said == (
            "q.csv has no column called question, query or prompt; its columns: Frage, Antwort, Datei. Name the one "
            "that holds the question, as in question=Frage (option --columns)."
        )
        assert "columns is 'Frage': give question=NAME" in refusal(
            fastmem(command, *files, "--columns", "Frage", *gone)
        )
    said = refusal(fastmem("eval", *files, "--columns", "question=Frage,answer=Antwort", *gone))
    assert said.endswith("as in document=NAME (option --columns).")
    assert "'no-model'" not in said
    assert not (tmp_path / "run").exists()


def test_a_reply_is_not_right_because_the_answer_is_a_letter_or_a_sign(tmp_path, fastmem):
    """The paper's code finds an answer that its normalization leaves nothing of in every reply."""
    data = write(tmp_path / "a.csv", [ROW | {"answer": answer} for answer in ("A", "The", "%", "+", "Z")])
    out = tmp_path / "out"
    found = fastmem(
        "eval", "--task", "qa", "--data", data, "--methods", "base", "--max-new-tokens", 8, "--output", out
    )
    assert found.code == 0, found.err
    written = [row["scores"]["paper_correct"] for row in read_rows(out)]
    assert written == [False] * 5
    assert [row["scores"]["paper_correct"] for row in load_results(out).rows["base"]] == written
    task = load("qa", data)
    assert [score_of("The answer is: B", example, task.definition) for example in task.examples] == [0.0] * 5


def test_a_task_of_ones_own_is_graded_like_a_file_of_questions(tmp_path, fastmem):
    (tmp_path / "letters.py").write_text(
        "from fastmem.lab.tasks import Example\n\n"
        'def examples():\n    yield Example("", "question", "The light is kept by Ada.", "Which?", ("A",))\n'
    )
    out = tmp_path / "out"
    command = ("eval", "--task", tmp_path / "letters.py", "--methods", "base", "--max-new-tokens", 8, "--output", out)
    assert fastmem(*command).code == 0
    assert load_results(out).rows["base"][0]["scores"]["paper_correct"] is False
