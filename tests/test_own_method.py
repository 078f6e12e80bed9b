"""A method of one's own, one Python file: it gets the logits it names, and ours written as files give our answers."""

import json
from pathlib import Path

import pytest
import torch

from command_line import refusal, save
from conftest import ROOT
from families import build
from fastmem import FastMem, Recipe
from fastmem.answer.contrast import Combination
from fastmem.answer.request import Request
from fastmem.errors import InputError
from fastmem.lab.run.own_method import own_method
from fastmem.lab.run.run_files import read_examples, read_rows
from fastmem.lab.run.runner import run
from lab_runs import experiment, questions, write_questions

EXAMPLE = ROOT / "examples" / "my_method.py"
# Our methods, as somebody else would write them.
OURS = {
    "base": 'NEEDS = ("original",)\ndef scores(logits): return logits["original"]\n',
    "fastmem": 'NEEDS = ["memorized"]\ndef scores(logits): return logits["memorized"].log_softmax(-1)\n',
    "fastmem+cd": 'NEEDS = ("memorized", "original")\n'
    'def scores(logits): return 1.5 * logits["memorized"] - 0.5 * logits["original"]\n',
    "cad": 'NEEDS = ("original", "without_document")\n'
    'def scores(logits): return 1.5 * logits["original"] - 0.5 * logits["without_document"]\n',
    "fastmem+cad": 'NEEDS = ("memorized", "without_document")\n'
    'def scores(logits): return 1.5 * logits["memorized"] - 0.5 * logits["without_document"]\n',
    "dola": 'NEEDS = ("original", "early_layers")\n'
    "from fastmem.answer.contrast import dola\n"
    'def scores(logits): return dola(logits["original"][None], logits["early_layers"][:, None])[0]\n',
}


@pytest.fixture
def llm(llama, tokenizer):
    return FastMem(llama, tokenizer)


def file(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def both(llm: FastMem, folder: Path, ours: str, **options) -> tuple[list[dict], list[dict]]:
    """The rows of one of our methods and of the same in a file."""
    method = own_method(file(folder / "mine.py", OURS[ours]))
    options = {"recipe": Recipe(learning_rate=0.1, steps=3), "max_new_tokens": 8, "batch_size": 4} | options
    planned = experiment((ours, "mine.py"), own_methods=(method,), **options)
    run(llm, planned, questions(folder), folder / "run")
    rows = read_rows(folder / "run")
    return tuple([row for row in rows if row["method"] == name] for name in (ours, "mine.py"))


@pytest.mark.parametrize("ours", OURS)
def test_our_methods_as_files_give_our_answers(ours, llm, tmp_path):
    expected, found = both(llm, tmp_path, ours)
    assert [row["token_ids"] for row in found] == [row["token_ids"] for row in expected]
    assert {row["error"] for row in found} == {None}
    assert ("trace" in found[0]) == ours.startswith("fastmem")
    assert [row["scores"] for row in found] == [row["scores"] for row in expected]


@pytest.mark.parametrize("recipe", [{"layers": (-2,)}, {"placement": "prompt"}])
def test_with_memories_that_do_not_share_the_trunk_or_the_prompt(recipe, llm, tmp_path):
    recipe = Recipe(learning_rate=0.1, steps=3, **recipe)
    expected, found = both(llm, tmp_path, "fastmem+cd", recipe=recipe)
    assert [row["token_ids"] for row in found] == [row["token_ids"] for row in expected]


@pytest.mark.parametrize("layers", [(-1,), (-2,), (-2, -1)])
def test_all_sides_at_once_are_those_of_the_model_alone(layers, llm, tmp_path):
    """Every tensor that a file is given, against whole forward passes without a cache."""
    method = own_method(
        file(
            tmp_path / "all.py",
            'NEEDS = ("memorized", "original", "without_document", "early_layers")\nSEEN = []\n'
            "def scores(logits):\n    SEEN.append(logits)\n"
            '    return logits["memorized"] + logits["original"] - logits["without_document"]\n',
        )
    )
    seen = method.file.module.SEEN
    seen.clear()  # it was tried on random logits
    recipe = Recipe(learning_rate=0.1, steps=3, layers=layers)
    planned = experiment(("all.py",), own_methods=(method,), recipe=recipe, batch_size=1, max_new_tokens=3)
    run(llm, planned, questions(tmp_path, 1), tmp_path / "run")
    (row,), (example,) = read_rows(tmp_path / "run"), read_examples(tmp_path / "run")
    memory = llm.memorize(example.context, recipe)
    asked, alone = llm.ids(example.prompt).tolist(), llm.ids(example.prompt_without_context).tolist()
    assert (len(seen), len(row["token_ids"])) == (2 + 3, 3)  # a warm-up of two tokens before
    for i, logits in enumerate(seen[2:]):
        answer = row["token_ids"][:i]
        expected = {
            "memorized": llm.logits(asked + answer, memory)[-1],
            "original": llm.logits(asked + answer)[-1],
            "without_document": llm.logits(alone + answer)[-1],
        }
        assert logits.keys() == expected.keys() | {"early_layers"}
        for side, tensor in expected.items():
            torch.testing.assert_close(logits[side], tensor.float(), atol=1e-4, rtol=1e-4)
        assert logits["early_layers"].shape == (1, len(logits["original"]))
        scores = expected["memorized"] + expected["original"] - expected["without_document"]
        assert row["token_ids"][i] == int(scores.argmax())


def test_a_function_that_writes_to_its_logits_harms_nobody(llm, tmp_path):
    method = own_method(
        file(tmp_path / "m.py", 'NEEDS = ("original",)\ndef scores(logits): return logits["original"].mul_(-1)\n')
    )
    planned = experiment(("base", "m.py"), own_methods=(method,), batch_size=6)
    run(llm, planned, questions(tmp_path), tmp_path / "run")
    by_method = {
        m: [r["token_ids"] for r in read_rows(tmp_path / "run") if r["method"] == m] for m in ("base", "m.py")
    }
    run(llm, experiment(("base",), batch_size=6), questions(tmp_path), tmp_path / "alone")
    assert by_method["base"] == [row["token_ids"] for row in read_rows(tmp_path / "alone")]
    assert by_method["m.py"] != by_method["base"]


def test_a_failure_on_a_row_is_a_counted_error(llm, tmp_path):
    text = 'NEEDS = ("original",)\ndef scores(logits):\n    if len(logits["original"]) > 50:\n        1 / 0\n'
    method = own_method(file(tmp_path / "m.py", text + '    return logits["original"]\n'))
    summary = run(llm, experiment(("m.py",), own_methods=(method,)), questions(tmp_path), tmp_path / "run")
    assert summary["methods"]["m.py"]["errors"] == 6
    assert {row["error"] for row in read_rows(tmp_path / "run")} == {
        "InputError: m.py, line 4: ZeroDivisionError: division by zero."
    }


# The command


@pytest.fixture
def command(llama, tmp_path) -> list:
    data, model = write_questions(tmp_path / "rows.json"), save(llama, tmp_path / "model")
    options = ["--steps", "2", "--learning-rate", "0.1", "--max-new-tokens", "4", "--output", tmp_path / "run"]
    return ["eval", "--task", "nq_swap", "--data", data, "--model", model, *options]


def test_the_example(fastmem, command, tmp_path):
    done = fastmem(*command, "--methods", f"base,{EXAMPLE}")
    assert done.code == 0, done.err
    assert "| my_method.py | 6 | 0 " in done.out
    assert fastmem("report", tmp_path / "run").out == done.out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["methods"]["my_method.py"]["seconds"]["steps"] > 0
    recorded = json.loads((tmp_path / "run/run.json").read_text())
    assert recorded["method_files"] == {"my_method.py": own_method(str(EXAMPLE)).file.digest}


def test_rows_of_another_file_are_not_continued(fastmem, command, tmp_path):
    mine = file(tmp_path / "m.py", OURS["base"])
    assert fastmem(*command, "--methods", "base").code == 0
    done = fastmem(*command, "--methods", f"base,{mine}")
    assert done.code == 0, "a method is added to a run"
    file(tmp_path / "m.py", OURS["base"] + "# changed\n")
    said = refusal(fastmem(*command, "--methods", f"base,{mine}"))
    assert "has rows of another m.py: its digest was '" in said
    assert said.endswith("Give another folder, another name to the file, or the old file (option --output).")
    assert fastmem(*command, "--methods", "base").code == 0, "without the file, the rest of the run goes on"
    assert fastmem("report", tmp_path / "run").code == 0
    assert {row["method"] for row in read_rows(tmp_path / "run")} == {"base", "m.py"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def scores(logits): pass\n",
            "m.py: it defines no NEEDS; give the names of the logits that scores uses, of: mem",
        ),
        (
            "NEEDS = ('original',)\n",
            "m.py: it defines no function 'scores': a method needs `def scores(logits): return",
        ),
        ("NEEDS = ('orginal',)\ndef scores(logits): pass\n", "NEEDS is ('orginal',); give the names of the logits"),
        ("NEEDS = 'original'\ndef scores(logits): pass\n", "NEEDS is 'original'; give the names of the logits"),
        (
            "NEEDS = ('early_layers',)\ndef scores(logits): pass\n",
            "it must have 'memorized' or 'original', the weights",
        ),
        ("NEEDS = ('original',)\ndef scores(logits): pass\n", "scores gave None; give floating-point scores [50]."),
        (
            "NEEDS = ('original',)\ndef scores(logits):\n    return logits['memorized']\n",
            "m.py, line 3: KeyError: 'memorized'.",
        ),
        (
            "NEEDS = ('original',)\ndef scores(logits): return logits['original'][None]\n",
            "scores gave a tensor [1, 50]; give floating-point scores [50].",
        ),
        (
            "NEEDS = ('original',)\ndef scores(logits): return logits['original'].argsort()\n",
            "scores gave a tensor [50]; give floating-point scores [50].",
        ),
        (
            "NEEDS = ('original',)\ndef scores(logits): return logits['original'] / 0\n",
            "scores gave NaN or infinity; give numbers, and -inf for tokens to exclude.",
        ),
        (
            "NEEDS = ('original',)\ndef scores(logits): return logits['original'] * 0 - float('inf')\n",
            "scores excluded every token; leave at least one above -inf.",
        ),
    ],
)
def test_bad_files(text, said, tmp_path):
    with pytest.raises(InputError) as caught:
        own_method(file(tmp_path / "m.py", text))
    assert said in caught.value.text
    assert caught.value.field == "method"


def test_the_command_line_says_it_before_a_model_is_loaded(fastmem, command, tmp_path):
    command[command.index("--model") + 1] = tmp_path / "no-model"
    mine = file(tmp_path / "m.py", "NEEDS = ('original',)\ndef scores(logits): return undefined\n")
    said = refusal(fastmem(*command, "--methods", f"base,{mine}"))
    assert said == "m.py, line 2: NameError: name 'undefined' is not defined (option --methods)."
    assert "there is no method file" in refusal(fastmem(*command, "--methods", str(tmp_path / "gone.py")))
    mine = file(tmp_path / "m.py", OURS["base"])
    assert "a method is named twice: m.py, m.py" in refusal(fastmem(*command, "--methods", f"{mine},{mine}"))
    assert "unknown method 'fastmen'" in refusal(fastmem(*command, "--methods", f"fastmen,{mine}"))


def test_a_scaled_head_and_a_mixture_of_experts_have_it_too(tokenizer, tmp_path):
    for family in ("gemma2", "mixtral"):
        (tmp_path / family).mkdir()
        expected, found = both(FastMem(build(family), tokenizer), tmp_path / family, "fastmem+cd")
        assert [row["token_ids"] for row in found] == [row["token_ids"] for row in expected]


def test_weights_that_are_not_memorized_are_not_computed_twice():
    def contrast(*needs):
        return Request(torch.tensor([1]), contrast=Combination(frozenset(needs), lambda logits: logits["original"]))

    assert contrast("memorized", "original").compares_tails
    assert not contrast("original", "without_document").compares_tails
    assert not contrast("memorized", "without_document").compares_tails
