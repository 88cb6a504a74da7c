"""The exchange: one command and its reply, as observers see it.

The greeting, message content and unsolicited replies have an exchange, too.  Times are on the
caller's clock, in seconds; 0.0 means that the event has not happened.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from smtpproxy.core import lines, verbs
from smtpproxy.core.verbs import Verb
from smtpproxy.core.violations import BackendViolation, ClientViolation, Violation

_END_OF_DATA: Final = b".\r\n"


class ProxyStep(NamedTuple):
    """One line that was sent to the backend for an exchange, with its reply."""

    line: bytes
    reply: bytes
    """The reply; empty if none came."""
    sent: float
    """When the line was sent."""
    replied: float
    """When the reply arrived; 0.0 if none came."""


class Exchange:
    """One command, its reply, and when each step happened."""

    # Hot path (bench S2): one object per command, no dictionary.
    __slots__ = (
        "bare_lf",
        "closes",
        "code",
        "flushed",
        "framed",
        "line",
        "octets",
        "pipelined",
        "problem",
        "refusal",
        "replied",
        "reply",
        "sent",
        "steps",
        "verb",
    )

    verb: Verb
    """Its row in the verb table."""
    line: bytes
    """The command line with its line end, secrets redacted; empty for content."""
    octets: int
    """The size of the content or BDAT payload that came before its reply, without the end of data.

    A client may announce any size with BDAT.  For a BDAT that was not forwarded it is 0, since the
    payload is discarded.
    """
    refusal: bytes
    """The proxy's own reply in place of the backend's; else empty."""
    reply: bytes
    """The reply to the client; empty if the session ended before."""
    code: int
    """The code of `reply`; 0 if there is none."""
    pipelined: bool
    """Whether it was framed before the previous reply was flushed, which saved a round trip."""
    closes: bool
    """Whether the session ends after the reply is flushed."""
    problem: Violation | None
    """The violation in it; content may have been rewritten instead of refused."""
    bare_lf: bool
    """Whether its line ended in a bare LF."""
    framed: float
    """When it was complete and joined the queue."""
    sent: float
    """When it was sent to the backend; for content, when its end of data was sent.

    So of the chunks that the backend gets as content, only the last is ever sent.
    """
    replied: float
    """When the backend's reply arrived, or the proxy decided on its own reply."""
    flushed: float
    """When its reply was sent to the client."""
    steps: Sequence[ProxyStep]
    """The lines sent to the backend for it, if more than its own line with the client's reply.

    For MAIL, the lines sent before it.  See `all_steps`.
    """

    def __init__(self, verb: Verb, line: bytes, framed: float) -> None:
        self.verb = verb
        self.line = line
        self.framed = framed
        self.refusal = verb.refusal
        self.closes = verb.closes
        self.sent = self.replied = self.flushed = 0.0
        self.reply = b""
        self.code = self.octets = 0
        self.pipelined = self.bare_lf = False
        self.steps = ()
        self.problem = None

    def refuse(self, violation: ClientViolation) -> None:
        """Set the violation's reply in place of the backend's."""
        self.problem = violation
        self.refusal = violation.reply
        self.closes = violation.closes

    def replace_reply(self, reply: bytes) -> None:
        """Set a reply of the proxy's own in place of the backend's."""
        self.refusal = reply

    def delay(self, sent: float) -> None:
        """Set the time at which it was really sent, if a fault delays it; 0.0: not sent yet."""
        self.sent = sent

    def redact_line(self) -> None:
        """Redact possible secrets in its line; called before any observer sees it."""
        if self.verb.secret:
            self.line = lines.redacted(self.line) if self.verb.name else b"*\r\n"

    def redact_reply(self) -> None:
        """Redact a reply that may quote the line, as Sendmail's replies to bad syntax do.

        A 235 may also name the user, or have the last data of the SASL mechanism.  EHLO and HELO
        are only secret after the proxy's XCLIENT with LOGIN, which any refusal may quote.
        """
        refused = self.verb.role in (verbs.EHLO, verbs.HELO) and self.code >= 400
        if (refused or self.code == 235 or 500 <= self.code <= 504) and not self.refusal:
            self.reply = lines.redacted_reply(self.reply)

    def abort(self, problem: Violation | None, now: float, *, own: bool) -> None:
        """Record that the session ends with the reply to this exchange.

        Args:
            problem: The violation that ends the session, if any.
            now: The time.
            own: Whether the reply is the proxy's own.
        """
        self.redact_line()
        self.problem = self.problem or problem
        if problem is not None and self.verb.secret:
            problem.octets = b""  # may quote the secret
        if own:
            by_backend = isinstance(self.problem, BackendViolation)
            self.add_step(self.problem.octets if self.problem and by_backend else b"", now)

    def add_step(self, reply: bytes, now: float) -> None:
        """Record the backend's reply, empty if none came, if the client gets a different one.

        After the last chunk it is recorded in any case, as that to the end of data.
        """
        if self.sent and (not self.steps or self.verb.role == verbs.MAIL):
            own = ProxyStep(self.line, reply, self.sent, now if reply else 0.0)
            self.steps = (*self.steps, own)
        elif self.sent and self.is_content_chunk:
            own = ProxyStep(_END_OF_DATA, reply, self.sent, now if reply else 0.0)
            self.steps = (*self.steps[:-1], own)

    def end_of_data_sent(self, now: float) -> None:
        """Record that the end of data was sent after the last chunk."""
        self.sent = now
        self.steps = (*self.steps, ProxyStep(_END_OF_DATA, b"", now, 0.0))

    @property
    def all_steps(self) -> Sequence[ProxyStep]:
        """The lines sent to the backend for it; for MAIL, its own line is the last."""
        steps = self.steps
        if steps and self.verb.role == verbs.MAIL and self.sent and steps[-1].line != self.line:
            return (*steps, ProxyStep(self.line, self.reply, self.sent, self.replied))
        return steps

    def may_be_answered(self, code: int, reply: bytes) -> bool:
        """Return whether a reply is valid for this command.

        Some clients read the first code of a multi-line reply, some the last.  If one of the two
        would start content or an AUTH exchange, both must be the same.
        """
        role = self.verb.role
        if (300 <= code < 400 or reply[:1] == b"3") and reply[:3] != b"%d" % code:
            return False
        if code >= 400:
            return True
        if role in (verbs.DATA, verbs.OWN_DATA):
            return code == 354
        if role == verbs.BDAT:
            return code < 300 and self.sent > 0
        return code < 300 or (role == verbs.AUTH and code == 334)

    @property
    def rewritten(self) -> bool:
        """Whether its content was rewritten, and so not refused for its problem."""
        problem = self.problem
        return isinstance(problem, ClientViolation) and problem.reply not in (
            self.reply,
            self.refusal,
        )

    @property
    def close_reason(self) -> str:
        """Why it closes the session, a snake_case noun."""
        if self.problem is not None and not self.rewritten:
            return self.problem.kind
        if self.verb.closes:
            return "quit"
        amid_chunks = self.verb.role == verbs.AMID_CHUNKS
        return "message_aborted" if amid_chunks else "content_refused"

    @property
    def ends_message(self) -> bool:
        """Whether its reply accepts or refuses a message: it is content, or the last BDAT chunk."""
        role = self.verb.role
        return role == verbs.END_OF_DATA or (role == verbs.BDAT and lines.is_last_chunk(self.line))

    @property
    def is_content_chunk(self) -> bool:
        """Whether it is a BDAT whose payload the backend gets as content after DATA."""
        return self.verb is verbs.CONTENT_CHUNK_ROW

    def replaced(self, line: bytes, reply: bytes, steps: Sequence[ProxyStep]) -> "Exchange":
        """Return a copy with another line, reply and steps, for an observer that keeps less."""
        made = Exchange(self.verb, line, self.framed)
        made.octets, made.code, made.reply = self.octets, self.code, reply
        made.refusal, made.closes, made.problem = self.refusal, self.closes, self.problem
        made.pipelined, made.bare_lf, made.steps = self.pipelined, self.bare_lf, steps
        made.sent, made.replied, made.flushed = self.sent, self.replied, self.flushed
        return made

    def __repr__(self) -> str:
        return f"<Exchange {self.line or self.verb.name!r} -> {self.reply!r}>"


ContentObserver = Callable[[Exchange, bytes, bytes], None]
"""Gets content and payload up to the reply, end of data included, except that after BDAT payload.

Its arguments are the exchange, the octets as sent to the backend, and as received.
"""


class ExchangeObserver(Protocol):
    """Watches a pipeline."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """Report the exchanges whose replies were flushed in one write, in order.

        At the end of a session it is also called once with the exchanges that got no reply.  It
        must not raise, block, or change the exchanges.
        """
