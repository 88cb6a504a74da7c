"""Counts and durations in bounded memory, however many different ones a file has."""

from collections import Counter
from collections.abc import Hashable, Iterable
from heapq import nlargest
from math import exp, log
from typing import Generic, TypeVar

MOST_KEYS = 10_000
"""How many keys are counted one by one."""
_PER_E = 50
"""Buckets of durations for each factor of e: each is 2 % wide."""
_OFFSET = 1000
_SHORTEST_S = 1e-7
"""What a duration of 0 counts as: the clocks of traces are not finer."""

Key = TypeVar("Key", bound=Hashable)


class BoundedCounts(Generic[Key]):
    """Several sums for each of many keys.

    Where there are too many keys, those that are not among the largest in any sum are dropped; one
    that comes again starts again at 0.

    Args:
        sums: How many sums each key has.
        most: How many keys are kept.
    """

    counts: dict[Key, list[int]]
    """The sums of each key."""
    totals: list[int]
    """The sums of all keys together, also of those that were dropped."""
    dropped: bool
    """Whether keys were dropped."""

    def __init__(self, sums: int, most: int = MOST_KEYS) -> None:
        self.counts = {}
        self.totals = [0] * sums
        self.dropped = False
        self._sums = sums
        self._most = most

    def add(self, key: Key, *amounts: int) -> None:
        """Add an amount to each sum of a key."""
        sums = self.counts.get(key)
        if sums is None:
            if len(self.counts) >= self._most:
                self._drop()
            self.counts[key] = list(amounts)
        else:
            for at, amount in enumerate(amounts):
                sums[at] += amount
        for at, amount in enumerate(amounts):
            self.totals[at] += amount

    def _drop(self) -> None:
        self.dropped = True
        kept: dict[Key, list[int]] = {}
        for at in range(self._sums):
            kept.update(self._largest(at, self._most // 2 // self._sums))
        self.counts = kept

    def _largest(self, at: int, most: int) -> list[tuple[Key, list[int]]]:
        return nlargest(most, self.counts.items(), key=lambda item: item[1][at])

    def largest(self, most: int, at: int = 0) -> list[tuple[Key, list[int]]]:
        """Return the keys with the largest sum that is not 0, and all their sums."""
        return [item for item in self._largest(at, most) if item[1][at]]


class Durations:
    """A histogram of durations from which percentiles are exact to one percent."""

    __slots__ = ("_buckets", "count", "longest", "seconds")

    count: int
    """How many durations."""
    seconds: float
    """Their sum."""
    longest: float
    """The longest one."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.seconds = self.longest = 0.0

    def add(self, durations: Iterable[float]) -> None:
        """Add durations in seconds."""
        durations = list(durations)
        self.count += len(durations)
        self.seconds += sum(durations)
        self.longest = max(self.longest, *durations) if durations else self.longest
        self._buckets.update(
            [int(log(each or _SHORTEST_S) * _PER_E + _OFFSET) for each in durations]
        )

    def percentile(self, percent: int) -> float:
        """Return the duration that so many of a hundred do not exceed; 0 if there is none."""
        rank = self.count * percent / 100
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(exp((bucket - _OFFSET + 0.5) / _PER_E), self.longest)
        return 0.0
