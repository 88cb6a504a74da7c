"""Records one session: at once, or, as a flight recorder, only if something in it failed."""

from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import SessionEnds, SessionSummary
from smtpproxy.log.events import INTERNAL_ERROR, PROXY_HEADER_READ, TLS_STARTED
from smtpproxy.log.session_log import ip_and_port
from smtpproxy.text.escaping import shortened
from smtpproxy.trace import exchange_records, records
from smtpproxy.trace.content_capture import CapturedContent, ContentCapture
from smtpproxy.trace.record_writer import Writer

KEPT_OCTETS = 64 * 1024
"""The most that the flight recorder keeps of a session; at most half of it is its start."""
ALL_KEPT_OCTETS = 64 * 1024 * 1024
"""The most that it keeps of all sessions of a worker."""
KEPT_WHEN_CROWDED = 4 * 1024
"""The most of a session once half of that is used; the last eighth is for first records."""
CONTENT_OCTETS = 16 * 1024
"""The most that it keeps of the content of a message."""
EXCHANGE_OCTETS, STEP_OCTETS, RECORD_OCTETS = 400, 200, 400
"""The memory that an exchange, a step, and another record take, besides their texts."""
LONG_OCTETS = 8 * 1024
"""The flight recorder cuts longer replies, so that one cannot displace all others."""
KEPT_MESSAGES = 100
"""The most transactions, and the most violations, in a session's last record."""
KEPT_MESSAGES_OCTETS = 64 * 1024
"""The most octets of transactions; in the flight recorder, a quarter of KEPT_OCTETS at most."""
WHY_BYTES = 512
"""The most octets of the reason for which a server was given up."""
KEPT_CODES = 50
"""The most different reply codes."""
_NO_FAILURES = frozenset((PROXY_HEADER_READ.name, TLS_STARTED.name))
_NO_CONTENTS: dict[Exchange, CapturedContent] = {}
_CONTENT = frozenset((verbs.END_OF_DATA, verbs.BDAT))


class SessionRecorder:
    """Records one session.

    Args:
        writer: Takes the records.
        captured: Keeps the part of message content to record.
        flight: Keeps the session until it ends, if only sessions with errors are recorded.
        session: The session's id.
        listener: The listener's name.
        backend: The backend's name.
        client: The client's address.
    """

    __slots__ = (
        "_backend",
        "_captured",
        "_client_ip",
        "_client_port",
        "_client_rtt_s",
        "_codes",
        "_flight",
        "_head",
        "_listener",
        "_messages",
        "_messages_room",
        "_more_messages",
        "_noted",
        "_opened",
        "_server",
        "_violations",
        "_writer",
        "id",
    )

    def __init__(
        self,
        writer: Writer,
        captured: ContentCapture,
        flight: "FlightRecorder | None",
        session: str,
        listener: str,
        backend: str,
        client: str,
    ) -> None:
        self.id = session
        self._writer = writer
        self._listener = listener
        self._backend = backend
        self._client_ip, self._client_port = ip_and_port(client)
        self._server = ""
        self._client_rtt_s: float | None = None
        self._opened = monotonic() + writer.offset
        self._captured = captured
        self._head: list[records.Record] = []  # one for each server, and KEPT_NOTED, at most
        self._noted = 0
        self._codes: set[int] = set()
        self._violations: list[str] = []
        self._messages: list[records.Transaction] = []
        self._more_messages = 0
        self._messages_room = KEPT_MESSAGES_OCTETS if flight is None else KEPT_OCTETS // 4
        self._flight = flight
        self._add(
            records.Opened(
                session, self._opened, listener, self._client_ip, self._client_port, backend
            )
        )

    def content(self, _exchange: Exchange, sent: bytes, came: bytes) -> None:
        """Keep the part of content to record."""
        if self._flight is None:
            self._captured.add(sent, came)
        else:
            self._flight.add_content(self._captured, sent, came)

    def _add(self, record: records.Record) -> None:
        if self._flight is None:
            self._writer.add(records.encode(record) + b"\n")
        else:
            self._head.append(record)
            self._flight.charge(RECORD_OCTETS)

    def connected(self, server: str, ends: SessionEnds) -> None:
        """Record the connection to the server."""
        self._server = server
        at = monotonic() + self._writer.offset
        end = ends.all()
        self._client_rtt_s = end.client_rtt_s
        self._add(
            records.Connected(self.id, at, server, end.client, end.listener, end.proxy, end.server)
        )

    def gave_up(self, server: str, reason: str) -> None:
        """Record that a server was not reached."""
        at = monotonic() + self._writer.offset
        self._add(records.ServerGivenUp(self.id, at, server, shortened(reason, WHY_BYTES)))
        if self._flight is not None:
            self._flight.failed = True

    def settled(self, exchanges: list[Exchange]) -> None:
        """Record each exchange."""
        for exchange in exchanges:
            if exchange.code >= 400 or exchange.problem is not None:
                self._note(exchange)
        contents = self._take_contents(exchanges) if self._captured.any else _NO_CONTENTS
        writer = self._writer
        if self._flight is not None:
            self._flight.add(exchanges, contents)
        elif size := sum(each.octets for each in contents.values()):
            make = partial(exchange_records.encoded, self.id, exchanges, contents, writer.offset)
            writer.add_made(make, len(exchanges), size)
        else:
            lines = exchange_records.encoded(self.id, exchanges, contents, writer.offset)
            writer.add(lines, len(exchanges))

    def _take_contents(self, exchanges: list[Exchange]) -> dict[Exchange, CapturedContent]:
        """Return what is to be recorded of the content of those exchanges that have some."""
        captured, flight = self._captured, self._flight
        contents = {}
        before = captured.octets
        for exchange in exchanges:
            if captured.any and exchange.verb.role in _CONTENT:
                digested = flight is None or flight.failed
                content = captured.take(exchange, digested=digested)
                if content is not None:
                    contents[exchange] = content
        if flight is not None:  # it was counted while it was relayed
            kept = sum(RECORD_OCTETS + each.octets for each in contents.values())
            flight.charge(kept + captured.octets - before)
        return contents

    def _note(self, exchange: Exchange) -> None:
        """Keep what failed."""
        if exchange.code >= 400 and len(self._codes) < KEPT_CODES:
            self._codes.add(exchange.code)
        if exchange.problem is not None and len(self._violations) < KEPT_MESSAGES:
            self._violations.append(exchange.problem.kind)
        if self._flight is not None:
            self._flight.failed = True

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Keep the outcome of a transaction for the session's last record."""
        if len(self._messages) < KEPT_MESSAGES and self._messages_room > 0:
            message = records.transaction_of(outcome, fields())
            if self._has_room_for(message):
                self._messages.append(message)
                return
        self._more_messages += 1

    def _has_room_for(self, message: records.Transaction) -> bool:
        size = RECORD_OCTETS + records.octets_of_transaction(message)
        self._messages_room -= size
        if self._messages_room < 0:
            return False
        if self._flight is None or self._flight.charge(size):
            return True
        self._flight.charge(-size)
        return False

    def noted(self, event: str, **values: str) -> None:
        """Record an event outside the dialogue, such as the start of TLS.

        A failure is an error to the flight recorder, even if no reply shows it.
        """
        if self._flight is not None and event not in _NO_FAILURES:
            self._flight.failed = True
        if self._noted < records.KEPT_NOTED:
            self._noted += 1
            self._add(records.Noted(self.id, monotonic() + self._writer.offset, event, **values))

    def broken(self, error: Exception) -> None:
        """Record that the proxy itself failed."""
        self.noted(INTERNAL_ERROR.name, reason=type(error).__name__)

    def slowed(self) -> None:
        """Record nothing: the times show it."""

    def stalled(self) -> None:
        """Record nothing: the times show it."""

    def closed(self, summary: SessionSummary) -> None:
        """Record the end; the flight recorder writes all of the session or nothing."""
        if self._flight is not None:
            self._flight.close()
            if not self._flight.failed:
                return
            self._writer.add(records.encode_lines(self._head), len(self._head))
            self._flight.write(self.id)
        self._writer.add(records.encode(self._closed_record(summary)) + b"\n")

    def _closed_record(self, summary: SessionSummary) -> records.Closed:
        return records.Closed(
            self.id,
            self._opened + summary.seconds,
            self._opened,
            self._listener,
            self._client_ip,
            self._client_port,
            self._server,
            summary.reason,
            summary.seconds,
            summary.commands,
            summary.pipelined,
            summary.messages,
            summary.client_octets,
            summary.backend_octets,
            sorted(self._codes),
            self._violations,
            self._messages,
            self._more_messages,
            self._backend,
            self._client_rtt_s,
        )


class FlightMemory:
    """What the flight recorder keeps of all sessions of a worker."""

    __slots__ = ("octets",)

    octets: int
    """How much it is."""

    def __init__(self) -> None:
        self.octets = 0

    @property
    def for_each(self) -> int:
        """How much of each session may be kept now."""
        if self.octets < ALL_KEPT_OCTETS // 2:
            return KEPT_OCTETS
        return KEPT_WHEN_CROWDED if self.octets < ALL_KEPT_OCTETS * 7 // 8 else 0


class FlightRecorder:
    """What the flight recorder keeps of a session: its beginning and its end, in bounded memory.

    All that is kept of a session counts: exchanges, content that is under way or recorded, what its
    last record has.  Where there is no room, the oldest exchanges of its end are dropped first.

    Args:
        writer: Takes the records when the session is to be written.
        memory: Counts what is kept of all sessions.
    """

    __slots__ = (
        "_contents",
        "_first",
        "_kept",
        "_last",
        "_memory",
        "_missing",
        "_writer",
        "failed",
    )

    failed: bool
    """It met a 4xx or 5xx (a time limit and a lost backend are answered so), a violation, TLS that
    failed, or was turned away."""

    def __init__(self, writer: Writer, memory: FlightMemory) -> None:
        self._writer = writer
        self._memory = memory
        self.failed = False
        self._first: list[Exchange] = []
        self._last: deque[Exchange] = deque()
        self._contents: dict[Exchange, CapturedContent] = {}
        self._kept = 0
        self._missing = 0

    def add(self, exchanges: list[Exchange], contents: dict[Exchange, CapturedContent]) -> None:
        """Take in exchanges, and the content of those that have some."""
        first, last, half = self._first, self._last, self._memory.for_each // 2
        begins = not last and not self._missing
        before = kept = self._kept
        for each in exchanges:
            exchange = each
            size = EXCHANGE_OCTETS + len(each.line) + len(each.reply)  # hot: as `_size_of`
            if each.steps or size > LONG_OCTETS:
                exchange = _shortened(each)
                size = _size_of(exchange)
            if contents and each in contents:
                self._contents[exchange] = contents[each]
            kept += size
            begins = begins and kept <= half
            if begins:
                first.append(exchange)
            else:
                last.append(exchange)
        self._count(kept - before)
        if last:
            self._has_room(0)

    def add_content(self, captured: ContentCapture, sent: bytes, came: bytes) -> None:
        """Take in content that is relayed, as far as there is room for it."""
        most = min(len(sent) + len(came), 2 * CONTENT_OCTETS)
        if captured.full or self._has_room(most):
            self._count(captured.add(sent, came))
        else:
            self._count(captured.leave_out(sent, came))

    def charge(self, octets: int) -> bool:
        """Count what else is kept of the session; return whether there was room for it."""
        self._count(octets)
        return self._has_room(0)

    def _count(self, octets: int) -> None:
        self._kept += octets
        self._memory.octets += octets

    def _has_room(self, octets: int) -> bool:
        """Return whether more may be kept, after the oldest of the end made room for it."""
        memory = self._memory
        if self._kept + octets <= memory.for_each:
            return True
        last = self._last
        while last and self._kept + octets > memory.for_each:
            gone = last.popleft()
            content = self._contents.pop(gone, None)
            size = _size_of(gone)
            if content is not None:
                size += content.octets + RECORD_OCTETS
            self._count(-size)
            self._missing += 1
        return self._kept + octets <= memory.for_each

    def close(self) -> None:
        """Free its share of the memory of all sessions."""
        self._memory.octets -= self._kept
        self._kept = 0

    def write(self, session: str) -> None:
        """Write all that was kept."""
        contents, writer = self._contents, self._writer
        for part in (self._first, list(self._last)):
            if part:
                make = partial(exchange_records.encoded, session, part, contents, writer.offset)
                writer.add_made(make, len(part), KEPT_OCTETS // 2)
            if part is self._first and self._missing:
                writer.add(records.encode(records.Gap(session, self._missing)) + b"\n")


def _size_of(exchange: Exchange) -> int:
    size = EXCHANGE_OCTETS + len(exchange.line) + len(exchange.reply)
    if exchange.steps:
        size += sum(STEP_OCTETS + len(step.line) + len(step.reply) for step in exchange.steps)
    return size


def _shortened(exchange: Exchange) -> Exchange:
    """Return an exchange with its replies cut, if it is long."""
    if _size_of(exchange) <= LONG_OCTETS:
        return exchange
    reply = exchange.reply[:LONG_OCTETS] + b" ..."
    steps = [step._replace(reply=step.reply[:LONG_OCTETS]) for step in exchange.steps]
    return exchange.replaced(exchange.line, reply, steps)
