"""The hello: what one EHLO or HELO of the client becomes towards the backend.

Mostly itself.  But an MTA that does not know EHLO gets HELO in its place; and where the rules ask
for it the backend connection is secured by STARTTLS (RFC 3207), or the client is introduced by
XCLIENT, before the client gets the reply to the last EHLO.  All that is said to the backend then is
the client's own EHLO once more: neither side learns another name for the other.  XFORWARD is said
later, before each message, but what of it the backend knows is found here.

A client that said HELO is introduced in the same way, by EHLO with its argument, for capabilities
are offered to EHLO alone; it gets the first line of the reply to it.
"""

from collections.abc import Sequence

from smtpproxy.core import capabilities
from smtpproxy.core.beforehand import Introduction, Xforward
from smtpproxy.core.errors import BackendViolation
from smtpproxy.core.exchange import Exchange, Step
from smtpproxy.core.extensions import Extensions
from smtpproxy.core.rules import BackendTls, Rules

DONE, SAY, SECURE, FAILED = range(4)
"""What comes next: the client gets the `answer`; the backend gets `line`; TLS is to begin on the
backend's connection, then `secured` is called; the session fails for `reason`."""

_HELLO, _STARTTLS, _HANDSHAKE, _INTRODUCTION, _RSET = range(5)
"""What was said last, whose reply is awaited."""


class Hello:
    """Follows every EHLO and HELO of a session, and what is said to the backend because of it.

    line, reason: see DONE to FAILED.
    introduction: of the client, where one is still to be made.
    xforward: what is sent before each message.
    said_at: when what is not answered yet was said.
    """

    __slots__ = (
        "_answer",
        "_awaits",
        "_before",
        "_extensions",
        "_lines",
        "_offer",
        "_refusal",
        "_rules",
        "_said",
        "_tls_refused",
        "introduction",
        "line",
        "reason",
        "said_at",
        "xforward",
    )

    def __init__(self, rules: Rules, extensions: Extensions) -> None:
        self._rules = rules
        self._extensions = extensions
        self.introduction: Introduction | None = None
        self.xforward = Xforward()
        self._said = b""  # the client's line
        self._awaits = _HELLO
        self._lines: Sequence[bytes] = ()  # of the introduction, not said yet
        self._refusal = b""  # of the EHLO in whose place something else was said
        self._tls_refused = False
        self._offer = _NO_OFFER  # the EHLO that was accepted last, and the reply to it
        self._before = _NO_OFFER  # ... before the client's connection was secured
        self._answer = _NO_ANSWER
        self.line = b""
        self.reason = ""
        self.said_at = 0.0

    def answer(self) -> tuple[int, bytes]:
        """Return what the client gets, a reply and its code, once."""
        answer, self._answer = self._answer, _NO_ANSWER
        return answer

    def begin(self, line: bytes, now: float) -> bytes:
        """Take the client's line; return what the backend gets."""
        self._said = line
        self.said_at = now
        self._awaits = _HELLO
        self._refusal = b""
        self.line = self._ehlo if self._wants_tls or self.introduction is not None else line
        return self.line

    def restart(self, rules: Rules) -> None:
        """Forget, as the client must, what was said before its connection was secured.

        But keep in mind what the backend was told: some MTAs accept one EHLO only.
        """
        self._rules = rules
        self._before = self._offer

    def stop_xforward(self) -> None:
        """Send no XFORWARD any more: the backend refuses it, or the client sends its own."""
        self.introduction = None
        self.xforward.lines = ()

    def secured(self, now: float) -> bytes:
        """Return what the backend gets now that its connection is inside TLS."""
        self.said_at = now
        self._extensions.backend_secure = True
        self._awaits = _HELLO
        self.line = self._ehlo
        return self.line

    def take(self, exchange: Exchange, code: int, reply: bytes, now: float) -> int:
        """Take the reply to what was said last for an exchange; return what comes next.

        Raises BackendViolation for a reply behind the 220 to STARTTLS and ahead of TLS: somebody on
        the way could have put it there (the counterpart of CVE-2011-0411).
        """
        step = Step(self.line, reply, self.said_at, now)
        exchange.steps = (*exchange.steps, step)
        self.said_at = now
        if self._awaits == _HANDSHAKE:
            raise BackendViolation("reply_behind_starttls", reply)
        return _TAKE[self._awaits](self, code, reply)

    @property
    def _ehlo(self) -> bytes:
        return self._said if self._said_ehlo else b"EHLO" + self._said[4:]

    @property
    def _said_ehlo(self) -> bool:
        return self._said[:1] in b"Ee"

    @property
    def _wants_tls(self) -> bool:
        wanted = self._rules.backend_tls in (BackendTls.OPPORTUNISTIC, BackendTls.REQUIRED)
        return wanted and not (self._extensions.backend_secure or self._tls_refused)

    # --- what a reply leads to ----------------------------------------------------------------

    def _take_hello(self, code: int, reply: bytes) -> int:
        asked = self.line[:1] in b"Ee"
        if code in (500, 502) and asked:
            return self._fall_back(code, reply)
        if code == 503 and asked and self._before[0][4:].lower() == self.line[4:].lower():
            self._refusal = reply
            return self._say(b"RSET\r\n", _RSET)
        if code >= 300:
            reply = self._refusal or reply
            return self._finish(int(reply[:3]), reply)
        if asked:
            self._offer = (self.line, reply)
            return self._go_on()
        self._extensions.leave()
        if self._refusal:  # HELO was said in place of an EHLO
            reply = self._extensions.offer_for_helo(reply)
        return self._finish(code, reply)

    def _fall_back(self, code: int, reply: bytes) -> int:
        """Say HELO to an MTA that does not know EHLO (RFC 5321 section 3.2)."""
        if self._rules.backend_tls is BackendTls.REQUIRED:
            return self._fail("backend_tls_not_offered")
        if self._must_introduce:
            return self._fail("xclient_not_offered")
        self.xforward.lines = ()
        if not self._said_ehlo:
            return self._say(self._said, _HELLO)
        if not self._rules.helo_fallback:
            return self._finish(code, reply)
        self._refusal = reply
        return self._say(b"HELO" + self._said[4:], _HELLO)

    def _take_starttls(self, code: int, reply: bytes) -> int:  # noqa: ARG002  one shape for all
        if code == 220:
            self._awaits = _HANDSHAKE
            return SECURE
        self._tls_refused = True
        return self._go_on()

    def _take_introduction(self, code: int, reply: bytes) -> int:  # noqa: ARG002
        if code >= 300:
            return self._fail("xclient_refused")
        if self._lines:
            return self._introduce()
        self.introduction = None
        return self._say(self._ehlo, _HELLO)  # it has taken the session back to the greeting

    def _take_rset(self, code: int, reply: bytes) -> int:  # noqa: ARG002
        """It knows the client by this very name already, and has no transaction any more."""
        if code >= 300:
            return self._finish(int(self._refusal[:3]), self._refusal)
        return self._go_on()

    def _go_on(self) -> int:
        """Do what remains to be done with what the backend has offered."""
        offered = capabilities.words(self._offer[1])
        if self._wants_tls and b"STARTTLS" in offered:
            return self._say(b"STARTTLS\r\n", _STARTTLS)
        secure = self._extensions.backend_secure
        if self._rules.backend_tls is BackendTls.REQUIRED and not secure:
            refused = self._tls_refused
            return self._fail("backend_tls_refused" if refused else "backend_tls_not_offered")
        introduction = self.introduction
        if introduction is not None:
            known = offered.get(introduction.verb)
            lines = introduction.lines(known, self._said) if known is not None else ()
            if not self._must_introduce:
                self.xforward.lines = lines
            elif known is None:
                return self._fail("xclient_not_offered")
            else:
                self._lines = lines
                return self._introduce()
        if self._said_ehlo:
            return self._finish(250, self._extensions.take_offer(self._offer[1]))
        self._extensions.leave()
        first = self._offer[1].split(b"\r\n", 1)[0]
        return self._finish(250, b"250 " + first[4:] + b"\r\n")

    @property
    def _must_introduce(self) -> bool:
        return self.introduction is not None and self.introduction.verb == b"XCLIENT"

    def _introduce(self) -> int:
        line, *self._lines = self._lines
        return self._say(line, _INTRODUCTION)

    def _say(self, line: bytes, awaits: int) -> int:
        self.line = line
        self._awaits = awaits
        return SAY

    def _finish(self, code: int, reply: bytes) -> int:
        self._answer = (code, reply)
        # An idle session is to be small: only one that may go inside TLS has to remember.
        self._said = self.line = b""
        if self._rules.inside_tls is None and self._before is _NO_OFFER:
            self._offer = _NO_OFFER
        return DONE

    def _fail(self, reason: str) -> int:
        self.reason = reason
        return FAILED


_NO_ANSWER = (0, b"")
_NO_OFFER = (b"", b"")

_TAKE = {
    _HELLO: Hello._take_hello,
    _STARTTLS: Hello._take_starttls,
    _INTRODUCTION: Hello._take_introduction,
    _RSET: Hello._take_rset,
}
