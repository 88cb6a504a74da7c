"""XCLIENT and XFORWARD: Postfix's extensions that pass the client's address to the backend.

XCLIENT is sent once, before the client's EHLO is answered; the backend then treats the session as
one with that client.  XFORWARD is sent before each message, since the backend discards its values
after each message (Postfix's XFORWARD_README); the backend uses them only in its log.
"""

from collections.abc import Sequence
from typing import Final, Protocol


class AttributeCommands(Protocol):
    """Makes the commands that pass the client's address to the backend."""

    verb: bytes
    """XCLIENT, without which the session fails, or XFORWARD, which is optional."""

    def lines(self, attributes: frozenset[bytes], ehlo: bytes) -> Sequence[bytes]:
        """Return the commands to send, with their CRLF.

        Args:
            attributes: The attributes in the backend's EHLO reply, in upper case.
            ehlo: The client's EHLO or HELO line.
        """


class Xforward:
    """The proxy's own XFORWARD commands, which it sends before each message.

    Args:
        lines: The commands; empty if none are sent.
    """

    __slots__ = ("_next", "lines")

    lines: Sequence[bytes]
    """The commands; empty if none are sent."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.lines = lines
        self._next = 0

    def next_line(self) -> bytes:
        """Return the next command to send before a message; empty after the last one."""
        if self._next >= len(self.lines):
            self._next = 0
            return b""
        self._next += 1
        return self.lines[self._next - 1]


NO_XFORWARD: Final = Xforward(())
"""No commands; one for all sessions, as an idle session should be small (bench S5)."""
