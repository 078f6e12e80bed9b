"""The embedded world as tasks: the prompts of the training, and the scores of tasks that have their own."""

import json
from pathlib import Path

import pytest

from fastmem.lab.run.suite import TASK_NAMES
from fastmem.lab.scores.grading import STANDARD
from fastmem.lab.tasks import TASKS, Example, load, one_shot
from fastmem.lab.tasks.embedded_world import SCORES
from fastmem.tiny import world

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "scores.md").read_text().split("## The embedded model")[1]


@pytest.mark.parametrize("part", world.PARTS)
@pytest.mark.parametrize("split", world.SPLITS)
def test_each_split_is_a_task_with_the_prompts_of_the_training(split, part):
    rows, examples = world.examples(split, part), load(split, split=part).examples
    assert [example.prompt for example in examples] == [world.prompt_of(row) for row in rows]
    assert len({example.id for example in examples}) == len(rows)
    for example in examples[:20]:
        assert example.context not in example.prompt_without_context or not example.context
        assert example.question in example.prompt_without_context


def test_the_page_names_every_task_with_its_rows_and_scores():
    for split in world.SPLITS:
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{split}` |") and line.count("|") == 5]
        assert line.endswith(f"| {len(world.examples(split, 'test')):,} |")
        assert len(world.examples(split, "dev")) == len(world.examples(split, "test"))
    for name, score in SCORES.items():
        (line,) = [line for line in PAGE.splitlines() if f"`{name}`" in line and line.count("|") == 3]
        assert [one for one in score("", first(name)) if one not in line] == []


def test_no_task_hides_a_score_behind_a_standard_one():
    """Reports show the scores of a task's own that have other names than the standard ones."""
    for name, task in TASKS.items():
        if task.score is not None:
            example = first(name) if name in SCORES else Example("", "question", "c", "q", ("a",), ("b",), ("A. a",))
            assert STANDARD.isdisjoint(task.score("", example)), name


def test_the_suite_has_data_sets_of_the_field_only():
    assert not set(TASK_NAMES) & set(world.SPLITS)


def test_only_objects_and_summaries_have_no_worked_example():
    assert {name for name in world.SPLITS if TASKS[name].shot is None} == {"world_json", "world_summary"}
    assert TASKS["world_open"].shot.example.context == ""
    assert TASKS["world"].shot == one_shot.QUESTION


def first(name: str) -> Example:
    return load(name, split="dev", limit=1).examples[0]


@pytest.mark.parametrize("name", sorted(SCORES))
def test_right_replies_have_full_scores_and_empty_ones_none(name):
    score = SCORES[name]
    for row, example in zip(world.examples(name, "test"), load(name).examples, strict=True):
        right = row.answers[0] if row.format in ("json", "summary") else f"The answer is: {row.answers[0]}"
        assert world.is_right(right, row)
        given = score(right, example)
        assert next(iter(given.values())) is True
        assert all(value == 1 for key, value in given.items() if key not in ("first", "remembered answer"))
        assert not any(score("", example).values())


def test_the_remembered_answer_is_what_the_model_learned():
    for name in ("world_self", "world_json", "world_summary"):
        for row, example in zip(world.examples(name, "test"), load(name).examples, strict=True):
            learned = row.original_answers[0]
            given = SCORES[name](f"The answer is: {learned}" if row.format == "answer" else learned, example)
            assert given["remembered answer"] is True, example
            assert next(iter(given.values())) is False
            assert SCORES[name](row.answers[0], example)["remembered answer"] is False


def test_documents_that_disagree():
    score = SCORES["world_disagree"]
    example = Example("", "question", "c", "q", ("the Gull",), ("Fox",), choices=("Fox", "the Gull"))
    assert score("The answer is: Gull.", example) == {"second": True, "first": False, "remembered answer": False}
    assert score("The answer is: fox", example) == {"second": False, "first": True, "remembered answer": True}
    assert not any(score("The answer is: Fox or the Gull", example).values())
    assert not any(score("Gull", example).values())  # not the form that is asked for
    both = [example for example in load("world_disagree").examples if example.original_answers == example.answers]
    assert both  # the model knows what the second document says
    assert score(f"The answer is: {both[0].answers[0]}", both[0])["remembered answer"] is True


def test_lists_count_things_that_are_missing_and_too_many():
    score = SCORES["world_list"]
    example = Example("", "question", "c", "q", ("The Lock and Key, salt, wool",))
    assert score("The answer is: wool, salt and The Lock and Key", example)["exact list"] is True
    assert score("The answer is: Wool, The Lock and Key, and salt.", example)["exact list"] is True
    assert score("The answer is: salt, tea", example) == {
        "exact list": False,
        "precision": 1 / 2,
        "recall": 1 / 3,
        "F1": 2 / 5,
    }
    assert score("The answer is: salt, salt, wool", example)["precision"] == 2 / 3
    assert score("The answer is: tea and The Lock and Key", example)["precision"] == 1 / 2
    assert score("salt, wool, The Lock and Key", example)["recall"] == 0


def test_objects_are_valid_or_a_failure_of_the_form():
    score = SCORES["world_json"]
    right, learned = {"home": "Oakmere", "job": "baker"}, {"home": "Fernham", "job": "baker"}
    example = Example("", "question", "c", "q", (json.dumps(right),), (json.dumps(learned),))
    assert score(json.dumps(learned), example) == {
        "right object": False,
        "right values": 1 / 2,
        "valid object": True,
        "remembered answer": True,
    }
    assert score(json.dumps(right | {"more": 1}), example)["right object"] is False
    assert score(json.dumps(right | {"more": 1}), example)["right values"] == 1
    for reply in ("Oakmere, baker", json.dumps([right]), f"Here it is: {json.dumps(right)}", json.dumps(right)[:-1]):
        assert not any(score(reply, example).values()), reply


def test_summaries_are_checked_fact_by_fact_and_sentence_by_sentence():
    score = SCORES["world_summary"]
    example = Example("", "question", "c", "q", ("The Gull carries silk and was launched in 1896.",), ("wool",))
    example = Example(**{**example.record, "choices": ("silk", "1896")})
    assert list(score("The Gull, of 1896, carries silk!", example).values()) == [True, 1, True, False]
    assert list(score("The Gull carries silk. It is of 1896.", example).values()) == [True, 1, False, False]
    assert list(score("The Gull carries wool\nin 1896", example).values()) == [False, 1 / 2, False, True]
    assert score("It left at 3.50 with silk.", example)["one sentence"] is True
