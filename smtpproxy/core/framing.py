"""Framing: turns octets from the client into exchanges on the queue (steps 1 and 2).

Only LF ends a command line, and every line is forwarded with CRLF, so that proxy and backend cannot
disagree on where a command ends.  A line that a lenient backend could read differently is refused
here and never forwarded.  No octets are dropped, except after STARTTLS and after a refusal that
closes the session.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from smtpproxy.core import lines, replies, verbs
from smtpproxy.core.content import BareNewlines, Content
from smtpproxy.core.exchange import ContentObserver, Exchange
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.verbs import Verb
from smtpproxy.core.violations import ClientViolation

# The modes: how the client's next octets are read.  Hot path (bench S2): plain integers.
CLOSED: Final = 0
COMMANDS: Final = 1
CONTENT: Final = 2
PAYLOAD: Final = 3
AUTH_DATA: Final = 4
SKIPPED: Final = 5
ENDED: Final = 6
SKIPPED_PAYLOAD: Final = 7
CHUNK: Final = 8
"""BDAT payload that the backend gets as content after DATA."""

WINDOW: Final = 16 * 1024
"""How many octets are split into lines at once; those after a gate may not be commands."""

_ANSWERED: Final = Exchange(verbs.UNSOLICITED_ROW, b"", 0.0)
"""The placeholder for an exchange that has been answered; never changed."""
_ANSWERED.flushed = 1.0


class Framer:
    """The octets and commands from the client that have not been sent to the backend yet."""

    __slots__ = (
        "_content",
        "_noted",
        "_policy",
        "_stalled",
        "_watch",
        "amid_chunks",
        "chunk_refusal",
        "commands",
        "content_over",
        "gate",
        "last",
        "may_be_over",
        "mistaken_end",
        "mode",
        "payload",
        "pipelined",
        "queue",
        "queue_octets",
        "send_backend",
        "table",
        "unframed",
    )

    amid_chunks: bool
    """Whether the backend reads content, of which the last BDAT chunk has not come whole."""
    chunk_refusal: bytes
    """The reply with which the backend refused content between two chunks; else empty."""
    commands: int
    """The number of commands framed."""
    content_over: bool
    """Whether content or a BDAT payload has become complete."""
    gate: Exchange
    """The last gate; while the mode is CLOSED, its reply decides the next mode."""
    last: Exchange
    """The exchange that was framed last."""
    may_be_over: bool
    """Whether, with `pass`, the backend may have seen an end of data where the proxy did not."""
    mistaken_end: ClientViolation | None
    """What is wrong with content where the client may think that it has sent the end of data.

    Set once per message, until the caller takes it.
    """
    mode: int
    """How the next octets are read; CLOSED until the reply to `gate`."""
    payload: int
    """How many octets of the last BDAT's payload are still expected."""
    pipelined: int
    """How many commands were framed before the previous reply was flushed."""
    queue: list[Exchange]
    """The exchanges to be sent, in order; the pipeline takes them from the front."""
    queue_octets: int
    """The size of the queued command lines."""
    send_backend: Callable[[bytes], None]
    """The sink for content and payload."""
    table: Mapping[bytes, Verb]
    """The verb table."""
    unframed: bytes | bytearray
    """The octets of an incomplete line, or those that wait for the gate to open."""

    def __init__(
        self,
        policy: SessionPolicy,
        greeting: Exchange,
        send_backend: Callable[[bytes], None],
        watch: ContentObserver | None = None,
    ) -> None:
        self._policy = policy
        self.table = policy.first_table
        self.send_backend = send_backend
        self.unframed = b""
        self._watch = watch
        self.mode = CLOSED
        self.gate = self.last = greeting
        self.queue = []
        self.queue_octets = 0
        self._stalled = False  # the queue was full, so complete lines may be unframed
        self._content: Content | None = None
        self.amid_chunks = self.content_over = self.may_be_over = False
        self.chunk_refusal = b""
        self.mistaken_end = None
        self._noted: ClientViolation | None = None  # the last `mistaken_end`
        self.payload = 0
        self.commands = self.pipelined = 0

    def connect_backend(self, send_backend: Callable[[bytes], None]) -> None:
        """Set the sink for content and payload."""
        self.send_backend = send_backend

    @property
    def full(self) -> bool:
        """Whether reading from the client must pause.

        An incomplete line with an empty queue is read on, however long, since only its end makes
        progress possible.
        """
        if self.queue_octets + len(self.unframed) >= self._policy.queue_bytes:
            return bool(self.queue) or self._stalled or self.mode == CLOSED
        return len(self.queue) >= self._policy.queue_commands

    @property
    def in_line(self) -> bool:
        """Whether a line is incomplete, or refused and not at its end yet."""
        if self.unframed:
            return self.mode in (COMMANDS, AUTH_DATA)
        return self.mode == SKIPPED

    def receive(self, octets: bytes, now: float) -> None:
        """Append octets to the unframed ones, and frame as much as possible."""
        if self.unframed or self.mode == CLOSED:
            self._keep(octets)
            self.frame_waiting(now)
        else:
            self._frame(octets, now)

    def frame_waiting(self, now: float) -> None:
        """Frame the unframed octets, as far as possible."""
        if self.mode == CLOSED:
            self._guard_gate()
        elif self.unframed and not (self._stalled and self.queue):
            octets = bytes(self.unframed)
            self.unframed = b""
            self._frame(octets, now)

    def pop(self) -> Exchange:
        """Remove and return the first exchange of the queue."""
        exchange = self.queue.pop(0)
        self.queue_octets -= len(exchange.line)
        return exchange

    def clear_content_over(self) -> None:
        """Note that the pipeline has processed the end of content or of a payload."""
        self.content_over = False

    def content_refused(self) -> None:
        """Have content settled that the backend has refused, if its end of data has come since."""
        if self.mode not in (CONTENT, CHUNK):
            self.content_over = True

    def refuse_chunks(self, reply: bytes) -> None:
        """Have the next chunk refused, and its payload discarded."""
        self.chunk_refusal = reply

    def take_mistaken_end(self) -> ClientViolation | None:
        """Remove and return `mistaken_end`."""
        taken, self.mistaken_end = self.mistaken_end, None
        return taken

    def forget(self, exchange: Exchange) -> None:
        """Release an exchange whose reply was flushed, to save memory in idle sessions."""
        if exchange is self.last and not (exchange.verb.secret or self.payload):
            self.last = _ANSWERED

    # --- how the pipeline opens the gate ------------------------------------------------------

    def await_upgrade(self, now: float) -> None:
        """Keep the gate closed after its reply is flushed: no plaintext may follow."""
        self.gate = Exchange(self.gate.verb, b"", now)

    def open_commands(self) -> None:
        """Read the next octets as command lines."""
        self.mode = COMMANDS
        self.gate = _ANSWERED

    def restart(self, policy: SessionPolicy) -> None:
        """Read the next octets as command lines, with another policy."""
        self._policy = policy
        self.table = policy.first_table
        self.open_commands()

    def ehlo_accepted(self, *, helo: bool) -> None:
        """Use the verb table for after EHLO, or for after HELO."""
        self.table = self._policy.helo_table if helo else self._policy.table

    def open_content(self, exchange: Exchange) -> None:
        """Read the next octets as message content.

        Args:
            exchange: The exchange of the content, which is answered after its end of data.
        """
        self.mode = CONTENT
        self.last = exchange
        self.gate = _ANSWERED
        self.may_be_over = False
        self._content = Content(self._policy.bare_newlines, self._policy.message_bytes)

    def begin_chunks(self) -> None:
        """Forward the payload of the next BDAT commands as content, up to the last of a message."""
        self.amid_chunks = True
        self.may_be_over = False
        self._content = Content(self._policy.bare_newlines)
        self.table = self._policy.chunk_table

    def open_payload(self) -> None:
        """Read the next octets as the payload of the last BDAT, then command lines."""
        if not self.amid_chunks:
            self.mode = PAYLOAD if self.payload else COMMANDS
            return
        self.mode = CHUNK
        if not self.payload:
            self._stream_chunk(b"", 0, 0.0)

    def skip_payload(self) -> None:
        """Discard the payload of the last BDAT, which is refused, then read command lines."""
        self.open_commands()
        if self.payload:
            self.mode = SKIPPED_PAYLOAD

    def open_auth_data(self) -> None:
        """Read the next line as a reply to an AUTH challenge, whatever it looks like."""
        self.mode = AUTH_DATA
        self.gate = _ANSWERED

    def close(self) -> None:
        """Discard the unframed octets, and ignore all later ones."""
        self.mode = ENDED
        self.unframed = b""

    def _keep(self, octets: bytes) -> None:
        if self.unframed:
            self.unframed += octets
        else:
            self.unframed = bytearray(octets)  # an idle session has none (bench S5)

    # --- framing ------------------------------------------------------------------------------

    def _frame(self, octets: bytes, now: float) -> None:
        """Frame until a gate closes, the queue is full, or a line is incomplete; keep the rest."""
        position, size, limit = 0, len(octets), self._policy.queue_commands
        while position < size and self.mode != CLOSED and len(self.queue) < limit:
            taken = _FRAME[self.mode](self, octets, position, now)
            if not taken:
                break
            position += taken
        self._stalled = len(self.queue) >= limit
        if position < size:
            self._keep(octets[position:])
            if self.mode == CLOSED:
                self._guard_gate()

    def _frame_commands(self, octets: bytes, position: int, now: float) -> int:
        """Frame the common commands of a group, up to the first gate; return the octets framed."""
        policy, table, queue = self._policy, self.table, self.queue
        before, pipelined, taken = len(queue), not self.last.flushed, 0
        window = octets[position : position + WINDOW]
        # bytes.splitlines splits at CR, LF and CRLF, so a bare CR or LF ends the loop.
        for line in window.splitlines(keepends=True) if window.find(b"\0") < 0 else ():
            verb = table.get(line[:5])
            if verb is None or not line.endswith(b"\r\n") or len(line) > policy.command_line:
                break
            exchange = Exchange(verb, line, now)
            exchange.pipelined = pipelined or taken > 0
            queue.append(exchange)
            taken += len(line)
            if verb.gate:
                self.mode = CLOSED
                self.gate = exchange
                break
            if len(queue) >= policy.queue_commands:
                break
        if not taken:
            return self._frame_uncommon(octets, position, now)
        framed = len(queue) - before
        self.last = exchange
        self.commands += framed
        self.pipelined += framed - (not pipelined)
        self.queue_octets += taken
        return taken

    def _frame_uncommon(self, octets: bytes, position: int, now: float) -> int:
        """Frame a line that is not a well-formed common command; return the octets framed."""
        try:
            lines.check_protocol(octets, position)
            limit = (
                self._policy.auth_line
                if lines.is_auth(octets, position)
                else self._policy.command_line
            )
            unclear = not self.commands and lines.check_proxy_v2(octets, position)
            end = 0 if unclear else lines.end_of_line(octets, position, limit)
            if not end:
                return 0
            line = octets[position:end]
            words = line.split(None, 1)
            word = words[0].upper() if words else b""
            verb = self.table.get(word) if word else None
            if verb is None:
                if not self.commands:
                    lines.check_header(line)
                verb = verbs.FORBIDDEN.get(word) or self.table[b""]
                # After AUTH it may be a password that was sent too early.
                if self.last.verb.secret or lines.may_be_secret(word):
                    verb = replace(verb, secret=True)
            line = verb.read(line)
            if verb.refusal and verb.closes:
                raise ClientViolation(verb.kind, verb.refusal, line, closes=True)
            exchange = Exchange(verb, line, now)
            exchange.bare_lf = not octets.endswith(b"\r\n", position, end)
            if verb.role == verbs.BDAT:
                self.payload = lines.bdat_size(line)
        except ClientViolation as violation:
            forbidden = verbs.FORBIDDEN.get(lines.first_word(octets, position))
            if forbidden is not None:  # even if its line is malformed
                kind, shown = forbidden.kind, violation.octets
                violation = ClientViolation(kind, forbidden.refusal, shown, closes=True)
            violation.closes = violation.closes or lines.is_bdat(octets, position)
            if self.last.verb.secret:
                violation.octets = b""
            return self._refuse(violation, octets, position, now)
        self._enqueue(exchange)
        return end - position

    def _frame_auth_data(self, octets: bytes, position: int, now: float) -> int:
        try:
            end = lines.end_of_line(octets, position, self._policy.auth_line)
            line = lines.auth_line(octets[position:end]) if end else b""
        except ClientViolation as violation:
            # The backend waits for this line, so the session cannot continue without it.
            violation.closes = True
            violation.octets = b""  # may be a secret
            return self._refuse(violation, octets, position, now)
        if end:
            self._enqueue(Exchange(verbs.AUTH_LINE_ROW, line, now))
        return end and end - position

    def _stream_content(self, octets: bytes, position: int, now: float) -> int:
        """Forward message content as it arrives, up to its end (RFC 5321 section 4.1.1.4)."""
        content, exchange = self._content, self.last
        assert content is not None
        received = octets[position:] if position else octets
        out, taken = content.receive(received)
        self._forward_content(out, received[:taken])
        exchange.octets = content.octets
        if content.dot_alone:
            self._note_dot_alone(content)
        if content.ended:
            exchange.problem = exchange.problem or content.rewritten
            self._content = None
            self.mode = COMMANDS
            self.content_over = True
            exchange.framed = now
        return taken

    def _stream_chunk(self, octets: bytes, position: int, now: float) -> int:  # noqa: ARG002  one shape for all modes
        """Forward a BDAT payload as content, with an end of data after the last one."""
        content, chunk = self._content, self.last
        assert content is not None
        payload = octets[position : position + self.payload]
        self.payload -= len(payload)
        chunk.octets += len(payload)
        over = not self.payload
        last = over and chunk.ends_message
        out, end = content.receive_payload(payload), b""
        if last:
            rest, end = content.end_payload()
            out += rest
        self._forward_content(out, payload, end)
        if last:
            chunk.problem = chunk.problem or content.rewritten
            self._content = None
            self.amid_chunks = False
            self.table = self._policy.table
        if over:
            self.mode = COMMANDS
            self.content_over = True
        return len(payload)

    def _forward_content(self, out: bytes, received: bytes, end: bytes = b"") -> None:
        """Forward content as the filter returned it, and the end of data of BDAT payload."""
        content, exchange = self._content, self.last
        assert content is not None
        if exchange.refusal:
            out = end = b""  # refused content is discarded; the client gets the reply after its end
        if out or end:
            self.send_backend(out + end if end else out)
        if self._watch is not None:
            self._watch(exchange, out, received)
        if content.violation is not None and not exchange.refusal:
            exchange.refuse(content.violation)

    def _note_dot_alone(self, content: Content) -> None:
        if self._policy.bare_newlines is BareNewlines.PASS:
            self.may_be_over = True
        elif not content.ended:
            problem = content.rewritten or content.violation
            if problem is not self._noted:
                self._noted = self.mistaken_end = problem
                self.last.problem = self.last.problem or problem

    def _stream_payload(self, octets: bytes, position: int, now: float) -> int:  # noqa: ARG002
        """Forward a BDAT payload unchanged; only its octets are counted (RFC 3030 section 2).

        A backend may refuse the chunk before.  Observers have seen the chunk then, and get no more.
        """
        chunk = self.last
        payload = octets[position : position + self.payload]
        self.send_backend(payload)
        if not chunk.code:
            chunk.octets += len(payload)
            if self._watch is not None:
                self._watch(chunk, payload, payload)
        self.payload -= len(payload)
        if not self.payload:
            self.mode = COMMANDS
            self.content_over = True
        return len(payload)

    def _skip_payload(self, octets: bytes, position: int, now: float) -> int:  # noqa: ARG002
        """Discard the payload of a refused BDAT, of which the backend gets nothing."""
        taken = min(self.payload, len(octets) - position)
        self.payload -= taken
        if not self.payload:
            self.mode = COMMANDS
        return taken

    def _skip_line(self, octets: bytes, position: int, now: float) -> int:  # noqa: ARG002
        """Discard the rest of a refused line."""
        end = octets.find(b"\n", position) + 1
        if end:
            self.mode = COMMANDS
        return (end or len(octets)) - position

    def _ignore(self, octets: bytes, position: int, now: float) -> int:  # noqa: ARG002
        return len(octets) - position

    # --- the queue ----------------------------------------------------------------------------

    def _enqueue(self, exchange: Exchange) -> None:
        if not self.last.flushed:
            exchange.pipelined = True
            self.pipelined += 1
        self.last = exchange
        self.commands += 1
        self.queue.append(exchange)
        self.queue_octets += len(exchange.line)
        if exchange.verb.gate:
            self.mode = CLOSED
            self.gate = exchange

    def _refuse(self, violation: ClientViolation, octets: bytes, position: int, now: float) -> int:
        """Queue an exchange that refuses an invalid line; return the octets consumed."""
        # After a password that was sent too early, the next line may be secret, too.
        verb = replace(verbs.MALFORMED_ROW, secret=self.last.verb.secret)
        exchange = Exchange(verb, b"", now)
        exchange.refuse(violation)
        self._enqueue(exchange)
        if violation.closes:
            self.mode = ENDED
            return len(octets) - position
        self.mode = SKIPPED
        return self._skip_line(octets, position, now)

    def _guard_gate(self) -> None:
        """Refuse octets after a guarded gate, whose reply decides how they are read."""
        if self.unframed and self.gate.verb.guarded:
            # Only the first word is kept, since the rest may be content or a password.
            begin = bytes(self.unframed[:64])
            words = begin.split(None, 1)
            shown = words[0] if words and not self.gate.verb.secret else b""
            kind, reply = "not_synchronized", replies.NOT_SYNCHRONIZED
            if self.gate.verb.role == verbs.GREETING:
                if lines.may_begin_proxy_header(begin):
                    return  # the rest of it has to come first
                if begin.startswith(lines.PROXY_HEADERS):
                    kind, reply = "proxy_header_unexpected", replies.PROXY_UNEXPECTED
            self.gate.refuse(ClientViolation(kind, reply, shown, closes=True))
            self.close()


_FRAME = {
    COMMANDS: Framer._frame_commands,
    CONTENT: Framer._stream_content,
    PAYLOAD: Framer._stream_payload,
    AUTH_DATA: Framer._frame_auth_data,
    SKIPPED: Framer._skip_line,
    ENDED: Framer._ignore,
    SKIPPED_PAYLOAD: Framer._skip_payload,
    CHUNK: Framer._stream_chunk,
}
