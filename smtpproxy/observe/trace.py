"""The trace: every exchange of the sessions it is told to record, as records in files.

`all` writes each exchange soon after its reply was flushed.  `errors` is a flight recorder: a
session is kept in bounded memory, and written when it is over, if anything in it went wrong.  Lines
are gathered and written by a thread, so that no disk ever holds up the mail.

hot path: measure before changing (python -m tests.bench.trace).
"""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from time import monotonic, time

from smtpproxy.observe import log
from smtpproxy.observe.captured import Kept
from smtpproxy.observe.files import Files
from smtpproxy.observe.recorded import SessionTrace

Network = IPv4Network | IPv6Network
Later = Callable[[Callable[[], None]], object]

GATHERED_OCTETS = 256 * 1024
"""Lines are handed to the thread when they are so many, or when `later` says.

Each time the two of them contend for the interpreter, which costs more than the write.
"""


class Trace:
    """Records the sessions of a worker.

    only_errors: the flight recorder.  networks: whose sessions; empty for all clients.
    kept, most: how much of message content, in octets for Kept.FULL.
    later: is told when there is something to flush, and calls what it is given soon.
    kept_octets: what the flight recorder keeps of all sessions.
    offset: what makes times of the monotonic clock those of the wall clock.
    """

    def __init__(
        self,
        files: Files,
        later: Later,
        *,
        only_errors: bool = False,
        networks: Sequence[Network] = (),
        kept: Kept = Kept.NONE,
        most: int = 0,
    ) -> None:
        self.only_errors = only_errors
        self.kept = kept
        self.most = most
        self.kept_octets = 0
        self.offset = time() - monotonic()
        self._files = files
        self._later = later
        self._networks = tuple(networks)
        self._lines: list[bytes] = []
        self._octets = self._records = 0  # in these
        self._lost_told = 0
        self._log = log.get()

    @property
    def lost(self) -> int:
        """How many records were not written."""
        return self._files.lost

    def session(self, session: str, listener: str, client: str) -> SessionTrace | None:
        """Begin to record a session, if its client is one of those to be recorded."""
        if self._networks and not self._is_wanted(client):
            return None
        return SessionTrace(self, session, listener, client)

    def _is_wanted(self, client: str) -> bool:
        host = client.rpartition(":")[0].strip("[]")
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._networks)

    def server_changed(self, backend: str, server: str, up: bool, why: str) -> None:
        """Record nothing: it belongs to no session."""

    def add(self, lines: bytes, records: int = 1) -> None:
        """Have the lines of so many records written soon."""
        if not self._lines:
            self._later(self.flush)
        self._lines.append(lines)
        self._octets += len(lines)
        self._records += records
        if self._octets >= GATHERED_OCTETS:
            self._hand_over()

    def flush(self) -> None:
        """Hand on what was gathered, and say so when records are being lost."""
        if self._lines:
            self._hand_over()
        lost = self._files.lost
        if lost and not self._lost_told:
            self._log.error("trace_records_lost", records=lost, why=self._files.why)
            self._lost_told = lost

    def _hand_over(self) -> None:
        self._files.write(b"".join(self._lines), self._records)
        self._lines.clear()
        self._octets = self._records = 0

    def close(self) -> None:
        """Write all that is left."""
        if self._lines:
            self._hand_over()
        self._files.close()
        if self._files.lost > self._lost_told:
            self._log.error("trace_records_lost", records=self._files.lost, why=self._files.why)
