"""The trace: every exchange of the sessions that are recorded, as records in files.

`all` writes each exchange soon after its reply was flushed.  `errors` is a flight recorder: a
session is kept in bounded memory, and written when it is over, if anything in it failed.  Lines are
gathered and written by a thread, so that a slow disk never delays mail.
"""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from smtpproxy.log.session_log import ip_and_port
from smtpproxy.trace.content_capture import CaptureMode, ContentCapture
from smtpproxy.trace.record_writer import Later, Sink, Writer
from smtpproxy.trace.session_recorder import (
    CONTENT_OCTETS,
    FlightMemory,
    FlightRecorder,
    SessionRecorder,
)

Network = IPv4Network | IPv6Network


class TraceRecorder:
    """Records the sessions of a worker.

    Args:
        files: Where the records go.
        later: Calls a function soon; see `Writer`.
        only_errors: Record only sessions in which something failed.
        networks: Record only clients of these networks; empty: all clients.
        kept: How much message content is recorded.
        most: How many octets of each message, for CaptureMode.FULL.
    """

    writer: Writer
    """What all sessions write to."""
    memory: FlightMemory
    """What the flight recorder keeps of all sessions."""

    def __init__(
        self,
        files: Sink,
        later: Later,
        *,
        only_errors: bool = False,
        networks: Sequence[Network] = (),
        kept: CaptureMode = CaptureMode.NONE,
        most: int = 0,
    ) -> None:
        self.writer = Writer(files, later)
        self.memory = FlightMemory()
        self._only_errors = only_errors
        self._networks = tuple(networks)
        self._kept = kept
        self._most = most

    @property
    def lost(self) -> int:
        """Return how many records were not written."""
        return self.writer.lost

    def session(
        self, session: str, listener: str, backend: str, client: str
    ) -> SessionRecorder | None:
        """Return what records a session; None if its client is not recorded."""
        if self._networks and not self._is_wanted(client):
            return None
        flight = FlightRecorder(self.writer, self.memory) if self._only_errors else None
        captured = ContentCapture(
            self._kept, self._most, CONTENT_OCTETS if self._only_errors else None
        )
        return SessionRecorder(self.writer, captured, flight, session, listener, backend, client)

    def _is_wanted(self, client: str) -> bool:
        client_ip, _ = ip_and_port(client)
        if client_ip is None:
            return False
        address = ip_address(client_ip.partition("%")[0])
        return any(address in network for network in self._networks)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Record nothing: it belongs to no session."""

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
