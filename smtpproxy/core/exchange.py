"""The exchange: one command with its reply, and all that an observer ever learns of a session.

One is made per command; greeting, message content and replies that nobody asked for have one too.
Times are those of the caller's clock, in seconds; 0.0 where something has not happened.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from smtpproxy.core import commands, lines
from smtpproxy.core.commands import Verb
from smtpproxy.core.errors import BackendViolation, ClientViolation, Violation


class Step(NamedTuple):
    """One thing that was said to the backend for an exchange, with the reply it got, if any."""

    line: bytes
    reply: bytes
    sent: float
    replied: float


class Exchange:
    """One command, what became of it, and when.

    verb: its row in the table.
    line: the command line with its line end, secrets cut; empty for content.
    octets: of message content or BDAT payload, without the end of data.
    refusal: the reply that is given here instead of the backend's, else empty.
    reply, code: what the client gets; empty and 0 if the session ended before.
    pipelined: framed before the reply to the command before it was flushed: a round trip saved.
    closes: the session ends when the reply has been flushed.
    problem: the violation that it met, if any; one in content may have been mended, not refused.
    framed, sent, replied, flushed: its four times.
    steps: what was said to the backend for it and got what reply, where that is not just its line
    and the reply that the client gets; or what was said ahead of it, see `said`.
    bare_lf: it came with a bare LF at its end.
    """

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
        self.steps: Sequence[Step] = ()
        self.problem: Violation | None = None

    def refuse(self, violation: ClientViolation) -> None:
        """Answer it with the violation's reply instead of the backend's."""
        self.problem = violation
        self.refusal = violation.reply
        self.closes = violation.closes

    def cut_secret(self) -> None:
        """Cut what may be secret, before any observer sees it."""
        if self.verb.secret:
            self.line = lines.without_secret(self.line) if self.verb.name else b"*\r\n"

    def cut_quoted(self) -> None:
        """Cut the text of a reply that may quote what is secret, as Sendmail's to bad syntax do."""
        if 500 <= self.code <= 504 and not self.refusal:
            self.reply = lines.without_text(self.reply)

    def cut_short(self, problem: Violation | None, now: float, *, own: bool) -> None:
        """Take it that the session ends with this one's reply; `own`: not the backend's words."""
        self.cut_secret()
        self.problem = self.problem or problem
        if problem is not None and self.verb.secret:
            problem.octets = b""  # they may quote it
        if own:
            said = isinstance(self.problem, BackendViolation)
            self.note_reply(self.problem.octets if self.problem and said else b"", now)

    def note_reply(self, reply: bytes, now: float) -> None:
        """Note what the backend has replied, if it did, as the client gets another reply."""
        if self.sent and (not self.steps or self.verb.role == commands.MAIL):
            own = Step(self.line, reply, self.sent, now if reply else 0.0)
            self.steps = (*self.steps, own)

    @property
    def said(self) -> Sequence[Step]:
        """Return its steps, all of them: behind what was said ahead of MAIL its own."""
        steps = self.steps
        if steps and self.verb.role == commands.MAIL and self.sent and steps[-1].line != self.line:
            return (*steps, Step(self.line, self.reply, self.sent, self.replied))
        return steps

    def may_be_answered(self, code: int, reply: bytes) -> bool:
        """Tell whether a reply is possible: none may leave it open how the client goes on.

        Of a multi-line reply some clients take the first code, some the last: where one of them
        would open content or an AUTH exchange, they must be the same.
        """
        role = self.verb.role
        if b"3" in (reply[:1], b"%d" % (code // 100)) and reply[:3] != b"%d" % code:
            return False
        if code >= 400:
            return True
        if role == commands.DATA:
            return code == 354
        if role == commands.BDAT:
            return code < 300 and self.sent > 0
        return code < 300 or (role == commands.AUTH and code == 334)

    @property
    def mended(self) -> bool:
        """Tell whether its problem was put right, so that it is not the problem's reply it gets."""
        problem = self.problem
        return isinstance(problem, ClientViolation) and problem.reply not in (
            self.reply,
            self.refusal,
        )

    @property
    def close_reason(self) -> str:
        """Return why it closes the session."""
        if self.problem is not None and not self.mended:
            return self.problem.kind
        return "content_refused" if self.verb.role == commands.END_OF_DATA else "quit"

    @property
    def ends_message(self) -> bool:
        """Tell whether its reply decides on a message: it is content, or the last BDAT chunk."""
        role = self.verb.role
        return role == commands.END_OF_DATA or (
            role == commands.BDAT and lines.is_last_chunk(self.line)
        )

    def __repr__(self) -> str:
        return f"<Exchange {self.line or self.verb.name!r} -> {self.reply!r}>"


class Observer(Protocol):
    """Watches a pipeline."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """These replies were flushed in one write, in order.

        It is also called, once, with those that the end of the session left without a reply.  It
        must not raise, block, or change them.
        """
