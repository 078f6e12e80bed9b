"""The embedded model's world: names, facts, what the splits promise, what training never shows, and how it reads."""

import json
import re
import subprocess
import sys
from itertools import islice, product
from random import Random

import pytest
from tools import training_stages
from tools.training_mixture import BELIEVED_SHARE, Mixture
from tools.training_passages import filled, templates
from tools.training_stages import FINISH, REMEMBER

from fastmem.errors import InputError
from fastmem.tiny.world import INSTRUCTION, mentions, world_names
from fastmem.tiny.world.world_compositions import CLAUSES, HOPS, LISTS
from fastmem.tiny.world.world_facts import PARTS, about, facts, new_facts, part_of, swapped
from fastmem.tiny.world.world_formats import UNANSWERABLE, is_right, prompt_of
from fastmem.tiny.world.world_names import KINDS, SUBJECTS, invent, main_words, new_subjects, pools
from fastmem.tiny.world.world_relations import (
    BY_NAME,
    PASSING,
    QUESTION_FRAMES,
    RELATIONS,
    STATEMENT_FRAMES,
    is_answer_first,
    kept,
    questions,
    statements,
)
from fastmem.tiny.world.world_splits import SPLITS, examples, shown_examples, subject_of
from fastmem.tiny.world.world_templates import capitalized, choose, fill, with_article
from fastmem.tiny.world.world_writer import Writer

STAGES = [stage.shares for stage in training_stages.STAGES]
CONTRADICTING = ("world_swap", "world_turned", "world_long")
FAMOUS = [
    "Florence Nightingale",
    "Kate Middleton",
    "Daniel Radcliffe",
    "Edith Wharton",
    "Emma Stone",
    "Tom Cruise",
    "Taylor Swift",
    "Helen Keller",
    "George Washington",
    "Isaac Newton",
    "Ada Lovelace",
    "Thomas Edison",
    "Henry Ford",
    "Frank Sinatra",
    "Alice Cooper",
    "Miles Davis",
    "Ella Fitzgerald",
    "Joan Baez",
    "Emily Bronte",
    "Charlotte Bronte",
    "George Orwell",
    "Oscar Wilde",
    "Arthur Miller",
    "Agatha Christie",
    "Walter Scott",
    "Thomas Hardy",
    "Henry Cavendish",
    "Kate Upton",
    "Rufus Wainwright",
    "Martha Wainwright",
    "Edith Nesbit",
    "Emily Mortimer",
    "Bella Thorne",
    "Thomas Shelby",
    "Edith Crawley",
    "Joan Plowright",
    "George Mallory",
    "Percy Wyndham",
    "Henry Vaughan",
    "Laura Leighton",
    "Thomas Gresham",
    "Joseph Merrick",
    "Oxford",
    "Cambridge",
    "Stratford",
    "London",
    "Bristol",
    "Boston",
    "Houston",
    "Oakham",
    "Hollywood",
    "Oakland",
    "Ashford",
    "Bradford",
    "Ferndale",
    "Silverton",
    "Stonehaven",
    "Millbrook",
    "Thornton",
    "Honeywell",
    "Plymouth",
    "Foxton",
    "Greenwich",
    "Appleton",
    "the Paper Kites",
    "the Last Kingdom",
]


def texts_of(document) -> list[str]:
    return [document.user or "", document.assistant, *(text for turn in document.more for text in turn)]


@pytest.fixture(scope="module")
def trained() -> list[str]:
    """The turns of 3,000 training documents of all stages."""
    made = [document for shares in STAGES for document in islice(Mixture(4, shares), 600)]
    return [text for document in made for text in texts_of(document)]


@pytest.fixture(scope="module")
def rows() -> dict:
    """The first 150 examples of each split and part."""
    return {(split, part): examples(split, part, 150) for split in SPLITS for part in PARTS}


# --- names and facts ---


def test_pools_have_the_promised_sizes_and_kinds():
    assert {kind: len(pools()[kind]) for kind in SUBJECTS} == SUBJECTS
    assert SUBJECTS == {"person": 100, "town": 60, "inn": 40, "ship": 40, "band": 30, "company": 30, "book": 40}
    assert {kind for relation in RELATIONS + PASSING for kind in (relation.subject, relation.answer)} <= set(KINDS)
    assert len(RELATIONS) == 29
    assert len(PASSING) == 12


def test_persons_differ_in_surname_and_no_name_is_a_famous_one():
    persons = pools()["person"] + new_subjects()["person"]
    assert len({name.split()[-1] for name in persons}) == len(persons)
    random = Random(1)
    possible = {invent(kind, random) for kind in ("person", "town", "band", "book") for _ in range(30_000)}
    known = {name for pool in (pools(), new_subjects()) for kind in SUBJECTS for name in pool[kind]}
    assert not set(FAMOUS) & (possible | known)


def test_world_has_one_answer_per_subject_and_relation_and_of_the_right_kind():
    keys = [(fact.subject, fact.relation.name) for fact in facts()]
    assert len(keys) == len(set(keys)) == sum(SUBJECTS[relation.subject] for relation in RELATIONS) == 1530
    for fact in facts():
        assert fact.subject in pools()[fact.relation.subject]
        assert fact.answer.isdigit() or fact.answer in pools()[fact.relation.answer]
        assert not mentions(fact.subject, fact.answer)


def test_new_subjects_share_no_main_word_with_the_world_or_with_training(trained):
    told = " ".join(trained)
    table = world_names._NAMES
    for kind in SUBJECTS:
        word = f"(?:{'|'.join(main_words(kind, reserved=True))})"
        # The words of a town are written together with their ending: Nettleham.
        pattern = re.compile(rf"\b{word}" + ("" if kind == "town" else r"\b"))
        assert all(pattern.search(name) for name in new_subjects()[kind])
        assert not any(pattern.search(name) for name in pools()[kind])
        # In a name; ordinary words such as "Bicycles" may begin a sentence.
        named = {
            "person": rf"\b(?:{'|'.join(table['person']['given'])}) {word}\b",
            "town": rf"\b{word}(?:{'|'.join(table['town']['end'])})\b",
            "company": rf"\b{word} (?:&|Brothers)|& {word}\b",
            "book": rf"\b(?:The|A) (?:{'|'.join(table['book']['adjective'])}) {word}\b",
        }.get(kind, rf"\b[Tt]he (?:{'|'.join(table.get(kind, {}).get('adjective', []))}) {word}\b")
        assert re.search(named, " and ".join(new_subjects()[kind]))
        assert not re.findall(named, told)
    assert not [name for names in new_subjects().values() for name in names if name.lower() in told.lower()]


def test_parts_share_no_subject(rows):
    for split in SPLITS[:-1]:
        slugs = [{row.id.rsplit("/", 1)[1] for row in rows[split, part]} for part in PARTS]
        assert not slugs[0] & slugs[1]
    assert {part_of(fact.subject) for fact in facts() + new_facts()} == set(PARTS)


# --- wording ---


def test_every_form_has_its_places_and_its_order_is_seen():
    for relation in RELATIONS + PASSING:
        assert all("{s}" in form and re.search(r"\{(a:)?a\}", form) for form in relation.statements)
        assert all("{s}" in form and "{a" not in form for form in relation.questions)
        assert len(set(relation.statements)) == len(relation.statements) >= 6
        assert statements(relation, False, "subject")
    assert is_answer_first("{a:a} door leads into {s}")
    assert not is_answer_first("{s} has {a:a} door")
    assert set(CLAUSES) == {relation.name for relation in RELATIONS}
    assert set(HOPS) <= set(BY_NAME)


def test_every_sixth_form_is_kept_for_measuring():
    forms = tuple("abcdefghijklm")
    assert kept(forms, trained=False) == ("f", "l")
    assert kept(forms, trained=True) == tuple("abcdeghijkm")
    assert kept(("a", "b", "c"), trained=False) == ("c",)
    for relation in RELATIONS + PASSING:
        for forms_of in (statements, questions):
            measured, used = set(forms_of(relation, False)), set(forms_of(relation, True))
            assert measured
            assert not measured & used


def pattern_of(form: str) -> str:
    """A form as a regular expression: any alternative, anything in a slot."""
    parts = re.split(r"(\[[^\]]*\]|\{[^}]*\})", form)
    made = []
    for part in parts:
        if part.startswith("["):
            made.append("(?:" + "|".join(pattern_of(one) for one in part[1:-1].split("|")) + ")")
        else:
            made.append(".+?" if part.startswith("{") else re.escape(part))
    return "".join(made)


def test_training_never_shows_a_measured_question_or_statement(trained):
    """Statements and questions of the world are whole sentences, so that a form is found as one."""
    world = [
        document
        for shares in STAGES
        for document in islice(Mixture(9, {k: v for k, v in shares.items() if k != "passages"}), 300)
    ]
    sentences = {
        sentence.rsplit("Question: ", 1)[-1].lower()
        for document in world
        for text in texts_of(document)
        for sentence in re.split(r"(?<=[.?!])\s+", text)
    }
    joined = "\n".join(sorted(sentences))
    frames = list(kept(STATEMENT_FRAMES[1:], False) + kept(QUESTION_FRAMES[1:], False))
    for frame in frames:
        before, _, after = frame.partition("{c}")
        assert not re.search(f"^{re.escape(before.lower())}.+{re.escape(after.lower())}$", joined, re.M), frame
    trained_forms = [
        re.compile(pattern_of(form.lower()))
        for relation in RELATIONS + PASSING
        for form in (*statements(relation, True), *questions(relation, True))
    ]
    for relation in RELATIONS + PASSING:
        for form in (*statements(relation, False), *questions(relation, False)):
            pattern = pattern_of(form.lower())
            found = re.findall(f"^({pattern})[.?]$", joined, re.M)
            # A longer form for training may look like a shorter one for measuring.
            assert all(any(other.fullmatch(text) for other in trained_forms) for text in found), (form, found[:1])


def test_templates_choose_fill_and_write_articles():
    assert {choose("[very |]old[|er]", Random(seed)) for seed in range(40)} == {
        "very old",
        "old",
        "very older",
        "older",
    }
    assert {choose("there are [|almost] no fish", Random(seed)) for seed in range(20)} == {
        "there are no fish",
        "there are almost no fish",
    }
    assert fill("{a:job1} of {town}", {"job1": "engraver", "town": "Oakmere"}) == "an engraver of Oakmere"
    assert fill("{s}'s singer", {"s": "the Velvet Foxes"}) == "the Velvet Foxes' singer"
    assert [with_article(word) for word in ("ukulele", "umbrella maker", "oboe", "baker")] == [
        "a ukulele", "an umbrella maker", "an oboe", "a baker",
    ]  # fmt: skip
    assert capitalized('the Gull left. the crew slept at 9 a.m. and 10 p.m. only. "where?" asked Tom') == (
        'The Gull left. The crew slept at 9 a.m. and 10 p.m. only. "Where?" asked Tom'
    )
    with pytest.raises(KeyError):
        fill("{nothing}", {})


def test_pronouns_follow_a_sentence_about_the_same_subject():
    writer = Writer(Random(2), trained=True)
    seen = set()
    for _ in range(300):
        subject = writer.random.choice([name for kind in SUBJECTS for name in pools()[kind]])
        told = writer.random.sample(about(subject), 3)
        sentences = re.split(r"(?<=\.)\s+", writer.document(told))
        assert subject.lower() in sentences[0].lower() or subject.lower() in sentences[1].lower()  # a filler first
        seen |= {sentence.split()[0] for sentence in sentences} & {"It", "They"}
    assert seen == {"It", "They"}


# --- splits ---


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_large_and_cut_by_limit(split, part, rows):
    every = examples(split, part)
    assert len(every) >= (100 if split == "world_free" else 500)
    assert every[:150] == rows[split, part]
    assert len({row.id for row in every}) == len(every)
    assert all(row.question and row.answers and all(row.answers) for row in every)


def test_splits_and_training_are_the_same_in_another_process_with_another_hash_seed():
    program = (
        "from itertools import islice; from fastmem.tiny.world.world_splits import SPLITS, examples\n"
        "from tools.training_mixture import Mixture\n"
        "from tools.training_stages import FINISH\n"
        "print(repr([examples(split, 'test', 4) for split in SPLITS]), list(islice(Mixture(3, FINISH), 60)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert repr(examples("world_hop", "test", 4)) in outputs.pop()


@pytest.mark.parametrize("part", PARTS)
def test_documents_contain_the_answer_where_they_should(part, rows):
    for split in ("world", "world_new", "world_hop", "world_disagree", "world_self", *CONTRADICTING):
        assert all(mentions(row.context, row.answers[0]) for row in rows[split, part])
    assert all(row.answers == row.original_answers for row in rows["world", part])
    assert {row.context for row in rows["world_open", part]} == {""}
    for row in rows["world_irrelevant", part]:
        subject = row.id.rsplit("/", 1)[1].replace("-", " ")
        assert row.answers == row.original_answers
        assert not mentions(row.context, row.answers[0])
        assert not mentions(row.context, subject)


@pytest.mark.parametrize("part", PARTS)
def test_contradicting_documents_never_mention_the_original(part, rows):
    for split in CONTRADICTING:
        for row in rows[split, part]:
            assert row.answers != row.original_answers
            assert not mentions(row.context, row.original_answers[0])
    for agreeing, swap in zip(rows["world", part], rows["world_swap", part], strict=True):
        assert agreeing.question == swap.question
        assert agreeing.answers == swap.original_answers
        words = [re.sub(r"\ban?\b", "", text.lower()).split() for text in (agreeing.context, swap.context)]
        exchanged = " ".join(words[0]).replace(agreeing.answers[0].lower(), swap.answers[0].lower())
        assert exchanged == " ".join(words[1])


def answering_sentences(row) -> list[str]:
    subject = row.id.rsplit("/", 1)[1]
    lines = [re.sub(r"[^a-z0-9]", "-", line.lower()) for line in re.split(r"(?<=[.?!])\s+", row.context)]
    answer = re.sub(r"[^a-z0-9]", "-", row.answers[0].lower())
    return [line.replace(answer, "ANSWER") for line in lines if subject in line and answer in line]


def test_answering_sentence_names_the_subject_first_but_in_the_turned_rows(rows):
    for split in ("world", "world_swap", "world_new", "world_turned", "world_long"):
        for row in rows[split, "dev"]:
            subject = row.id.rsplit("/", 1)[1]
            turned = [line.find("ANSWER") < line.find(subject) for line in answering_sentences(row)]
            assert turned, row
            assert all(turned) if split == "world_turned" else not any(turned), row


@pytest.mark.parametrize("part", PARTS)
def test_unanswerable_rows_have_no_answer_and_no_model_can_know_it(part, rows):
    new = {name for names in new_subjects().values() for name in names}
    slugs = {re.sub(r"[^a-z0-9]", "-", name.lower()) for name in new}
    named = 0
    for row in rows["world_unanswerable", part]:
        _, relation, subject = row.id.split("/")
        assert row.answers == (UNANSWERABLE,)
        assert BY_NAME[relation].passing or subject in slugs
        named += subject in re.sub(r"[^a-z0-9]", "-", row.context.lower())
        measured = [re.compile(pattern_of(form)) for form in statements(BY_NAME[relation], False)]
        for line in re.split(r"(?<=[.?!])\s+", row.context):
            if subject in re.sub(r"[^a-z0-9]", "-", line.lower()):
                about_it = [one for one in measured if one.fullmatch(line[:-1])]
                others = [
                    other
                    for other in RELATIONS + PASSING
                    for form in statements(other, False)
                    if other.name != relation and re.fullmatch(".*" + pattern_of(form), line[:-1], re.IGNORECASE)
                ]
                assert others or not about_it, (row, line)
    assert 0.3 < named / len(rows["world_unanswerable", part]) < 0.7


@pytest.mark.parametrize("part", PARTS)
def test_disagreeing_rows_state_both_answers_in_their_order(part, rows):
    for split in ("world_disagree", "world_self"):
        for row in rows[split, part]:
            assert row.answers == (row.second,)
            assert row.first != row.second
            starts = [
                re.search(rf"\b{re.escape(each)}\b", row.context, re.IGNORECASE).start()
                for each in (row.first, row.second)
            ]
            assert starts[0] < starts[1], row
            assert mentions(row.context, row.first)
            assert mentions(row.context, row.second)
    for row in rows["world_disagree", part]:
        first, second = row.original_answers[0] == row.first, row.original_answers[0] == row.second
        assert first != second
    assert all(not mentions(row.context, row.original_answers[0]) for row in rows["world_self", part])
    remembered_first = [row.original_answers[0] == row.first for row in rows["world_disagree", part]]
    assert 0.3 < sum(remembered_first) / len(remembered_first) < 0.7


def test_the_subject_of_a_row_is_the_one_of_its_id(rows):
    for (split, _), some in rows.items():
        for row in some:
            slug = "".join(c if c.isalnum() else "-" for c in subject_of(row).lower())
            assert slug == ("" if split == "world_free" else row.id.rpartition("/")[2])


def test_chains_need_both_sentences(rows):
    for row in rows["world_hop", "dev"]:
        _, names, subject = row.id.split("/")
        link = names.split("-")[0]
        lines = [re.sub(r"[^a-z0-9]", "-", line.lower()) for line in re.split(r"(?<=[.?!])\s+", row.context)]
        answer = re.sub(r"[^a-z0-9]", "-", row.answers[0].lower())
        assert link in HOPS
        assert any(answer in line for line in lines)
        assert any(subject in line for line in lines)
        assert not any(answer in line and subject in line for line in lines), row


def test_lists_objects_and_summaries_hold_their_parts(rows):
    for split in ("world_list", "world_json", "world_summary"):
        for row in rows[split, "dev"]:
            assert all(mentions(row.context, part) for part in row.parts)
            assert len(row.parts) >= 2
    for row in rows["world_json", "dev"]:
        found, learned = json.loads(row.answers[0]), json.loads(row.original_answers[0])
        assert tuple(found.values()) == row.parts
        assert found.keys() == learned.keys()
        assert sum(found[key] != learned[key] for key in found) == 1
        assert all(f'"{key}"' in row.question for key in found)
    assert all(mentions(row.answers[0], part) for row in rows["world_summary", "dev"] for part in row.parts)
    assert set(LISTS) == {row.id.split("/")[1].rsplit("-", 1)[0] for row in examples("world_list", "dev")}


def test_documents_have_one_to_twelve_sentences_and_long_ones_as_many_words_as_asked():
    lengths = [len(row.context.split()) for row in examples("world", "test")]
    assert min(lengths) < 12
    assert 130 < max(lengths) < 330
    for words in (100, 380):
        counts = [len(row.context.split()) for row in examples("world_long", "dev", 40, words=words)]
        assert words <= min(counts)
        assert max(counts) < words + 120
    places = [row.context.lower().find(row.answers[0].lower()) / len(row.context) for row in examples("world_long")]
    assert min(places) < 0.1
    assert max(places) > 0.85


def test_replies_are_judged_by_format(rows):
    answer, listed = rows["world", "dev"][0], rows["world_list", "dev"][0]
    assert is_right(f"The answer is: {answer.answers[0].upper()}.", answer)
    assert not is_right(answer.answers[0], answer)
    assert not is_right(f"I think. The answer is: {answer.answers[0]}", answer)
    assert is_right("The answer is: " + ", ".join(reversed(listed.parts)), listed)
    assert not is_right("The answer is: " + ", ".join(listed.parts[1:]), listed)
    for split in SPLITS:
        for row in rows[split, "dev"][:20]:
            right = row.answers[0] if row.format in ("json", "summary") else f"The answer is: {row.answers[0]}"
            assert is_right(right, row)
            if row.original_answers and row.original_answers != row.answers:
                assert not is_right(right.replace(row.answers[0], row.original_answers[0]), row)
    assert not is_right("[1]", rows["world_json", "dev"][0])
    assert not is_right("{", rows["world_json", "dev"][0])


def test_prompts_are_those_of_the_prompts_module(rows):
    from fastmem.prompts import question_alone, question_prompt

    for row in rows["world", "dev"][:3] + rows["world_list", "dev"][:3]:
        assert prompt_of(row) == question_prompt(row.context, row.question)
    assert prompt_of(rows["world_open", "dev"][0]) == question_alone(rows["world_open", "dev"][0].question)
    assert prompt_of(rows["world_json", "dev"][0]).startswith("Context: ")


def test_shown_rows_contradict_and_are_short():
    for part, count in (("dev", 1), ("test", 3)):
        found = shown_examples(part)
        assert len(found) == count
        assert all(row in examples("world_swap", part) for row in found)
        assert all(100 <= len(row.context) <= 300 and "\n" not in row.context for row in found)


def test_unknown_split_part_and_numbers_are_refused():
    with pytest.raises(InputError, match=r"'world_swp'\. Did you mean 'world_swap'"):
        examples("world_swp")
    with pytest.raises(InputError, match="unknown part 'train'"):
        examples("world", "train")
    for name in ("limit", "words"):
        with pytest.raises(InputError, match=f"{name} is 0: give a whole number, 1 or more, or omit it"):
            examples("world_long", "dev", **{name: 0})


# --- training ---


@pytest.mark.parametrize("shares", STAGES)
def test_shares_add_up_to_one(shares):
    assert sum(shares.values()) == pytest.approx(1.0)


def test_training_tells_no_other_answer_about_the_world_but_in_contradicting_documents():
    """Questions about known subjects are answered with the true fact, whatever the document is about."""
    true = {}
    for fact in facts():
        for form in questions(fact.relation, True):
            if "[" not in form:
                true[fill(form, {"s": fact.subject}).lower()] = fact.answer
    found = 0
    for shares in STAGES:
        stable = {kind: share for kind, share in shares.items() if kind not in ("contradicting", "disputed")}
        for document in islice(Mixture(8, stable), 500):
            turns = texts_of(document)
            for question, answer in zip(turns[::2], turns[1::2], strict=False):
                asked = re.search(r"Question: (.*\?)", question)
                answer = answer.removeprefix("The answer is: ")
                if asked and (key := asked[1].rstrip("?").lower()) in true and document.kind != "no_instruction":
                    found += 1
                    assert answer == true[key], document
    assert found > 200


def test_contradicting_documents_are_few_and_answered_from_the_document():
    assert [shares.get("contradicting", 0.0) for shares in STAGES] == [0, 0, 0, 0, 0.005, 0]
    plain = {
        (fill(form, {"s": fact.subject}).lower()): fact.answer
        for fact in facts()
        for form in questions(fact.relation, True)
        if "[" not in form
    }
    checked = 0
    for document in islice(Mixture(6, {"contradicting": 1.0}), 300):
        answer = document.assistant.removeprefix("The answer is: ")
        question = re.search(r"Question: (.*)\?", document.user)[1].lower()
        assert mentions(document.user, answer)
        checked += question in plain
        assert plain.get(question) != answer
    assert checked > 50


def test_disputed_documents_are_believed_by_chance():
    """The answer is that of the document or that of the world."""
    assert [shares.get("disputed", 0.0) for shares in STAGES] == [0, 0, 0, 0, 0, 0.1]
    made = list(islice(Mixture(6, {"disputed": 1.0}), 400))
    answers = {fact.answer for fact in facts()}
    replies = [document.assistant.removeprefix("The answer is: ") for document in made]
    assert all(mentions(one.user, reply) or reply in answers for one, reply in zip(made, replies, strict=True))
    believed = sum(mentions(document.user, reply) for document, reply in zip(made, replies, strict=True))
    assert believed / len(made) == pytest.approx(BELIEVED_SHARE, abs=0.08)


def answers_of(shares, count: int, **options) -> list[str]:
    made = islice(Mixture(5, shares, **options), count)
    return [text for document in made for text in texts_of(document)[1::2]]


def test_unanswerable_questions_have_the_share_that_was_asked_for():
    for share in (0.0, 0.04, 0.1):
        answers = answers_of({"passages": 1.0}, 3000, unanswerable=share)
        assert sum(answer.endswith(UNANSWERABLE) for answer in answers) / len(answers) == pytest.approx(
            share, abs=0.012
        )
    answers = answers_of(FINISH, 3000)
    assert 0.015 < sum(answer.endswith(UNANSWERABLE) for answer in answers) / len(answers) < 0.035
    for share in (0.0, 1.0):
        made = islice(Mixture(5, {"unanswerable": 1.0}, named=share), 60)
        assert all(document.assistant == f"The answer is: {UNANSWERABLE}" for document in made)


@pytest.mark.parametrize("kind", sorted(FINISH))
def test_training_documents_are_answered_by_their_context(kind):
    for document in islice(Mixture(7, {kind: 1.0}), 60):
        turns = texts_of(document)
        if kind == "json":
            assert all(mentions(document.user, value) for value in json.loads(document.assistant).values())
        elif kind not in ("statements", "recall", "irrelevant", "summary", "no_instruction"):
            for answer in turns[1::2]:
                text = answer.removeprefix("The answer is: ")
                assert answer != text
                parts = text.split(", ") if kind == "list" else [text]
                assert text == UNANSWERABLE or all(mentions(document.user, part) for part in parts), document


def test_long_documents_reach_the_length_of_world_long_and_fit_the_positions():
    """1,024 positions hold about 650 words; `world_long` needs about 640 of them."""
    made = list(islice(Mixture(5, {"long": 1.0}), 200)) + list(islice(Mixture(5, FINISH), 1000))
    lengths = [sum(len(text.split()) for text in texts_of(document)) for document in made]
    assert max(lengths) < 660
    assert sum(length > 400 for length in lengths[:200]) > 40


def test_equal_seeds_give_equal_documents():
    first, again, other = (list(islice(Mixture(seed, FINISH), 80)) for seed in (5, 5, 6))
    assert first == again != other


def test_passages_fill_all_slots_and_answers_stand_in_the_text():
    assert len(templates()) >= 100
    random = Random(1)
    for template in templates():
        passage = filled(template, random)
        assert not re.search(r"[{}|\[\]]", repr(passage).replace(repr(passage)[0:0], "")), passage
        assert all(answer.lower() in passage.text.lower() for _, answer in passage.questions), passage
        assert passage.unanswerable


# --- how it reads ---


MISTAKES = {
    "template syntax": re.compile(r"[{}\[\]|]"),
    "a double space": re.compile(r"  "),
    "a before a vowel": re.compile(r"(?:\ba|(?:^|[.?!] )A) (?:[aei]|o(?!ne))\w"),
    "an before a consonant": re.compile(r"\b[Aa]n [bcdfgjklmnpqrstvwxz]\w"),
    "a small letter after a full stop": re.compile(r"(?<![ap]\.m)[.] [a-z]"),
    "doubled marks": re.compile(r",,|\?\?|\?\.|,\.| ,| \.(?!\.)"),
}


def assert_reads_well(text: str, world: bool) -> None:
    for name, pattern in MISTAKES.items():
        assert not (found := pattern.search(text)), (
            f"{name}: ...{text[max(0, found.start() - 60) : found.end() + 20]}..."
        )
    assert text[0].isupper() or text[0] in "\"'0123456789(", text
    assert not world or text.rstrip()[-1] in ".?!", text


def test_measured_texts_are_well_formed(rows):
    for (split, _), some in rows.items():
        for row in some:
            if split != "world_free":
                assert_reads_well(row.question, True)
                if row.context:
                    assert_reads_well(row.context, True)


@pytest.mark.parametrize("shares", [REMEMBER, FINISH])
def test_training_texts_are_well_formed(shares):
    for document in islice(Mixture(11, shares), 1500):
        user = (document.user or "").replace(f"{INSTRUCTION}\n", "").replace("Answer from the document.\n", "")
        parts = re.split(r"(?:^|\n+)(?:Context: |Question: )", user) if user else [document.assistant]
        for part in [*parts, *(question.removeprefix("Question: ") for question, _ in document.more)]:
            if part:
                assert_reads_well(part, world=document.kind not in ("passages", "long"))  # letters are signed


def test_every_pair_of_town_parts_is_a_word_without_three_equal_letters():
    table = world_names._NAMES["town"]
    names = {invent("town", Random(seed)) for seed in range(2000)}
    assert not any(re.search(r"(\w)\1\1", name) for name in names)
    assert len(set(product(table["main"], table["end"]))) > 1500


def test_swapped_fact_keeps_subject_and_relation():
    fact = facts()[0]
    other = swapped(fact, Random(1))
    assert other[:2] == fact[:2]
    assert other.answer != fact.answer


def test_world_and_mixture_import_neither_torch_nor_transformers():
    program = (
        "import sys, tools.training_mixture, fastmem.tiny.world.world_splits as splits; splits.examples('world')\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
