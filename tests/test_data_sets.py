"""The suite's public data sets: rows in their publishers' forms, and each metric against values counted by hand."""

import json
from pathlib import Path

import pytest

from command_line import save
from conftest import ROOT
from fastmem.errors import TaskError
from fastmem.lab.scores import qa, statistics
from fastmem.lab.tasks import TASKS, Example, load
from fastmem.lab.tasks.example import Value
from task_rows import one, write

SCORED = sorted(name for name, task in TASKS.items() if task.score and task.schemas)
NO_CONTEXT = "Question: Who keeps the light?"

CONFIQA = {
    "orig_answer": "Ada Quill",
    "cf_answer": "Jon Marsh",
    "orig_alias": ["A. Quill"],
    "cf_alias": ["Jonathan Marsh"],
    "question": "Who keeps the light?",
    "orig_context": "The light is kept by Ada Quill.",
    "cf_context": "The light is kept by Jon Marsh.",
}
UNANSWERABLE = {"qid": "q1", "question": "Who keeps the light?", "context": "The light is white.", "answers": []}
COUNTERFACTUAL = {
    "id": "c1",
    "question": "What is the moon made of?",
    "context": "The moon is made of wool.",
    "choices": {"label": ["A", "B", "C"], "text": ["rock", "wool", "iron"]},
    "answerKey": "B",
    "answer": "wool",
}
SQUAD = {
    "id": "s1",
    "title": "Light",
    "context": "The light is kept by Ada Quill, a sailor.",
    "question": "Who keeps the light?",
    "answers": {"text": ["Ada Quill", "Quill"], "answer_start": [21, 25]},
}


def scores(name: str, example: Example, replies: list[str]) -> dict[str, list[Value]]:
    """Score -> its value for each reply."""
    rows = [TASKS[name].score(reply, example) for reply in replies]
    return {score: [row[score] for row in rows] for score in rows[0]}


def example_of(name: str, tmp_path: Path, row: dict) -> Example:
    return one(name, tmp_path / "rows.jsonl", [row])


# What all have in common


@pytest.mark.parametrize("name", SCORED)
def test_an_answer_that_ended_in_an_error_is_never_right(name):
    """Its text is empty. The first score is a boolean, since it decides what a report lists as repaired and broken."""
    shot = TASKS[name].shot
    empty, right = (TASKS[name].score(text, shot.example) for text in ("", shot.reply))
    assert next(iter(empty.values())) is False
    assert list(empty) == list(right)
    assert not {"paper_correct", "exact_match", "f1"} & empty.keys()


def test_the_answer_that_is_graded():
    assert qa.stated_answer("Well. The answer is: Ada Quill\nThat is what it says.") == "Ada Quill"
    assert qa.stated_answer(" Ada Quill,\nI think. ") == "Ada Quill,\nI think."
    assert qa.stated_answer("The answer is:") == ""


@pytest.mark.parametrize("name", SCORED)
def test_wrong_columns_are_named_with_the_accepted_ones(name, tmp_path):
    with pytest.raises(TaskError) as caught:
        load(name, write(tmp_path / "rows.jsonl", [{"query_text": "Who?", "document": "Ada."}]))
    assert "Found: query_text, document." in caught.value.text
    for column in TASKS[name].schemas[0].columns:
        assert column in caught.value.text


# ConFiQA


def test_confiqa_rows(tmp_path):
    folder = tmp_path / "ConFiQA"
    folder.mkdir()
    for part in ("QA", "MR"):
        write(folder / f"ConFiQA-{part}.json", [CONFIQA, CONFIQA | {"cf_alias": [], "question": f"{part}?"}])
    first, second, third, _ = load("confiqa", folder).examples
    assert (first.subset, third.subset) == ("MR", "QA")
    assert first.context == "The light is kept by Jon Marsh."
    assert first.answers == ("Jon Marsh", "Jonathan Marsh")
    assert first.original_answers == ("Ada Quill", "A. Quill")
    assert second.answers == ("Jon Marsh",)
    assert first.group == third.group == "Who keeps the light?"
    with pytest.raises(TaskError, match=r"give a data file \(ConFiQA-QA\.json"):
        load("confiqa")


def test_confiqa_scores(tmp_path):
    replies = {
        "The answer is: Jon Marsh": (True, False, False, True),
        "The answer is: It is Jonathan Marsh.": (True, False, False, False),
        "The answer is: Ada Quill": (False, True, True, False),
        "Jon Marsh, formerly A. Quill": (False, True, True, False),  # both: the original one counts
        "The answer is: not Jon Marsh": (False, False, None, False),  # a negation
        "The answer is: Eva Stone": (False, False, None, False),
        "": (False, False, None, False),
        "The answer is: Jon Marsh\nIt is not Ada Quill.": (True, False, False, True),  # up to the line break
    }
    found = scores("confiqa", example_of("confiqa", tmp_path, CONFIQA), list(replies))
    assert [*zip(*found.values(), strict=True)] == list(replies.values())
    assert list(found) == ["Pc", "Po", "MR", "EM"]
    means = {name: statistics.mean(values) for name, values in found.items()}
    pc, po = means["Pc"].value, means["Po"].value
    assert (pc, po) == (3 / 8, 2 / 8)
    assert means["MR"].value == pytest.approx(po / (po + pc))
    assert means["MR"].n == 5


# FaithEval


def test_faitheval_prompts(tmp_path):
    for name, word in (("faitheval_unanswerable", "unknown"), ("faitheval_inconsistent", "conflict")):
        example = example_of(name, tmp_path, UNANSWERABLE)
        assert f'the answer is "{word}".\nContext: The light is white.\nQuestion: Who keeps' in example.prompt
        assert example.prompt_without_context == NO_CONTEXT
        assert example.answers == (word,)
    example = example_of("faitheval_counterfactual", tmp_path, COUNTERFACTUAL)
    assert example.prompt.endswith("\nQuestion: What is the moon made of?\nA. rock\nB. wool\nC. iron")
    assert example.prompt_without_context.endswith("A. rock\nB. wool\nC. iron")
    assert (example.id, example.answers) == ("c1", ("B", "wool"))


def test_the_phrases_of_faitheval(tmp_path):
    replies = {
        "The answer is: Unknown": (True, True),
        "The answer is: It's not stated.": (True, False),
        "The answer is: no_answer": (True, False),  # punctuation becomes a blank
        "The answer is: There is no `information`": (True, False),
        "The answer is: Ada": (False, False),
        "": (False, False),
    }
    found = scores("faitheval_unanswerable", example_of("faitheval_unanswerable", tmp_path, UNANSWERABLE), [*replies])
    assert [*zip(*found.values(), strict=True)] == list(replies.values())
    replies = {
        "The answer is: conflict": (True, True),
        "Conflicting accounts are given.": (True, True),
        "The answer is: there are two different answers": (False, False),
        "The answer is: there are two answers": (True, False),
        "The answer is: the two the answers": (True, False),  # articles are left out
        "The answer is: Ada": (False, False),
    }
    found = scores("faitheval_inconsistent", example_of("faitheval_inconsistent", tmp_path, UNANSWERABLE), [*replies])
    assert [*zip(*found.values(), strict=True)] == list(replies.values())


def test_the_options_of_faitheval(tmp_path):
    replies = {
        "The answer is: B": (True, True),
        "The answer is: (b) wool": (True, True),
        "The answer is: option B.": (True, True),
        "The answer is: B - wool": (True, True),
        "The answer is: the wool": (True, True),
        "The answer is: A": (False, True),
        "The answer is: a sheep": (False, False),  # an article is no letter
        "The answer is: D": (False, False),
        "": (False, False),
    }
    example = example_of("faitheval_counterfactual", tmp_path, COUNTERFACTUAL)
    found = scores("faitheval_counterfactual", example, [*replies])
    assert [*zip(*found.values(), strict=True)] == list(replies.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answerKey": "E"}, "'answerKey' must be one of A, B, C; found 'E'"),
        ({"choices": ["rock", "wool"]}, "'choices' must hold the lists 'label' and 'text'"),
        ({"choices": {"label": ["A"], "text": []}}, "of one length"),
    ],
)
def test_bad_options_of_faitheval(change, said, tmp_path):
    with pytest.raises(TaskError, match=said):
        example_of("faitheval_counterfactual", tmp_path, COUNTERFACTUAL | change)


# SQuAD 2.0


def test_squad2_rows(tmp_path):
    nested = {
        "version": "v2.0",
        "data": [
            {
                "title": "Light",
                "paragraphs": [
                    {
                        "context": SQUAD["context"],
                        "qas": [
                            {
                                "id": "s1",
                                "question": "Who keeps the light?",
                                "answers": [{"text": text, "answer_start": 0} for text in SQUAD["answers"]["text"]],
                                "is_impossible": False,
                            },
                            {"id": "s2", "question": "Who built it?", "answers": [], "is_impossible": True},
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(nested))
    first, second = load("squad2", path).examples
    without = SQUAD | {"id": "s2", "question": "Who built it?", "answers": {"text": [], "answer_start": []}}
    assert (first, second) == load("squad2", write(tmp_path / "rows.parquet", [SQUAD, without])).examples
    assert first.answers == ("Ada Quill", "Quill")
    assert (first.subset, second.subset, second.answers) == ("answerable", "unanswerable", ())
    path.write_text(json.dumps({"data": [{"paragraph": []}]}))
    with pytest.raises(TaskError, match=r"dev-v2\.0\.json: 'data' must hold SQuAD's articles"):
        load("squad2", path)


def test_squad2_scores(tmp_path):
    replies = {
        "The answer is: the Quill": (True, 1.0, True, 1.0, None),
        "The answer is: sailor Quill": (False, pytest.approx(2 / 3), False, pytest.approx(2 / 3), None),
        "The answer is: unanswerable": (False, 0.0, False, 0.0, None),
        "": (False, 0.0, False, 0.0, None),
    }
    found = scores("squad2", example_of("squad2", tmp_path, SQUAD), list(replies))
    assert [*zip(*found.values(), strict=True)] == list(replies.values())
    replies = {
        "The answer is: Unanswerable.": (True, 1.0, None, None, True),
        "No answer": (True, 1.0, None, None, True),
        "The answer is: no answer is given": (False, 0.0, None, None, False),
        "": (False, 0.0, None, None, False),
    }
    example = example_of("squad2", tmp_path, SQUAD | {"answers": {"text": []}})
    found = scores("squad2", example, list(replies))
    assert [*zip(*found.values(), strict=True)] == list(replies.values())
    assert list(found) == ["EM", "F1", "EM answerable", "F1 answerable", "EM unanswerable"]


# ClashEval

CLASH = {
    "question": "Who wrote Fog?",
    "context_original": "Ada Quill wrote Fog.",
    "context_mod": "Jon Marsh wrote Fog.",
    "answer_original": "Ada Quill",
    "answer_mod": "Jon Marsh",
    "mod_type": "significant",
    "dataset": "names",
}


def test_clasheval_rows(tmp_path):
    path = tmp_path / "rows.parquet"
    write(path, [CLASH | {"prior_response": "Ada", "dataset": "news"}])
    (example,) = load("clasheval", path.rename(tmp_path / "llama3.pqt")).examples
    assert example.context == "Jon Marsh wrote Fog."
    assert (example.answers, example.choices, example.original_answers) == (("Ada Quill",), ("Jon Marsh",), ("Ada",))
    assert example.subset == "news"


def test_clasheval_scores(tmp_path):
    """The rates of the publisher's 2 x 2 table: prior right and context wrong, and the reverse."""
    name, right, wrong = "clasheval", "The answer is: Ada Quill", "The answer is: Jon Marsh"
    # accuracy, follows a wrong context, accuracy in conflict, context bias, prior bias
    conflict = example_of(name, tmp_path, CLASH | {"prior_response": "Quill"})
    assert [*scores(name, conflict, [right, wrong, "Eva Stone", ""]).values()] == [
        [True, False, False, False],
        [False, True, False, False],
        [True, False, False, False],
        [False, True, False, False],
        [None] * 4,
    ]
    # A context that was left as it was, and a wrong prior.
    unchanged = CLASH | {"context_mod": "Ada Quill wrote Fog.", "answer_mod": "Ada Quill", "mod_type": "0"}
    conflict = example_of(name, tmp_path, unchanged | {"prior_response": "Jon Marsh"})
    assert [*scores(name, conflict, [right, wrong, ""]).values()] == [
        [True, False, False],
        [None] * 3,
        [True, False, False],
        [None] * 3,
        [False, True, False],
    ]
    for both_right_or_wrong in (unchanged | {"prior_response": "Ada Quill"}, CLASH | {"prior_response": "Eva"}, CLASH):
        found = scores(name, example_of(name, tmp_path, both_right_or_wrong), [right])
        assert [values[0] for values in found.values()][2:] == [None] * 3


@pytest.mark.parametrize(
    ("kind", "right", "same", "other"),
    [
        ("names", "Ada Quill", ["ada quill.", "Quill"], ["Ada", "Marta Quill", "Jon Marsh"]),
        ("drugs", "30", ["30 mg", "30.0", "The answer is: 30."], ["3.0", "300", "20 to 30", ""]),
        ("news", "1,200", ["1200 people"], ["120", "1"]),
        ("records", "1:02.5", ["62.5", "1:02.55", "0:01:02.50"], ["1:02.7", "102.5"]),
        ("locations", "Orvel Point", ["the Orvel Point"], ["Orvel"]),
    ],
)
def test_answers_of_clasheval(kind, right, same, other, tmp_path):
    row = CLASH | {"answer_original": right, "dataset": kind}
    found = scores("clasheval", example_of("clasheval", tmp_path, row), [*same, *other])["accuracy"]
    expected = [True] * len(same) + [False] * len(other)
    if kind == "names":
        expected[len(same)] = True  # the publisher's rule: one part of a name is enough
    assert found == expected


# NoMIRACL


def test_nomiracl_rows(tmp_path):
    passages = [{"docid": f"d{i}", "title": f"T{i}", "text": f"Text\n{i}."} for i in range(4)]
    row = {"query_id": "1#0", "query": "Who?", "positive_passages": passages[:1], "negative_passages": passages[1:]}
    none = row | {"query_id": "2#0", "positive_passages": [], "negative_passages": passages[:1]}
    relevant, other = load("nomiracl", write(tmp_path / "test.relevant.jsonl", [row, none])).examples
    assert (relevant.subset, other.subset) == ("relevant", "non-relevant")
    assert (relevant.answers, other.answers) == (("Yes, answer is present",), ("I don't know",))
    assert other.context == "[1] T0: Text 0."
    moved = row | {"positive_passages": passages[2:3], "negative_passages": passages[:2] + passages[3:]}
    assert example_of("nomiracl", tmp_path, moved).context == relevant.context
    for change, said in (
        ({"positive_passages": [], "negative_passages": []}, "there is no passage"),
        ({"negative_passages": ["text"]}, "'negative_passages' must be a list of passages with a 'text'"),
    ):
        with pytest.raises(TaskError, match=said):
            example_of("nomiracl", tmp_path, row | change)


def test_nomiracl_scores(tmp_path):
    passages = [{"docid": "d", "title": "", "text": "Text."}]
    row = {"query": "Who?", "positive_passages": passages, "negative_passages": []}
    relevant = example_of("nomiracl", tmp_path, row)
    other = example_of("nomiracl", tmp_path, row | {"positive_passages": None, "negative_passages": passages})
    replies = {
        "The answer is: Yes, answer is present": True,
        "Yes, answer is\npresent in [2].": True,
        "The answer is present.": True,
        "[3]": True,
        "The answer is: I don\u2019t know": False,
        "The answer is not present in the passages": False,
        "Yes, answer is present. I don't know.": None,
        "Eva Stone wrote it, see [3]": None,
        "": None,
    }
    claims = list(replies.values())
    found = scores("nomiracl", relevant, list(replies))
    assert found["accuracy"] == [claim is True for claim in claims]
    assert found["error rate"] == [claim is False for claim in claims]
    assert found["invalid"] == [claim is None for claim in claims]
    assert set(found["hallucination rate"]) == {None}
    found = scores("nomiracl", other, list(replies))
    assert found["accuracy"] == [claim is False for claim in claims]
    assert statistics.mean(found["hallucination rate"]).value == 4 / 9
    assert set(found["error rate"]) == {None}


# CUB

CUB = {
    "id": "k1",
    "context_type": "edited",
    "template": "<subject> speaks the language",
    "template_w_context": "Fact: <subject> speaks the language <target>.\nCompletion: <subject> speaks the language",
    "subject": "Ada Quill",
    "target_true": "French",
    "target_new": "Danish",
}


def test_cub_rows(tmp_path):
    rows = [CUB, CUB | {"id": "k2", "context_type": "gold", "target_new": None}]
    rows.append(CUB | {"id": "k3", "context_type": "irrelevant", "template_w_context": "Fact: It rains."})
    edited, gold, irrelevant = load("cub", write(tmp_path / "rows.json", rows)).examples
    assert edited.context == "Fact: Ada Quill speaks the language Danish.\nCompletion:"
    assert edited.prompt.endswith("\nQuestion: Ada Quill speaks the language ...")
    assert (edited.answers, edited.original_answers, edited.subset) == (("Danish",), ("French",), "conflicting")
    assert (gold.answers, gold.original_answers, gold.subset) == (("French",), (), "gold")
    assert gold.context.startswith("Fact: Ada Quill speaks the language French.")
    assert (irrelevant.answers, irrelevant.original_answers) == (("French",), ("Danish",))
    plain = {
        "question": "Is it so?",
        "context": "It is.",
        "context_type": "gold",
        "answer": "True",
        "memory_answer": "",
    }
    assert example_of("cub", tmp_path, plain).answers == ("True",)
    with pytest.raises(TaskError, match="'context_type' must be one of gold, conflicting, edited, irrelevant; found"):
        example_of("cub", tmp_path, CUB | {"context_type": "random"})
    with pytest.raises(TaskError, match="'target_new' is empty"):
        example_of("cub", tmp_path, CUB | {"target_new": ""})


def test_cub_scores(tmp_path):
    replies = ["The answer is: Danish", "the Danish.", "Danish and French", "French", "Danishes", ""]
    right = [True, True, False, False, False, False]
    found = scores("cub", example_of("cub", tmp_path, CUB), replies)
    assert [*found] == ["BCU", "BCU gold", "BCU conflicting", "BCU irrelevant"]
    assert [*found.values()] == [right, [None] * 6, right, [None] * 6]
    irrelevant = scores("cub", example_of("cub", tmp_path, CUB | {"context_type": "irrelevant"}), replies)
    assert [*irrelevant.values()] == [
        right[::-1][2:3] * 3 + [True, False, False],
        [None] * 6,
        [None] * 6,
        irrelevant["BCU"],
    ]


# A run


@pytest.fixture
def run(fastmem, llama, tmp_path) -> Path:
    """Four rows of ConFiQA, answered by a random model with two methods."""
    names = ["Jon Marsh", "Eva Stone", "Tom Reed", "Max Field"]
    rows = [CONFIQA | {"cf_answer": name, "cf_context": f"The light is kept by {name}."} for name in names]
    data, model = write(tmp_path / "ConFiQA-QA.json", rows), save(llama, tmp_path / "model")
    options = ["--methods", "base,fastmem", "--steps", "1", "--max-new-tokens", "4", "--batch-size", "2"]
    done = fastmem(
        "eval", "--task", "confiqa", "--data", data, "--model", model, *options, "--output", tmp_path / "run"
    )
    assert done.code == 0, done.err
    assert "| method  | confiqa Pc " in done.out
    return tmp_path / "run"


def answer(folder: Path, texts: dict[str, list[str]]) -> None:
    """Replace the answers of a run. Its scores are then those of other texts."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["text"] = texts[row["method"]][int(row["id"].removeprefix("row-")) - 1]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_graded_again_and_compared(run, fastmem):
    same = "The answer is: Jon Marsh"
    answer(run, {"base": [same, "Ada Quill", "Ada Quill", "?"], "fastmem": [same, "Eva Stone", "Ada Quill", "Max"]})
    done = fastmem("report", run, "--metric", ROOT / "examples" / "my_metric.py")
    assert "MR: a mean over the rows to which it applies (base 3, fastmem 3)." in done.out
    assert "not graded again" not in done.out
    means = fastmem("report", run, "--json").json["means"]["run"]
    assert means["base"] == {"Pc": 0.25, "Po": 0.5, "MR": pytest.approx(2 / 3), "EM": 0.25}
    assert means["fastmem"] == {"Pc": 0.5, "Po": 0.25, "MR": pytest.approx(1 / 3), "EM": 0.5}
    page = (run / "report.html").read_text()
    assert "repaired" in page
    assert "Eva Stone" in page
    compared = fastmem("compare", run, "--method-a", "base", "--method-b", "fastmem", "--list")
    assert compared.code == 0, compared.err
    first, *others = (line for line in compared.out.splitlines() if line.startswith("| base, fastmem"))
    n, a, b, difference, better, worse = first.split("|")[2:8]
    assert [cell.split()[0] for cell in (n, a, b, difference)] == ["4", "0.250", "0.500", "+0.250"]
    assert (int(better), int(worse), len(others)) == (1, 0, 3)
    assert "Pc and EM wrong in A, right in B; Po and MR right in A, wrong in B" in compared.out


def test_a_metric_with_a_name_of_the_task_is_refused(run, fastmem, tmp_path):
    (tmp_path / "twice.py").write_text("def score(text, example):\n    return {'Po': 1.0}\n")
    assert "the score 'Po' exists already" in fastmem("report", run, "--metric", tmp_path / "twice.py").err
