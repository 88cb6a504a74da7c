"""One session as it is recorded: at once, or kept until it is known whether anything went wrong."""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import ConnectionEnds, SessionSummary
from smtpproxy.trace import records
from smtpproxy.trace.content_capture import CapturedContent, ContentCapture
from smtpproxy.trace.record_writer import Writer

KEPT_OCTETS = 64 * 1024
"""How much of a session the flight recorder keeps: of its begin one half, of its end the other."""
KEPT_EXCHANGES = 500
ALL_KEPT_OCTETS = 64 * 1024 * 1024
"""How much it keeps of all sessions of a worker; when that is reached, of each little more."""
KEPT_WHEN_FULL = 10
"""So many exchanges of the end of a session then."""
EXCHANGE_OCTETS = 400
"""What an exchange takes beside its line and its reply."""
KEPT_MESSAGES = 100
"""How many transactions, and how many violations, a session's last record tells."""
_NO_CONTENTS: dict[Exchange, CapturedContent] = {}
_CONTENT = frozenset((verbs.END_OF_DATA, verbs.BDAT))


class SessionRecorder:
    """Records one session.

    Args:
        writer: Takes the records.
        captured: Keeps what is to be recorded of message content.
        flight: Keeps the session until it is over, if only what went wrong is to be written.
        session: The session's id.
        listener: The listener's name.
        client: The client's address.
    """

    __slots__ = (
        "_captured",
        "_client",
        "_codes",
        "_flight",
        "_head",
        "_listener",
        "_messages",
        "_more_messages",
        "_noted",
        "_opened",
        "_server",
        "_violations",
        "_writer",
        "content",
        "id",
    )

    def __init__(
        self,
        writer: Writer,
        captured: ContentCapture,
        flight: "FlightRecorder | None",
        session: str,
        listener: str,
        client: str,
    ) -> None:
        self.id = session
        self._writer = writer
        self._listener = listener
        self._client = client
        self._server = ""
        self._opened = monotonic() + writer.offset
        self._captured = captured
        self.content = self._captured.add
        self._head: list[records.Record] = []  # one for each server, and KEPT_NOTED, at most
        self._noted = 0
        self._codes: set[int] = set()
        self._violations: list[str] = []
        self._messages: list[records.Message] = []
        self._more_messages = 0
        self._flight = flight
        self._add(records.Opened(session, self._opened, listener, client))

    def _add(self, record: records.Record) -> None:
        if self._flight is None:
            self._writer.add(records.encode(record) + b"\n")
        else:
            self._head.append(record)

    def connected(self, server: str, ends: Callable[[], ConnectionEnds]) -> None:
        """Record the connection to the server."""
        self._server = server
        at = monotonic() + self._writer.offset
        end = ends()
        self._add(
            records.Connected(self.id, at, server, end.client, end.listener, end.proxy, end.server)
        )

    def gave_up(self, server: str, why: str) -> None:
        """Record that a server could not be had."""
        self._add(records.GaveUp(self.id, monotonic() + self._writer.offset, server, why))
        if self._flight is not None:
            self._flight.failed = True

    def settled(self, exchanges: list[Exchange]) -> None:
        """Record each exchange."""
        contents = _NO_CONTENTS
        captured = self._captured
        for exchange in exchanges:
            if exchange.code >= 400 or exchange.problem is not None:
                self._note(exchange)
            if captured.any and exchange.verb.role in _CONTENT:
                digested = self._flight is None or self._flight.failed
                contents = {**contents, exchange: captured.take(exchange, digested=digested)}
        if self._flight is None:
            writer = self._writer
            lines = records.encoded(self.id, exchanges, contents, writer.offset)
            writer.add(lines, len(exchanges))
        else:
            self._flight.add(exchanges, contents)

    def _note(self, exchange: Exchange) -> None:
        """Remember what went wrong."""
        if exchange.code >= 400:
            self._codes.add(exchange.code)
        if exchange.problem is not None and len(self._violations) < KEPT_MESSAGES:
            self._violations.append(exchange.problem.kind)
        if self._flight is not None:
            self._flight.failed = True

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Keep what a transaction came to for the session's last record."""
        if len(self._messages) < KEPT_MESSAGES:
            self._messages.append(records.message_of(outcome, fields()))
        else:
            self._more_messages += 1

    def noted(self, event: str, **values: str) -> None:
        """Record what the dialogue does not tell: who is inside TLS, or why there is no more of it.

        What failed is an error to the flight recorder, even if no reply tells of it.
        """
        if self._flight is not None and event != "tls_started":
            self._flight.failed = True
        if self._noted < records.KEPT_NOTED:
            self._noted += 1
            self._add(records.Noted(self.id, monotonic() + self._writer.offset, event, **values))

    def slowed(self) -> None:
        """Record nothing: the times tell."""

    def stalled(self) -> None:
        """Record nothing: the times tell."""

    def closed(self, summary: SessionSummary) -> None:
        """Record the end; of the flight recorder's session all or nothing is written."""
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
            self._client,
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
        )


class FlightMemory:
    """What the flight recorder keeps of all sessions of a worker."""

    __slots__ = ("octets",)

    octets: int
    """How much it is together."""

    def __init__(self) -> None:
        self.octets = 0

    @property
    def full(self) -> bool:
        """Tell whether each session has to do with little room."""
        return self.octets >= ALL_KEPT_OCTETS


class FlightRecorder:
    """What the flight recorder keeps of a session: its begin and its end, in bounded memory.

    Args:
        writer: Takes the records when the session is to be written.
        memory: Counts what is kept of all sessions.
    """

    __slots__ = (
        "_contents",
        "_first",
        "_last",
        "_memory",
        "_missing",
        "_room",
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
        self._room = KEPT_OCTETS
        self._missing = 0

    def add(self, exchanges: list[Exchange], contents: dict[Exchange, CapturedContent]) -> None:
        """Take in exchanges, and the content of those that have some."""
        if contents:
            self._contents.update(contents)
        room, half, first, last = self._room, self._half, self._first, self._last
        for exchange in exchanges:
            room -= len(exchange.line) + len(exchange.reply)
            if room > half and len(first) < KEPT_EXCHANGES // 2:
                first.append(exchange)
            else:
                last.append(exchange)
        for content in contents.values():
            room -= len(content.text) + len(content.came)
        self._memory.octets += self._room - room + EXCHANGE_OCTETS * len(exchanges)
        self._room = room
        if last:
            self._make_room()

    @property
    def _half(self) -> int:
        """Return the room that the begin of the session leaves to its end."""
        return KEPT_OCTETS if self._memory.full else KEPT_OCTETS // 2

    def _make_room(self) -> None:
        last, memory = self._last, self._memory
        while (
            len(last) > KEPT_EXCHANGES // 2
            or (self._room < 0 and len(last) > 1)
            or (memory.full and len(last) > KEPT_WHEN_FULL)
        ):
            gone = last.popleft()
            size = self._size_of(gone)
            self._room += size
            memory.octets -= size + EXCHANGE_OCTETS
            self._contents.pop(gone, None)
            self._missing += 1

    def _size_of(self, exchange: Exchange) -> int:
        size = len(exchange.line) + len(exchange.reply)
        content = self._contents.get(exchange)
        return size if content is None else size + len(content.text) + len(content.came)

    def close(self) -> None:
        """Give back what it took of the room of all."""
        kept = len(self._first) + len(self._last)
        self._memory.octets -= KEPT_OCTETS - self._room + EXCHANGE_OCTETS * kept

    def write(self, session: str) -> None:
        """Have all that was kept written."""
        contents, writer = self._contents, self._writer
        for part in (self._first, list(self._last)):
            if part:
                writer.add(records.encoded(session, part, contents, writer.offset), len(part))
            if part is self._first and self._missing:
                writer.add(records.encode(records.Gap(session, self._missing)) + b"\n")
