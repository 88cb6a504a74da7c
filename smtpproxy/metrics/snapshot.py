"""Figures: what a worker tells of itself in plain numbers, and how those of all workers add up.

Once a second each worker sends what `App.figures` returns to the supervisor, as its heartbeat; the
supervisor keeps the last of each worker, and `Totals.sum` is the whole service.

To add one, put it into what `App.figures` returns: under `counts` what only grows (it is kept when
the worker ends), under `gauges` what holds for now (it goes with the worker), under `lists` a short
list of plain values (the lists of all workers are joined; whoever makes one bounds it).  Names are
snake_case nouns, each told of in `smtpproxy.metrics.exposition`; a label, if there is one, stands
in braces as Prometheus writes it: `refused{reason="sessions"}`.
"""

from msgspec import Struct, field

Number = int | float


class Figures(Struct, kw_only=True):
    """The figures of one worker, or the sums of several."""

    counts: dict[str, Number] = field(default_factory=dict)
    gauges: dict[str, Number] = field(default_factory=dict)
    lists: dict[str, list[object]] = field(default_factory=dict)


def quoted(value: str) -> str:
    """Return a label's value in its quotes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Totals:
    """The last figures of each worker, and the counts of those that have ended."""

    def __init__(self) -> None:
        self._ended: dict[str, Number] = {}
        self._workers: dict[int, Figures] = {}

    def take(self, worker: int, figures: Figures) -> None:
        """Take a worker's figures in place of its last ones."""
        self._workers[worker] = figures

    def forget(self, worker: int) -> None:
        """Follow the end of a worker: what it counted stays counted."""
        figures = self._workers.pop(worker, None)
        if figures is not None:
            _add(self._ended, figures.counts)

    def sum(self) -> Figures:
        """Return the figures of the whole service."""
        whole = Figures(counts=dict(self._ended))
        for figures in self._workers.values():
            _add(whole.counts, figures.counts)
            _add(whole.gauges, figures.gauges)
            for name, items in figures.lists.items():
                whole.lists.setdefault(name, []).extend(items)
        return whole


def _add(sums: dict[str, Number], numbers: dict[str, Number]) -> None:
    for name, number in numbers.items():
        sums[name] = sums.get(name, 0) + number
