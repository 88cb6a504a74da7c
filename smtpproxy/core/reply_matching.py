"""Matches each reply of the backend to the exchange that it answers (step 4 of the pipeline)."""

from typing import Final

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.framing import CHUNK, CONTENT, PAYLOAD, Framer
from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.violations import BackendViolation

# The meanings of a reply.
ANSWER: Final = 0
"""The reply to the first exchange in flight."""
DEFERRED: Final = 1
"""A refusal before the end of data: the client gets it after its end of data, or chunk."""
CLOSING: Final = 2
"""A reply with which the backend closes the session (RFC 5321 section 3.8)."""


class ReplyMatcher:
    """The exchanges that the backend has not answered yet, and the reader of its replies."""

    __slots__ = ("_framer", "_reply_limit", "in_flight", "reader")

    in_flight: list[Exchange]
    """The exchanges whose replies the backend owes, in order.

    The pipeline appends an exchange when it sends it, and removes it when it is settled.
    """
    reader: ReplyReader
    """The part of the next reply received so far; created for the first partial one (bench S5)."""

    def __init__(self, framer: Framer, reply_limit: int) -> None:
        self._framer = framer
        self._reply_limit = reply_limit
        self.in_flight = [framer.gate]  # the greeting
        self.reader = _NOTHING_READ

    @property
    def greeting_owed(self) -> bool:
        """Whether the backend has not sent its greeting yet."""
        return bool(self.in_flight) and self.in_flight[0].verb.role == verbs.GREETING

    @property
    def discards_content(self) -> bool:
        """Whether content is read and discarded, since it is already refused."""
        framer, first = self._framer, self.in_flight[0] if self.in_flight else NO_EXCHANGE
        return framer.chunk_refusal != b"" or (first.refusal != b"" and framer.mode in _CONTENT)

    def receive(self, octets: bytes) -> ReplyReader:
        """Append octets to the next reply, and return their reader."""
        if self.reader is _NOTHING_READ:
            self.reader = ReplyReader(self._reply_limit)
        self.reader.receive(octets)
        return self.reader

    def discard(self) -> None:
        """Discard the partial reply, to free its memory."""
        self.reader = _NOTHING_READ

    def classify(self, exchange: Exchange, code: int, reply: bytes, now: float) -> int:
        """Return the meaning of a reply: ANSWER, DEFERRED or CLOSING.

        Args:
            exchange: The first exchange in flight, or NO_EXCHANGE.
            code: The code of the reply's last line.
            reply: All lines of the reply.
            now: The time.

        Raises:
            BackendViolation: No exchange is in flight, or the reply is not valid for this one.
        """
        if exchange.refusal and self._framer.mode in _CONTENT:  # as `discards_content`
            return DEFERRED
        role = exchange.verb.role
        if code == 421 or (role == verbs.GREETING and code >= 400):
            # RFC 5321 section 3.8: may also come unsolicited
            return DEFERRED if self._framer.chunk_refusal else CLOSING
        if exchange is NO_EXCHANGE:
            self._refuse_chunks(code, reply)
            return DEFERRED
        if (
            not exchange.sent
            and (role == verbs.END_OF_DATA or exchange.is_content_chunk)
            and not self._framer.may_be_over
        ):
            self._defer(exchange, code, reply)
            return DEFERRED
        if not exchange.may_be_answered(code, reply):
            raise BackendViolation("impossible_reply", reply)
        if role == verbs.END_OF_DATA and not exchange.sent:
            # With `pass`, the backend may see an end of data where the proxy does not.
            exchange.sent = now
            exchange.closes = True
            exchange.problem = BackendViolation("reply_before_end_of_data", reply)
        if role == verbs.TUNNEL and code == 220 and self.reader.unread:
            raise BackendViolation("reply_after_starttls", self.reader.unread)
        return ANSWER

    def check_begun_reply(self) -> None:
        """Check what has come of the next reply while content or a payload is still to come.

        Only a refusal may begin then, or with `pass` the reply to what the backend takes for the
        end.  The backend must not get the true end: it would keep a message for which the client
        gets no 250, and sends again.

        Raises:
            BackendViolation: It can't be one of these.
        """
        framer = self._framer
        if framer.mode in _CONTENT:
            kind, expected = "reply_before_end_of_data", framer.may_be_over
        else:
            kind = "impossible_reply"
            expected = framer.mode != PAYLOAD or len(self.in_flight) > 1
        if not expected and self.reader.unread[0] not in b"45":
            raise BackendViolation(kind, self.reader.unread)

    def _refuse_chunks(self, code: int, reply: bytes) -> None:
        """Keep a reply that came between two chunks, which must be a refusal, for the next one."""
        framer = self._framer
        if not framer.amid_chunks or (code < 400 and not framer.chunk_refusal):
            raise BackendViolation("reply_not_asked_for", reply)
        framer.refuse_chunks(framer.chunk_refusal or reply)

    def _defer(self, content: Exchange, code: int, reply: bytes) -> None:
        """Keep a reply that began before the end of data was sent, which must be a refusal."""
        if code < 400:
            raise BackendViolation("reply_before_end_of_data", reply)
        content.refusal = content.refusal or reply
        self._framer.content_refused()


_CONTENT: Final = (CONTENT, CHUNK)

NO_EXCHANGE: Final = Exchange(verbs.UNSOLICITED_ROW, b"", 0.0)
"""The placeholder if no exchange is in flight; never changed."""

_NOTHING_READ: Final = ReplyReader()
"""The placeholder until a session needs a reader; never changed."""
