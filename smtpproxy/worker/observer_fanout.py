"""Combines several observers into one, and gives each session its id.

Observers that do not watch a session are left out of it.  A single observer is called directly, so
that features that are off cost nothing.
"""

from collections.abc import Callable, Sequence
from itertools import count
from os import urandom
from typing import Any, Protocol

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import (
    IdentifiedObserver,
    NotedEvent,
    SessionEnds,
    SessionObserver,
    SessionSummary,
)
from smtpproxy.log.session_log import ServiceLog, SessionLog


class TransactionObserver(SessionObserver, Protocol):
    """Watches one session, and gets the outcome of its transactions."""

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Report the end of a transaction.

        Args:
            outcome: The name of its log event.
            fields: Returns the fields of that event; to be called only if they are needed.
        """


class SessionObserverFactory(Protocol):
    """Makes the observers of a worker's sessions for one feature, such as traces."""

    def session(
        self, session: str, listener: str, backend: str, client: str
    ) -> TransactionObserver | None:
        """Return the observer of a new session; None to not watch it."""

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Report that a server went down or came up again."""


class ObserverFanout:
    """The observer of a worker: the log, and any others."""

    def __init__(self, log: ServiceLog, watchers: Sequence[SessionObserverFactory] = ()) -> None:
        self._log = log
        self._watchers = list(watchers)
        self._added: list[SessionObserverFactory] = []
        self._open: dict[SessionObserverFanout, list[tuple[object, TransactionObserver]]] = {}
        self._prefix = urandom(3).hex()
        self._count = count(1)

    def session(self, listener: str, backend: str, client: str) -> IdentifiedObserver:
        """Return the observer of a new session."""
        name = f"{self._prefix}-{next(self._count)}"
        log = self._log.session(name, listener, backend, client)
        if not self._watchers:
            return log
        found = [each.session(name, listener, backend, client) for each in self._watchers]
        watching = [each for each in found if each is not None]
        if not watching:
            return log
        fanout = SessionObserverFanout(log, watching)
        if self._added:
            self._open[fanout] = [
                (source, each)
                for source, each in zip(self._watchers, found, strict=True)
                if each is not None and source in self._added
            ]
            fanout.on_closed = self._open.pop
        return fanout

    def add(self, watcher: SessionObserverFactory) -> None:
        """Add a factory for the sessions that begin from now on, until `remove`."""
        self._watchers.append(watcher)
        self._added.append(watcher)

    def remove(self, watcher: SessionObserverFactory) -> None:
        """Remove a factory that was added; its observers of open sessions are called no more."""
        self._watchers.remove(watcher)
        self._added.remove(watcher)
        for fanout, added in self._open.items():
            for source, observer in added:
                if source is watcher:
                    fanout.leave_out(observer)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Report to all observers that a server went down or came up again."""
        self._log.server_changed(backend, server, up, reason)
        for each in self._watchers:
            each.server_changed(backend, server, up, reason)

    def refused(self, reason: str, client: str, clients: int) -> None:
        """Log refused clients, which the admission counts for the metrics."""
        self._log.refused(reason, client, clients)


class SessionObserverFanout:
    """The observer of a session, which calls several others."""

    __slots__ = ("_content", "_log", "_observers", "_watching", "id", "on_closed")

    def __init__(self, log: SessionLog, watching: list[TransactionObserver]) -> None:
        self.on_closed: Callable[[SessionObserverFanout], object] | None = None
        """Called when the session has ended."""
        self.id = log.id
        """The unique id of the session."""
        self._log = log
        self._watch(watching)

    def _watch(self, watching: list[TransactionObserver]) -> None:
        self._watching = watching
        self._observers: list[SessionObserver] = [self._log, *watching]
        self._content = [each.content for each in self._observers if each.content is not None]
        self._log.report_transactions([each.transaction for each in watching])

    def leave_out(self, observer: TransactionObserver) -> None:
        """Call an observer no more."""
        self._watch([each for each in self._watching if each is not observer])

    def content(self, exchange: Exchange, sent: bytes, came: bytes) -> None:
        """Pass content on to the observers that want it."""
        for add in self._content:
            add(exchange, sent, came)

    def connected(self, server: str, ends: SessionEnds) -> None:
        """Report the backend connection."""
        for each in self._observers:
            each.connected(server, ends)

    def gave_up(self, server: str, reason: str) -> None:
        """Report that a server could not be reached."""
        for each in self._observers:
            each.gave_up(server, reason)

    def settled(self, exchanges: list[Exchange]) -> None:
        """Report exchanges whose replies were flushed in one write."""
        for each in self._observers:
            each.settled(exchanges)

    def noted(self, event: NotedEvent, **values: str) -> None:
        """Report an event outside the dialogue."""
        for each in self._observers:
            each.noted(event, **values)

    def slowed(self) -> None:
        """Report that the client sends commands too fast."""
        for each in self._observers:
            each.slowed()

    def stalled(self) -> None:
        """Report that reading from the client has paused."""
        for each in self._observers:
            each.stalled()

    def broken(self, error: Exception) -> None:
        """Report an internal error of the proxy."""
        for each in self._observers:
            each.broken(error)

    def closed(self, summary: SessionSummary) -> None:
        """Report the end of the session."""
        for each in self._observers:
            each.closed(summary)
        if self.on_closed is not None:
            self.on_closed(self)
