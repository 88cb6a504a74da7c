"""What a worker tells of itself in plain numbers, and how those of all workers add up.

Once a second each worker sends what `App.snapshot` returns to the supervisor, as its heartbeat; the
supervisor keeps the last of each worker, and `SnapshotTotals.sum` is the whole service.

The rows of `smtpproxy.metrics.definitions` tell what goes under `counts` and what under `gauges`.
Under `lists` are short lists of plain values (the lists of all workers are joined; whoever makes
one bounds it).
"""

from msgspec import Struct, field

from smtpproxy.metrics.definitions import COUNTER, DEFINITIONS

Number = int | float


class MetricsSnapshot(Struct, kw_only=True):
    """The figures of one worker, or the sums of several."""

    counts: dict[str, Number] = field(default_factory=dict)
    gauges: dict[str, Number] = field(default_factory=dict)
    lists: dict[str, list[object]] = field(default_factory=dict)

    def put(self, name: str, number: Number, *labels: str) -> None:
        """Put in the number of a metric, under the values of its labels."""
        row = DEFINITIONS[name]
        (self.counts if row.kind == COUNTER else self.gauges)[row.key(*labels)] = number


class SnapshotTotals:
    """The last figures of each worker, and the counts of those that have ended."""

    def __init__(self) -> None:
        self._ended: dict[str, Number] = {}
        self._workers: dict[int, MetricsSnapshot] = {}

    def take(self, worker: int, snapshot: MetricsSnapshot) -> None:
        """Take a worker's figures in place of its last ones."""
        self._workers[worker] = snapshot

    def forget(self, worker: int) -> None:
        """Follow the end of a worker: what it counted stays counted."""
        snapshot = self._workers.pop(worker, None)
        if snapshot is not None:
            _add(self._ended, snapshot.counts)

    def sum(self) -> MetricsSnapshot:
        """Return the figures of the whole service."""
        whole = MetricsSnapshot(counts=dict(self._ended))
        for snapshot in self._workers.values():
            _add(whole.counts, snapshot.counts)
            _add(whole.gauges, snapshot.gauges)
            for name, items in snapshot.lists.items():
                whole.lists.setdefault(name, []).extend(items)
        return whole


def _add(sums: dict[str, Number], numbers: dict[str, Number]) -> None:
    for name, number in numbers.items():
        sums[name] = sums.get(name, 0) + number
