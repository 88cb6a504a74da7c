"""The embedded legacy MTA: an SMTP server without PIPELINING, with a selectable fault.

RFC 2920 section 2 describes such faults.  The MTA keeps messages in memory only and relays none.
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
    "none": "conforms to RFC 5321 and answers groups, but does not offer PIPELINING",
    "flush-on-failure": "discards its input when it refuses a command",
    "flush-always": "discards its input after every command",
    "hand-over": "forks at MAIL and at DATA, and loses the input it has read",
    "last-recipient": "accepts DATA only if the last RCPT was accepted",
    "data-accepted": "answers DATA with 354 even if no recipient was accepted",
    "opensmtpd": "answers 500 and closes if it receives anything after a command line",
    "helo-only": "does not know EHLO",
}
"""The faults by name; each text completes the sentence "it ..."."""
DEFAULT_FAILING = "opensmtpd"

Refused = Mapping[bytes, bytes] | Callable[[bytes], bytes | None]
"""The refusing reply, CRLF optional, by recipient address without angle brackets."""


class LegacyMTA(TcpServer):
    """A listening legacy MTA that records its sessions.

    Args:
        failing: Its fault, a key of `FAILINGS`.
        refused: The recipients that it refuses, with their replies.
        hostname: The name in its greeting.
        delay_s: How long it waits before each reply.
        on_closed: Called with each session after its connection is closed.

    Raises:
        ValueError: `failing` is not a known fault.
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
            raise ValueError(f"unknown fault {failing!r}, known are: {', '.join(FAILINGS)}")
        self.sessions: list[LegacySession] = []
        super().__init__(self._open_session, self.sessions)
        self._behaviour = Behaviour(failing, hostname, delay_s, self._refusal)
        self._refused: Refused = refused if refused is not None else {}
        self._on_closed = on_closed

    @property
    def messages(self) -> list[ReceivedMessage]:
        """The accepted messages, in the order of the sessions."""
        return [message for session in self.sessions for message in session.messages]

    @property
    def violations(self) -> list[Event]:
        """The events of input that arrived while a reply was owed."""
        return [
            event
            for session in self.sessions
            for event in session.events
            if event.what is Happening.VIOLATION
        ]

    def forget(self, session: LegacySession) -> None:
        """Remove a session that is closed, to free its memory."""
        self.sessions.remove(session)

    def forget_all(self) -> None:
        """Remove all sessions."""
        self.sessions.clear()

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
