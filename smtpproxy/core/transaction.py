"""The mail transaction of a session: what has to be known of it to let a command pass.

RFC 5321 section 3.3: MAIL begins it, RCPT names recipients, and the end of its message, RSET or
a new hello end it.
"""

from smtpproxy.core import commands, lines, replies
from smtpproxy.core.errors import ClientViolation
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.extensions import Extensions
from smtpproxy.core.rules import Rules
from smtpproxy.core.upgrades import reply_to_starttls


class Transaction:
    """The one that is open, or was last; and what outlasts each of them.

    open: MAIL was accepted, and the transaction is not over.
    accepted, rejected: RCPT commands of it with a positive reply, and with another one.
    chunk_octets: BDAT payload of it.
    messages: how many the backend has taken over in this session.
    authenticated: the client has been.
    """

    __slots__ = ("accepted", "authenticated", "chunk_octets", "messages", "open", "rejected")

    def __init__(self) -> None:
        self.open = self.authenticated = False
        self.accepted = self.rejected = self.chunk_octets = self.messages = 0

    def begin(self) -> None:
        """MAIL was accepted."""
        self.open = True
        self.accepted = self.rejected = self.chunk_octets = 0

    def end(self) -> None:
        """It is over, one way or another."""
        self.open = False
        self.accepted = self.rejected = self.chunk_octets = 0

    def follow(self, exchange: Exchange, code: int) -> None:
        """Take the reply to a command of it."""
        role = exchange.verb.role
        if role == commands.RCPT:
            if code < 300:
                self.accepted += 1
            else:
                self.rejected += 1
        elif role == commands.MAIL:
            if code < 300:
                self.begin()
        elif exchange.ends_message:
            self.messages += code < 300
            self.end()
        elif role in _ENDS:
            if code < 300:
                self.end()
        elif role == commands.AUTH:
            self.authenticated = self.authenticated or code == 235

    def add_chunk(self, octets: int) -> None:
        """BDAT payload of so many octets goes to the backend."""
        self.chunk_octets += octets

    # --- what may not be forwarded --------------------------------------------------------------

    def weigh(
        self, exchange: Exchange, rules: Rules, extensions: Extensions, in_flight: int
    ) -> bytes:
        """Return the proxy's own reply to what may not be forwarded as things stand, else nothing.

        `in_flight` commands wait for the backend's reply; while there are any, a refusal is only
        for now: the command is weighed again.
        """
        role = exchange.verb.role
        if role == commands.RCPT:
            if self.accepted + in_flight >= rules.recipients:
                # RFC 5321 section 4.5.3.1.10
                reply = replies.TOO_MANY_RECIPIENTS
                return _over("too_many_recipients", reply, exchange, in_flight)
        elif role == commands.MAIL:
            if 0 < rules.message_octets < lines.declared_size(exchange.line):
                # RFC 1870 section 6.1
                return _over("message_too_big", replies.MESSAGE_TOO_BIG, exchange, in_flight)
        elif role == commands.DATA:
            guarded = rules.guard_data and not extensions.pipelining
            if guarded and self.rejected and not self.accepted:
                return replies.NO_VALID_RECIPIENTS  # RFC 2920 section 3.2, items 3 and 4
        elif role == commands.STARTTLS:
            return reply_to_starttls(exchange.line, authenticated=self.authenticated)
        else:
            self._weigh_chunk(exchange, rules, extensions)
        return exchange.refusal

    def _weigh_chunk(self, chunk: Exchange, rules: Rules, extensions: Extensions) -> None:
        """Refuse a BDAT chunk (RFC 3030 section 2); it ends the session.

        A backend without CHUNKING would take the payload for commands; and to one that lacks a
        chunk which made the message too big, a later chunk would complete another message.
        """
        if not extensions.chunking:
            why, reply, shown = "bdat_not_offered", replies.NOT_IMPLEMENTED, chunk.line
        elif rules.message_octets and self.chunk_octets + chunk.octets > rules.message_octets:
            why, reply, shown = "message_too_big", replies.MESSAGE_TOO_BIG, b""
        else:
            return
        chunk.refuse(ClientViolation(why, reply, shown, closes=True))


def _over(kind: str, reply: bytes, exchange: Exchange, in_flight: int) -> bytes:
    """Return the reply to what is over a limit; it is noted when the refusal is final."""
    if not in_flight:
        exchange.refuse(ClientViolation(kind, reply, exchange.line))
    return reply


_ENDS = frozenset((commands.EHLO, commands.HELO, commands.RSET))
"""Roles whose positive reply ends the transaction there was."""
