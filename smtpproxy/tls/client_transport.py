"""TLS towards clients: the good-bye of a client ends its own half of the connection only.

RFC 8446 section 6.1: `close_notify` says that its sender has no more to say, and nothing of what it
still hears.  Real Exim says it right behind QUIT, and a loop's TLS would close both halves then:
the client would lose the reply to its message, and send it again.
"""

import asyncio
import ssl
from typing import cast


class ServerObject(ssl.SSLObject):
    """What the loop has octets en- and decrypted by, if it is the context's `sslobject_class`.

    At the good-bye it looks to the loop as if nothing more had come yet; who watches is told.
    """

    _said_good_bye = False
    _watched: tuple[asyncio.Transport, asyncio.Transport] | None = None

    def read(self, len: int = 1024, buffer: bytearray | None = None) -> bytes:  # type: ignore[override]  # noqa: A002  as ssl.SSLObject names it
        """Read what is inside TLS; raises SSLWantReadError at its end, too."""
        octets = super().read(len, buffer)
        if not octets:
            if not self._said_good_bye:
                self._said_good_bye = True
                self._tell()
            raise ssl.SSLWantReadError
        return octets

    def watch(self, outside: asyncio.Transport, inside: asyncio.Transport) -> None:
        """Tell the protocol of `inside` of the good-bye, as of a half-close, once it has come.

        `outside` is the transport that carries it.
        """
        self._watched = outside, inside
        if self._said_good_bye:
            self._tell()

    def _tell(self) -> None:
        if self._watched is None:
            return
        outside, inside = self._watched
        self._watched = None
        # The end of the connection may be right behind the good-bye.
        tls = cast("asyncio.BufferedProtocol", outside.get_protocol())
        outside.set_protocol(_OneWay(tls))
        # What was read before is handed over first.
        asyncio.get_running_loop().call_soon(_half_close, inside)


def _half_close(inside: asyncio.Transport) -> None:
    if inside.is_closing():
        return
    protocol = cast("asyncio.Protocol", inside.get_protocol())
    if not protocol.eof_received():
        inside.close()


class _OneWay(asyncio.BufferedProtocol):
    """Stands before the loop's TLS, which would take the client's half-close for the end."""

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
