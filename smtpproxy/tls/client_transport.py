"""TLS with clients: a client's `close_notify` is a half-close.

RFC 8446 section 6.1: `close_notify` closes only the sender's direction.  Exim sends it right after
QUIT.  The event loop's TLS would then close both directions, and the client would lose the reply to
its message and send the message again.
"""

import asyncio
import ssl
from typing import cast


class ServerObject(ssl.SSLObject):
    """Hides `close_notify` from the event loop's TLS, and reports it as a half-close instead.

    It is used if it is the context's `sslobject_class`.
    """

    asked_for: str = ""
    """The host name that the client asked for (SNI), if the context notes it; else empty."""
    _close_notified = False
    _watched: tuple[asyncio.Transport, asyncio.Transport] | None = None

    def note_name(self, name: str) -> None:
        """Set `asked_for`."""
        self.asked_for = name

    def read(self, len: int = 1024, buffer: bytearray | None = None) -> bytes:  # type: ignore[override]  # noqa: A002  as ssl.SSLObject names it
        """Read decrypted data.

        Raises:
            ssl.SSLWantReadError: There is none yet, or the client has sent `close_notify`.
        """
        octets = super().read(len, buffer)
        if not octets:
            if not self._close_notified:
                self._close_notified = True
                self._report_end()
            raise ssl.SSLWantReadError
        return octets

    def watch(self, outside: asyncio.Transport, inside: asyncio.Transport) -> None:
        """Call `eof_received` on the protocol of `inside` when the client sends `close_notify`.

        Args:
            outside: The transport of the encrypted data.
            inside: The transport of the decrypted data.
        """
        self._watched = outside, inside
        if self._close_notified:
            self._report_end()

    def _report_end(self) -> None:
        if self._watched is None:
            return
        outside, inside = self._watched
        self._watched = None
        # The TCP half-close may follow right after close_notify.
        tls = cast("asyncio.BufferedProtocol", outside.get_protocol())
        outside.set_protocol(_OneWay(tls))
        # Data that was read before is passed on first.
        asyncio.get_running_loop().call_soon(_half_close, inside)


def _half_close(inside: asyncio.Transport) -> None:
    if inside.is_closing():
        return
    protocol = cast("asyncio.Protocol", inside.get_protocol())
    if not protocol.eof_received():
        inside.close()


class _OneWay(asyncio.BufferedProtocol):
    """Hides the client's TCP half-close from the loop's TLS, which would close both directions."""

    def __init__(self, tls: asyncio.BufferedProtocol) -> None:
        self._tls = tls

    def get_buffer(self, sizehint: int) -> bytearray:
        return cast("bytearray", self._tls.get_buffer(sizehint))

    def buffer_updated(self, nbytes: int) -> None:
        self._tls.buffer_updated(nbytes)

    def eof_received(self) -> bool:
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._tls.connection_lost(exc)

    def pause_writing(self) -> None:
        self._tls.pause_writing()

    def resume_writing(self) -> None:
        self._tls.resume_writing()
