"""A task of one's own, one Python file handed over by path: the documented example runs, and bad files are refused."""

import json
from pathlib import Path

import pytest

from command_line import refusal, save
from conftest import ROOT
from fastmem.errors import InputError
from fastmem.lab.run.run_files import read_examples, read_rows
from fastmem.lab.tasks import cut, load, messages, task_named

EXAMPLE = ROOT / "examples" / "my_task.py"
HEAD = "from fastmem.lab.tasks import Example\n\n"
TWO = """
def examples():
    for name in ("Ada", "Bo"):
        yield Example(
            "", "question", context=f"The light is kept by {name}.", question="Who keeps it?", answers=(name,)
        )
"""


def two(old: str, new: str) -> str:
    assert old in TWO
    return TWO.replace(old, new)


def file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(str(path))
    assert caught.value.field == "task"
    return caught.value.text


@pytest.fixture
def model(llama, tmp_path) -> list[str]:
    return ["--model", str(save(llama, tmp_path / "model")), "--max-new-tokens", "4", "--batch-size", "2"]


# The example in the documents


def test_the_example(fastmem, model, tmp_path):
    command = ["eval", "--task", EXAMPLE, *model, "--methods", "base,one-shot,fastmem", "--steps", "1"]
    done = fastmem(*command, "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert "Scores of the tasks' own, with 95 % intervals." in done.out
    assert "| method   | my_task.py names the time " in done.out
    assert "| method   | n | errors | names the time " in done.out
    assert "accuracy" not in done.out
    examples, rows = read_examples(tmp_path / "run"), read_rows(tmp_path / "run")
    assert [example.id for example in examples] == ["row-1", "row-2", "row-3"]
    assert len(rows) == 9
    for row in rows:
        assert set(row["scores"]) == {"names the time", "words beside it"}
        assert row["scores"]["words beside it"] == len(row["text"].split()) - len(answer(examples, row).split())
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["task"] == "my_task.py"
    assert set(summary["methods"]["base"]["scores"]) == {"names the time", "words beside it"}
    # The page and the table need the folder alone: the file may be gone, and another file would not be asked.
    again = fastmem("report", tmp_path / "run", "--html", tmp_path / "page.html")
    assert (again.code, again.out) == (0, done.out)
    assert "names the time, with 95 % intervals" in (tmp_path / "page.html").read_text()
    note = (
        "- names the time, words beside it: computed by my_task.py when the rows were written, and not graded again."
    )
    assert note in done.out
    assert "names the time" in fastmem("report", tmp_path / "run", "--json").json["means"]["run"]["base"]


def answer(examples, row) -> str:
    return next(example.answers[0] for example in examples if example.id == row["id"])


def test_the_prompts_of_the_example(tokenizer):
    data = load(str(EXAMPLE))
    assert (data.task, data.source, data.definition.max_new_tokens) == ("my_task.py", "my_task.py", 12)
    first = data.examples[0]
    notice = "The office of Craneworth is closed on Mondays. On other days it closes at nine."
    question = "When does the office of Craneworth close? Answer with the time alone."
    assert first.prompt == f"Read this notice.\n\n{notice}\n\n{question}"
    assert first.prompt_without_context == f"Read this notice.\n\n\n\n{question}"
    tokens = first.in_place(tokenizer)
    assert tokenizer.decode(tokens.ids[tokens.scored]) == notice
    assert [turn["content"] for turn in messages(first, shot=data.definition.shot)][1:] == ["eight", first.prompt]
    assert cut(first, 6, tokenizer).prompt.endswith(question), "a cut document is cut in the prompt as well"


def test_search_maximizes_the_first_score(fastmem, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = file(  # its name begins like those of the embedded world's tasks, which have splits
        Path("world_mine.py"), HEAD + two('("Ada", "Bo")', '"abcdefgh"') + "def score(text, example): return 3.5\n"
    )
    grid = ["--rates", "1e-2", "--steps", "1", "--kls", "0.1", "--output", tmp_path / "search"]
    done = fastmem("search", "--task", task, *model[:4], *grid)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "search/search.json").read_text())["best"]["score"] == 3.5
    file(task, task.read_text().replace("3.5", "4.5"))
    assert "holds another search: its data differs" in refusal(fastmem("search", "--task", task, *model[:4], *grid))


# What a run records


def test_a_changed_file_is_not_continued(fastmem, model, tmp_path):
    task = file(tmp_path / "t.py", HEAD + TWO)
    command = ["eval", "--task", task, *model, "--methods", "base", "--output", tmp_path / "run"]
    done = fastmem(*command)
    assert done.code == 0, done.err
    assert "| method | t.py" in done.out
    assert "accuracy (paper)" in done.out, "without a score of its own a task is graded as its kind"
    recorded = json.loads((tmp_path / "run/run.json").read_text())
    assert recorded["identity"]["task"] == "t.py"
    assert recorded["identity"]["data"]["source"] == "t.py"
    file(task, task.read_text() + "# a comment\n")
    assert "holds another run: data.revision was 'sha256:" in refusal(fastmem(*command))
    task.unlink()
    assert fastmem("report", tmp_path / "run").out == done.out


def test_runs_of_our_own_tasks_have_the_digest_they_had(tmp_path):
    """A run that was begun before examples had templates can be continued."""
    from fastmem.lab.run.experiment import digest_of
    from task_rows import PAPER_ROW, write

    examples = load("nq_swap", write(tmp_path / "a.json", [PAPER_ROW])).examples
    assert digest_of(examples) == "1b5520eb7bb115d8"
    assert set(examples[0].record) == {
        "id", "kind", "context", "question", "answers", "original_answers", "choices", "group", "subset"
    }  # fmt: skip


def test_several_tasks(fastmem, model, tmp_path):
    tasks = ",".join(str(file(tmp_path / f"{name}.py", HEAD + TWO)) for name in ("a", "b"))
    done = fastmem("eval", "--task", tasks, *model, "--methods", "base", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert [len(read_rows(tmp_path / "run" / name)) for name in ("a", "b")] == [2, 2]
    (tmp_path / "other").mkdir()
    same = f"{tmp_path / 'a.py'},{file(tmp_path / 'other/a.py', HEAD + TWO)}"
    said = refusal(fastmem("eval", "--task", same, *model, "--output", tmp_path / "run2"))
    assert said.endswith("give at least one task, and each task once.")


def test_a_score_that_fails_on_a_row_is_missing_there(fastmem, model, tmp_path):
    score = "def score(text, example):\n    return {'length': 1 / (example.answers[0] == 'Ada')}\n"
    task = file(tmp_path / "t.py", HEAD + TWO + score)
    done = fastmem("eval", "--task", task, *model, "--methods", "base", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    line = len((HEAD + TWO + score).splitlines())
    reason = f"t is missing: t.py, line {line}: ZeroDivisionError: division by zero"
    assert f"{reason}; the run continues without it." in done.err
    assert [row["missing"].get("t") for row in read_rows(tmp_path / "run")] == [None, reason]
    assert "- base: length is missing in 1 rows; its mean is that of the others." in done.out
    assert f"- base: {reason}" in done.out


def test_a_row_that_ends_in_an_error_is_scored_as_an_empty_answer(fastmem, model, tmp_path, monkeypatch):
    from fastmem import FastMem

    monkeypatch.setattr(FastMem, "prepare", lambda *args, **options: 1 / 0)
    task = file(tmp_path / "t.py", HEAD + TWO + "def score(text, example): return {'empty': text == ''}\n")
    done = fastmem("eval", "--task", task, *model, "--methods", "base", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert [row["scores"] for row in read_rows(tmp_path / "run")] == [{"empty": True}] * 2


# Files that are refused, before a model is loaded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "t.py: it defines no function 'examples': a task needs `def examples(): yield Example("),
        ("def example(): pass\n", "; it defines example."),
        ("examples = 3\n", "it defines no function 'examples'"),
        ("x = 1\nx = (\n", "t.py, line 2: SyntaxError: '(' was never closed."),
        ("def f():\n    return 1 / 0\n\nf()\n", "t.py, line 2: ZeroDivisionError: division by zero."),
        ("import nowhere_at_all\n", "t.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'."),
        ("import sys\nsys.exit(3)\n", "t.py, line 2: SystemExit: 3."),
        ("x = '\0'\n", "t.py: SyntaxError: source code string cannot contain null bytes."),
        ("def examples(): return 3\n", "t.py: TypeError: examples() gave int, not examples."),
        ("def examples(n): yield 3\n", "t.py: TypeError: examples() missing 1 required positional argument: 'n'."),
        ("def examples():\n    yield 3\n", "t.py: example 1 is 3; give an Example of fastmem.lab.tasks."),
        ("def examples(): return []\n", "t.py holds no row for the task"),
        ("KIND = 'quiz'\ndef examples(): yield\n", "t.py: KIND is 'quiz'; accepted: question, choice, summary."),
        ("MAX_NEW_TOKENS = 0\ndef examples(): yield\n", "MAX_NEW_TOKENS is 0; give a whole number, 1 or more."),
        ("SHOT = 'x'\ndef examples(): yield\n", "SHOT is 'x'; give Shot(Example(...), reply)."),
        (TWO + "    raise RuntimeError('the\\ndata are gone')\n", "t.py, line 9: RuntimeError: the data are gone."),
        (two('""', '"x"'), "t.py: example 2 has the id 'x' of example 1; ids are unique."),
        (two('""', "7"), "t.py: example 1: its id is 7; give a text."),
        (two('"question"', '"summary"'), "example 1 is a 'summary', the file's KIND is 'question'; give both"),
        (two("(name,)", "name"), "example 1: its answers are 'Ada'; give a tuple of texts."),
        (two("(name,)", "()"), "example 1 has no answer; give the accepted ones, or define score(text, exam"),
        (two("Who keeps it?", " "), "example 1 has no question."),
        (two("Who keeps it?", "\\ud800"), "example 1: its question is not text (character 0 is half of a "),
        (two("(name,)", "(name,), template='{contxt}'"), "its template cannot be filled (KeyError: 'contxt');"),
        (two("(name,)", "(name,), template='{'"), "its template cannot be filled (ValueError: Single '{'"),
        (two("(name,)", "(name,), template='{question}'"), "its template has no {context}, so the prompt "),
        (
            "KIND = 'choice'\n" + two('"question",', '"choice",').replace("(name,)", "(name,), choices=('Ada', 'C')"),
            "example 2: its choices are ('Ada', 'C'); give two, one of them the answer.",
        ),
    ],
)  # fmt: skip
def test_bad_files(text, said, tmp_path):
    path = file(tmp_path / "t.py", HEAD + text if "Example(" in text else text)
    if "no row for" in said:
        with pytest.raises(Exception, match=r"t.py holds no row for the task"):
            load(str(path))
    else:
        assert said in refused(path)


def test_absent_and_unreadable_files(tmp_path):
    assert refused(tmp_path / "gone.py") == (
        f"there is no task file '{tmp_path / 'gone.py'}': give the path of a Python file."
    )
    (tmp_path / "folder.py").mkdir()
    assert "cannot be read: Is a directory" in refused(tmp_path / "folder.py")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    assert "binary.py: SyntaxError: " in refused(tmp_path / "binary.py")
    (tmp_path / "big.py").write_bytes(b"#" * (2**20 + 1))
    assert "has 1,048,577 bytes: give a Python file." in refused(tmp_path / "big.py")
    with pytest.raises(InputError, match=r"there is no task file './nq'"):
        task_named("./nq")


def test_options_that_do_not_fit(tmp_path):
    task = str(file(tmp_path / "t.py", HEAD + TWO))
    for options in ({"data": "rows.csv"}, {"split": "test"}):
        (name,) = options
        with pytest.raises(InputError, match=f"the task t.py makes its own examples and takes no {name}; given"):
            load(task, **options)
    with pytest.raises(InputError, match=r"columns belongs to the task 'qa'"):
        load(task, columns={"question": "q"})
    assert len(load(task, limit=1).examples) == 1


def test_the_command_line_says_it_before_a_model_is_loaded(fastmem, tmp_path):
    gone = ["--model", str(tmp_path / "no-model"), "--output", str(tmp_path / "run")]
    task = file(tmp_path / "t.py", HEAD + TWO + "\n\nprint(1 / 0)\n")
    for command in ("eval", "search"):
        line = len(task.read_text().splitlines())
        said = refusal(fastmem(command, "--task", task, *gone))
        assert said == f"t.py, line {line}: ZeroDivisionError: division by zero (option --task)."
    score = file(tmp_path / "s.py", HEAD + TWO + "def score(text): return 1\n")
    said = refusal(fastmem("eval", "--task", score, *gone))
    assert said == (
        "s.py: TypeError: score() takes 1 positional argument but 2 were given. Tried with the answer '' to the "
        "example 'row-1' (option --task)."
    )
    assert "score() takes 1 positional argument" in refusal(fastmem("search", "--task", score, *gone))
    for given, said in (
        ("'x'", "s.py: the score 's' is 'x'; give a number, True, False or None."),
        ("float('nan')", "s.py: the score 's' is nan; give a finite number, or None if it is missing."),
        ("{'f1': 1}", "s.py: the score 'f1' exists already; give yours another name."),
        ("{'a|b': 1}", "s.py: the score is called 'a|b'; give a short text on one line, without '|'."),
        ("{}", "s.py: it gave no score"),
    ):
        file(score, HEAD + TWO + f"def score(text, example): return {given}\n")
        assert said in refusal(fastmem("eval", "--task", score, *gone))
    assert "t.py defines no SHOT" in refusal(
        fastmem("eval", "--task", file(task, HEAD + TWO), "--methods", "one-shot", *gone)
    )
    bare = file(task, HEAD + two('f"The light is kept by {name}."', '""'))
    said = refusal(fastmem("eval", "--task", bare, "--methods", "base,fastmem", *gone))
    assert said == "the example 'row-1' has no document, which 'fastmem' needs: use base or dola."
    assert "has no document to memorize" in refusal(fastmem("search", "--task", bare, *gone))
    assert not (tmp_path / "run").exists()
