"""The live feed: the events of the live page, one a second while at least one page is open.

While no page is open, it only keeps the figures of the last hour: a row every few seconds.
"""

import asyncio
from collections import OrderedDict
from time import monotonic, time
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from smtpproxy import __version__
from smtpproxy.admin.figure_history import KEPT_ROWS, FigureHistory, FigureRow
from smtpproxy.admin.health import HealthSource
from smtpproxy.admin.page_metrics import PageTotals, page_totals, reply_times
from smtpproxy.metrics.snapshot import MetricsSnapshot

KEPT_SESSIONS = 200
"""The most sessions that are kept for viewers."""
KEPT_BYTES = 4 * 1024 * 1024
"""The most bytes of all sessions, as JSON; beyond it the oldest are dropped."""
MAX_VIEWERS = 16
"""The most viewers at once."""
UNHEARD = 3
"""After this many events without a report from its worker, an open session counts as lost."""
WAITING = 4
"""Events that may wait for a slow reader; it misses those beyond."""
NEWEST_ROWS = 2
"""The rows of figures in each event; more than one, since a slow viewer misses events."""
INTERVAL_S = 1.0
"""The interval of events."""


class StatusSource(HealthSource, Protocol):
    """The state of the service."""

    @property
    def serving_since(self) -> float:
        """When this process started, on the monotonic clock."""

    @property
    def instance(self) -> str:
        """The name of this instance."""

    def snapshot(self) -> MetricsSnapshot:
        """Return the metrics of the whole service."""

    def look(self, *, full: bool = False) -> None:
        """Make snapshots include sessions for the next few seconds, since the page is open.

        Args:
            full: Whether to include all sessions once, not only those that changed.
        """

    def listeners(self) -> list[str]:
        """Return the addresses that clients connect to."""

    def faults(self) -> list[str]:
        """Return the faults that are injected into sessions."""


class KeptSession(NamedTuple):
    """The last state of a session."""

    encoded: bytes
    """As the page gets it."""
    open: bool


class LiveFeed:
    """Sends the same events to each viewer."""

    def __init__(self, source: StatusSource) -> None:
        self._source = source
        self._history = FigureHistory()
        self._sessions: OrderedDict[str, KeptSession] = OrderedDict()
        self._bytes = 0  # of them
        self._unheard: dict[str, int] = {}  # how many times, by the names of open sessions
        self._viewers: set[asyncio.Queue[bytes]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether there are as many viewers as allowed."""
        return len(self._viewers) >= MAX_VIEWERS

    def start(self) -> None:
        """Start the events and the history of figures."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="live feed")

    def join(self) -> asyncio.Queue[bytes]:
        """Add a viewer; its first event has everything kept, an empty event is the last one."""
        viewer: asyncio.Queue[bytes] = asyncio.Queue(WAITING)
        sessions = list(self._sessions.values())
        viewer.put_nowait(self._event(sessions, self._source.snapshot(), rows=KEPT_ROWS))
        self._source.look(full=not self._viewers)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: asyncio.Queue[bytes]) -> None:
        """Remove a viewer; without any, forget the sessions."""
        self._viewers.discard(viewer)
        if not self._viewers:
            self._sessions.clear()
            self._unheard.clear()
            self._bytes = 0

    def close(self) -> None:
        """Stop, and send each viewer its last event."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for viewer in list(self._viewers):
            if viewer.full():
                viewer.get_nowait()
            viewer.put_nowait(b"")
            self.leave(viewer)

    async def _run(self) -> None:
        """Send an event once a second, for as long as the service runs."""
        while True:
            self.tick()
            await asyncio.sleep(INTERVAL_S)  # the page shows what happens, a second late at most

    def tick(self) -> None:
        """Send the viewers an event; without viewers, only keep figures."""
        if self._viewers:
            self._source.look()
            self.publish()
        elif self._history.is_due(monotonic()):
            self._take_figures(monotonic(), self._source.snapshot())

    def publish(self) -> None:
        """Send an event to all viewers: what has changed."""
        snapshot = self._source.snapshot()
        event = self._event(self._take(snapshot), snapshot)
        for viewer in self._viewers:
            if not viewer.full():
                viewer.put_nowait(event)

    def _take(self, snapshot: MetricsSnapshot) -> list[KeptSession]:
        """Keep the sessions of a snapshot; return those that changed."""
        changed = []
        for item in snapshot.lists.get("sessions", []):
            session = cast("dict[str, Any]", item)
            kept = KeptSession(msgspec.json.encode(session), not session["reason"])
            if self._sessions.get(session["session"]) != kept:
                self._keep(session["session"], kept)
                changed.append(kept)
        changed += self._leave_lost(set(snapshot.lists.get("open_sessions", [])))
        while len(self._sessions) > KEPT_SESSIONS or self._bytes > KEPT_BYTES:
            _, kept = self._sessions.popitem(last=False)
            self._bytes -= len(kept.encoded)
        return changed

    def _keep(self, name: str, kept: KeptSession) -> None:
        before = self._sessions.get(name)
        self._bytes += len(kept.encoded) - (len(before.encoded) if before else 0)
        self._sessions[name] = kept

    def _leave_lost(self, heard: set[object]) -> list[KeptSession]:
        """Return the open sessions that no worker reports any more, marked as such."""
        was, self._unheard = self._unheard, {}
        lost = []
        for name, kept in list(self._sessions.items()):
            if not kept.open or name in heard:
                continue
            times = was.get(name, 0) + 1
            if times < UNHEARD:
                self._unheard[name] = times
            else:
                session = {**msgspec.json.decode(kept.encoded), "reason": "followed no more"}
                lost.append(KeptSession(msgspec.json.encode(session), open=False))
                self._keep(name, lost[-1])
        return lost

    def _take_figures(self, now: float, snapshot: MetricsSnapshot) -> tuple[PageTotals, FigureRow]:
        totals = page_totals(snapshot)
        return totals, self._history.take(now, totals, reply_times(snapshot))

    def _event(
        self, sessions: list[KeptSession], snapshot: MetricsSnapshot, *, rows: int = NEWEST_ROWS
    ) -> bytes:
        """Return an event that has `rows` of the newest rows of figures."""
        clock = monotonic()
        totals, lately = self._take_figures(clock, snapshot)
        message = {
            "at": time(),
            "clock": clock,
            "host": self._source.instance,
            "version": __version__,
            "uptime_s": clock - self._source.serving_since,
            "totals": totals,
            "lately": lately,
            "rows": list(self._history.rows)[-rows:],
            "listeners": self._source.listeners(),
            "faults": self._source.faults(),
            "why_not_ready": self._source.why_not_ready(),
            "sessions": [msgspec.Raw(each.encoded) for each in sessions],
        }
        return b"data: " + msgspec.json.encode(message) + b"\n\n"
