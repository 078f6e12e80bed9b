"""Every task loads from each form it is published in: made-up and real rows, and the hub's cache."""

import os
import subprocess
import sys

import pytest

from fastmem.errors import TaskError
from fastmem.lab import tasks
from fastmem.lab.tasks import TASKS, load
from fastmem.lab.tasks.readers import Hub
from fastmem.tiny.world import SPLITS
from task_rows import HOTPOT_ROW, HUB_ROW, PAPER_ROW, one, write


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_hub_rows_in_every_file_format(suffix, tmp_path):
    example = one("nq_swap", tmp_path / f"rows{suffix}", [HUB_ROW])
    assert example.context == HUB_ROW["sub_context"]
    assert example.answers == ("Jon Marsh",)
    assert example.original_answers == ("Ada Quill", "Quill")
    assert example.group == HUB_ROW["question"]


def test_nq_and_nq_swap_share_ids(tmp_path):
    path = write(tmp_path / "a.jsonl", [HUB_ROW, HUB_ROW | {"question": "where"}])
    agreeing, swapped = load("nq", path), load("nq_swap", path)
    assert [e.id for e in agreeing.examples] == [e.id for e in swapped.examples] == ["row-1", "row-2"]
    assert agreeing.examples[0].answers == ("Ada Quill", "Quill")
    assert agreeing.examples[0].original_answers == ()


def test_markup_is_removed_only_on_request(tmp_path):
    row = HUB_ROW | {"org_context": '<Table> <Tr> <Td colspan="2"> a < b </Td> <Td> x  y </Td> </Tr> </Table>'}
    path = write(tmp_path / "a.jsonl", [row])
    assert load("nq", path).examples[0].context == row["org_context"]
    assert load("nq", path, strip_markup=True).examples[0].context == "a < b x y"


@pytest.mark.parametrize(
    "row",
    [
        HOTPOT_ROW,
        HOTPOT_ROW | {"context": [["Fog", ["Fog is a book.", "It is grey."]], ["Ada", ["Ada wrote it."]]]},
        {
            "id": "5a7",
            "question": HOTPOT_ROW["question"],
            "answers": ["no"],
            "parametric_answer": "yes",
            "context": "Fog  Fog is a book.  It is grey. \n  Ada  Ada wrote it.",
        },
    ],
    ids=["hub", "publisher", "coconflictqa"],
)
def test_hotpotqa_with_and_without_titles(row, tmp_path):
    path = write(tmp_path / "a.json", [row])
    (plain,), (titled,) = load("hotpotqa", path).examples, load("hotpotqa_titles", path).examples
    assert plain.context == "Fog is a book. It is grey.\nAda wrote it."
    assert titled.context == "Fog: Fog is a book. It is grey.\nAda: Ada wrote it."
    assert plain.question == 'Who wrote the book called "Fog?'  # the paper removes all punctuation at the end
    assert plain.id == titled.id == "5a7"


@pytest.mark.parametrize("answers", [["Ada", "Ada", "A. Quill"], "['Ada', 'A. Quill']", '["Ada", "A. Quill"]'])
def test_answers_may_be_a_list_in_a_string(answers, tmp_path):
    row = {"question": "who?", "context": "Ada.", "answers": answers, "parametric_answer": "jon"}
    example = one("coconflictqa", tmp_path / "a.jsonl", [row])
    assert example.answers == ("Ada", "A. Quill")
    assert example.original_answers == ("jon",)


def test_squad_rows(tmp_path):
    row = {"id": "56", "question": "who?", "context": "Ada.", "answers": {"text": ["Ada"], "answer_start": [0]}}
    assert one("coconflictqa", tmp_path / "a.json", [row]).answers == ("Ada",)


def test_memotrap_translations_and_science_are_split_elsewhere(tmp_path):
    translation = {
        "prompt": "Translate this sentence from German into English.\nEile: mit Weile.\nto:\nMore haste, less",
        "classes": "[' speed.', ' while.']",
        "answer_index": 1,
    }
    science = {"prompt": "What was believed?\nA. Tea is cold.\nB. Tea is hot.\nAnswer:", "classes": '[" A", " B"]'}
    path = write(tmp_path / "4-history.jsonl", [translation, science | {"answer_index": 0}])
    first, second = load("memotrap_full", path).examples
    assert first.context == "Translate this sentence from German into English.\nEile: mit Weile."
    assert (first.question, first.answers) == ("More haste, less", ("while",))
    assert (second.context, second.question) == ("What was believed?", "Answer:")
    assert (second.choices, second.answers) == (("Tea is cold", "Tea is hot"), ("Tea is cold",))
    assert second.subset == "history"


def test_wikihow_csv_by_the_publishers_rules(tmp_path):
    article = "Take the rope.\n,Hang it up. " + "Wait a day. " * 9
    rows = [
        {"headline": "Take The Rope.,\n\nHang it.", "title": "How to Dry Rope", "text": article},
        {"headline": "x" * 90, "title": "How to Talk", "text": "x" * 100},
        {"headline": "", "title": "How to Be", "text": article},
        {"headline": "Sit.", "title": "How to Sit", "text": article},
    ]
    path = write(tmp_path / "wikihowAll.csv", rows)
    first, last = load("wikihow", path).examples
    assert first.reference == "take the rope.\nhang it."
    assert first.context.startswith("Take the rope.\nHang it up.")
    assert (first.id, last.id) == ("row-1", "row-4")

    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "all_test.txt").write_text("HowtoSit\n")
    assert one("wikihow", listed / "wikihowAll.csv", rows).reference == "sit."


def test_each_article_of_the_cad_files_is_read_once(tmp_path):
    rows = [
        {"input_index": i, "assigned_process": branch, "article": f"Article {i // 3}.", "gold_answers": "Short."}
        for i in range(6)
        for branch in (0, 1)
    ]
    data = load("cnndm", write(tmp_path / "cad.jsonl", rows))
    assert [e.context for e in data.examples] == ["Article 0.", "Article 1."]
    assert [e.id for e in data.examples] == ["0", "3"]


def test_the_embedded_world_pairs_its_splits():
    agreeing, swapped = load("world", split="dev", limit=40), load("world_swap", split="dev", limit=40)
    assert [e.id for e in agreeing.examples] == [e.id for e in swapped.examples]
    assert all(e.original_answers == () for e in agreeing.examples)
    for before, after in zip(agreeing.examples, swapped.examples, strict=True):
        assert after.original_answers == before.answers != after.answers
    alone = load("world_open", split="dev", limit=1).examples[0]
    assert alone.prompt == alone.prompt_without_context == f"Question: {alone.question}"
    assert {e.group for e in load("world").examples}.isdisjoint(e.group for e in load("world", split="dev").examples)


def test_limit_and_revision(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAPER_ROW] * 5)
    data = load("nq", path, limit=2)
    assert len(data.examples) == 2
    assert (data.source, data.task) == ("a.jsonl", "nq")
    before = data.revision
    assert before.startswith("sha256:")
    write(path, [PAPER_ROW] * 6)
    assert load("nq", path, limit=2).revision != before


def test_the_rows_of_the_authors_code(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "QUESTION_ROWS", 3)
    monkeypatch.setattr(tasks, "SUMMARY_ROWS", 4)
    rows = [{"article": f"Article {i}.", "summary": "Short.", "id": f"a{i}"} for i in range(9)]
    nq, xsum = write(tmp_path / "nq.jsonl", [PAPER_ROW] * 5), write(tmp_path / "xsum.jsonl", rows)
    first = load("nq", nq, paper_rows=True)
    assert [e.id for e in first.examples] == ["row-1", "row-2", "row-3"]
    assert first.selection == "the first 3 of 5 rows"
    sample = load("xsum", xsum, paper_rows=True)
    ids = [e.id for e in sample.examples]
    assert (len(ids), ids) == (4, sorted(ids)), "in the order of the file"
    assert ids != ["a0", "a1", "a2", "a3"]
    assert sample.selection == "a sample of 4 of 9 rows"
    write(xsum, rows[::-1])
    assert [e.id for e in load("xsum", xsum, paper_rows=True).examples] == ids[::-1], "the sample is one of ids"
    assert [e.id for e in load("xsum", xsum, paper_rows=True, limit=2).examples] == ids[:1:-1]
    whole = load("nq", write(nq, [PAPER_ROW] * 3), paper_rows=True)
    assert (len(whole.examples), whole.selection) == (3, "")


def test_pins():
    pinned = {task.hub for task in TASKS.values() if task.hub}
    assert {hub.id for hub in pinned if len(hub.revision) != 40} == {
        "EdinburghNLP/xsum",
        "Salesforce/FaithEval-counterfactual-v1.0",
        "Salesforce/FaithEval-inconsistent-v1.0",
    }
    assert TASKS["xsum"].hub == Hub("EdinburghNLP/xsum", "test", "refs/convert/parquet")
    loaded = {name for name, task in TASKS.items() if task.hub or task.obtain}
    assert set(TASKS) - loaded == set(SPLITS)


OFFLINE = """
import sys
from pathlib import Path
from datasets.packaged_modules.parquet.parquet import Parquet
from fastmem.errors import TaskError
from fastmem.lab.tasks import TASKS, load
cache, file, commit = sys.argv[1:]
hub = TASKS["nq_swap"].hub
builder = Parquet(cache_dir=cache, dataset_name="NQ-Swap", hash=commit, data_files={"dev": [file]})
builder.download_and_prepare()
url = f"hf://datasets/{hub.id}@{commit}/data/dev-00000-of-00001.parquet"
builder.info.download_checksums = {url: {"num_bytes": 1, "checksum": None}}
builder.info.write_to_directory(builder.cache_dir)
config = Path(builder.cache_dir).parents[1]  # moved to the folder of a download of the hub's data set
config.rename(config.with_name("default"))
config.parent.rename(config.parent.with_name("pminervini___" + config.parent.name))
try:
    data = load("nq_swap")
    print(data.revision, data.source, data.examples[0].answers)
except TaskError as error:
    print(error)
"""


@pytest.mark.parametrize("commit", [TASKS["nq_swap"].hub.revision, "0" * 40])
def test_offline_from_the_cache_and_only_the_pinned_commit(commit, tmp_path):
    file = write(tmp_path / "dev.parquet", [HUB_ROW])
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "cache"), str(file), commit],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1]
    if commit == TASKS["nq_swap"].hub.revision:
        assert last == f"{commit} pminervini/NQ-Swap ('Jon Marsh',)"
    else:
        assert last.startswith(f"pminervini/NQ-Swap: the cache holds commit {commit}, pinned is 3801dbf0")


def test_neither_network_nor_cache(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nTraceback")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        TaskError, match=r"abisee/cnn_dailymail \(3.0.0, test, revision 96df5e68.*reach the Hub\. With"
    ):
        load("cnndm")


@pytest.mark.parametrize(
    ("name", "file", "rows", "groups"),
    [
        ("nq", "data/nq_swap/dev.parquet", 4746, 1667),
        ("nq_swap", "data/nq_swap/dev.parquet", 4746, 1667),
        ("nq", "models/nq-mini/nq_swap_dev_333.json", 333, 333),
        ("nq_swap", "models/nq-mini/nq_swap_dev_333.json", 333, 333),
        ("memotrap", "data/memotrap/memotrap_936.json", 936, 936),
        ("memotrap_full", "data/memotrap/*.csv", 2539, 2539),
        ("hotpotqa", "data/hotpotqa/coconflictqa_hotpotqa.jsonl", 1427, 1427),
        ("hotpotqa_titles", "data/hotpotqa/coconflictqa_hotpotqa.jsonl", 1427, 1427),
        ("coconflictqa", "data/coconflictqa/squad.jsonl", 2225, 2224),
        ("cnndm", "data/cnndm/cad_600.jsonl", 100, 100),
        ("xsum", "data/xsum/train_1000.jsonl", 1000, 1000),
        ("wikihow", "data/wikihow/train_1000.jsonl", 1000, 1000),
    ],
)
def test_real_rows(name, file, rows, groups, shared):
    data = load(name, shared / file)
    assert len(data.examples) == rows
    assert len({e.id for e in data.examples}) == rows
    assert len({e.group for e in data.examples}) == groups
    for example in data.examples:
        assert example.context in example.prompt
        assert example.kind == TASKS[name].kind
        assert all(answer.strip() for answer in example.answers)
        if example.kind == "summary":
            assert example.reference not in example.prompt_without_context


def test_real_answers_are_in_their_contexts(shared):
    rows = load("nq_swap", shared / "data/nq_swap/dev.parquet").examples
    assert sum(any(answer in e.context for answer in e.answers) for e in rows) / len(rows) > 0.99
    stripped = load("nq_swap", shared / "data/nq_swap/dev.parquet", strip_markup=True).examples
    assert not any("<Td" in e.context or "<P>" in e.context for e in stripped)
    parts = load("memotrap_full", shared / "data/memotrap/*.csv").examples
    assert {e.subset for e in parts} == {
        "proverb-ending", "proverb-translation", "hate-speech-ending", "history-of-science-qa"
    }  # fmt: skip
