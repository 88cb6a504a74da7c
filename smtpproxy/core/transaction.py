"""The mail transaction of a session, and which commands may not be forwarded in it.

RFC 5321 section 3.3: MAIL begins a transaction, RCPT adds recipients, and the end of the message,
RSET, EHLO or HELO ends it.
"""

from typing import Final

from smtpproxy.core import lines, replies, verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.negotiated_extensions import NegotiatedExtensions
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.starttls import reply_to_starttls
from smtpproxy.core.violations import ClientViolation


class Transaction:
    """The current transaction, and what a session keeps across transactions."""

    __slots__ = (
        "accepted",
        "authenticated",
        "chunk_octets",
        "chunk_refused",
        "messages",
        "open",
        "rejected",
        "rejected_for_good",
    )

    open: bool
    """Whether MAIL was accepted and the transaction has not ended."""
    accepted: int
    """The number of its RCPT commands with a positive reply."""
    rejected: int
    """The number of its RCPT commands with another reply."""
    rejected_for_good: bool
    """Whether one of those replies was a 5xx."""
    chunk_octets: int
    """The size of its BDAT payload that was sent to the backend."""
    chunk_refused: bool
    """Whether one of its BDAT chunks was refused, but not the last."""
    messages: int
    """The number of messages in this session that the backend has accepted."""
    authenticated: bool
    """Whether the client has authenticated."""

    def __init__(self) -> None:
        self.authenticated = False
        self.messages = 0
        self.end()

    def begin(self) -> None:
        """Begin a transaction, after MAIL was accepted."""
        self.end()
        self.open = True

    def end(self) -> None:
        """End the transaction, if there is one."""
        self.open = self.rejected_for_good = self.chunk_refused = False
        self.accepted = self.rejected = self.chunk_octets = 0

    def add_recipient(self) -> None:
        """Count a recipient, after RCPT was accepted."""
        self.accepted += 1

    def update(self, exchange: Exchange, code: int) -> None:
        """Update the state after the reply to a command."""
        role = exchange.verb.role
        if role == verbs.RCPT:
            if code < 300:
                self.add_recipient()
            else:
                self.rejected += 1
                self.rejected_for_good = self.rejected_for_good or code >= 500
        elif role == verbs.MAIL:
            if code < 300:
                self.begin()
        elif exchange.ends_message:
            if exchange.sent:  # else the backend still has the transaction
                self.messages += code < 300
                self.end()
        elif role in _ENDS and code < 300:
            self.end()
        elif role == verbs.BDAT:
            self.chunk_refused = self.chunk_refused or code >= 400
        elif role == verbs.AUTH:
            self.authenticated = self.authenticated or code == 235

    def add_chunk(self, octets: int) -> None:
        """Count BDAT payload that is sent to the backend."""
        self.chunk_octets += octets

    # --- commands that may not be forwarded -----------------------------------------------------

    def refusal_for(
        self,
        exchange: Exchange,
        policy: SessionPolicy,
        extensions: NegotiatedExtensions,
        in_flight: int,
    ) -> bytes:
        """Return the proxy's own reply to a command that may not be forwarded, else empty.

        Args:
            exchange: A command that needs a check, at the front of the queue.
            policy: The session's policy.
            extensions: The session's extensions.
            in_flight: The number of commands in flight.  While there are any, a refusal is not
                final: the command stays in the queue, and is checked again.
        """
        role = exchange.verb.role
        if role == verbs.RCPT:
            if 0 < policy.recipients <= self.accepted + in_flight:
                # RFC 5321 section 4.5.3.1.10
                reply = replies.TOO_MANY_RECIPIENTS
                return _over("too_many_recipients", reply, exchange, in_flight)
        elif role == verbs.MAIL:
            if 0 < policy.message_bytes < lines.declared_size(exchange.line):
                # RFC 1870 section 6.1
                return _over("message_too_big", replies.MESSAGE_TOO_BIG, exchange, in_flight)
        elif role == verbs.DATA:
            return self._reply_without_recipients(policy, extensions)
        elif role == verbs.STARTTLS:
            return reply_to_starttls(exchange.line, authenticated=self.authenticated)
        elif role == verbs.BDAT:
            return self._refusal_for_chunk(exchange, policy, extensions, in_flight)
        elif role == verbs.AMID_CHUNKS:
            _refuse_amid_chunks(exchange, policy.hostname)
        return exchange.refusal

    def _reply_without_recipients(
        self, policy: SessionPolicy, extensions: NegotiatedExtensions
    ) -> bytes:
        """Return the reply to DATA if every recipient was refused, else empty.

        See RFC 2920 section 3.2, items 3 and 4.  After only 4xx the message must not bounce.
        """
        guarded = policy.guard_data and not extensions.pipelining
        if guarded and self.rejected and not self.accepted:
            for_good = self.rejected_for_good
            return replies.NO_VALID_RECIPIENTS if for_good else replies.RECIPIENTS_PUT_OFF
        return b""

    def _refusal_for_chunk(
        self,
        chunk: Exchange,
        policy: SessionPolicy,
        extensions: NegotiatedExtensions,
        in_flight: int,
    ) -> bytes:
        """Return the proxy's reply to a BDAT chunk that may not be forwarded (RFC 3030 section 2).

        A backend without CHUNKING would read the payload as commands.  An early client may know
        CHUNKING from a former session: its payload is skipped, and it may try again.  Any other
        session ends.  If a chunk that makes the message too big were left out, a later chunk would
        complete a different message.
        """
        closes, octets = True, self.chunk_octets + lines.bdat_size(chunk.line)
        if not extensions.chunking and policy.early_pipelining:
            why, reply, shown = "bdat_not_offered", replies.BDAT_NOT_OFFERED_NOW, chunk.line
            closes = False
        elif not extensions.chunking:
            why, reply, shown = "bdat_not_offered", replies.NOT_IMPLEMENTED, chunk.line
        elif policy.message_bytes and (in_flight or octets > policy.message_bytes):
            # Those in flight may begin another message, to which the earlier chunks don't count.
            why, reply, shown = "message_too_big", replies.MESSAGE_TOO_BIG, b""
        elif extensions.chunking_added and self.chunk_refused:
            # The later ones alone would be a different message.
            return replies.CHUNK_REFUSED_BEFORE
        elif extensions.chunking_added:
            return self._reply_without_recipients(policy, extensions)
        else:
            return b""
        if not in_flight:
            chunk.refuse(ClientViolation(why, reply, shown, closes=closes))
        return reply


def _refuse_amid_chunks(exchange: Exchange, hostname: bytes) -> None:
    """Set the proxy's reply to a command between chunks that the backend gets as content.

    The backend would read the command as content, and DATA cannot be taken back.  So what aborts
    the message ends the session, without an end of data.
    """
    name = exchange.verb.name
    exchange.closes = name in _ABORTS or exchange.verb.closes
    if name in _ABORTS:
        exchange.replace_reply(replies.MESSAGE_ABORTED % hostname)
    else:
        exchange.replace_reply(_AMID_CHUNKS.get(name, replies.AMID_CHUNKS))


def _over(kind: str, reply: bytes, exchange: Exchange, in_flight: int) -> bytes:
    """Return the reply to a command over a limit; if it is final, refuse the exchange with it."""
    if not in_flight:
        exchange.refuse(ClientViolation(kind, reply, exchange.line))
    return reply


_ENDS: Final = frozenset((verbs.EHLO, verbs.HELO, verbs.RSET))
"""The roles whose positive reply ends the transaction."""
_ABORTS: Final = frozenset((b"EHLO", b"HELO", b"RSET", b"MAIL", b"SEND", b"SOML", b"SAML"))
"""The commands that discard a message of which not all chunks have come."""
_AMID_CHUNKS: Final = {b"NOOP": replies.NOTHING_DONE, b"QUIT": replies.QUIT_AMID_CHUNKS}
