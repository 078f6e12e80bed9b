"""The prompt of every task is exactly the paper's, and cutting a context leaves the question whole."""

import json

import pytest

from fastmem.errors import InputError
from fastmem.lab.tasks import TASKS, cut, load, messages
from task_rows import PAPER_ROW, TRAP_ROW, one

QA_OPENING = (
    "Please extract from the context the span that best answers the question and provide the answer in the following "
    'format: "The answer is: ...".\n'
)
CHOICE_OPENING = (
    "Please choose the candidate that best fits the instructions and provide the answer in the following format: "
    '"The answer is: ...".\n'
)


def test_question_prompt(tmp_path):
    example = one("nq_swap", tmp_path / "a.json", [PAPER_ROW])
    asked = "Question: who keeps the light on orvel point?"
    assert example.prompt == f"{QA_OPENING}Context: The light is kept by Jon Marsh .\n{asked}"
    assert example.prompt_without_context == asked
    assert example.context == "The light is kept by Jon Marsh ."


def test_choice_prompt(tmp_path):
    example = one("memotrap", tmp_path / "a.csv", [TRAP_ROW])
    asked = 'Sentence: Coward: one who eats\nCandidates: "stew" or "alone"'
    assert example.context == 'Write a quote that ends in the word "stew".'
    assert example.prompt == f"{CHOICE_OPENING}Instruction: {example.context}\n{asked}"
    assert example.prompt_without_context == f"{CHOICE_OPENING}{asked}"


@pytest.mark.parametrize(
    ("task", "instruction"),
    [
        ("xsum", "Summarize the above article in 1 sentence."),
        ("cnndm", "Summarize the above article in 3 sentences."),
        ("wikihow", "Summarize the above article in few steps using concise verb-object phrases directly."),
    ],
)
def test_summary_prompt(task, instruction, tmp_path):
    example = one(task, tmp_path / "a.jsonl", [{"article": "Rain fell.\nThen sun.", "summary": "Weather."}])
    assert example.prompt == f"Article: Rain fell.\nThen sun.\n{instruction}"
    assert example.prompt_without_context == instruction
    assert (example.context, example.reference) == ("Rain fell.\nThen sun.", "Weather.")


def test_the_document_is_scored_in_its_own_place(tokenizer, tmp_path):
    """Not where the wording of the prompt or the question has the same words."""
    for name, row, opening in (
        ("nq", PAPER_ROW | {"context": "span", "input": "is it a span"}, "Context: "),
        ("memotrap", TRAP_ROW | {"prompt": "..: this is it ..."}, "Instruction: "),
        ("xsum", {"article": "Article", "summary": "Short."}, "Article: "),
    ):
        example = one(name, tmp_path / f"{name}.jsonl", [row])
        tokens = example.in_place(tokenizer)
        first = int(tokens.scored.long().argmax())
        assert tokenizer.decode(tokens.ids[tokens.scored]) == example.context
        assert tokenizer.decode(tokens.ids[:first]).endswith(opening), name
        assert example.prompt.startswith(example.opening + example.context)


def test_every_question_ends_in_one_question_mark(shared):
    data = load("coconflictqa", shared / "data/coconflictqa/squad.jsonl")
    for example in data.examples:
        last = example.prompt.rsplit("\nQuestion: ", 1)[1]
        assert last.endswith("?")
        assert not last.endswith("??")


def test_one_shot_is_an_earlier_turn_of_the_same_form():
    for name, task in TASKS.items():
        shot = task.shot
        if shot is None:
            assert name in ("world_json", "world_summary")
            continue
        assert shot.example.kind == task.kind, name
        turns = messages(shot.example, shot=shot)
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert turns[0]["content"] == shot.example.prompt
        if task.kind != "summary":
            assert shot.reply == f"The answer is: {shot.example.answers[0]}"
    assert messages(TASKS["nq"].shot.example, with_context=False) == [
        {"role": "user", "content": "Question: Who built the lighthouse of Orvel Point?"}
    ]


def test_cut_takes_from_the_context_only(tokenizer, tmp_path):
    example = one("xsum", tmp_path / "a.jsonl", [{"article": "Rain fell, née ☂ alors. " * 50, "summary": "Rain."}])
    for limit in (1, 7, 13, 14, 15, 16, 100):
        short = cut(example, limit, tokenizer)
        assert 0 < len(tokenizer(short.context, add_special_tokens=False)["input_ids"]) <= limit
        assert example.context.startswith(short.context)
        assert short.prompt.endswith("\nSummarize the above article in 1 sentence.")
    assert cut(example, 10_000, tokenizer) is example
    with pytest.raises(InputError, match="at least 1 token; given 0"):
        cut(example, 0, tokenizer)


def test_cut_with_a_tokenizer_without_offsets(tmp_path):
    class Letters:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(letter) for letter in text]}

        def decode(self, ids):
            return "".join(map(chr, ids))

    example = one("nq", tmp_path / "a.json", [PAPER_ROW])
    assert cut(example, 9, Letters()).context == "The light"


def test_cut_leaves_the_instruction_of_memotrap(tokenizer, tmp_path):
    example = one("memotrap", tmp_path / "a.csv", [TRAP_ROW])
    assert cut(example, 1, tokenizer) is example


def test_real_prompts_are_the_template_around_the_real_text(shared):
    import pyarrow.parquet

    file = shared / "data/nq_swap/dev.parquet"
    raw = pyarrow.parquet.read_table(file).slice(0, 3).to_pylist()
    for row, example in zip(raw, load("nq_swap", file, limit=3).examples, strict=True):
        assert example.prompt == f"{QA_OPENING}Context: {row['sub_context']}\nQuestion: {row['question']}?"
    file = shared / "data/wikihow/train_1000.jsonl"
    with file.open(encoding="utf-8") as lines:
        for example in load("wikihow", file, limit=3).examples:
            row = json.loads(next(lines))
            assert example.prompt.startswith(f"Article: {row['article']}\nSummarize the above article in few steps")
            assert example.reference == row["summary"].strip()
