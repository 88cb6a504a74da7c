"""The fanout: one observer made of several, each session with an id that no other session has.

Who does not watch a session is left out of it, and where one alone watches, nothing stands between
it and the session: what is off costs nothing.
"""

from collections.abc import Callable, Sequence
from itertools import count
from os import urandom
from typing import Any, Protocol

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import (
    ConnectionEnds,
    Endpoint,
    NotedEvent,
    SessionObserver,
    SessionSummary,
)
from smtpproxy.log.session_log import ServiceLog


class TransactionObserver(SessionObserver, Protocol):
    """Watches one session, and learns what its transactions came to."""

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """A transaction is over; event and fields are those of the log, made only if called for."""


class SessionObserverFactory(Protocol):
    """Watches the service beside the log."""

    def session(
        self, session: str, listener: str, backend: str, client: str
    ) -> TransactionObserver | None:
        """Return who is to watch this session, or None if nobody."""

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """A server is down, or up again."""


class ObserverFanout:
    """Observes for the log and for whoever else watches."""

    def __init__(self, log: ServiceLog, watchers: Sequence[SessionObserverFactory] = ()) -> None:
        self._log = log
        self._watchers = tuple(watchers)
        self._prefix = urandom(3).hex()
        self._count = count(1)

    def session(self, listener: str, backend: str, client: str) -> SessionObserver:
        """Begin to observe a session."""
        name = f"{self._prefix}-{next(self._count)}"
        log = self._log.session(name, listener, backend, client)
        if not self._watchers:
            return log
        found = [each.session(name, listener, backend, client) for each in self._watchers]
        watching = [each for each in found if each is not None]
        if not watching:
            return log
        log.on_transaction = [each.transaction for each in watching]
        return SessionObserverFanout([log, *watching])

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Tell all that a server is down, or up again."""
        self._log.server_changed(backend, server, up, reason)
        for each in self._watchers:
            each.server_changed(backend, server, up, reason)

    def refused(self, reason: str, client: str, clients: int) -> None:
        """Log that clients were turned away; the figures count them."""
        self._log.refused(reason, client, clients)


class SessionObserverFanout:
    """Observes one session for several."""

    __slots__ = ("_content", "_observers", "content")

    def __init__(self, observers: Sequence[SessionObserver]) -> None:
        self._observers = observers
        wanted = [each.content for each in observers if each.content is not None]
        self._content = wanted
        self.content: Callable[[Exchange, bytes, bytes], None] | None = (
            None if not wanted else wanted[0] if len(wanted) == 1 else self._share_content
        )

    def _share_content(self, exchange: Exchange, sent: bytes, came: bytes) -> None:
        for add in self._content:
            add(exchange, sent, came)

    def connected(
        self, server: str, source: Endpoint | None, ends: Callable[[], ConnectionEnds]
    ) -> None:
        """The session got its backend connection."""
        for each in self._observers:
            each.connected(server, source, ends)

    def gave_up(self, server: str, reason: str) -> None:
        """A server could not be had."""
        for each in self._observers:
            each.gave_up(server, reason)

    def settled(self, exchanges: list[Exchange]) -> None:
        """These replies were flushed in one write."""
        for each in self._observers:
            each.settled(exchanges)

    def noted(self, event: NotedEvent, **values: str) -> None:
        """Something happened besides the dialogue."""
        for each in self._observers:
            each.noted(event, **values)

    def slowed(self) -> None:
        """The client sends commands too fast."""
        for each in self._observers:
            each.slowed()

    def stalled(self) -> None:
        """The client is not read for now."""
        for each in self._observers:
            each.stalled()

    def broken(self, error: Exception) -> None:
        """Something in the proxy itself went wrong."""
        for each in self._observers:
            each.broken(error)

    def closed(self, summary: SessionSummary) -> None:
        """The session is over."""
        for each in self._observers:
            each.closed(summary)
