"""A method of one's own, in one file:

    fastmem eval --task world_swap --limit 20 --methods base,fastmem,examples/my_method.py --output runs/mine

This one amplifies what the memory changed and what the document changed, with half the weight each: the contrasts of
fastmem+cd and of cad in one.
"""

from torch import Tensor

ALPHA = 0.5

# Which logits of the next token `scores` gets. One of the first two is the weights that answer.
#   memorized          with the memory, the document in the prompt
#   original           without the memory, the document in the prompt
#   without_document   without the memory, the question alone
#   early_layers       the candidate layers of DoLa, [L, V]
NEEDS = ("memorized", "original", "without_document")


def scores(logits: dict[str, Tensor]) -> Tensor:
    """The scores [V] of the next token of one answer, from logits [V] in float32; -inf excludes a token."""
    against = (logits["original"].log_softmax(-1) + logits["without_document"].log_softmax(-1)) / 2
    return (1 + ALPHA) * logits["memorized"].log_softmax(-1) - ALPHA * against
