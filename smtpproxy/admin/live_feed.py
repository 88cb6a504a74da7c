"""The live feed: what the live page is told, once a second and only while somebody looks."""

import asyncio
from collections import OrderedDict
from time import time
from typing import Any, Protocol, cast

import msgspec

from smtpproxy.metrics.snapshot import MetricsSnapshot

KEPT_SESSIONS = 200
MAX_VIEWERS = 16
"""So many may look at once."""
UNHEARD = 3
"""An open session of which no worker has told so many times is followed no more."""
WAITING = 4
"""Events that may wait for a slow reader; it misses those beyond."""
INTERVAL_S = 1.0


class StatusSource(Protocol):
    """Where figures come from."""

    def snapshot(self) -> MetricsSnapshot:
        """Return the figures of the whole service."""

    def look(self) -> None:
        """Somebody looks: figures are to have the list `sessions` for the next few seconds."""

    def listeners(self) -> list[str]:
        """Return the addresses that clients connect to."""

    def why_not_ready(self) -> str:
        """Return why a client could not be served just now; empty if it could."""


class LiveFeed:
    """Sends each looker the same events."""

    def __init__(self, source: StatusSource) -> None:
        self._source = source
        self._sessions: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._unheard: dict[str, int] = {}  # how many times, by the names of open sessions
        self._viewers: set[asyncio.Queue[bytes]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        """Whether nobody else may look."""
        return len(self._viewers) >= MAX_VIEWERS

    def join(self) -> asyncio.Queue[bytes]:
        """Begin to look; the first event tells all there is, an empty one that there is no more."""
        viewer: asyncio.Queue[bytes] = asyncio.Queue(WAITING)
        viewer.put_nowait(self._event(list(self._sessions.values()), self._source.snapshot()))
        self._viewers.add(viewer)
        self._source.look()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="board")
        return viewer

    def leave(self, viewer: asyncio.Queue[bytes]) -> None:
        """Look no more."""
        self._viewers.discard(viewer)
        if not self._viewers and self._task is not None:
            self._task.cancel()
            self._task = None

    def close(self) -> None:
        """Let nobody look any more."""
        for viewer in list(self._viewers):
            if viewer.full():
                viewer.get_nowait()
            viewer.put_nowait(b"")
            self.leave(viewer)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            self._source.look()
            self.tell()

    def tell(self) -> None:
        """Tell all lookers what has changed."""
        snapshot = self._source.snapshot()
        event = self._event(self._take(snapshot), snapshot)
        for viewer in self._viewers:
            if not viewer.full():
                viewer.put_nowait(event)

    def _take(self, snapshot: MetricsSnapshot) -> list[dict[str, Any]]:
        """Take in what workers told of sessions, and return what is new in it."""
        changed = []
        for item in snapshot.lists.get("sessions", []):
            session = cast("dict[str, Any]", item)
            name = session["id"]
            if self._sessions.get(name) != session:
                self._sessions[name] = session
                changed.append(session)
        changed += self._leave_lost(set(snapshot.lists.get("open_sessions", [])))
        while len(self._sessions) > KEPT_SESSIONS:
            self._sessions.popitem(last=False)
        return changed

    def _leave_lost(self, heard: set[object]) -> list[dict[str, Any]]:
        """Find sessions whose worker is gone, or keeps others now: their end is never told."""
        was, self._unheard = self._unheard, {}
        lost = []
        for name, session in self._sessions.items():
            if session["reason"] or name in heard:
                continue
            times = was.get(name, 0) + 1
            if times < UNHEARD:
                self._unheard[name] = times
            else:
                lost.append({**session, "reason": "followed no more"})
        self._sessions.update((session["id"], session) for session in lost)
        return lost

    def _event(self, sessions: list[dict[str, Any]], snapshot: MetricsSnapshot) -> bytes:
        told = {
            "at": time(),
            "counts": snapshot.counts,
            "gauges": snapshot.gauges,
            "listeners": self._source.listeners(),
            "why_not_ready": self._source.why_not_ready(),
            "sessions": sessions,
        }
        return b"data: " + msgspec.json.encode(told) + b"\n\n"
