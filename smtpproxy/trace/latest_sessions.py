"""The latest sessions of trace files, which have them in another order, in bounded memory."""

import heapq
from typing import Generic, TypeVar

Kept = TypeVar("Kept")


class LatestSessions(Generic[Kept]):
    """Keeps something of each of the latest sessions.

    Args:
        last: The most sessions that are wanted; None for all.
        most: The size of all that is kept.
    """

    count: int
    """How many sessions were added."""
    too_many: int
    """How many of them were dropped because of the size."""

    def __init__(self, last: int | None, most: int) -> None:
        self.count = self.too_many = 0
        self._last = last
        self._most = most
        self._kept: list[tuple[float, int, int, Kept]] = []  # a heap, the earliest one first
        self._size = 0

    def add(self, opened: float, kept: Kept, size: int = 1) -> None:
        """Add a session, or one of its messages.

        Args:
            opened: When it began.
            kept: What is kept of it.
            size: The size of that.
        """
        self.count += 1
        heapq.heappush(self._kept, (opened, self.count, size, kept))
        self._size += size
        if self._last is not None and len(self._kept) > self._last:
            self._drop()
        while self._size > self._most:
            self._drop()
            self.too_many += 1

    def _drop(self) -> None:
        _, _, size, _ = heapq.heappop(self._kept)
        self._size -= size

    def kept(self) -> list[Kept]:
        """Return what was kept, in the order in which the sessions began."""
        return [kept for *_, kept in sorted(self._kept, key=lambda each: each[:2])]
