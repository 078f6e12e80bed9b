"""Stop strings: found where `str.find` finds them, never shown in part, at a cost linear in their length."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from fastmem.answer.detokenize import Detokenizer
from fastmem.answer.stop_strings import StopStrings

letters = st.text("ab€", min_size=1, max_size=6)


class Bytes:
    """A tokenizer of one byte a token, so most characters of the tests take several."""

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab€", max_size=40), stops=st.lists(letters, max_size=3))
def test_text_ends_before_the_first_stop_string_and_no_piece_holds_a_part_of_it(text, stops):
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    detokenizer, pieces = Detokenizer(Bytes(), stops), []
    for byte in text.encode():
        pieces.append(detokenizer.add(byte))
        if detokenizer.stopped:
            break
    pieces.append(detokenizer.finish())
    assert detokenizer.stopped == bool(found)
    # A stop string that ends first is the one that ends the text, though another may begin before it.
    ends = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    expected = text if ends is None else min((text[:ends].partition(stop)[0] for stop in stops), key=len)
    assert "".join(pieces) == detokenizer.text == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab", max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5), stop=st.text("ab", min_size=1))
def test_pieces_make_no_difference(text, cuts, stop):
    search = StopStrings([stop])
    seen, found, edges = search.nothing, None, [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(edges):
        if found is None:
            seen, found = search.read(seen, text[start:end])
    assert (-1 if found is None else found) == text.find(stop)


class Counted(str):
    """A stop string that counts how often a character of it is read."""

    reads = 0

    def __getitem__(self, key):
        Counted.reads += 1
        return super().__getitem__(key)


def test_the_work_is_linear_in_text_and_stop_string():
    length = 20_000
    Counted.reads = 0
    detokenizer = Detokenizer(Bytes(), [Counted("z" * length)])
    for _ in range(300):
        detokenizer.add(ord("z"))
        detokenizer.add(ord("a"))
    assert Counted.reads < 3 * (length + 600)
