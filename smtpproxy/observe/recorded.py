"""One session as it is recorded: at once, or kept until it is known whether anything went wrong."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from smtpproxy.core import commands
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import Ends, Summary
from smtpproxy.observe import records
from smtpproxy.observe.captured import Captured, bound_of

if TYPE_CHECKING:
    from smtpproxy.observe.trace import Trace

KEPT_OCTETS = 64 * 1024
"""How much of a session the flight recorder keeps: of its begin one half, of its end the other."""
KEPT_EXCHANGES = 500
KEPT_MESSAGES = 100
"""How many transactions, and how many violations, a session's last record tells."""
_CONTENT = frozenset((commands.END_OF_DATA, commands.BDAT))


class SessionTrace:
    """Records one session."""

    __slots__ = (
        "_captured",
        "_client",
        "_codes",
        "_connected",
        "_flight",
        "_gave_up",
        "_listener",
        "_messages",
        "_more_messages",
        "_opened",
        "_server",
        "_trace",
        "_violations",
        "content",
        "id",
    )

    def __init__(self, trace: "Trace", session: str, listener: str, client: str) -> None:
        self.id = session
        self._trace = trace
        self._listener = listener
        self._client = client
        self._server = ""
        self._opened = monotonic() + trace.offset
        self._captured = Captured(bound_of(trace.kept, trace.most))
        self.content = self._captured.add
        self._gave_up: list[records.GaveUp] = []  # for the flight recorder; one a server at most
        self._connected: records.Connected | None = None
        self._codes: set[int] = set()
        self._violations: list[str] = []
        self._messages: list[records.Message] = []
        self._more_messages = 0
        self._flight = Flight() if trace.only_errors else None
        if self._flight is None:
            trace.add(self, self._opened_record)

    def _opened_record(self) -> records.Opened:
        return records.Opened(self.id, self._opened, self._listener, self._client)

    def connected(self, server: str, ends: Callable[[], Ends]) -> None:
        """Record the connection to the server."""
        self._server = server
        at = monotonic() + self._trace.offset
        end = ends()
        self._connected = connected = records.Connected(
            self.id, at, server, end.client, end.listener, end.proxy, end.server
        )
        if self._flight is None:
            self._trace.add(self, lambda: connected)

    def gave_up(self, server: str, why: str) -> None:
        """Record that a server could not be had."""
        gone = records.GaveUp(self.id, monotonic() + self._trace.offset, server, why)
        if self._flight is None:
            self._trace.add(self, lambda: gone)
        else:
            self._flight.failed = True
            self._gave_up.append(gone)

    def settled(self, exchanges: list[Exchange]) -> None:
        """Record each exchange."""
        if self._captured.size:
            for exchange in exchanges:
                if exchange.verb.role in _CONTENT:
                    self._add_content(exchange, *self._captured.take(exchange))
        if self._flight is None:
            self._trace.add(self, exchanges)
        else:
            self._flight.add(exchanges)

    def _add_content(self, exchange: Exchange, octets: bytes, size: int) -> None:
        if not size:
            return
        if self._flight is None:
            self._trace.add_content(exchange, octets, size)
        else:
            self._flight.add_content(exchange, octets, size)

    def note(self, exchanged: Sequence[records.Exchanged]) -> None:
        """Remember of what is written what went wrong."""
        for record in exchanged:
            if record.code >= 400:
                self._codes.add(record.code)
            if record.violation is not None and len(self._violations) < KEPT_MESSAGES:
                self._violations.append(record.violation.kind)

    def transaction(self, outcome: str, fields: dict[str, Any]) -> None:
        """Keep what a transaction came to for the session's last record."""
        if len(self._messages) < KEPT_MESSAGES:
            self._messages.append(records.message_of(outcome, fields))
        else:
            self._more_messages += 1

    def noted(self, event: str, **values: str) -> None:
        """Record nothing: it is in the log."""

    def slowed(self) -> None:
        """Record nothing: the times tell."""

    def stalled(self) -> None:
        """Record nothing: the times tell."""

    def closed(self, summary: Summary) -> None:
        """Record the end; of the flight recorder's session all or nothing is written."""
        trace = self._trace
        if self._flight is not None:
            if not self._flight.failed:
                return
            trace.add(self, self._opened_record)
            for gone in self._gave_up:
                trace.add(self, partial(_same, gone))
            connected = self._connected
            if connected is not None:
                trace.add(self, lambda: connected)
            self._flight.write(self, trace)
        trace.add(self, lambda: self._closed_record(summary))

    def _closed_record(self, summary: Summary) -> records.Closed:
        return records.Closed(
            session=self.id,
            at=self._opened + summary.seconds,
            opened=self._opened,
            listener=self._listener,
            client=self._client,
            server=self._server,
            reason=summary.reason,
            seconds=summary.seconds,
            commands=summary.commands,
            saved=summary.pipelined,
            messages=summary.messages,
            octets_from_client=summary.client_octets,
            octets_from_backend=summary.backend_octets,
            codes=sorted(self._codes),
            violations=self._violations,
            transactions=self._messages,
            more_transactions=self._more_messages,
        )


def _same(record: records.GaveUp) -> records.GaveUp:
    return record


class Flight:
    """What the flight recorder keeps of a session: its begin and its end, in bounded memory.

    failed: it met a 4xx or 5xx (a time limit and a lost backend are answered so) or a violation.
    """

    __slots__ = ("_contents", "_first", "_last", "_missing", "_room", "failed")

    def __init__(self) -> None:
        self.failed = False
        self._first: list[Exchange] = []
        self._last: deque[Exchange] = deque()
        self._contents: dict[Exchange, tuple[bytes, int]] = {}
        self._room = KEPT_OCTETS
        self._missing = 0

    def add_content(self, exchange: Exchange, octets: bytes, size: int) -> None:
        """Take in the content of an exchange, which is added next."""
        self._contents[exchange] = (octets, size)
        self._room -= len(octets)

    def add(self, exchanges: list[Exchange]) -> None:
        """Take in exchanges."""
        for exchange in exchanges:
            if exchange.code >= 400 or exchange.problem is not None:
                self.failed = True
            self._room -= len(exchange.line) + len(exchange.reply)
            if self._room > KEPT_OCTETS // 2 and len(self._first) < KEPT_EXCHANGES // 2:
                self._first.append(exchange)
            else:
                self._last.append(exchange)
                self._make_room()

    def _make_room(self) -> None:
        last = self._last
        while len(last) > KEPT_EXCHANGES // 2 or (self._room < 0 and len(last) > 1):
            gone = last.popleft()
            content, _ = self._contents.pop(gone, (b"", 0))
            self._room += len(gone.line) + len(gone.reply) + len(content)
            self._missing += 1

    def write(self, session: SessionTrace, trace: "Trace") -> None:
        """Have all that was kept written."""
        for exchange, (content, size) in self._contents.items():
            trace.add_content(exchange, content, size)
        trace.add(session, self._first)
        if self._missing:
            gap = records.Gap(session.id, self._missing)
            trace.add(session, lambda: gap)
        if self._last:
            trace.add(session, list(self._last))
