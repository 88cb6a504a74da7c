"""The TLS handshake on a connection that is open already: at STARTTLS, or ahead of everything.

What the peer has sent in plaintext is read no more from the moment this begins; octets that are
decrypted before everybody knows of the new transport wait, and are handed over in order.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

from smtpproxy.tls.client_transport import ServerObject
from smtpproxy.tls.error_text import error_text

_CLOSED = "closed"
"""What an operator reads of a peer that has closed or reset the connection in the handshake."""
Secured = Callable[[asyncio.Transport], asyncio.Protocol]
"""Takes the transport inside TLS; returns the protocol that is to have its octets."""


def begin(
    transport: asyncio.Transport,
    context: ssl.SSLContext,
    secured: Secured,
    failed: Callable[[str], None],
    *,
    limit_s: float,
    server_name: str | None = None,
    as_server: bool = True,
    early: bytes | None = None,
) -> "asyncio.Task[None]":
    """Begin a handshake, when all that was written has gone out; then call `secured` or `failed`.

    `failed` gets the reason; the transport is closed by then.  To cancel the task is to give up:
    then the caller closes the transport.

    `early` are octets of the handshake that were read already, where TLS comes first on the
    connection; None where plaintext came first, and what stands behind it must not be used.
    """
    if as_server:
        context.sslobject_class = ServerObject
    transport.pause_reading()
    waiting = _Waiting()
    transport.set_protocol(waiting)
    loop = asyncio.get_running_loop()

    async def start() -> asyncio.Transport | None:
        _check_open(transport)
        return await loop.start_tls(
            transport,
            waiting,
            context,
            server_side=as_server,
            server_hostname=server_name,
            ssl_handshake_timeout=limit_s,
        )

    async def shake() -> asyncio.Transport:
        async with asyncio.timeout(limit_s):
            await _drain(transport, waiting)
            shaking = loop.create_task(start(), name="TLS")
            try:
                # By now the octets are no longer ours, and next the loop is ready.
                await asyncio.sleep(0)
                octets = waiting.take()
                if octets and early is None:
                    raise ConnectionAbortedError("octets in plaintext behind STARTTLS")
                if octets or early:
                    loop.call_soon(_feed, transport, (early or b"") + octets)
                inside = await shaking
            finally:
                if not shaking.cancel() and not shaking.cancelled():
                    shaking.exception()  # nobody else asks for it
        # A loop also returns when the connection was closed here, in the middle.
        if inside is None or inside.get_extra_info("cipher") is None:
            raise ConnectionResetError(_CLOSED)
        return inside

    return loop.create_task(
        _run(shake(), transport, waiting, secured, failed), name="TLS handshake"
    )


def _check_open(transport: asyncio.Transport) -> None:
    """Raise ConnectionResetError if a transport is closing: start_tls would never return on it."""
    if transport.is_closing():
        raise ConnectionResetError(_CLOSED)


async def _run(
    shake: Awaitable[asyncio.Transport],
    transport: asyncio.Transport,
    waiting: "_Waiting",
    secured: Secured,
    failed: Callable[[str], None],
) -> None:
    try:
        inside = await shake
    except (OSError, ssl.CertificateError) as error:  # ssl.SSLError is an OSError
        transport.abort()
        failed(error_text(error))
        return
    protocol = secured(inside)
    inside.set_protocol(protocol)
    waiting.hand_over(protocol)
    found = inside.get_extra_info("ssl_object")
    if isinstance(found, ServerObject):
        found.watch(transport, inside)


async def _drain(transport: asyncio.Transport, waiting: "_Waiting") -> None:
    """Wait until nothing is left to write in plaintext: uvloop counts on that."""
    _check_open(transport)
    transport.set_write_buffer_limits(high=0)
    if transport.get_write_buffer_size():
        await waiting.drained.wait()
        _check_open(transport)
    transport.set_write_buffer_limits()


def _feed(transport: asyncio.Transport, octets: bytes) -> None:
    """Give the loop's TLS protocol octets as its transport would have."""
    if transport.is_closing():
        return
    # uvloop's has the methods of a BufferedProtocol, but is none by type.
    protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())
    while octets:
        buffer = memoryview(protocol.get_buffer(len(octets)))
        size = min(len(buffer), len(octets))
        buffer[:size] = octets[:size]
        protocol.buffer_updated(size)
        octets = octets[size:]


class _Waiting(asyncio.Protocol):
    """Takes what comes while the handshake lasts, and the loss of the connection also later.

    That may be on its way here when another protocol takes over.
    """

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self._octets: list[bytes] = []
        self._eof = self._lost = False
        self._successor: asyncio.Protocol | None = None

    def take(self) -> bytes:
        """Return the octets that came before TLS had begun."""
        octets = b"".join(self._octets)
        self._octets.clear()
        return octets

    def resume_writing(self) -> None:
        self.drained.set()

    def data_received(self, data: bytes) -> None:
        self._octets.append(data)

    def eof_received(self) -> None:
        self._eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.drained.set()
        if self._successor is not None:
            self._successor.connection_lost(exc)

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        self._successor = protocol
        for octets in self._octets:
            protocol.data_received(octets)
        if self._eof:
            protocol.eof_received()
        if self._lost:
            protocol.connection_lost(None)
