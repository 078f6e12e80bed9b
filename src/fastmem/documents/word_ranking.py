"""Which documents share words with a question: BM25.

Written here because it is shorter than the use of a library, and `bench/documents.py` measures it
(docs/results/several-documents.md).
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

# Chinese and Japanese are written without spaces: each character counts as a word.
WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{WITHOUT_SPACES}]|[^\W_{WITHOUT_SPACES}]+")


def words(text: str) -> list[str]:
    """The words in lower case, in order."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


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
