"""The interfaces of observers, such as log, trace and metrics, which watch sessions."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from smtpproxy.core.exchange import ContentObserver, Exchange

Endpoint = tuple[str, int]
"""An IP address, in its usual spelling, and a port."""


class SessionSummary(NamedTuple):
    """The totals of a session that has ended."""

    reason: str
    """Why it ended, a snake_case noun."""
    seconds: float
    """Its duration."""
    commands: int
    """The number of commands from the client."""
    pipelined: int
    """How many of them saved a round trip."""
    messages: int
    """The number of messages that the backend accepted."""
    client_octets: int
    """The number of octets from the client."""
    backend_octets: int
    """The number of octets from the backend."""
    probe: bool = False
    """Whether it was only a check: a connection without any data, or a health probe."""


@dataclass(frozen=True, slots=True)
class ConnectionEnds:
    """The addresses of both connections: `192.0.2.1:4711`, `[2001:db8::1]:4711` or `unix`.

    An address is `unknown` if its connection was reset before the address could be read.
    """

    client: str
    """The client's address."""
    listener: str
    """The proxy's address on the client connection."""
    proxy: str
    """The proxy's address on the backend connection."""
    server: str
    """The server's address."""
    client_rtt_s: float | None = None
    """The round-trip time to the client that TCP has measured so far; None if it has not."""


class SessionEnds(Protocol):
    """Reads the addresses of a session's connections, which may close at any time."""

    def source(self) -> Endpoint | None:
        """Return the address and port that the server sees; None on a Unix socket, or if closed."""

    def all(self) -> ConnectionEnds:
        """Return all of them as text; each costs several times as much as `source`."""


NotedEvent = Literal[
    "client_turned_away",
    "content_not_ended",
    "fault_injected",
    "loop_detected",
    "proxy_header_read",
    "tls_failed",
    "tls_started",
]
"""What a session reports besides the dialogue; each is a log event of this name."""


class SessionObserver(Protocol):
    """Watches one session.  No method may raise or block."""

    @property
    def content(self) -> ContentObserver | None:
        """The callback for message content and BDAT payload; None costs nothing."""

    def connected(self, server: str, ends: SessionEnds) -> None:
        """Report that the session has its backend connection.

        Args:
            server: The address of the server, as configured.
            ends: Reads the addresses of both connections; to be used only during this call.
        """

    def gave_up(self, server: str, reason: str) -> None:
        """Report that connecting to a server failed, or that its greeting was not valid."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """Report exchanges whose replies were flushed in one write, or never came at the end."""

    def stalled(self) -> None:
        """Report that reading from the client has paused: a peer is slow, or the queue is full."""

    def slowed(self) -> None:
        """Report that the client has exceeded its command rate and is read more slowly; once."""

    def noted(self, event: NotedEvent, **values: str) -> None:
        """Report an event outside the dialogue: TLS started or failed, or a refused client."""

    def broken(self, error: Exception) -> None:
        """Report an internal error of the proxy; the session is closed with 421."""

    def closed(self, summary: SessionSummary) -> None:
        """Report the end of the session."""


class IdentifiedObserver(SessionObserver, Protocol):
    """A session's observer that has given it its id."""

    @property
    def id(self) -> str:
        """The unique id of the session, in log and traces."""


class ServiceObserver(Protocol):
    """Watches a worker.  No method may raise or block."""

    def session(self, listener: str, backend: str, client: str) -> IdentifiedObserver:
        """Return the observer of a new session, after a client has connected to a listener."""

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Report that a server went down or came up again; once per change."""

    def refused(self, reason: str, client: str, clients: int) -> None:
        """Report clients refused before they had a session.

        Args:
            reason: Why, a snake_case noun.
            client: The address of the last of them.
            clients: How many there were since the last report.
        """
