"""Time limits: one timer for all sessions of a worker, instead of one for each command.

A timer per command would cost more than framing it.  So nothing is armed while all is well: each
session is asked at intervals which limit runs and since when.
"""

import asyncio
import contextlib
from time import monotonic
from typing import Protocol

from smtpproxy.net.unread import UnreadConnections

SWEEPS_PER_LIMIT = 4
"""A limit is noticed at most a quarter of the shortest one late."""
LONGEST_INTERVAL_S = 1.0
LOOKS_PER_HOLD = 4
"""A held reply is flushed at most a quarter of the time too late."""
CLOSE_WHILE_DRAINING_S = 2.0
"""How long a client that got its 421 may take to close, so that a restart need not wait for it."""


class TimedSession(Protocol):
    """A session, or a client on its way to one."""

    def waiting(self) -> tuple[str, float]:
        """Return the name of the time limit that runs, and since when."""

    def expire(self, limit: str, now: float) -> None:
        """Act on a time limit that is over."""

    def release(self, now: float) -> bool:
        """Flush what has been held for long enough; tell whether anything is held still."""

    def drain(self) -> None:
        """End when nothing is left to be finished."""

    def stop(self) -> None:
        """End at once."""


class SessionTimeouts:
    """Ends what has waited for too long, and flushes replies that were held for too long.

    limits: seconds by the name of the limit, as `Session.waiting` names them.
    reply_hold: how long a reply may be held, in seconds.
    sessions: those of the worker; a half-closed connection lives by this reference alone.
    unread: the connections of these that are not read for now.
    """

    def __init__(self, limits: dict[str, float], reply_hold: float) -> None:
        self.limits = limits
        self.reply_hold = reply_hold
        self._interval = min(LONGEST_INTERVAL_S, min(limits.values()) / SWEEPS_PER_LIMIT)
        self.sessions: set[TimedSession] = set()
        self.unread = UnreadConnections()
        self._holding: set[TimedSession] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._hold_timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    def add(self, session: TimedSession) -> None:
        """Watch a session."""
        self.sessions.add(session)
        if self._sweep_timer is None:
            self._sweep_timer = asyncio.get_running_loop().call_later(self._interval, self._wake)

    def remove(self, session: TimedSession) -> None:
        """Forget a session."""
        self.sessions.discard(session)
        self._holding.discard(session)
        if self._empty is not None and not self.sessions:
            self._empty.set()

    def watch_held(self, session: TimedSession) -> None:
        """Flush what the session holds from now on after `reply_hold` seconds."""
        self._holding.add(session)
        if self._hold_timer is None:
            self._hold_timer = asyncio.get_running_loop().call_later(self.reply_hold, self.release)

    def drain(self) -> None:
        """Have each session end as soon as its transaction is over."""
        self.limits = {**self.limits, "close": min(self.limits["close"], CLOSE_WHILE_DRAINING_S)}
        for session in list(self.sessions):
            session.drain()

    def stop(self) -> None:
        """End all sessions at once."""
        for session in list(self.sessions):
            session.stop()

    async def wait_until_empty(self, seconds: float | None) -> None:
        """Wait until there is no session left, but no longer than `seconds`."""
        self._empty = self._empty or asyncio.Event()
        self._empty.clear()
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()

    def sweep(self) -> None:
        """Look at the time limits of all sessions."""
        now = monotonic()
        for session in list(self.sessions):
            limit, since = session.waiting()
            if now - since >= self.limits[limit]:
                session.expire(limit, now)

    def _wake(self) -> None:
        self.sweep()
        self._sweep_timer = None
        if self.sessions:
            self._sweep_timer = asyncio.get_running_loop().call_later(self._interval, self._wake)

    def release(self) -> None:
        """Flush what has been held for long enough; look again soon while anything is held."""
        now = monotonic()
        self._holding = {each for each in self._holding if each.release(now)}
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._holding:
            self._hold_timer = asyncio.get_running_loop().call_later(
                self.reply_hold / LOOKS_PER_HOLD, self.release
            )
