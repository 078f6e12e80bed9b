"""The few subjects that one document is about, so that its sentences belong together."""

from collections.abc import Callable, Sequence
from random import Random

from fastmem.tiny.world.world_facts import Fact
from fastmem.tiny.world.world_names import SUBJECTS

About = Callable[[str, str], Sequence[Fact]]
"""(subject, its kind) -> the facts that a document can state about it."""
Fresh = Callable[[str], str]
"""kind -> another subject of this kind."""


class Cast:
    """Draws facts about one subject and a few others: of the same kind, named by its facts, or of any kind.

    about: the facts about a subject; none for one that nothing is known about. fresh: draws another subject.
    """

    def __init__(self, subject: str, kind: str, random: Random, about: About, fresh: Fresh) -> None:
        self.random, self.about, self.fresh, self.kind = random, about, fresh, kind
        self.members: list[Sequence[Fact]] = [about(subject, kind)]

    def other(self, near: Fact | None = None) -> Fact:
        """The next fact. near: one whose relation the facts of other subjects often have, too."""
        random = self.random
        while True:
            dice = random.random()
            if dice < 0.35 and self.members[0]:
                return self._pick(self.members[0])
            if len(self.members) == 1 or dice > 0.86:
                self.members.append(self._joins())
            group = self.members[1 + int(random.random() * (len(self.members) - 1))]
            if near is not None and random.random() < 0.5:
                group = [fact for fact in group if fact.relation is near.relation] or group
            if group:
                return self._pick(group)

    def _pick(self, group: Sequence[Fact]) -> Fact:
        return group[int(self.random.random() * len(group))]

    def _joins(self) -> Sequence[Fact]:
        """The facts about a subject that the document did not have so far."""
        dice = self.random.random()
        links = (
            [fact for fact in self.members[-1] if fact.relation.answer in ("person", "town")] if dice < 0.35 else []
        )
        if links:
            link = self._pick(links)
            if found := self.about(link.answer, link.relation.answer):
                return found
        kind = self.kind if dice < 0.85 else self.random.choice(list(SUBJECTS))
        return self.about(self.fresh(kind), kind)
