"""EHLO and HELO: what the proxy sends to the backend for each one from the client.

Usually it sends the same line.  An MTA that does not know EHLO gets HELO instead.  Depending on the
policy, the proxy then secures the backend connection by STARTTLS (RFC 3207), or passes the client's
address by XCLIENT; after either it sends the client's EHLO again, and the client gets the reply to
the last one.  If opportunistic TLS fails, it does so on a new connection, in plaintext.  So each
side only ever sees the other side's name.  XFORWARD is sent later, before each message, but the
attributes that the backend supports are read here.

For TLS, XCLIENT or XFORWARD the HELO of a client is sent as EHLO, since only an EHLO reply lists
capabilities; the client gets the first line of that reply.
"""

from collections.abc import Sequence
from typing import Final

from smtpproxy.core import capabilities
from smtpproxy.core.exchange import Exchange, ProxyStep
from smtpproxy.core.lines import redacted_reply, without_login
from smtpproxy.core.negotiated_extensions import NegotiatedExtensions
from smtpproxy.core.policy import BackendTls, SessionPolicy
from smtpproxy.core.violations import BackendViolation
from smtpproxy.core.xclient_xforward import NO_XFORWARD, AttributeCommands, Xforward

# The next steps.
DONE: Final = 0
"""Send `answer` to the client."""
SEND: Final = 1
"""Send `line` to the backend."""
START_TLS: Final = 2
"""Make the TLS handshake on the backend connection, then call `secured`."""
FAILED: Final = 3
"""End the session for `reason`."""
REFUSED: Final = 4
"""End the session with the backend's reply."""

# The command that was sent last, and whose reply is expected.
_EHLO: Final = 0  # or HELO
_STARTTLS: Final = 1
_HANDSHAKE: Final = 2
_INTRODUCTION: Final = 3
_RSET: Final = 4
_GREETING: Final = 5  # of a new connection, without TLS


class Ehlo:
    """Handles every EHLO and HELO of a session, and what is sent to the backend for it."""

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
    """The XCLIENT or XFORWARD commands that are still to be sent; else None."""
    xforward: Xforward
    """The XFORWARD commands to send before each message."""
    line: bytes
    """The line to send to the backend, or that was sent last."""
    reason: str
    """Why the session fails: a snake_case noun, or in words if the backend refuses the client."""
    sent_at: float
    """When the line that is not answered yet was sent."""

    def __init__(self, policy: SessionPolicy, extensions: NegotiatedExtensions) -> None:
        self._policy = policy
        self._extensions = extensions
        self.introduction = None
        self.xforward = NO_XFORWARD
        self._client_line = b""  # its EHLO or HELO
        self._awaits = _EHLO
        self._lines: Sequence[bytes] = ()  # XCLIENT commands that are still to be sent
        self._refusal = b""  # the refusal of an EHLO that was followed by another command
        self._tls_refused = False
        self._offer = _NO_OFFER  # the last accepted EHLO line, and the reply to it
        self._offer_before_tls = _NO_OFFER  # the same from before TLS on the client connection
        self._answer = _NO_ANSWER
        self.line = b""
        self.reason = ""
        self.sent_at = 0.0

    def pass_address(self, commands: AttributeCommands) -> None:
        """Pass the client's address to the backend with these commands, from the next EHLO on."""
        self.introduction = commands

    def answer(self) -> tuple[int, bytes]:
        """Remove and return the code and the reply for the client."""
        answer, self._answer = self._answer, _NO_ANSWER
        return answer

    def begin(self, line: bytes, now: float) -> bytes:
        """Start with the client's EHLO or HELO, and return the line for the backend."""
        self._client_line = line
        self.sent_at = now
        self._awaits = _EHLO
        self._refusal = b""
        self.line = self._ehlo if self._wants_tls or self.introduction is not None else line
        return self.line

    def restart(self, policy: SessionPolicy) -> None:
        """Discard the state after TLS has started with the client (RFC 3207 section 4.2).

        The last offer is kept, since the backend keeps its state: some MTAs accept only one EHLO.
        """
        self._policy = policy
        self._offer_before_tls = self._offer

    def stop_xforward(self) -> None:
        """Stop sending XFORWARD: the backend refuses it, or the client sends its own."""
        self.introduction = None
        self.xforward = NO_XFORWARD

    def secured(self, now: float) -> bytes:
        """Return the line for the backend, after TLS has started on its connection."""
        self.sent_at = now
        self._extensions.secure_backend()
        self._awaits = _EHLO
        self.line = self._ehlo
        return self.line

    def restart_in_plaintext(self) -> None:
        """Expect the greeting of a new connection, on which STARTTLS is not sent."""
        self._tls_refused = True
        self._awaits = _GREETING

    def take(self, exchange: Exchange, code: int, reply: bytes, now: float) -> int:
        """Process the reply to the line that was sent last.

        Returns:
            The next step: DONE, SEND, START_TLS, FAILED or REFUSED.

        Raises:
            BackendViolation: A reply came between the 220 to STARTTLS and the TLS handshake, where
                an attacker on the network could inject it (the counterpart of CVE-2011-0411).
        """
        if self._awaits == _GREETING:
            return self._take_greeting(code, now)
        shown = reply
        if self._awaits == _INTRODUCTION and b" LOGIN=" in self.line:
            self.line = without_login(self.line)
            shown = redacted_reply(reply) if code >= 400 else reply
        step = ProxyStep(self.line, shown, self.sent_at, now)
        exchange.steps = (*exchange.steps, step)
        self.sent_at = now
        if self._awaits == _HANDSHAKE:
            raise BackendViolation("reply_after_starttls", reply)
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
        """Whether the line has the same argument as the EHLO or HELO before the client's TLS."""
        return self._offer_before_tls[0][4:].lower() == self.line[4:].lower()

    @property
    def _wants_tls(self) -> bool:
        wanted = self._policy.backend_tls in (BackendTls.OPPORTUNISTIC, BackendTls.REQUIRED)
        return wanted and not (self._extensions.backend_secure or self._tls_refused)

    # --- the replies --------------------------------------------------------------------------

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
        self.xforward = NO_XFORWARD
        if not _is_ehlo(self._client_line):
            return self._send(self._client_line, _EHLO)
        if not self._policy.helo_fallback:
            return self._finish(code, reply)
        self._refusal = reply
        return self._send(b"HELO" + self._client_line[4:], _EHLO)

    def _take_greeting(self, code: int, now: float) -> int:
        if code >= 300:
            self.reason = f"greeted with {code}"
            return REFUSED
        self.begin(self._client_line, now)
        return SEND

    def _take_starttls(self, code: int) -> int:
        if code == 220:
            self._awaits = _HANDSHAKE
            return START_TLS
        self._tls_refused = True
        return self._go_on()

    def _take_introduction(self, code: int) -> int:
        """Process the reply to XCLIENT, which is the greeting for the named client."""
        if 400 <= code < 500 or code == 554:  # RFC 5321 section 3.1
            self.reason = f"refused XCLIENT with {code}"
            return REFUSED
        if code >= 300:
            return self._fail("xclient_refused")
        if self._lines:
            return self._introduce()
        self.introduction = None
        return self._send(self._ehlo, _EHLO)  # XCLIENT resets the session to the greeting

    def _take_rset(self, code: int) -> int:
        """Continue without EHLO: the backend has the name, and RSET has ended its transaction."""
        if code >= 300:
            return self._finish(int(self._refusal[:3]), self._refusal)
        return self._go_on()

    def _go_on(self) -> int:
        """Take the next step that the policy needs and the backend offers, or finish."""
        hello, reply = self._offer
        if not _is_ehlo(hello):
            return self._finish_helo(reply)
        introduction, wants_tls = self.introduction, self._wants_tls
        offered = capabilities.words(reply) if wants_tls or introduction is not None else {}
        if wants_tls and b"STARTTLS" in offered:
            return self._send(b"STARTTLS\r\n", _STARTTLS)
        secure = self._extensions.backend_secure
        if self._policy.backend_tls is BackendTls.REQUIRED and not secure:
            refused = self._tls_refused
            return self._fail("backend_tls_refused" if refused else "backend_tls_not_offered")
        if introduction is not None:
            known = offered.get(introduction.verb)
            lines = introduction.lines(known, self._client_line) if known is not None else ()
            if not self._must_introduce:
                self.xforward = Xforward(lines)
            elif known is None or b"ADDR" not in known:  # the backend would see the proxy's address
                return self._fail("xclient_not_offered")
            else:
                self._lines = lines
                return self._introduce()
        if _is_ehlo(self._client_line):
            return self._finish(250, self._extensions.accept_ehlo(reply))
        first = reply.split(b"\r\n", 1)[0]
        return self._finish_helo(b"250 " + first[4:] + b"\r\n")

    def _finish_helo(self, reply: bytes) -> int:
        """Finish without extensions, since HELO was used by the client or to the backend."""
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
        # Saves memory in idle sessions: only a later STARTTLS needs them.
        self._client_line = self.line = b""
        if self._policy.inside_tls is None and not self._offer_before_tls[0]:
            self._offer = _NO_OFFER
        return DONE

    def _fail(self, reason: str) -> int:
        self.reason = reason
        return FAILED


def _is_ehlo(line: bytes) -> bool:
    return not line or line[0] in b"Ee"  # a search for `bytes` takes ten times as long


_NO_ANSWER: Final = (0, b"")
_NO_OFFER: Final = (b"", b"")
