"""Both ways of grading, case by case: the paper's rule with all its quirks, and strict grading without them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmem.lab.scores.qa import (
    exact_match,
    grade,
    paper_answer,
    paper_correct,
    paper_normalize,
    squad_normalize,
    strict_answer,
    token_f1,
)
from fastmem.lab.tasks import Example, load


def question(*answers: str, original: tuple[str, ...] = ()) -> Example:
    return Example("1", "question", "context", "who?", answers, original)


def choice(gold: str, other: str) -> Example:
    return Example("1", "choice", "instruction", "sentence", (gold,), (other,), (gold, other))


# reply, answers, right by the paper's rule, exact match, why
QUIRKS = [
    ("The answer is: 1948", ("1948",), True, True, "the plain case"),
    ("the ANSWER is:1948.", ("1948",), True, True, "the marker in any letter case, without a blank"),
    ("The answer is: 1977. No: the answer is: 1948", ("1948",), True, True, "the last marker counts"),
    ("The answer is: 1948. The answer is: 1977", ("1948",), False, False, "an earlier marker does not count"),
    ("It was 1948.", ("1948",), False, False, "no marker counts as Unknown"),
    ("The answer is 1948", ("1948",), False, False, "a marker needs its colon"),
    ("I cannot say.", ("no",), True, False, 'without a marker, gold "no" is right: it is in "unknown"'),
    ("The answer is: nobody", ("no",), True, False, "a gold answer inside a word"),
    ("The answer is: 1948 or 1977", ("1948",), True, False, "an answer among others"),
    ("The answer is: 19480", ("1948",), True, False, "a number inside a number"),
    ("The answer is: 1977\nor perhaps 1948", ("1948",), True, False, "everything to the end of the reply counts"),
    ("The answer is: 1948\n(not 1977)", ("1948",), True, True, "strict reads the first line"),
    ("The answer is: whatever", ("The",), True, False, "a gold answer that normalizes to nothing is in everything"),
    ("The answer is:", ("A",), True, False, "it is even in an empty answer"),
    ("The answer is: 3,000", ("3 , 000",), False, False, "a double blank stays where punctuation was removed"),
    ("The answer is: 3 , 000", ("3 , 000",), True, True, "with the same spelling this does not matter"),
    ("The answer is: 1,200", ("1200",), True, True, "commas are removed before the thousands rule applies"),
    ("The answer is: 5", ("$5",), True, True, "symbols are removed too"),
    ("The answer is: a  b", ("a b",), True, True, "double blanks collapse if there is no punctuation between them"),
    ("The answer is: the Nile", ("Nile",), True, True, "articles are removed"),
    ("The answer is: Nile", ("Nil", "Nile"), True, True, "any of several answers"),
    ("The answer is: \u201cNile\u201d", ("Nile",), True, False, "SQuAD removes only ASCII punctuation"),
    ("", ("1948",), False, False, "an empty reply"),
]


@pytest.mark.parametrize(("reply", "answers", "paper", "strict", "why"), QUIRKS, ids=[case[-1] for case in QUIRKS])
def test_quirks(reply, answers, paper, strict, why):
    result = grade(reply, question(*answers))
    assert result.paper_correct is paper
    assert result.exact_match is strict
    assert (result.f1 == 1.0) is strict


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("The answer is: A", "A", True),
        ("The answer is: a.", "A", True),  # the same by exact match
        ("The answer is: (A) Paris", "A", True),
        ("The answer is: B", "A", False),
        ("The answer is: B, a large city", "A", False),  # an article, not the letter
        ("The answer is: Ankara", "A", False),
        ("The answer is:", "A", False),
        ("A", "A", False),  # without the marker
        ("The answer is: The", "The", True),
        ("The answer is: whatever", "The", False),
        ("The answer is: 5 %", "%", True),
        ("The answer is: %", "%", True),
        ("The answer is: 5", "%", False),
        ("The answer is: minus", "+", False),
        ("The answer is: A. Paris", "(A)", True),  # punctuation around the letter is not part of it
        ("The answer is: (A) Paris", "A.", True),
        ("The answer is: (B) Paris", "(A)", False),
        ("The answer is: 选项A。", "A", True),  # letters of another script are no part of it either
        ("The answer is: A입니다", "(A)", True),
        ("The answer is: Ältere", "A", False),
        ("The answer is: Aérien", "A", False),
        ("The answer is: because", "B", True),  # all other answers are compared by the paper's rule
    ],
)
def test_an_answer_of_ones_own_that_normalizes_to_nothing_must_be_there(reply, answer, right):
    assert grade(reply, question(answer), whole_words=True).paper_correct is right


@pytest.mark.parametrize(
    ("reply", "paper", "strict"),
    [
        ("The answer is: 1948", False, False),
        ("It was 1948", True, True),
        ("The answer is: Unknown", True, False),  # a genuine answer that counts as a format failure
        ("The answer is: unknown.", False, False),  # does not count with a full stop
        ("The answer is:", False, True),  # to the paper, nothing after the marker is not a failure
        ('The answer is: "..."', False, True),
    ],
)
def test_failures(reply, paper, strict):
    result = grade(reply, question("1948"))
    assert (result.paper_failure, result.failure) == (paper, strict)
    assert not (result.failure and (result.exact_match or result.f1))


def test_failures_are_counted_for_nq_and_nq_swap_only():
    from fastmem.lab.tasks import TASKS

    assert {name for name, task in TASKS.items() if task.counts_failures} == {"nq", "nq_swap"}


@pytest.mark.parametrize(
    ("reply", "gold", "other", "paper", "strict"),
    [
        ("The answer is: heavy", "heavy", "fonder", True, True),
        ('The answer is: "heavy".', "heavy", "fonder", True, True),
        ("The answer is: fonder", "heavy", "fonder", False, False),
        ('The answer is: "heavy" or "fonder"', "heavy", "fonder", True, False),  # names both
        ("The answer is: Absence makes the heart grow heavy.", "heavy", "fonder", True, False),
        ("The answer is: superstition", "it", "superstition", True, False),  # always right by the paper's rule
        ("The answer is: unclean", "clean", "unclean", True, False),
        ("The answer is: god", "God", "god", True, False),  # the candidates differ only in letter case
        ("The answer is: God.", "God", "god", True, True),
    ],
)
def test_choices(reply, gold, other, paper, strict):
    result = grade(reply, choice(gold, other))
    assert (result.paper_correct, result.exact_match, result.f1) == (paper, strict, float(strict))


def test_remembered_answer():
    example = question("1948", original=("1977", "'77"))
    assert grade("The answer is: 1977.", example).remembered is True
    assert grade("The answer is: 1950", example).remembered is False
    assert grade("1977", example).remembered is False
    assert grade("The answer is: 1977", question("1948")).remembered is None
    assert grade("The answer is: heavy", choice("heavy", "fonder")).remembered is False
    assert grade("The answer is: fonder", choice("heavy", "fonder")).remembered is True


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("Timothy Schmit", "Timothy B. Schmit", 0.8),
        ("Timothy Timothy", "Timothy B. Schmit", 0.4),  # a word counts at most as often as in the gold answer
        ("the Nile", "Nile", 1.0),
        ("Nile", "Rhine", 0.0),
    ],
)
def test_f1(answer, gold, f1):
    assert token_f1(answer, [gold]) == pytest.approx(f1)
    assert token_f1(answer, ["x", gold]) == pytest.approx(f1)
    assert token_f1(answer, []) == 0.0


def test_normalizations_differ_in_the_papers_quirks():
    assert paper_normalize("The  Cat, a -- dog") == "cat  dog"  # the blanks around the dashes stay
    assert squad_normalize("The  Cat, a -- dog") == "cat dog"
    assert squad_normalize("A") == squad_normalize("(A).") == "a"  # not empty
    assert squad_normalize("%") == "%"
    assert paper_normalize("A") == ""
    assert paper_answer("nothing") == "Unknown"
    assert strict_answer("nothing") is None


@given(st.text(max_size=40), st.text(min_size=1, max_size=12).filter(str.strip))
def test_grading_never_raises_and_strict_implies_a_format(reply, answer):
    result = grade(reply, question(answer))
    assert 0.0 <= result.f1 <= 1.0
    assert not (result.exact_match and result.failure)
    assert paper_correct(f"The answer is: {answer}", [answer])


@given(st.text(min_size=1, max_size=20))
def test_exact_match_is_reflexive(text):
    assert exact_match(text, [text])
    assert token_f1(text, [text]) == pytest.approx(1.0)


def test_real_memotrap_rows_that_are_always_right_by_the_papers_rule(shared):
    rows = load("memotrap", shared / "data/memotrap/memotrap_936.json").examples
    always_right = [e for e in rows if grade(f"The answer is: {e.original_answers[0]}", e).paper_correct]
    assert len(always_right) == 13
    assert sum(e.choices[0].lower() == e.choices[1].lower() for e in always_right) == 6
    assert not any(grade(f"The answer is: {e.original_answers[0]}", e).exact_match for e in rows)
    assert all(grade(f"The answer is: {e.answers[0]}", e).exact_match for e in rows)


def test_real_gold_answers_are_right_and_swapped_ones_mostly_wrong(shared):
    rows = load("nq_swap", shared / "data/nq_swap/dev.parquet").examples
    gold = [grade(f"The answer is: {e.answers[0]}", e) for e in rows]
    assert all(result.paper_correct and result.exact_match for result in gold)
    known = [grade(f"The answer is: {e.original_answers[0]}", e) for e in rows]
    assert sum(result.remembered for result in known) / len(rows) > 0.99
