"""The rates and reply times of the last hour, for the charts of the live page.

There is a row for every few seconds, kept as the JSON that viewers get, so that an hour takes less
than a megabyte.  Times are those of the monotonic clock, so that a step of the wall clock does not
shift the charts.
"""

from collections import deque
from typing import NamedTuple

import msgspec
from msgspec import Struct

from smtpproxy.admin.page_metrics import PageTotals, ReplyTimes

ROW_S = 5.0
"""The shortest period of a row."""
KEPT_ROWS = 720
"""The rows of one hour."""
QUANTILE = 0.95
"""The quantile of reply times in the charts."""


class FigureRow(Struct, array_like=True):
    """The rates and reply times of one period."""

    at: float
    """The end of the period, on the monotonic clock."""
    seconds: float
    """The length of the period."""
    relayed: float
    """Relayed messages in a second."""
    refused: float
    """Refused messages in a second."""
    saved: float
    """Round trips saved in a second."""
    opened: float
    """New sessions in a second."""
    open: float
    """Open sessions at the end of the period."""
    replies: dict[str, tuple[int, float, float]]
    """By verb: the number of replies, and their mean time and 95th percentile in seconds."""


class _Moment(NamedTuple):
    at: float
    totals: PageTotals
    replies: dict[str, ReplyTimes]


class FigureHistory:
    """Makes rows from totals, and keeps those of the last hour."""

    def __init__(self) -> None:
        self.rows: deque[msgspec.Raw] = deque(maxlen=KEPT_ROWS)
        self._row_began: _Moment | None = None
        self._lately: deque[_Moment] = deque()  # of the last ROW_S seconds

    def is_due(self, now: float) -> bool:
        """Return whether the next row can be made."""
        return self._row_began is None or now - self._row_began.at >= ROW_S

    def take(self, now: float, totals: PageTotals, replies: dict[str, ReplyTimes]) -> FigureRow:
        """Add the totals of this moment; return the row of the last few seconds."""
        moment = _Moment(now, totals, replies)
        if self._row_began is None:
            self._row_began = moment
        elif self.is_due(now):
            self.rows.append(msgspec.Raw(msgspec.json.encode(_row(self._row_began, moment))))
            self._row_began = moment
        while len(self._lately) > 1 and now - self._lately[1].at >= ROW_S:
            self._lately.popleft()
        lately = _row(self._lately[0] if self._lately else moment, moment)
        if not self._lately or now - self._lately[-1].at >= ROW_S / 10:
            self._lately.append(moment)
        return lately


def _row(old: _Moment, new: _Moment) -> FigureRow:
    seconds = new.at - old.at

    def rate(before: float, now: float) -> float:
        return round(max(0.0, now - before) / seconds, 4) if seconds > 0 else 0.0

    return FigureRow(
        round(new.at, 3),
        round(seconds, 3),
        rate(old.totals.relayed, new.totals.relayed),
        rate(old.totals.refused, new.totals.refused),
        rate(old.totals.saved, new.totals.saved),
        rate(old.totals.opened, new.totals.opened),
        new.totals.open,
        _reply_times(old.replies, new.replies),
    )


def _reply_times(
    old: dict[str, ReplyTimes], new: dict[str, ReplyTimes]
) -> dict[str, tuple[int, float, float]]:
    found = {}
    for verb, times in new.items():
        before = old.get(verb) or ReplyTimes(times.bounds, 0, [0] * len(times.counts))
        counts = [now - was for now, was in zip(times.counts, before.counts, strict=True)]
        replies = sum(counts)
        if replies > 0:
            mean = max(0.0, times.seconds - before.seconds) / replies
            found[verb] = (replies, round(mean, 5), round(quantile(times.bounds, counts), 5))
    return found


def quantile(bounds: tuple[float, ...], counts: list[int], part: float = QUANTILE) -> float:
    """Return the time within which this part of the replies came.

    It is interpolated as Prometheus' histogram_quantile does.

    Args:
        bounds: The upper bounds of the histogram, without the infinite one.
        counts: How many replies lie between two bounds; the last: above all.
        part: Between 0 and 1.
    """
    wanted, below = sum(counts) * part, 0
    for at, count in enumerate(counts[:-1]):
        if count and below + count >= wanted:
            low = bounds[at - 1] if at else 0.0
            return low + (bounds[at] - low) * (wanted - below) / count
        below += count
    return bounds[-1]
