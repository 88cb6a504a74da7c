"""The embedded legacy MTA: a conforming SMTP server without PIPELINING, and with its failings.

It owns the names of the failings (RFC 2920 section 2) and the record of all sessions, to be drawn
and asserted. It never relays a message, nor keeps one outside of memory.
"""

from collections.abc import Callable, Mapping

from smtpproxy.demo.legacy_session import (
    Behaviour,
    Event,
    Happening,
    LegacySession,
    ReceivedMessage,
)
from smtpproxy.demo.tcp_server import TcpServer

__all__ = [
    "DEFAULT_FAILING",
    "FAILINGS",
    "Event",
    "Happening",
    "LegacyMTA",
    "LegacySession",
    "ReceivedMessage",
    "Refused",
]

FAILINGS: dict[str, str] = {
    "none": "conforms to RFC 5321 and keeps its input, but never promises to",
    "flush-on-failure": "throws its input away when it refuses a command",
    "flush-always": "throws its input away after every command",
    "hand-over": "forks at MAIL and at DATA, and loses what it had read",
    "last-recipient": "judges DATA by the last RCPT only",
    "data-accepted": "answers DATA with 354 although no recipient was accepted",
    "opensmtpd": "answers 500 and closes if any octet waits behind a command line",
    "helo-only": "has never heard of EHLO",
}
DEFAULT_FAILING = "opensmtpd"

Refused = Mapping[bytes, bytes] | Callable[[bytes], bytes | None]
"""Which recipients are refused: address (no angle brackets) -> the whole reply, CRLF optional."""


class LegacyMTA(TcpServer):
    """A listening legacy MTA, and what it has been told.

    delay_s is how long it owes each reply; 0 answers at once. on_closed is called with each
    session after its connection is gone.
    """

    def __init__(
        self,
        *,
        failing: str = "none",
        refused: Refused | None = None,
        hostname: bytes = b"old.innosoft.com",
        delay_s: float = 0.0,
        on_closed: Callable[[LegacySession], None] | None = None,
    ) -> None:
        if failing not in FAILINGS:
            raise ValueError(f"unknown failing {failing!r}, known are: {', '.join(FAILINGS)}")
        self.sessions: list[LegacySession] = []
        super().__init__(self._open_session, self.sessions)
        self._behaviour = Behaviour(failing, hostname, delay_s, self._refusal)
        self._refused: Refused = refused if refused is not None else {}
        self._on_closed = on_closed

    @property
    def messages(self) -> list[ReceivedMessage]:
        """Every message accepted, in order of sessions."""
        return [message for session in self.sessions for message in session.messages]

    @property
    def violations(self) -> list[Event]:
        """Every arrival of octets while a reply was owed."""
        return [
            event
            for session in self.sessions
            for event in session.events
            if event.what is Happening.VIOLATION
        ]

    def _open_session(self) -> LegacySession:
        session = LegacySession(self._behaviour, self._session_closed)
        self.sessions.append(session)
        return session

    def _session_closed(self, session: LegacySession) -> None:
        if self._on_closed is not None:
            self._on_closed(session)

    def _refusal(self, address: bytes) -> bytes | None:
        found = self._refused(address) if callable(self._refused) else self._refused.get(address)
        return found if found is None or found.endswith(b"\r\n") else found + b"\r\n"
