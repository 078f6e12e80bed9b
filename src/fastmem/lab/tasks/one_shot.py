"""The worked examples of the one-shot method (the paper's Table 2), one per kind of task, in our own words.

They speak of made-up things, so that they teach the form of an answer and no fact. Each asks in the words of its task.
"""

from dataclasses import replace

from fastmem.lab.tasks import cnndm, wikihow, xsum
from fastmem.lab.tasks.example import Example, Shot

_LIGHTHOUSE = (
    "The lighthouse of Orvel Point was finished in 1871 after nine years of work. Its builder, Marta Quill, had "
    "the lamp brought over the mountains on forty mules, and the keepers lived on goat's milk and dried fish."
)
QUESTION = Shot(
    Example("one-shot", "question", _LIGHTHOUSE, "Who built the lighthouse of Orvel Point?", ("Marta Quill",)),
    "The answer is: Marta Quill",
)
CHOICE = Shot(
    Example(
        "one-shot",
        "choice",
        'Write a sentence that ends in the word "teapot".',
        "The keeper climbed the stairs and lit the",
        ("teapot",),
        ("lamp",),
        ("lamp", "teapot"),
    ),
    "The answer is: teapot",
)

_FERRY = (
    "The ferry between Orvel Point and Sarn Harbour will not run this winter, the harbour office said on Monday. "
    "A crack was found in the hull of the Grey Heron, the only ship on the line, when it was lifted out of the "
    "water. Repairs are expected to take until March and to cost twice what the town has set aside. Some two "
    "hundred people who cross every day will be carried by bus over the pass, a journey of three hours instead of "
    "forty minutes. The mayor of Sarn asked for help from the province, which has not yet replied."
)
_FERRY_SENTENCES = (
    "The ferry between Orvel Point and Sarn Harbour stops until March because its only ship has a cracked hull.",
    "Buses over the pass will carry the two hundred daily passengers, in three hours instead of forty minutes.",
    "The repair costs twice what the town set aside, and the province has not answered the mayor's request for help.",
)
_ROPE = (
    "Lay the rope in a figure of eight on a dry floor, so that it cannot twist. Check every metre with your "
    "fingers; a soft spot means that the core is damaged and the rope has to go. Wash it by hand in cold water "
    "without soap, then hang it over two wide pegs, away from the sun, until it no longer feels damp."
)


def _summary(article: str, instruction: str, reply: str) -> Shot:
    return Shot(Example("one-shot", "summary", article, instruction, (reply,)), reply)


XSUM = _summary(_FERRY, xsum.INSTRUCTION, _FERRY_SENTENCES[0])
CNNDM = _summary(_FERRY, cnndm.INSTRUCTION, " ".join(_FERRY_SENTENCES))
WIKIHOW = _summary(
    _ROPE, wikihow.INSTRUCTION, "lay out the rope.\nfeel for damage.\nwash it by hand.\nhang it to dry."
)

# `world_open` asks without a context, and so does its shot.
QUESTION_ALONE = replace(QUESTION, example=replace(QUESTION.example, context=""))
