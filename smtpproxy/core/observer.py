"""What the edge tells those who watch: plain values and the exchanges of the core."""

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


class SessionObserver(Protocol):
    """Watches one session.  No method may raise or block."""

    def connected(self, server: str) -> None:
        """The session got its backend connection, to the server of this address."""

    def gave_up(self, server: str, why: str) -> None:
        """A server could not be connected to, or did not greet as it should."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """These replies were flushed in one write; or, at the end, these got none."""

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
