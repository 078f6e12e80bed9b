"""In lm-evaluation-harness: the same answers as ours, documents from the rows, our tasks beside its own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastmem.errors import InputError
from fastmem.lab import harness
from lab_runs import write_questions

TASK = """\
include: {folder}/fastmem_nq_swap.yaml
task: local_nq_swap
dataset_path: json
dataset_kwargs:
  data_files: {{dev: {data}}}
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 6}}
"""
CHOICE = """\
include: {folder}/fastmem_faitheval_counterfactual.yaml
task: local_counterfactual
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
"""


def test_arguments_are_passed_on_with_our_tasks():
    folder = str(harness.TASKS)
    for arguments, passed_on in (
        (["ls", "tasks"], ["ls", "tasks", "--include_path", folder]),
        (["--help"], ["--help"]),
        (["run"], ["run"]),
    ):
        with harness.with_our_tasks(arguments) as given:
            assert given == passed_on


@pytest.mark.parametrize("form", ["two arguments", "one argument"])
def test_tasks_of_the_users_own_stand_beside_ours(form, tmp_path):
    """lm_eval takes one folder only, in both forms of argparse."""
    mine = tmp_path / "mine" / "deep"
    mine.mkdir(parents=True)
    (mine / "own.yaml").write_text("task: own\ndataset_path: json\noutput_type: generate_until\ndoc_to_text: x\n")
    (mine / "functions.py").write_text("")
    flags = ["--include_path", str(mine.parent)] if form == "two arguments" else [f"--include_path={mine.parent}"]
    with harness.with_our_tasks(["--tasks", "x", *flags, "--limit", "3"]) as given:
        assert given[:3] == ["--tasks", "x", "--include_path"]
        assert given[4:] == ["--limit", "3"]
        found = {path.name: path for path in Path(given[3]).glob("**/*.yaml")}
        assert found.keys() == {"own.yaml", *(path.name for path in harness.TASKS.glob("*.yaml"))}
        assert (found["own.yaml"].parent / "functions.py").exists()
        assert (found["fastmem_nq.yaml"].parent / "task_functions.py").exists()
        if importlib.util.find_spec("lm_eval"):
            from lm_eval.tasks import TaskManager

            known = TaskManager(include_path=given[3], include_defaults=False).all_tasks
            assert {"own", "fastmem_nq"} <= set(known)
    assert not Path(given[3]).exists()
    with (
        pytest.raises(InputError, match="--include_path names no folder: 'nowhere'"),
        harness.with_our_tasks(["--include_path=nowhere"]),
    ):
        pass


def test_the_tasks_are_files_of_the_package():
    names = {path.name for path in harness.TASKS.iterdir() if path.suffix == ".yaml"}
    assert names == {f"fastmem_{n}.yaml" for n in ("nq", "nq_swap", "faitheval_counterfactual", "wikihow")}


@pytest.fixture(scope="module")
def harnessed(tmp_path_factory, tokenizer):
    """(folder of a tiny model, its FastMem, a folder of local tasks)."""
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'fastmem[lm-eval]'")
    from families import build
    from fastmem import FastMem

    place = tmp_path_factory.mktemp("harness")
    # Our rows and FaithEval's, in the schemas of their hubs.
    ours = [
        {
            "question": row["input"],
            "org_context": row["context"],
            "org_answer": [row["answer"]],
            "sub_context": row["sub_context"],
            "sub_answer": [row["sub_answer"]],
        }
        for row in json.loads(write_questions(place / "rows.json").read_text())
    ]
    (place / "nq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ours))
    choices = {"label": ["A", "B"], "text": ["Ada", "Jon"]}
    choice = [
        {"context": row["sub_context"], "question": row["question"], "choices": choices, "answerKey": "AB"[i % 2]}
        for i, row in enumerate(ours)
    ]
    (place / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choice))
    tasks = place / "tasks"
    tasks.mkdir()
    (tasks / "a.yaml").write_text(TASK.format(folder=harness.TASKS, data=place / "nq.jsonl"))
    (tasks / "b.yaml").write_text(CHOICE.format(folder=harness.TASKS, data=place / "choice.jsonl"))
    model = build("llama")
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return place / "model", FastMem.from_pretrained(place / "model"), tasks, ours, choice


def evaluate(model: Path, tasks: Path, name: str, method: str) -> dict:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from fastmem.lab.harness.lm_eval_model import FastMemLM

    lm = FastMemLM(str(model), method=method, learning_rate=0.1, steps=3, batch_size=2)
    manager = TaskManager(include_path=[str(harness.TASKS), str(tasks)], include_defaults=False)
    return lm_eval.simple_evaluate(model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)


@pytest.mark.parametrize("method", ["base", "fastmem", "fastmem+cd", "dola"])
def test_answers_are_ours(harnessed, method):
    from fastmem import Recipe
    from fastmem.lab.harness.tasks.task_functions import nq_swap_prompt
    from fastmem.prompts import Tokens

    model, llm, tasks, rows, _ = harnessed
    found = evaluate(model, tasks, "local_nq_swap", method)
    samples = sorted(found["samples"]["local_nq_swap"], key=lambda sample: sample["doc_id"])
    assert len(samples) == 6
    assert {"paper_accuracy,none", "exact_match,none", "f1,none", "format_failure,none"} <= set(
        found["results"]["local_nq_swap"]
    )
    for row, sample in zip(rows, samples, strict=True):
        ids = llm.tokenizer(nq_swap_prompt(row), add_special_tokens=False)["input_ids"]
        memory = llm.memorize(row["sub_context"], Recipe(learning_rate=0.1, steps=3))
        own = llm.generate(Tokens(ids), memory if "fastmem" in method else None, method, max_new_tokens=6)
        assert sample["resps"][0][0] == own.text


def test_likelihoods_are_those_of_the_memory(harnessed):
    from fastmem import Recipe

    model, llm, tasks, _, rows = harnessed
    found = evaluate(model, tasks, "local_counterfactual", "fastmem")
    samples = sorted(found["samples"]["local_counterfactual"], key=lambda sample: sample["doc_id"])
    for row, sample in zip(rows, samples, strict=True):
        memory = llm.memorize(row["context"], Recipe(learning_rate=0.1, steps=3))
        prompt = f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer:"
        start = len(llm.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        for (log_likelihood, _), choice in zip(sample["filtered_resps"], row["choices"]["text"], strict=True):
            ids = llm.tokenizer(f"{prompt} {choice}", add_special_tokens=False)["input_ids"]
            logs = llm.logits(ids, memory).log_softmax(-1)
            own = sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))
            assert float(log_likelihood) == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize("method", ["base", "fastmem", "fastmem+cd", "fastmem+adacd"])
def test_likelihoods_are_those_of_the_method(harnessed, method):
    from lm_eval.api.instance import Instance

    from fastmem import METHODS, Recipe
    from fastmem.lab.harness.lm_eval_model import FastMemLM

    model, llm, _, _, rows = harnessed
    lm = FastMemLM(str(model), method=method, learning_rate=0.1, steps=3, alpha=0.7, batch_size=2)
    asked = [
        Instance("loglikelihood", row, (f"{row['question']}:", f" {row['context'][:9]}"), i)
        for i, row in enumerate(rows)
    ]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    for row, instance, (log_likelihood, _) in zip(rows, asked, found, strict=True):
        memory = llm.memorize(row["context"], Recipe(learning_rate=0.1, steps=3)) if "fastmem" in method else None
        start = len(llm.tokenizer(instance.args[0], add_special_tokens=False)["input_ids"])
        ids = llm.tokenizer("".join(instance.args), add_special_tokens=False)["input_ids"]
        memorized, original = llm.logits(ids, memory).double(), llm.logits(ids).double()
        scores = memorized
        if METHODS[method].kind == "cd":
            p, q = memorized.softmax(-1), original.softmax(-1)
            middle = (p + q) / 2
            bits = ((p * (p / middle).log2()).sum(-1) + (q * (q / middle).log2()).sum(-1)) / 2
            alpha = bits[:, None] if METHODS[method].adaptive else 0.7
            scores = (1 + alpha) * memorized - alpha * original
        own = sum(float(scores.log_softmax(-1)[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert log_likelihood == pytest.approx(own, abs=1e-3)


def asked_about(rows):
    from lm_eval.api.instance import Instance

    return [
        Instance("generate_until", row, (f"{row}", {"until": [], "max_gen_toks": 2}), 0, ("own_task", i, 1))
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("contxt", "the task's rows have no column 'contxt'"),
        ("choices", "the task's column 'choices' holds a dict, not a text"),
    ],
)
def test_a_column_that_holds_no_document_is_refused(harnessed, field, message):
    from fastmem.lab.harness.lm_eval_model import FastMemLM

    lm = FastMemLM(str(harnessed[0]), context_field=field, learning_rate=0.1, steps=1)
    requests = asked_about([{"context": "A sentence.", "choices": {"text": ["A"]}, "answer": "A"}])
    for ask in (lm.generate_until, lm.loglikelihood):
        with pytest.raises(InputError) as refused:
            ask(requests, disable_tqdm=True)
        assert str(refused.value) == f"context_field: {message}. Give one of its columns: context, choices, answer."


def test_rows_without_a_document_are_counted_in_one_warning(harnessed, caplog):
    from fastmem.lab.harness.lm_eval_model import FastMemLM

    rows = [{"context": ""}, {"context": {"title": []}}, {"question": "Who?"}, {"context": "A sentence."}]
    requests = asked_about(rows)
    FastMemLM(str(harnessed[0]), method="base").generate_until(requests * 2)
    assert "no document" not in caplog.text
    lm = FastMemLM(str(harnessed[0]), learning_rate=1e-4, steps=1)
    lm.generate_until(requests * 2)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "fastmem"]
    assert warning == (
        "3 of 4 rows have no document, so the untouched model answers them: if they have one, name its column with "
        "context_field."
    )
    caplog.clear()
    FastMemLM(str(harnessed[0]), context_field="context", learning_rate=1e-4, steps=1).generate_until(
        asked_about([{"context": ""}, {"context": None}, {"context": "A sentence."}])
    )
    assert "2 of 3 rows have no document" in caplog.text


def test_wikihow_on_the_embedded_model_from_the_command_line(tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'fastmem[lm-eval]'")
    rows = [{"title": "How to Rest", "article": f"Sit down {n} times.", "summary": "sit down."} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["lm-eval", "--model", "fastmem", "--model_args", "method=fastmem", "--tasks", "fastmem_wikihow"]
    command += ["--metadata", json.dumps({"data": str(tmp_path / "rows.jsonl")}), "--limit", "2"]
    command += ["--gen_kwargs", "max_gen_toks=4", "--apply_chat_template", "--output_path", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "fastmem.cli", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(found.read_text())["results"]["fastmem_wikihow"]
    assert {"rouge1,none", "rouge2,none", "rougeL,none"} <= set(scores)


def test_methods_that_a_harness_task_cannot_use(harnessed):
    from fastmem.lab.harness.lm_eval_model import FastMemLM

    with pytest.raises(
        InputError, match="method 'cad' needs the prompt without the document, which a harness task does not have"
    ):
        FastMemLM(str(harnessed[0]), method="cad")
    lm = FastMemLM(str(harnessed[0]), method="fastmem+dola")
    for likelihoods in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(InputError, match="dola masks tokens, so texts have no likelihood"):
            likelihoods([])


def test_the_command_passes_everything_on(harnessed):
    done = subprocess.run(
        [sys.executable, "-m", "fastmem.cli", "lm-eval", "ls", "tasks"], capture_output=True, text=True, check=True
    )
    for name in ("fastmem_nq_swap", "fastmem_wikihow", "fastmem_faitheval_counterfactual"):
        assert name in done.stdout + done.stderr
