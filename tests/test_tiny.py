"""The embedded model and its world: the folder is complete, the splits are as described, the weights were trained."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from random import Random

import pytest
from tools.training_mixture import BOTH, FINISH, PASSING, READ, REMEMBER, TRUST, TURNED, Mixture

from fastmem.errors import InputError
from fastmem.tiny import MODEL_DIR, RECIPE
from fastmem.tiny.phrases import QUESTION_FRAMES, RELATIONS, STATEMENT_FRAMES
from fastmem.tiny.world import (
    KINDS,
    MAX_SENTENCES,
    PARTS,
    POOLS,
    SPLITS,
    SUBJECTS,
    Writer,
    examples,
    facts,
    is_trained_pair,
    mentions,
    new_subjects,
    part_of,
    pools,
    swapped,
    words_of,
)

MAX_WEIGHT_BYTES = 12_000_000


# --- the world ---


def test_world_has_one_answer_per_subject_and_relation_and_of_the_right_kind():
    keys = [(fact.subject, fact.relation.name) for fact in facts()]
    assert len(keys) == len(set(keys)) == sum(SUBJECTS[relation.subject] for relation in RELATIONS)
    for fact in facts():
        assert fact.subject in pools()[fact.relation.subject]
        assert fact.answer in pools()[fact.relation.answer]
        assert fact.answer != fact.subject


def test_relations_name_kinds_that_exist_and_every_wording_has_its_places():
    assert {kind for relation in RELATIONS for kind in (relation.subject, relation.answer)} <= set(KINDS)
    for relation in RELATIONS:
        assert all("{s}" in core and "{a}" in core for core in relation.statements)
        assert all("{s}" in core and "{a}" not in core for core in relation.questions)
        assert len(set(relation.statements)) == len(set(relation.questions)) == 5
    assert all("{c}" in frame for frame in STATEMENT_FRAMES + QUESTION_FRAMES)


def test_every_wording_has_pairs_for_training_and_one_for_measuring():
    for relation in RELATIONS:
        for core in range(5):
            pairs = [is_trained_pair(relation, frame, core) for frame in range(6)]
            assert pairs.count(False) == 1


def test_invented_words_belong_to_one_name_only():
    words = [word for kind in SUBJECTS | POOLS for name in pools()[kind] for word in words_of(name)]
    assert len(words) == len(set(words))
    assert all(6 <= len(word) <= 9 for word in words)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_large_deterministic_and_cut_by_limit(split, part):
    rows = examples(split, part)
    assert len(rows) == (472 if split == "world_turned" else 532)
    assert rows == examples(split, part)
    assert rows[:7] == examples(split, part, 7)
    assert len({row.id for row in rows}) == len(rows)
    assert all(row.question.endswith("?") and len(row.answers) == 1 for row in rows)


def test_splits_are_the_same_in_another_process_with_another_hash_seed():
    program = "from fastmem.tiny.world import examples; print(repr(examples('world_swap', 'test', 20)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {repr(examples("world_swap", "test", 20)) + "\n"}


def test_dev_and_test_share_no_subject():
    for split in SPLITS:
        ids = [{row.id.rsplit("/", 1)[1] for row in examples(split, part)} for part in PARTS]
        assert not ids[0] & ids[1]
    assert {part_of(fact.subject) for fact in facts()} == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_agreeing_context_contains_the_answer_and_no_context_is_empty(part):
    assert all(mentions(row.context, row.answers[0]) for row in examples("world", part))
    assert all(row.answers == row.original_answers for row in examples("world", part))
    assert {row.context for row in examples("world_open", part)} == {""}


@pytest.mark.parametrize("part", PARTS)
def test_swapped_context_contains_the_new_answer_and_never_the_original(part):
    for row in examples("world_swap", part):
        assert row.answers[0].lower() in row.context.lower()
        assert row.original_answers[0].lower() not in row.context.lower()
        assert row.answers[0] != row.original_answers[0]


def test_swapped_rows_are_the_agreeing_rows_with_the_answer_exchanged():
    for agreeing, swap in zip(examples("world", "dev"), examples("world_swap", "dev"), strict=True):
        assert agreeing.question == swap.question
        exchanged = agreeing.context.lower().replace(agreeing.answers[0].lower(), swap.answers[0].lower())
        assert exchanged == swap.context.lower()


def test_new_subjects_share_no_word_with_the_world():
    known = {word for kind in SUBJECTS | POOLS for name in pools()[kind] for word in words_of(name)}
    new = {word for names in new_subjects().values() for name in names for word in words_of(name)}
    assert new
    assert not known & new
    assert all(row.original_answers == () for row in examples("world_new", "test"))


def test_contexts_have_one_to_ten_sentences_and_every_length_occurs():
    lengths = {row.context.count(". ") + 1 for row in examples("world", "test")}
    assert lengths == set(range(1, MAX_SENTENCES + 1))


def test_answering_sentence_names_the_subject_first_but_in_the_turned_rows():
    for split in ("world", "world_swap", "world_new", "world_turned"):
        for row in examples(split, "dev", 60):
            subject = row.id.split("/")[2].replace("-", " ")
            lines = [line.lower() for line in row.context.split(". ")]
            telling = [line for line in lines if subject in line and row.answers[0].lower() in line]
            assert telling
            turned = [line.find(row.answers[0].lower()) < line.find(subject) for line in telling]
            assert all(turned) if split == "world_turned" else not any(turned)


def test_swapped_fact_keeps_subject_and_kind():
    fact = facts()[0]
    other = swapped(fact, Random(1))
    assert replace(other, answer=fact.answer) == fact
    assert other.answer in pools()[fact.relation.answer]


def test_unknown_split_part_and_limit_are_refused():
    with pytest.raises(
        InputError, match=r"unknown split of the embedded world 'world_swp'\. Did you mean 'world_swap'"
    ):
        examples("world_swp")
    with pytest.raises(InputError, match="unknown part 'train'"):
        examples("world", "train")
    with pytest.raises(InputError, match="limit is 0: give a whole number, 1 or more, or omit it"):
        examples("world", "dev", 0)


# --- training data ---


@pytest.mark.parametrize("shares", [REMEMBER, READ, BOTH, TRUST, FINISH, TURNED])
def test_shares_add_up_to_one(shares):
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("shares", [REMEMBER, READ, BOTH])
def test_training_never_contradicts_the_world(shares):
    """Each trained sentence about a subject and relation of the world states the true fact."""
    told = {
        core.format(s=fact.subject, a="ANSWER"): fact.answer
        for fact in facts()
        for core in fact.relation.statements
        if core.startswith("{s}") and core.endswith("{a}")
    }
    found = 0
    for document in islice(Mixture(3, shares), 600):
        for sentence in f"{document.user or ''} {document.assistant}".replace("\n", ". ").split(". "):
            for start, answer in told.items():
                head = start.removesuffix("ANSWER")
                if head in sentence:
                    found += 1
                    assert mentions(sentence.split(head)[1], answer), sentence
    assert found > 100


@pytest.mark.parametrize("shares", [REMEMBER, READ, BOTH, TRUST, FINISH, TURNED])
def test_training_shows_no_measured_wording_and_no_subject_of_world_new(shares):
    unseen = {row.question for split in SPLITS for part in PARTS for row in examples(split, part)}
    new = {word for names in new_subjects().values() for name in names for word in words_of(name)}
    for document in islice(Mixture(4, shares), 800):
        turns = [document.user or "", document.assistant, *(text for turn in document.more for text in turn)]
        assert not any(turn.rsplit("Question: ", 1)[-1] in unseen for turn in turns)
        assert not any(words_of(turn.replace(".", " ").replace("?", " ")) & new for turn in turns)


def test_contradicting_documents_are_few_and_answer_from_their_context():
    assert not any("contradicting" in shares for shares in (REMEMBER, READ, BOTH))
    assert max(shares["contradicting"] for shares in (TRUST, FINISH, TURNED)) <= 0.02
    for document in islice(Mixture(6, {"contradicting": 1.0}), 100):
        answer = document.assistant.removeprefix("The answer is: ")
        assert not document.assistant.startswith("The answer is: ") or mentions(document.user, answer)


def test_writer_turns_the_asked_share_of_statements_and_leaves_the_stream_alone_otherwise():
    def turned(writer: Writer) -> float:
        said = [(fact, writer.sentence(fact)) for fact in facts() if fact.relation.name == "teacher"]
        return sum(text.find(fact.answer) < text.find(fact.subject) for fact, text in said) / len(said)

    shares = [turned(Writer(Random(1), trained=True, answer_first=share)) for share in (0.0, 0.5, 1.0)]
    assert shares[0] == pytest.approx(0.2, abs=0.1)
    assert shares[1] == pytest.approx(0.6, abs=0.1)  # half of them are answer-first, the rest as usual
    assert shares[2] == 1.0
    assert list(islice(Mixture(5), 50)) == list(islice(Mixture(5, answer_first=0.0), 50))
    assert list(islice(Mixture(5), 50)) != list(islice(Mixture(5, answer_first=0.5), 50))


def test_passing_facts_are_of_relations_outside_the_world():
    assert not {relation.name for relation in PASSING} & {relation.name for relation in RELATIONS}
    assert {kind for relation in PASSING for kind in (relation.subject, relation.answer)} <= set(KINDS)
    for document in islice(Mixture(5, {"passing": 1.0}), 100):
        assert mentions(document.user, document.assistant.removeprefix("The answer is: "))


def test_equal_seeds_give_equal_documents():
    assert list(islice(Mixture(5), 50)) == list(islice(Mixture(5), 50)) != list(islice(Mixture(6), 50))


def test_world_and_mixture_import_neither_torch_nor_transformers():
    program = "import sys, tools.training_mixture; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_measured_prompts_are_those_of_the_prompts_module():
    from tools.training_worlds import WORLDS

    from fastmem.prompts import question_alone, question_prompt

    prompt_of = WORLDS["made-up"].prompt_of
    row, alone = examples("world", "dev", 1)[0], examples("world_open", "dev", 1)[0]
    assert prompt_of(row) == question_prompt(row.context, row.question)
    assert prompt_of(alone) == question_alone(alone.question)


# --- the folder ---


def test_folder_is_whole_small_and_has_a_card():
    names = {path.name for path in MODEL_DIR.iterdir()}
    needed = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"chat_template.jinja", "README.md", "trained.json"} <= names
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES
    card = (MODEL_DIR / "README.md").read_text()
    assert "knows nothing about the real world" in card
    assert "license: apache-2.0" in card


def test_trained_json_records_the_training():
    report = json.loads((MODEL_DIR / "trained.json").read_text())
    from tools.training_batches import STAGES

    assert report["stages"] == json.loads(json.dumps([stage._asdict() for stage in STAGES]))
    assert set(report["accuracy_dev"]) == set(SPLITS)
    assert report["options"]["scale"] == 1.0


def test_recipe_is_the_one_of_the_card():
    assert set(RECIPE) == {"learning_rate", "steps", "kl_weight"}
    written = ", ".join(f"{name}={value}" for name, value in RECIPE.items())
    assert f"`{written}`" in (MODEL_DIR / "README.md").read_text()


def test_training_writes_a_folder_that_loads_with_the_tokenizer_of_the_shipped_one(tmp_path, capsys, monkeypatch):
    from tools import train_embedded_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made_up = train_embedded_model.WORLDS["made-up"]
    monkeypatch.setitem(train_embedded_model.WORLDS, "made-up", made_up._replace(stages=made_up.stages[:1]))
    train_embedded_model.main(["--output", str(tmp_path), "--scale", "1e-9", "--rows", "1"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["tokens"] >= 1
    assert set(report["accuracy_dev"]) == set(SPLITS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(MODEL_DIR).get_vocab()
    assert len(tokenizer) == AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(MODEL_DIR).eval(), AutoTokenizer.from_pretrained(MODEL_DIR)


def test_folder_loads_and_renders_an_assistant_turn_alone(loaded):
    model, tokenizer = loaded
    assert model.config.model_type == "llama"
    assert len(tokenizer) == model.config.vocab_size
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template([{"role": "assistant", "content": "It rained."}], tokenize=False)
    header = "<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert text == f"{header}It rained.<|eot_id|>"


@pytest.mark.slow  # three trainings, a minute each where the processor has no bfloat16
def test_equal_seeds_train_equal_weights(loaded):
    import torch
    from tools.model_shapes import new_model
    from tools.train_embedded_model import options, train
    from tools.training_batches import STAGES

    states = []
    for seed in "778":
        args = options(["--output", "-", "--scale", "0.002", "--seed", seed])
        model = new_model(loaded[1], args.seed)
        assert train(model, loaded[1], STAGES[0], args) >= 0.002 * STAGES[0].tokens
        states.append(model.state_dict())
    first, second, other = states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tokenizer_keeps_any_text_and_every_person_is_several_tokens(loaded):
    tokenizer = loaded[1]
    text = "Zürich, 1984:\n\t«naïve» 漢字 🙂  two  spaces"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    for name in pools()["person"]:
        assert len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) >= 2


def test_weights_know_the_world_and_read_contexts(loaded):
    from tools.train_embedded_model import accuracy

    floors = {"world_open": 0.95, "world": 0.95, "world_new": 0.9, "world_swap": 0.45}
    reached = {split: accuracy(*loaded, examples(split, "dev", 40)) for split in floors}
    assert all(reached[split] >= floor for split, floor in floors.items()), reached
    assert reached["world_swap"] <= reached["world"] - 0.1, reached


def test_fastmem_repairs_what_begins_with_the_subject_and_nothing_else(loaded):
    """The results of the card on a few examples: better on `world_swap`, no worse on `world`, no gain on turned."""
    from tools.training_worlds import WORLDS

    from fastmem import FastMem, Recipe

    prompt_of = WORLDS["made-up"].prompt_of
    llm = FastMem(*loaded)

    def right(split: str, memorized: bool) -> int:
        rows = examples(split, "dev", 24)
        memories = llm.memorize([row.context for row in rows], Recipe(**RECIPE)) if memorized else None
        method = "fastmem" if memorized else "base"
        answers = llm.generate([prompt_of(row) for row in rows], memories, method, max_new_tokens=16)
        return sum(
            answer.text == f"The answer is: {row.answers[0]}" for answer, row in zip(answers, rows, strict=True)
        )

    assert right("world_swap", True) >= right("world_swap", False) + 5
    assert right("world_swap", True) >= 22
    assert right("world", True) >= right("world", False) - 1
    assert right("world_turned", True) <= right("world_turned", False) + 3
