"""Which documents share words with a question: BM25.

Written here because it is shorter than the use of a library, and `bench/documents.py` measures it
(docs/results/several-documents.md).
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

# Chinese and Japanese are written without spaces: each character counts as a word.
SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# So are Thai, Lao, Burmese and Khmer, but of so few characters that each two neighbours count as a word.
PAIRED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"


def _vowel_signs_and_accents() -> str:
    """The characters of the Unicode categories M, which `\\w` leaves out, as ranges: a pattern is faster with them."""
    codes = [code for code in range(0x20000) if unicodedata.category(chr(code))[0] == "M"]
    runs = groupby(enumerate(codes), key=lambda numbered: numbered[1] - numbered[0])
    ranges = [[code for _, code in run] for _, run in runs]
    return "".join(f"{chr(one[0])}-{chr(one[-1])}" for one in ranges)


MARKS = _vowel_signs_and_accents()
LETTERS = rf"[^\W_{SINGLE}{PAIRED}]+"
RUN = re.compile(rf"(?:(?=[{PAIRED}])[\w{MARKS}])+")
WORD = re.compile(rf"[{SINGLE}]|{LETTERS}(?:[{MARKS}]+(?:{LETTERS})?)*|{RUN.pattern}")


def words(text: str) -> list[str]:
    """The words in lower case, in order; of the scripts in `PAIRED`, pairs of characters that overlap."""
    found = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word for each in found for word in (_pairs(each) if RUN.match(each) else (each,))]


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(max(1, len(run) - 1))]


def word_scores(question: str, documents: Sequence[str]) -> list[float]:
    """The BM25 score of each document, with the usual k1 = 1.2 and b = 0.75; idf over these documents.

    0 for a document that shares no word with the question.
    """
    counts = [Counter(words(text)) for text in documents]
    lengths = [count.total() for count in counts]
    mean = sum(lengths) / max(len(lengths), 1) or 1.0
    scores = [0.0] * len(counts)
    for word in sorted(set(words(question))):
        having = sum(word in count for count in counts)
        idf = math.log(1 + (len(counts) - having + 0.5) / (having + 0.5))
        for i, count in enumerate(counts):
            shorter = 1.2 * (0.25 + 0.75 * lengths[i] / mean)
            scores[i] += idf * count[word] * 2.2 / (count[word] + shorter)
    return scores
