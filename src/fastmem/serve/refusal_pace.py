"""A client whose requests are refused again and again is served ever more slowly, so that others do not wait for it.

Refusing a request takes the event loop 1 to 90 ms (a small body, 260,000 token ids), and a client that is refused may
ask again at once. So every refusal costs its client a debt of the time it took, divided by `share`. The next request
of a client that owes more than `free_seconds` is read when it owes less.
"""

import time
from collections.abc import Callable

# What a request of a client in debt is expected to cost while it is under way, so that they are not read all at once.
RESERVED_SECONDS = 0.01
LONGEST_WAIT_SECONDS = 10.0


class RefusalPace:
    """share: the part of the time that the refusals of one client may take. Used by the event loop only.

    A client of None owes nothing.
    """

    def __init__(self, share: float, free_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic):
        self.share, self.free_seconds, self._clock = share, free_seconds, clock
        self._paid_at: dict[str, float] = {}

    def wait(self, client: str | None) -> float | None:
        """Seconds that the next request of a client has to wait; None if they are too many, and it must be refused."""
        wait = max(self._debt(client) - self.free_seconds, 0.0)
        return wait if wait <= LONGEST_WAIT_SECONDS else None

    def begin(self, client: str | None) -> float:
        """Count a request that begins. Returns what `end` needs: the debt that is reserved for it, in seconds."""
        reserved = RESERVED_SECONDS / self.share if self._debt(client) > self.free_seconds else 0.0
        self._owe(client, reserved)
        return reserved

    def end(self, client: str | None, reserved: float, seconds: float) -> None:
        """Count a request that has ended. seconds: what it took if it was refused, otherwise 0."""
        self._owe(client, seconds / self.share - reserved)

    def _debt(self, client: str | None) -> float:
        return max(self._paid_at.get(client or "", 0.0) - self._clock(), 0.0)

    def _owe(self, client: str | None, seconds: float) -> None:
        if not seconds or client is None:
            return
        now = self._clock()
        self._paid_at[client] = now + max(self._debt(client) + seconds, 0.0)
        if len(self._paid_at) > 10_000:
            self._paid_at = {name: at for name, at in self._paid_at.items() if at > now}
