"""Observers: what the edge shows them, plain values and the exchanges of the core."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from smtpproxy.core.exchange import Exchange

Endpoint = tuple[str, int]
"""An IP address, in its usual spelling, and a port."""


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """The figures of a session that is over."""

    reason: str
    """Why it ended, a snake_case noun."""
    seconds: float
    """How long it lasted."""
    commands: int
    """How many commands came from the client."""
    pipelined: int
    """How many of them saved a round trip."""
    messages: int
    """How many messages the backend accepted."""
    client_octets: int
    """How many octets came from the client."""
    backend_octets: int
    """How many octets came from the backend."""


@dataclass(frozen=True, slots=True)
class ConnectionEnds:
    """The two ends of each connection, as `192.0.2.1:4711`, `[2001:db8::1]:4711` or `unix`.

    `unknown` is one whose connection was reset before it could be read.
    """

    client: str
    """The client's end of the client's connection."""
    listener: str
    """The proxy's end of it."""
    proxy: str
    """The proxy's end of the backend's connection."""
    server: str
    """The server's end of it."""


NotedEvent = Literal[
    "client_turned_away", "content_not_ended", "loop_detected", "tls_failed", "tls_started"
]
"""What a session reports besides the dialogue; each is a log event of this name."""


class SessionObserver(Protocol):
    """Watches one session.  No method may raise or block."""

    @property
    def content(self) -> Callable[[Exchange, bytes, bytes], None] | None:
        """Return what is called with message content and BDAT payload, end of data included.

        The exchange that it is of, the octets as they went to the backend, and as they came.
        None costs nothing.
        """

    def connected(
        self, server: str, source: Endpoint | None, ends: Callable[[], ConnectionEnds]
    ) -> None:
        """The session got its backend connection, to the server of this address.

        `source` is the address and port that the server sees; None on a Unix socket.

        `ends` looks up both ends of both connections; only now, since they may close any time.
        """

    def gave_up(self, server: str, reason: str) -> None:
        """A server could not be connected to, or did not greet as it should."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """These replies were flushed in one write; or, at the end, these got none."""

    def stalled(self) -> None:
        """The client is no longer read for now, as a peer is slow or its queue is full."""

    def slowed(self) -> None:
        """The client sends commands faster than it may, and is read more slowly; called once."""

    def noted(self, event: NotedEvent, **values: str) -> None:
        """Something besides the dialogue: TLS began or failed, or the client was turned away."""

    def broken(self, error: Exception) -> None:
        """Something in the proxy itself went wrong; the session is closed with 421."""

    def closed(self, summary: SessionSummary) -> None:
        """The session is over."""


class ServiceObserver(Protocol):
    """Watches the service.  No method may raise or block."""

    def session(self, listener: str, backend: str, client: str) -> SessionObserver:
        """A client has connected to a listener; return the observer of its session."""

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """A server is down, or up again; once for each change."""

    def refused(self, reason: str, client: str, clients: int) -> None:
        """So many clients more were turned away for this reason, this one last."""
