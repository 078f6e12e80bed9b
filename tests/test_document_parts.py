"""A long document is cut into parts that lose nothing, fit, and end where paragraphs and sentences do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmem.documents import document_parts, fitting_part, sentences
from fastmem.errors import InputError

TEXTS = st.lists(
    st.sampled_from(["word", "Dr.", "End.", '"So?"', "今日。", "...", "\n", "\n\n", "\n \n", " ", "x" * 120])
).map(" ".join)


def words(text: str) -> int:
    return len(text.split())


@given(TEXTS, st.integers(1, 9))
def test_parts_lose_nothing_and_fit(text: str, most: int) -> None:
    if not text.strip():
        with pytest.raises(InputError, match="the document is empty"):
            document_parts(text, most, words)
        return
    parts = document_parts(text, most, words)
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(part == part.strip() != "" for part in parts)
    assert max(map(words, parts)) <= most


@given(TEXTS)
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


def test_parts_end_with_paragraphs_if_they_can() -> None:
    text = "One two. Three.\n\nFour five.\n\nSix seven. Eight nine ten. Eleven."
    assert document_parts(text, 100, words) == [text]
    assert document_parts(text, 5, words) == ["One two. Three.\n\nFour five.", "Six seven. Eight nine ten.", "Eleven."]
    assert document_parts(text, 3, words) == [
        "One two. Three.",
        "Four five.",
        "Six seven.",
        "Eight nine ten.",
        "Eleven.",
    ]
    assert document_parts(text, 2, words)[-3:] == ["Eight nine", "ten.", "Eleven."]


def test_sentences_end_with_their_marks() -> None:
    text = 'He said "No." Then he left... Did he? Yes\nA line 3.5 long 。今日は。明日'
    assert [one.strip() for one in sentences(text)] == [
        'He said "No."',
        "Then he left...",
        "Did he?",
        "Yes",
        "A line 3.5 long 。",
        "今日は。",
        "明日",
    ]


def test_the_fitting_part_shares_words_with_the_question() -> None:
    parts = ["The office opens at eight.", "The mayor of Tarn is Ada.", "Dogs may come on Fridays."]
    assert fitting_part("When may dogs come?", parts) == 2
    assert fitting_part("Who is the MAYOR?", parts) == 1
    assert fitting_part("the", ["It is the one.", "It is the two."]) == 0, "the first of equals"


def test_a_part_without_a_word_of_the_question_is_not_chosen() -> None:
    with pytest.raises(InputError, match="none of the 2 parts shares a word with the question: ask in words of"):
        fitting_part("xyz", ["One.", "Two."])
    assert fitting_part("xyz", ["The only part."]) == 0


@pytest.mark.parametrize("question", [None, 3, ["Who?"], b"Who?"])
def test_a_question_is_a_text(question: object) -> None:
    with pytest.raises(InputError, match=f"the question must be one text; given {type(question).__name__}"):
        fitting_part(question, ["One.", "Two."])  # type: ignore[arg-type]


def test_no_parts_fit_no_question() -> None:
    with pytest.raises(InputError, match="there are no parts to choose from: give at least one"):
        fitting_part("Who?", [])


def test_a_part_has_a_token() -> None:
    with pytest.raises(InputError, match="at least 1 token; given 0"):
        document_parts("text", 0, words)
