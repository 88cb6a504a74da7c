"""Time limits: one timer for all sessions of a worker.

A timer for each command would cost more than framing it.  Instead, all sessions are checked at
intervals.
"""

import asyncio
import contextlib
from time import monotonic
from typing import Protocol

from smtpproxy.net.unread import UnreadConnections

SWEEPS_PER_LIMIT = 4
"""The number of checks within the shortest time limit."""
LONGEST_INTERVAL_S = 1.0
"""The longest interval of checks."""
LOOKS_PER_HOLD = 4
"""The number of checks within the time limit of held replies."""
CLOSE_WHILE_DRAINING_S = 2.0
"""How long a client may take to close after its 421, so that it does not delay a restart."""


class TimedSession(Protocol):
    """A session, or a client without a session yet."""

    def waiting(self) -> tuple[str, float]:
        """Return the name of the time limit that runs, and since when."""

    def expire(self, limit: str, now: float) -> None:
        """Handle a time limit that is reached."""

    def release(self, now: float) -> bool:
        """Flush replies held for the time limit; return whether any are still held."""

    def drain(self) -> None:
        """End as soon as no transaction is open."""

    def stop(self) -> None:
        """End at once."""


class SessionTimeouts:
    """Enforces the time limits of all sessions of a worker, and flushes their held replies.

    Args:
        limits: The limits in seconds, by the names that `Session.waiting` returns.
        reply_hold: How long a reply may be held, in seconds.
    """

    def __init__(self, limits: dict[str, float], reply_hold: float) -> None:
        self.limits = limits
        self.reply_hold = reply_hold
        self._interval = min(LONGEST_INTERVAL_S, min(limits.values()) / SWEEPS_PER_LIMIT)
        self.sessions: set[TimedSession] = set()
        """The sessions; a half-closed connection has no other strong reference."""
        self.unread = UnreadConnections()
        """The connections that are not read at present."""
        self._holding: set[TimedSession] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._hold_timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None

    def add(self, session: TimedSession) -> None:
        """Add a new session."""
        self.sessions.add(session)
        if self._sweep_timer is None:
            self._sweep_timer = asyncio.get_running_loop().call_later(self._interval, self._wake)

    def remove(self, session: TimedSession) -> None:
        """Remove a session that has ended."""
        self.sessions.discard(session)
        self._holding.discard(session)
        if self._empty is not None and not self.sessions:
            self._empty.set()

    def watch_held(self, session: TimedSession) -> None:
        """Flush the replies that a session holds from now on after `reply_hold` seconds."""
        self._holding.add(session)
        if self._hold_timer is None:
            self._hold_timer = asyncio.get_running_loop().call_later(self.reply_hold, self.release)

    def drain(self) -> None:
        """Make each session end after its transaction."""
        self.limits = {**self.limits, "close": min(self.limits["close"], CLOSE_WHILE_DRAINING_S)}
        for session in list(self.sessions):
            session.drain()

    def stop(self) -> None:
        """End all sessions at once."""
        for session in list(self.sessions):
            session.stop()

    async def wait_until_empty(self, seconds: float | None) -> None:
        """Wait until no session is left, at most `seconds` if given."""
        self._empty = self._empty or asyncio.Event()
        self._empty.clear()
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._empty.wait()

    def sweep(self) -> None:
        """Check the time limits of all sessions."""
        now = monotonic()
        for session in list(self.sessions):
            limit, since = session.waiting()
            if now - since >= self.limits[limit]:
                session.expire(limit, now)

    def _wake(self) -> None:
        self._sweep_timer = None  # set again first: an error must not end the checks
        if self.sessions:
            self._sweep_timer = asyncio.get_running_loop().call_later(self._interval, self._wake)
        self.sweep()

    def release(self) -> None:
        """Flush replies held for the time limit, and set a timer if any are still held."""
        now = monotonic()
        self._holding = {each for each in self._holding if each.release(now)}
        if self._hold_timer is not None:
            self._hold_timer.cancel()
            self._hold_timer = None
        if self._holding:
            self._hold_timer = asyncio.get_running_loop().call_later(
                self.reply_hold / LOOKS_PER_HOLD, self.release
            )
