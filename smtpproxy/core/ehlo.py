"""EHLO and HELO: what each of the client's becomes on its way to the backend.

Mostly the same line.  An MTA that does not know EHLO gets HELO instead.  Where the rules ask for
it, the backend's connection is secured by STARTTLS (RFC 3207), or the client is made known by
XCLIENT; then the backend gets the client's own EHLO once more, and the client the reply to the last
one.  So neither side learns another name for the other.  XFORWARD is sent later, before each
message, but which of its attributes the backend knows is found here.

For TLS, XCLIENT or XFORWARD the HELO of a client is sent as EHLO, since only the reply to that
lists capabilities; the client gets its first line.
"""

from collections.abc import Sequence
from typing import Final

from smtpproxy.core import capabilities
from smtpproxy.core.exchange import Exchange, ProxyStep
from smtpproxy.core.negotiated_extensions import NegotiatedExtensions
from smtpproxy.core.policy import BackendTls, SessionPolicy
from smtpproxy.core.violations import BackendViolation
from smtpproxy.core.xclient_xforward import AttributeCommands, Xforward

# What comes next.
DONE: Final = 0
"""The client gets the `answer`."""
SEND: Final = 1
"""The backend gets `line`."""
START_TLS: Final = 2
"""TLS begins on the backend's connection; then `secured` is called."""
FAILED: Final = 3
"""The session fails for `reason`."""
REFUSED: Final = 4
"""The session ends with the backend's own reply."""

# What was sent last, whose reply is awaited.
_EHLO: Final = 0  # or HELO
_STARTTLS: Final = 1
_HANDSHAKE: Final = 2
_INTRODUCTION: Final = 3
_RSET: Final = 4


class Ehlo:
    """Follows every EHLO and HELO of a session, and what is sent to the backend because of it."""

    __slots__ = (
        "_answer",
        "_awaits",
        "_client_line",
        "_extensions",
        "_lines",
        "_offer",
        "_offer_before_tls",
        "_policy",
        "_refusal",
        "_tls_refused",
        "introduction",
        "line",
        "reason",
        "sent_at",
        "xforward",
    )

    introduction: AttributeCommands | None
    """How the client is made known to the backend, where that is still to be done."""
    xforward: Xforward
    """What is sent before each message."""
    line: bytes
    """What the backend gets next, or got last."""
    reason: str
    """Why the session fails, or how the backend has refused the client."""
    sent_at: float
    """When the line was sent that is not answered yet."""

    def __init__(self, policy: SessionPolicy, extensions: NegotiatedExtensions) -> None:
        self._policy = policy
        self._extensions = extensions
        self.introduction = None
        self.xforward = Xforward()
        self._client_line = b""  # its EHLO or HELO
        self._awaits = _EHLO
        self._lines: Sequence[bytes] = ()  # of XCLIENT, not sent yet
        self._refusal = b""  # of an EHLO, instead of which something else was sent
        self._tls_refused = False
        self._offer = _NO_OFFER  # the EHLO that was accepted last, and the reply to it
        self._offer_before_tls = _NO_OFFER  # ... before the client's connection was secured
        self._answer = _NO_ANSWER
        self.line = b""
        self.reason = ""
        self.sent_at = 0.0

    def answer(self) -> tuple[int, bytes]:
        """Return the code and the reply that the client gets, once."""
        answer, self._answer = self._answer, _NO_ANSWER
        return answer

    def begin(self, line: bytes, now: float) -> bytes:
        """Take the client's EHLO or HELO; return what the backend gets."""
        self._client_line = line
        self.sent_at = now
        self._awaits = _EHLO
        self._refusal = b""
        self.line = self._ehlo if self._wants_tls or self.introduction is not None else line
        return self.line

    def restart(self, policy: SessionPolicy) -> None:
        """Forget what was sent before the client's connection was secured (RFC 3207 section 4.2).

        The backend has not forgotten it: some MTAs accept one EHLO only.
        """
        self._policy = policy
        self._offer_before_tls = self._offer

    def stop_xforward(self) -> None:
        """Send no XFORWARD any more: the backend refuses it, or the client sends its own."""
        self.introduction = None
        self.xforward.lines = ()

    def secured(self, now: float) -> bytes:
        """Return what the backend gets, now that its connection is inside TLS."""
        self.sent_at = now
        self._extensions.backend_secure = True
        self._awaits = _EHLO
        self.line = self._ehlo
        return self.line

    def take(self, exchange: Exchange, code: int, reply: bytes, now: float) -> int:
        """Take the reply to what was sent last for an exchange.

        Returns:
            What comes next: DONE, SEND, START_TLS, FAILED or REFUSED.

        Raises:
            BackendViolation: A reply came after the 220 to STARTTLS and before TLS.  Somebody on
                the way could have put it there (the counterpart of CVE-2011-0411).
        """
        step = ProxyStep(self.line, reply, self.sent_at, now)
        exchange.steps = (*exchange.steps, step)
        self.sent_at = now
        if self._awaits == _HANDSHAKE:
            raise BackendViolation("reply_behind_starttls", reply)
        if self._awaits == _EHLO:
            return self._take_ehlo(code, reply)
        if self._awaits == _STARTTLS:
            return self._take_starttls(code)
        if self._awaits == _INTRODUCTION:
            return self._take_introduction(code)
        return self._take_rset(code)

    @property
    def _ehlo(self) -> bytes:
        line = self._client_line
        return line if _is_ehlo(line) else b"EHLO" + line[4:]

    @property
    def _is_name_before_tls(self) -> bool:
        """Tell whether the line has the argument of the EHLO or HELO before the client's TLS."""
        return self._offer_before_tls[0][4:].lower() == self.line[4:].lower()

    @property
    def _wants_tls(self) -> bool:
        wanted = self._policy.backend_tls in (BackendTls.OPPORTUNISTIC, BackendTls.REQUIRED)
        return wanted and not (self._extensions.backend_secure or self._tls_refused)

    # --- what a reply leads to ----------------------------------------------------------------

    def _take_ehlo(self, code: int, reply: bytes) -> int:
        if code in (500, 502) and _is_ehlo(self.line):
            return self._fall_back(code, reply)
        if code == 503 and self._is_name_before_tls:
            self._refusal = reply
            return self._send(b"RSET\r\n", _RSET)
        if code >= 300:
            reply = self._refusal or reply
            return self._finish(int(reply[:3]), reply)
        self._offer = (self.line, reply)
        return self._go_on()

    def _fall_back(self, code: int, reply: bytes) -> int:
        """Send HELO to an MTA that does not know EHLO (RFC 5321 section 3.2)."""
        if self._policy.backend_tls is BackendTls.REQUIRED:
            return self._fail("backend_tls_not_offered")
        if self._must_introduce:
            return self._fail("xclient_not_offered")
        self.xforward.lines = ()
        if not _is_ehlo(self._client_line):
            return self._send(self._client_line, _EHLO)
        if not self._policy.helo_fallback:
            return self._finish(code, reply)
        self._refusal = reply
        return self._send(b"HELO" + self._client_line[4:], _EHLO)

    def _take_starttls(self, code: int) -> int:
        if code == 220:
            self._awaits = _HANDSHAKE
            return START_TLS
        self._tls_refused = True
        return self._go_on()

    def _take_introduction(self, code: int) -> int:
        """Take the reply to XCLIENT: it is the greeting that this client would have got."""
        if 400 <= code < 500 or code == 554:  # RFC 5321 section 3.1
            self.reason = f"refused XCLIENT with {code}"
            return REFUSED
        if code >= 300:
            return self._fail("xclient_refused")
        if self._lines:
            return self._introduce()
        self.introduction = None
        return self._send(self._ehlo, _EHLO)  # it has taken the session back to the greeting

    def _take_rset(self, code: int) -> int:
        """Go on without EHLO: the backend knows the name, and has no transaction any more."""
        if code >= 300:
            return self._finish(int(self._refusal[:3]), self._refusal)
        return self._go_on()

    def _go_on(self) -> int:
        """Do what is still to be done with what the backend offers."""
        hello, reply = self._offer
        if not _is_ehlo(hello):
            return self._finish_helo(reply)
        offered = capabilities.words(reply)
        if self._wants_tls and b"STARTTLS" in offered:
            return self._send(b"STARTTLS\r\n", _STARTTLS)
        secure = self._extensions.backend_secure
        if self._policy.backend_tls is BackendTls.REQUIRED and not secure:
            refused = self._tls_refused
            return self._fail("backend_tls_refused" if refused else "backend_tls_not_offered")
        introduction = self.introduction
        if introduction is not None:
            known = offered.get(introduction.verb)
            lines = introduction.lines(known, self._client_line) if known is not None else ()
            if not self._must_introduce:
                self.xforward.lines = lines
            elif known is None or b"ADDR" not in known:  # without it the client would be the proxy
                return self._fail("xclient_not_offered")
            else:
                self._lines = lines
                return self._introduce()
        if _is_ehlo(self._client_line):
            return self._finish(250, self._extensions.accept_ehlo(reply))
        first = reply.split(b"\r\n", 1)[0]
        return self._finish_helo(b"250 " + first[4:] + b"\r\n")

    def _finish_helo(self, reply: bytes) -> int:
        """Finish without extensions: the client or the backend has said HELO."""
        self._extensions.clear()
        if _is_ehlo(self._client_line):  # HELO was sent instead
            reply = self._extensions.offer_for_helo(reply)
        return self._finish(int(reply[:3]), reply)

    @property
    def _must_introduce(self) -> bool:
        return self.introduction is not None and self.introduction.verb == b"XCLIENT"

    def _introduce(self) -> int:
        line, *self._lines = self._lines
        return self._send(line, _INTRODUCTION)

    def _send(self, line: bytes, awaits: int) -> int:
        self.line = line
        self._awaits = awaits
        return SEND

    def _finish(self, code: int, reply: bytes) -> int:
        self._answer = (code, reply)
        # An idle session is to be small: only one that may go inside TLS has to keep them.
        self._client_line = self.line = b""
        if self._policy.inside_tls is None and not self._offer_before_tls[0]:
            self._offer = _NO_OFFER
        return DONE

    def _fail(self, reason: str) -> int:
        self.reason = reason
        return FAILED


def _is_ehlo(line: bytes) -> bool:
    return line[:1] in b"Ee"


_NO_ANSWER: Final = (0, b"")
_NO_OFFER: Final = (b"", b"")
