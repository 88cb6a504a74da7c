"""The trace: every exchange of the sessions it is told to record, as records in files.

`all` writes each exchange soon after its reply was flushed.  `errors` is a flight recorder: a
session is kept in bounded memory, and written when it is over, if anything in it went wrong.  What
is to be written is gathered, made lines at once (a third of the cost of doing so one by one), and
written by a thread, so that no disk ever holds up the mail.

hot path: measure before changing (python -m tests.bench.trace).
"""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from time import monotonic, time

from smtpproxy.core.exchange import Exchange
from smtpproxy.observe import log, records
from smtpproxy.observe.captured import Kept, describe
from smtpproxy.observe.files import Files
from smtpproxy.observe.recorded import SessionTrace

Network = IPv4Network | IPv6Network
Later = Callable[[Callable[[], None]], object]
Made = Callable[[], records.Record]
"""Makes a record when its turn comes, as what it tells may depend on those before it."""

GATHERED_EXCHANGES = 512
"""Exchanges are made lines when there are so many, or when `later` says."""


class Trace:
    """Records the sessions of a worker.

    only_errors: the flight recorder.  networks: whose sessions; empty for all clients.
    kept, most: how much of message content, in octets for Kept.FULL.
    later: is told when there is something to flush, and calls what it is given soon.
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
        self.offset = time() - monotonic()
        self._files = files
        self._later = later
        self._networks = tuple(networks)
        self._waiting: list[tuple[SessionTrace, list[Exchange] | Made]] = []
        self._count = 0
        self._contents: dict[Exchange, tuple[bytes, int]] = {}
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

    def add(self, session: SessionTrace, what: list[Exchange] | Made) -> None:
        """Have exchanges written soon, or a record that is then made."""
        if not self._waiting:
            self._later(self.flush)
        self._waiting.append((session, what))
        self._count += len(what) if isinstance(what, list) else 1
        if self._count >= GATHERED_EXCHANGES:
            self._hand_over()

    def add_content(self, exchange: Exchange, octets: bytes, size: int) -> None:
        """Have the content of an exchange, which is added next, described with it."""
        self._contents[exchange] = (octets, size)

    def flush(self) -> None:
        """Hand on what was gathered, and say so when records are being lost."""
        if self._waiting:
            self._hand_over()
        lost = self._files.lost
        if lost and not self._lost_told:
            self._log.error("trace_records_lost", records=lost, why=self._files.why)
            self._lost_told = lost

    def _hand_over(self) -> None:
        lines = self._records()
        self._files.write(records.encode_lines(lines), len(lines))

    def _records(self) -> list[records.Record]:
        """Turn all that waits into records, in order."""
        waiting, self._waiting = self._waiting, []
        self._count = 0
        sessions: list[str] = []
        exchanges: list[Exchange] = []
        for session, what in waiting:
            if isinstance(what, list):
                exchanges += what
                sessions += [session.id] * len(what)
        described = records.exchanged(sessions, exchanges, self.offset)
        if self._contents:
            for exchange, record in zip(exchanges, described, strict=True):
                if exchange in self._contents:
                    octets, size = self._contents.pop(exchange)
                    describe(record, octets, size, self.kept, self.most)
        found: list[records.Record] = []
        position = 0
        for session, what in waiting:
            if isinstance(what, list):
                part = described[position : position + len(what)]
                position += len(what)
                session.note(part)
                found += part
            else:
                found.append(what())
        return found

    def close(self) -> None:
        """Write all that is left."""
        if self._waiting:
            self._hand_over()
        self._files.close()
        if self._files.lost > self._lost_told:
            self._log.error("trace_records_lost", records=self._files.lost, why=self._files.why)
