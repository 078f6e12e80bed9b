"""How varied sampled continuations are, and how much of them is copied. Everything is counted in tokens."""

import math
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

Text = Sequence[int]  # token ids
SMALL = 0.1  # what stands for 0 matching n-grams, so that one length without a match does not make BLEU 0


def ngrams(tokens: Text, n: int) -> Counter[tuple[int, ...]]:
    """How often every run of n tokens occurs."""
    return Counter(tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1))


def distinct(texts: Sequence[Text], n: int) -> float:
    """distinct-n (arXiv 1510.03055): the share of different ones among the n-grams of all texts; 0 without any."""
    counts = sum((ngrams(text, n) for text in texts), Counter[tuple[int, ...]]())
    return len(counts) / counts.total() if counts else 0.0


def bleu(text: Text, references: Sequence[Text], longest: int = 4) -> float:
    """BLEU (Papineni et al. 2002) of one text against several references, with n-grams of 1 to `longest` tokens.

    The counts of every n-gram are clipped to the largest count in a reference; a text shorter than the reference
    nearest in length is penalized. Lengths without a match count as `SMALL` matches (Chen and Cherry 2014, method 1).
    0 for a text without a matching token.
    """
    logs = []
    for n in range(1, longest + 1):
        own = ngrams(text, n)
        allowed: Counter[tuple[int, ...]] = Counter()
        for reference in references:
            allowed |= ngrams(reference, n)
        matches = (own & allowed).total()
        if n == 1 and matches == 0:
            return 0.0
        logs.append(math.log((matches or SMALL) / max(own.total(), 1)))
    nearest = min((len(reference) for reference in references), key=lambda length: (abs(length - len(text)), length))
    penalty = min(0.0, 1 - nearest / len(text))
    return math.exp(sum(logs) / longest + penalty)


def self_bleu(texts: Sequence[Text]) -> float:
    """Self-BLEU (arXiv 1802.01886): the mean BLEU of every text against all others. 1: all are equal."""
    others = [[*texts[:number], *texts[number + 1 :]] for number in range(len(texts))]
    return sum(map(bleu, texts, others)) / len(texts)


def longest_copied_run(text: Text, documents: Sequence[Text]) -> int:
    """The length of the longest run of tokens that the text shares with one of the documents."""
    runs = (SequenceMatcher(None, text, document, autojunk=False).find_longest_match() for document in documents)
    return max((run.size for run in runs), default=0)


def copied_share(text: Text, documents: Sequence[Text], n: int) -> float:
    """The share of the text's n-grams that stand in one of the documents; 0 without any."""
    known = {each for document in documents for each in ngrams(document, n)}
    own = ngrams(text, n)
    return sum(count for each, count in own.items() if each in known) / own.total() if own else 0.0
