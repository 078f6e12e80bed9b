"""Finding stop strings in text that arrives in pieces, in time linear in the text and the stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """What is known after some text: how many characters of each stop string its end matches, and its length."""

    matched: tuple[int, ...]
    length: int = 0

    @property
    def held(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        return max(self.matched, default=0)


class StopStrings:
    """The search of Knuth, Morris and Pratt (1977) for several strings, which never looks at a character twice."""

    def __init__(self, stops: Sequence[str]):
        self.stops = [stop for stop in stops if stop]
        self._fallbacks = [_fallback(stop) for stop in self.stops]
        self.nothing = Seen((0,) * len(self.stops))

    def skip(self, seen: Seen, text: str) -> Seen:
        """What is known after `text` follows what was seen, if no stop string may begin before its end."""
        return Seen(self.nothing.matched, seen.length + len(text))

    def read(self, seen: Seen, text: str) -> tuple[Seen, int | None]:
        """(what is known after `text` follows what was seen, where the first stop string begins or None)."""
        matched, starts = [], []
        for stop, fallback, count in zip(self.stops, self._fallbacks, seen.matched, strict=True):
            for place, character in enumerate(text, seen.length + 1):
                while count and stop[count] != character:
                    count = fallback[count]
                if stop[count] == character:
                    count += 1
                if count == len(stop):
                    starts.append(place - count)
                    count = 0
                    break
            matched.append(count)
        return Seen(tuple(matched), seen.length + len(text)), min(starts, default=None)


def _fallback(stop: str) -> list[int]:
    """For each number of matched characters, the longest shorter match that ends there, too."""
    table = [0, 0]
    for character in stop[1:]:
        count = table[-1]
        while count and stop[count] != character:
            count = table[count]
        table.append(count + (stop[count] == character))
    return table
