"""Connection slots: old MTAs die of too many connections, so clients wait for their turn."""

import asyncio
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Protocol

SlotAnswer = Callable[[bool], None]
"""Is told whether a place was granted."""


class ConnectionSlots(Protocol):
    """Where a session asks for a place at its backend."""

    def ask(self, ticket: Hashable, answer: SlotAnswer) -> None:
        """Ask for a place; `answer` is called once, maybe at once, unless `leave` comes first."""

    def leave(self, ticket: Hashable) -> None:
        """Give the place back, or wait for one no more."""


class SlotQueue:
    """Gives out a number of places, in the order in which they were asked for.

    limit: how many there are.  max_wait: the seconds after which who waits is refused.
    taken, waiting: how many have a place, and how many wait for one.
    """

    def __init__(self, limit: int, max_wait: float) -> None:
        self.limit = limit
        self.max_wait = max_wait
        self._taken: set[Hashable] = set()
        self._waiting: dict[Hashable, tuple[float, SlotAnswer]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def taken(self) -> int:
        return len(self._taken)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def ask(self, ticket: Hashable, answer: SlotAnswer) -> None:
        """Ask for a place."""
        if len(self._taken) < self.limit and not self._waiting:
            self._taken.add(ticket)
            answer(True)
            return
        self._waiting[ticket] = (monotonic() + self.max_wait, answer)
        self._arm()

    def leave(self, ticket: Hashable) -> None:
        """Give the place back, or wait for one no more."""
        if self._waiting.pop(ticket, None) is None:
            self._taken.discard(ticket)
            self.serve()

    def serve(self) -> None:
        """Let those in who have waited longest; call it when `limit` has changed."""
        while self._waiting and len(self._taken) < self.limit:
            ticket = next(iter(self._waiting))
            _, answer = self._waiting.pop(ticket)
            self._taken.add(ticket)
            answer(True)

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            deadline, _ = next(iter(self._waiting.values()))
            delay = max(deadline - monotonic(), 0.01)
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        """Refuse who has waited for too long: all wait equally long, so the first come first."""
        self._timer = None
        now = monotonic()
        while self._waiting:
            ticket, (deadline, answer) = next(iter(self._waiting.items()))
            if deadline > now:
                break
            del self._waiting[ticket]
            answer(False)
        self._arm()
