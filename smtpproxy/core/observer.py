"""What the edge tells those who watch: plain values and the exchanges of the core."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from smtpproxy.core.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Summary:
    """What a session came to.

    reason: why it ended, a snake_case noun.
    seconds: how long it lasted.
    commands, pipelined: how many came from the client, and how many of them saved a round trip.
    messages: how many the backend took over.
    client_octets, backend_octets: how many came from each.
    """

    reason: str
    seconds: float
    commands: int
    pipelined: int
    messages: int
    client_octets: int
    backend_octets: int


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of each connection, as `192.0.2.1:4711`, `[2001:db8::1]:4711` or `unix`.

    client, listener: of the client's connection.  proxy, server: of the backend's.
    """

    client: str
    listener: str
    proxy: str
    server: str


class SessionObserver(Protocol):
    """Watches one session.  No method may raise or block.

    content: is called with message content and BDAT payload, the end of data included, as they went
    to the backend and as they came; None, as for most observers, costs nothing.
    """

    @property
    def content(self) -> Callable[[bytes, bytes], None] | None: ...

    def connected(self, server: str, ends: Callable[[], Ends]) -> None:
        """The session got its backend connection, to the server of this address.

        `ends` looks up both ends of both connections; only now, since they may close any time.
        """

    def gave_up(self, server: str, why: str) -> None:
        """A server could not be connected to, or did not greet as it should."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """These replies were flushed in one write; or, at the end, these got none."""

    def stalled(self) -> None:
        """The client is no longer read for now, as a peer is slow or its queue is full."""

    def slowed(self) -> None:
        """The client sends commands faster than it may, and is read more slowly; told once."""

    def noted(self, event: str, **values: str) -> None:
        """Something besides the dialogue: TLS began or failed, or the client was turned away."""

    def closed(self, summary: Summary) -> None:
        """The session is over."""


class Observer(Protocol):
    """Watches the service.  No method may raise or block."""

    def session(self, listener: str, client: str) -> SessionObserver:
        """A client has connected to a listener; return who is to watch its session."""

    def server_changed(self, backend: str, server: str, up: bool, why: str) -> None:
        """A server is down, or up again; once for each change."""

    def refused(self, reason: str, client: str, clients: int) -> None:
        """So many clients more were turned away for this reason, this one last."""

    def broken(self, error: Exception) -> None:
        """Something in the proxy itself went wrong; the session it met is closed with 421."""
