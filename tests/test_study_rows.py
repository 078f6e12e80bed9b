"""studies/study_rows.py: what documents of every kind hold, the scores, the halves of NQ, texts without labels."""

import json

import pytest
from studies import study_rows

from fastmem.lab.search.search import is_searched
from fastmem.tiny.world import mentions

COUNT = 4


@pytest.fixture(scope="module")
def rows():
    return study_rows.rows(None, "test", list(study_rows.WORLD), COUNT)


def test_every_kind_of_the_world_has_rows_of_its_task(rows):
    assert list(rows) == list(study_rows.WORLD)
    everything = [row for each in rows.values() for row in each]
    assert len(everything) == len({row.id for row in everything}) == COUNT * len(study_rows.WORLD)
    assert all(row.task == study_rows.WORLD[row.kind] for row in everything)
    assert rows["irrelevant"][0].example.group == rows["agrees"][0].example.group


def test_documents_hold_the_answer_where_the_kind_says_so(rows):
    for kind in ("contradicts", "agrees", "irrelevant", "turned", "hop", "new", "long", "unanswerable"):
        for row in rows[kind]:
            held = any(mentions(row.example.context, answer) for answer in row.example.answers)
            assert held == (kind not in ("irrelevant", "unanswerable")), row.id
    for kind in ("disagree", "self"):
        assert all(mentions(row.example.context, answer) for row in rows[kind] for answer in row.example.choices)
    assert not any(row.example.context for row in rows["recalled"])


def test_a_row_is_right_by_the_main_score_of_its_task(rows):
    for kind, each in rows.items():
        answer = each[0].example.answers[0]
        assert each[0].right(answer if kind in ("json", "summary") else f"The answer is: {answer}."), kind
        assert not each[0].right("The answer is: nothing."), kind
    both = rows["list"][0]
    assert not both.right(f"The answer is: {both.example.answers[0].split(', ')[0]}.")  # one of several
    row = rows["disagree"][0]
    assert not row.right(f"The answer is: {row.example.choices[0]}.")
    assert rows["json"][0].max_new_tokens > rows["agrees"][0].max_new_tokens == study_rows.NEW_TOKENS


def test_rows_without_a_limit_begin_with_those_of_a_limit(rows):
    assert study_rows.rows(None, "test", ["hop"])["hop"][:COUNT] == rows["hop"]
    assert {row.id for row in study_rows.rows(None, "dev", ["hop"])["hop"]}.isdisjoint(r.id for r in rows["hop"])


def test_kinds_take_turns(rows):
    found = {"a": rows["agrees"][:1], "b": rows["hop"][:3]}
    assert list(study_rows.in_turns(found)) == [rows["agrees"][0], *rows["hop"][:3]]
    assert list(study_rows.in_turns({})) == []


def test_texts_of_the_world_are_long_enough():
    texts = study_rows.texts(None)
    assert len(texts.documents) == study_rows.DOCUMENTS
    assert len(texts.questions) == study_rows.QUESTIONS
    assert all(len(text.split()) > study_rows.DOCUMENT_WORDS for text in texts.documents)


def test_nq_is_halved_and_its_texts_are_not_measured(tmp_path):
    path = tmp_path / "rows.json"
    one = {"org_answer": ["Ada"], "sub_answer": ["Bob"]}
    made = [
        one | {"question": f"who {n}", "org_context": f"Text {n}: Ada.", "sub_context": f"Text {n}: Bob."}
        for n in range(160)
    ]
    path.write_text(json.dumps(made))
    kinds = ("contradicts", "turned", "agrees")  # of which NQ has no turned documents
    dev, test = (study_rows.rows(path, part, kinds) for part in ("dev", "test"))
    assert list(dev) == ["contradicts", "agrees"]
    assert [row.example.id for row in dev["agrees"]] == [row.example.id for row in dev["contradicts"]]
    assert all(is_searched(row.example.group) for row in dev["agrees"])
    assert not any(is_searched(row.example.group) for row in test["agrees"])
    texts = study_rows.texts(path)
    assert (len(texts.documents), len(texts.questions)) == (study_rows.DOCUMENTS, study_rows.QUESTIONS)
    searched = sum(is_searched(row.example.group) for row in [*dev["agrees"], *test["agrees"]])
    assert searched + len(texts.documents) + len(texts.questions) + len(test["agrees"]) == len(made)
    assert {row.example.context for row in dev["contradicts"]}.isdisjoint(texts.documents)
    assert len(study_rows.rows(path, "dev", kinds[:1], 3)["contradicts"]) == 3


def test_the_passage_of_another_question_does_not_name_the_answer(shared):
    rows = study_rows.rows(shared / "models/nq-mini/nq_swap_dev_333.json", "test", ["agrees", "irrelevant"], 20)
    for own, other in zip(rows["agrees"], rows["irrelevant"], strict=True):
        assert own.example.question == other.example.question
        assert own.example.context != other.example.context
        assert not any(mentions(other.example.context, answer) for answer in other.example.answers)
