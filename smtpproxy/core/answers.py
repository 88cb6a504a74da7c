"""Answers: each reply of the backend is given to the exchange that waits for it (step 4)."""

from smtpproxy.core import commands
from smtpproxy.core.errors import BackendViolation
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.framing import CONTENT, PAYLOAD, Framer
from smtpproxy.core.replies import ReplyReader

ANSWERED, NOT_YET, CLOSES = range(3)
"""What a reply is: the answer to the first in flight; nothing that is passed on, at least for now;
the backend's good-bye."""


class Answers:
    """What the backend has got and not answered yet.

    in_flight: the exchanges whose replies it owes, in order.
    reader: what has come of its next reply; made when one first comes in pieces (bench S5).
    came: when its last reply did.
    """

    __slots__ = ("_framer", "came", "in_flight", "reader")

    def __init__(self, framer: Framer, now: float) -> None:
        self._framer = framer
        self.in_flight = [framer.gate]  # the greeting
        self.reader = _NOTHING_READ
        self.came = now

    @property
    def greeting_owed(self) -> bool:
        """Tell whether the backend has not greeted yet."""
        return bool(self.in_flight) and self.in_flight[0].verb.role == commands.GREETING

    @property
    def known(self) -> bool:
        """Tell whether the client is read to its end of data only to get a reply already known."""
        first = self.in_flight[0] if self.in_flight else NOTHING_ASKED
        return first.refusal != b"" and self._framer.mode == CONTENT

    def waiting(self, active: float) -> tuple[str, float]:
        """Return what `Pipeline.waiting` does, for a client that was `active` last at this time."""
        if self._framer.mode in (CONTENT, PAYLOAD):
            return "content", active
        if self.in_flight:
            first = self.in_flight[0]
            return first.verb.limit, max(first.sent, first.framed, self.came)
        return "client", active

    def read(self, octets: bytes) -> ReplyReader:
        """Append octets to what has come of the next reply."""
        if self.reader is _NOTHING_READ:
            self.reader = ReplyReader()
        self.reader.receive(octets)
        return self.reader

    def ignore(self) -> None:
        """Forget what has come: what the backend says now is to take no room."""
        self.reader = _NOTHING_READ

    def judge(self, exchange: Exchange, code: int, reply: bytes) -> int:
        """Return what a reply is that came while `exchange` was first in flight.

        Raises BackendViolation for a reply that none waits for, or that can't be an answer.
        """
        if self.known:
            return NOT_YET
        role = exchange.verb.role
        if code == 421 or (role == commands.GREETING and code >= 400):
            return CLOSES  # RFC 5321 section 3.8: unasked too
        if exchange is NOTHING_ASKED:
            raise BackendViolation("reply_not_asked_for", reply)
        if role == commands.END_OF_DATA and not exchange.sent:
            self._take_early(exchange, code, reply)
            return NOT_YET
        if not exchange.may_be_answered(code, reply):
            raise BackendViolation("impossible_reply", reply)
        if role == commands.TUNNEL and code == 220 and self.reader.unread:
            raise BackendViolation("reply_behind_starttls", self.reader.unread)
        return ANSWERED

    def _take_early(self, exchange: Exchange, code: int, reply: bytes) -> None:
        """Take a reply that began before the end of data was sent: it can only be a refusal."""
        if code < 400:
            raise BackendViolation("reply_before_end_of_data", reply)
        exchange.refusal = exchange.refusal or reply
        if self._framer.mode != CONTENT:  # the end of data has come meanwhile
            self._framer.content_over = True


NOTHING_ASKED = Exchange(commands.NOT_ASKED, b"", 0.0)
"""Stands for the exchange in flight where there is none; never changed."""

_NOTHING_READ = ReplyReader()
"""Stands for the reader of a session that has not needed one; never changed."""
