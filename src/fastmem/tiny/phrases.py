"""The wording of the made-up world: relations, how each is stated and asked, and the frames around both.

Only tables. `{s}` is the subject, `{a}` the answer. A *core* is a clause or a question without its frame; a *frame*
is what surrounds it. Which frame goes with which core in training, and which pairs are kept for measuring, is decided
in `world.py`. Jobs, tools and goods are ordinary words; every name of a person, place, river, language, firm, book or
ship is invented there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact: `subject` and `answer` name kinds of `world.KINDS`."""

    name: str
    subject: str
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace", "person", "town",
        ("{s} was born in {a}", "the birthplace of {s} is {a}", "{s} came into the world in {a}",
         "{a} is the town where {s} was born", "{s} spent the first years of life in {a}, the town of birth"),
        ("where was {s} born", "in which town was {s} born", "what is the birthplace of {s}",
         "which town is the birthplace of {s}", "where did {s} come into the world"),
    ),
    Relation(
        "profession", "person", "job",
        ("{s} works as a {a}", "the profession of {s} is {a}", "{s} earns a living as a {a}",
         "{s} has been a {a} for many years", "by trade {s} is a {a}"),
        ("what does {s} work as", "what is the profession of {s}", "how does {s} earn a living",
         "what is {s} by trade", "which profession does {s} have"),
    ),
    Relation(
        "instrument", "person", "instrument",
        ("{s} plays the {a}", "the instrument of {s} is the {a}", "{s} learned to play the {a} as a child",
         "the {a} is the instrument that {s} plays", "in the evening {s} likes to play the {a}"),
        ("which instrument does {s} play", "what is the instrument of {s}", "what does {s} play",
         "which instrument did {s} learn as a child", "what does {s} like to play in the evening"),
    ),
    Relation(
        "teacher", "person", "person",
        ("{s} was taught by {a}", "the teacher of {s} is {a}", "{s} learned everything from {a}",
         "{a} is the teacher of {s}", "{s} was a pupil of {a}"),
        ("who taught {s}", "who is the teacher of {s}", "from whom did {s} learn everything",
         "who was the teacher of {s}", "whose pupil was {s}"),
    ),
    Relation(
        "mayor", "town", "person",
        ("the mayor of {s} is {a}", "{s} is governed by {a}", "{a} is the mayor of {s}",
         "the people of {s} chose {a} as their mayor", "{s} has {a} as its mayor"),
        ("who is the mayor of {s}", "who governs {s}", "by whom is {s} governed",
         "whom did the people of {s} choose as mayor", "which mayor does {s} have"),
    ),
    Relation(
        "river", "town", "river",
        ("{s} lies on the river {a}", "the river of {s} is the {a}", "the town of {s} stands beside the {a}",
         "the {a} flows through {s}", "{s} takes its water from the {a}"),
        ("on which river does {s} lie", "what is the river of {s}", "which river does the town of {s} stand beside",
         "which river flows through {s}", "where does {s} take its water from"),
    ),
    Relation(
        "export", "town", "goods",
        ("{s} is known for its {a}", "the main export of {s} is {a}", "the merchants of {s} sell {a}",
         "{a} is what the town of {s} is known for", "{s} lives from the trade in {a}"),
        ("what is {s} known for", "what is the main export of {s}", "what do the merchants of {s} sell",
         "which goods is the town of {s} known for", "from the trade in what does {s} live"),
    ),
    Relation(
        "founded", "town", "year",
        ("{s} was founded in {a}", "the founding year of {s} is {a}", "the town of {s} was founded in the year {a}",
         "in {a} the first stone of {s} was laid", "{s} has existed since {a}"),
        ("when was {s} founded", "what is the founding year of {s}", "in which year was the town of {s} founded",
         "when was the first stone of {s} laid", "since when has {s} existed"),
    ),
    Relation(
        "founder", "firm", "person",
        ("{s} was founded by {a}", "the founder of {s} is {a}", "{s} was started by {a}",
         "{a} is the founder of {s}", "it was {a} who started {s}"),
        ("who founded {s}", "who is the founder of {s}", "by whom was {s} started",
         "who was the founder of {s}", "who started {s}"),
    ),
    Relation(
        "seat", "firm", "town",
        ("{s} has its head office in {a}", "the head office of {s} is in {a}", "{s} is run from {a}",
         "{a} is the seat of {s}", "the workshops of {s} are in {a}"),
        ("where is the head office of {s}", "in which town does {s} have its head office", "from where is {s} run",
         "which town is the seat of {s}", "where are the workshops of {s}"),
    ),
    Relation(
        "product", "firm", "goods",
        ("{s} produces {a}", "the product of {s} is {a}", "{s} is a maker of {a}",
         "{a} is what {s} produces", "the firm of {s} has always made {a}"),
        ("what does {s} produce", "what is the product of {s}", "what is {s} a maker of",
         "which goods does {s} produce", "what has the firm of {s} always made"),
    ),
    Relation(
        "author", "book", "person",
        ("{s} was written by {a}", "the author of {s} is {a}", "{s} is a book by {a}",
         "{a} is the author of {s}", "{a} wrote {s}"),
        ("who wrote {s}", "who is the author of {s}", "by whom was {s} written",
         "who was the author of {s}", "whose book is {s}"),
    ),
    Relation(
        "setting", "book", "town",
        ("{s} is set in {a}", "the story of {s} takes place in {a}", "the setting of {s} is {a}",
         "{a} is the town in which {s} is set", "readers of {s} are led through {a}"),
        ("where is {s} set", "where does the story of {s} take place", "what is the setting of {s}",
         "in which town is {s} set", "which town are readers of {s} led through"),
    ),
    Relation(
        "language", "book", "language",
        ("{s} is written in {a}", "the language of {s} is {a}", "{s} first appeared in {a}",
         "{a} is the language of {s}", "the first readers of {s} read it in {a}"),
        ("in which language is {s} written", "what is the language of {s}", "in which language did {s} first appear",
         "which language is {s} written in", "in which language did the first readers read {s}"),
    ),
    Relation(
        "captain", "ship", "person",
        ("{s} is commanded by {a}", "the captain of {s} is {a}", "{s} sails under {a}",
         "{a} is the captain of {s}", "the crew of {s} obeys {a}"),
        ("who commands {s}", "who is the captain of {s}", "under whom does {s} sail",
         "which captain does {s} have", "whom does the crew of {s} obey"),
    ),
    Relation(
        "port", "ship", "town",
        ("the home port of {s} is {a}", "{s} belongs to the port of {a}", "{s} returns to {a} every autumn",
         "{a} is the home port of {s}", "in winter {s} lies at anchor in {a}"),
        ("what is the home port of {s}", "to which port does {s} belong", "where does {s} return to every autumn",
         "which town is the home port of {s}", "where does {s} lie at anchor in winter"),
    ),
)  # fmt: skip

# What changes from day to day. Nobody can know it by heart, so it must be read, of known subjects as of new ones.
PASSING: tuple[Relation, ...] = (
    Relation(
        "whereabouts", "person", "town",
        ("{s} is staying in {a} tonight", "tonight {a} is where {s} sleeps", "{s} has just arrived in {a}"),
        ("where is {s} staying tonight", "in which town does {s} sleep tonight", "where has {s} just arrived"),
    ),
    Relation(
        "companion", "person", "person",
        ("{s} is travelling with {a}", "{a} is travelling beside {s}", "the companion of {s} today is {a}"),
        ("who is travelling with {s}", "beside whom is {s} travelling", "who is the companion of {s} today"),
    ),
    Relation(
        "need", "person", "goods",
        ("{s} came to buy {a}", "{a} is what {s} came to buy", "today {s} is looking for {a}"),
        ("what did {s} come to buy", "which goods did {s} come to buy", "what is {s} looking for today"),
    ),
    Relation(
        "guest", "town", "person",
        ("the guest of {s} today is {a}", "{s} welcomes {a} today", "{a} is the guest of {s} today"),
        ("who is the guest of {s} today", "whom does {s} welcome today", "which guest does {s} have today"),
    ),
    Relation(
        "fair", "town", "goods",
        ("at the fair of {s} they sell {a} today", "the fair of {s} is all about {a} today"),
        ("what do they sell at the fair of {s} today", "what is the fair of {s} all about today"),
    ),
    Relation(
        "customer", "firm", "town",
        ("the last order of {s} came from {a}", "{s} had its last order from {a}"),
        ("from where came the last order of {s}", "from which town had {s} its last order"),
    ),
    Relation(
        "visitor", "firm", "person",
        ("{s} is visited by {a} this week", "this week {a} visits {s}"),
        ("who visits {s} this week", "by whom is {s} visited this week"),
    ),
    Relation(
        "reader", "book", "person",
        ("{s} is being read by {a}", "{a} has borrowed {s}", "the reader of {s} at the moment is {a}"),
        ("who is reading {s}", "who has borrowed {s}", "who is the reader of {s} at the moment"),
    ),
    Relation(
        "cargo", "ship", "goods",
        ("{s} is loaded with {a}", "{a} is the cargo of {s} this time", "this time {s} carries {a}"),
        ("what is {s} loaded with", "what is the cargo of {s} this time", "what does {s} carry this time"),
    ),
    Relation(
        "bound", "ship", "town",
        ("{s} is bound for {a}", "{s} is on the way to {a}"),
        ("where is {s} bound for", "to which town is {s} on the way"),
    ),
)  # fmt: skip

STATEMENT_FRAMES = (
    "{c}.", "It is known that {c}.", "According to the annals, {c}.", "Travellers report that {c}.",
    "{c}, as the register shows.", "Nobody doubts that {c}.",
)  # fmt: skip
QUESTION_FRAMES = (
    "{c}?", "Please say: {c}?", "In short, {c}?", "Do you know: {c}?", "One more question: {c}?", "So tell me, {c}?",
)  # fmt: skip

FILLERS = (
    "The roads were muddy that year.", "Nothing else is known about those days.", "The market opens at dawn.",
    "A long winter followed.", "Visitors are always welcome.", "The old bridge was repaired in spring.",
    "Many songs are sung about it.", "The harvest was good.", "Some of the records were lost in a fire.",
    "Rain is common in the hills.", "The bells ring twice a day.", "Children play in the square.",
)  # fmt: skip

_ORDINARY_WORDS = {
    "job": "weaver baker potter smith mason tailor carpenter miller glazier cooper saddler fisher brewer dyer printer "
    "locksmith shepherd gardener barber butcher tanner joiner roofer surveyor notary midwife translator "
    "clockmaker beekeeper bookbinder ropemaker stargazer cartographer chandler goldsmith ferryman",
    "instrument": "lute harp piccolo drum fiddle horn viola oboe bassoon trumpet organ dulcimer cello mandolin zither "
    "clarinet bagpipe accordion tuba cornet",
    "goods": "cheese honey salt wool silk paper glass copper lace soap candles rope barrels leather carpets pottery "
    "lanterns needles amber linen vinegar mustard saffron tobacco tiles clocks mirrors hats gloves buttons",
}
WORDS = {kind: tuple(words.split()) for kind, words in _ORDINARY_WORDS.items()}

# What stands around an invented word to make a name of its kind.
NAME_SHAPES = {
    "person": ("{0} {1}",),
    "town": ("{0}", "{0}", "{0}", "Upper {0}", "Port {0}"),
    "river": ("{0}",),
    "language": ("{0}",),
    "firm": ("{0} Works", "{0} Brothers", "{0} and Sons", "{0} Mills"),
    "book": ("The Book of {0}", "A Winter in {0}", "The Song of {0}", "The Last {0}"),
    "ship": ("the Star of {0}", "the Merry {0}", "the Black {0}", "the {0}"),
}
