"""The TLS handshake on an open connection: after STARTTLS, or for implicit TLS.

No plaintext is read once it begins.  Data that is decrypted before the new protocol is set is
buffered, and passed on in order.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

from smtpproxy.tls.client_transport import ServerObject
from smtpproxy.tls.error_text import error_text

_CLOSED = "closed"
"""The reason in the log if the peer closed or reset the connection during the handshake."""
Secured = Callable[[asyncio.Transport], asyncio.Protocol]
"""Called with the transport inside TLS; returns the protocol for its data."""


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
    """Start a handshake after all data written has been sent, then call `secured` or `failed`.

    Args:
        transport: The open connection.
        context: The TLS context.
        secured: Called after the handshake.
        failed: Called with the reason, in words, after the transport is closed.
        limit_s: The time limit of the handshake.
        server_name: The name for SNI and verification, on the client side.
        as_server: Whether this is the server side.
        early: For implicit TLS, the data of the handshake that was read already.  None after
            STARTTLS: then plaintext received so far must not be used and fails the handshake.

    Returns:
        The task.  If the caller cancels it, the caller must close the transport.
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
                # `start` runs in this iteration of the loop; after it, the loop's TLS has taken
                # over the transport, and `waiting` gets nothing more.
                await asyncio.sleep(0)
                octets = waiting.take()
                if octets and early is None:
                    raise ConnectionAbortedError("plaintext received after STARTTLS")
                if octets or early:
                    loop.call_soon(_feed, transport, (early or b"") + octets)
                inside = await shaking
            finally:
                if not shaking.cancel() and not shaking.cancelled():
                    shaking.exception()  # marks the exception as retrieved
                del shaking  # its exception knows this frame
        # start_tls also returns if the connection was closed locally during the handshake.
        if inside is None or inside.get_extra_info("cipher") is None:
            raise ConnectionResetError(_CLOSED)
        return inside

    return loop.create_task(
        _run(shake(), transport, waiting, secured, failed), name="TLS handshake"
    )


def _check_open(transport: asyncio.Transport) -> None:
    """Raise ConnectionResetError if a transport is closing, where start_tls would never return."""
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
    """Wait until all plaintext has been written, which uvloop requires."""
    _check_open(transport)
    transport.set_write_buffer_limits(high=0)
    if transport.get_write_buffer_size():
        await waiting.drained.wait()
        _check_open(transport)
    transport.set_write_buffer_limits()


def _feed(transport: asyncio.Transport, octets: bytes) -> None:
    """Pass data to the loop's TLS protocol, as its transport would."""
    if transport.is_closing():
        return
    # uvloop's protocol has the methods of a BufferedProtocol, but not the type.
    protocol = cast("asyncio.BufferedProtocol", transport.get_protocol())
    while octets:
        buffer = memoryview(protocol.get_buffer(len(octets)))
        size = min(len(buffer), len(octets))
        buffer[:size] = octets[:size]
        protocol.buffer_updated(size)
        octets = octets[size:]


class _Waiting(asyncio.Protocol):
    """Buffers data during the handshake, and passes on the loss of the connection even after it.

    The loss may be reported to this protocol after another one has been set.
    """

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self._octets: list[bytes] = []
        self._eof = self._lost = False
        self._successor: asyncio.Protocol | None = None

    def take(self) -> bytes:
        """Remove and return the data received before TLS started."""
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
