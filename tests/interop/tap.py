"""A TCP relay that records all data, for use on either side of the proxy.

Each tap runs its own event loop in a thread, so that tests and blocking clients need none. It
passes on octets, half-closes and resets, and changes nothing. What each record means is read in
dialogue.py.
"""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from tests.support import threads

TIMEOUT_S = 30.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


@dataclass(frozen=True)
class Chunk:
    """What one read returned, or an end: `octets` is empty when the sender half-closed."""

    at: float
    from_client: bool
    octets: bytes


@dataclass
class Connection:
    """The chunks of one connection through a tap, in the order in which they were passed on."""

    chunks: list[Chunk] = field(default_factory=list)
    opened_at: float = field(default_factory=time.monotonic)
    reset: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def record(self, from_client: bool, octets: bytes) -> None:
        """Write down octets, or a half-close."""
        self.chunks.append(Chunk(time.monotonic(), from_client, octets))

    def sent(self) -> bytes:
        """Return all that the client sent."""
        return b"".join(chunk.octets for chunk in self.chunks if chunk.from_client)

    def answered(self) -> bytes:
        """Return all that the client was sent."""
        return b"".join(chunk.octets for chunk in self.chunks if not chunk.from_client)


class Tap:
    """A relay from `port` to `target_port`, both on 127.0.0.1, for as long as it is entered.

    The server's octets are passed on, and written down, `reply_delay_s` after they were read. What
    a client sends without waiting for a reply is therefore always recorded before that reply.
    """

    port: int

    def __init__(self, target_port: int, reply_delay_s: float = 0.002) -> None:
        self.target_port = target_port
        self.reply_delay_s = reply_delay_s
        self.connections: list[Connection] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name=threads.TAP, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(TIMEOUT_S), "the tap did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive(), "the tap did not stop"

    def settled(self, since: int = 0) -> list[Connection]:
        """Wait until every connection from number `since` on has ended, and return those."""
        connections = self.connections[since:]
        for connection in connections:
            assert connection.ended.wait(TIMEOUT_S), f"still open: {connection.chunks[-5:]}"
        return connections

    def only(self) -> Connection:
        """Wait for the end of the one connection that was made, and return it."""
        connections = self.settled()
        assert len(connections) == 1, f"{len(connections)} connections"
        return connections[0]

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection()
        self.connections.append(connection)
        self._writers.add(writer)
        try:
            target = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            connection.reset = True
            _reset(writer)
        else:
            self._writers.add(target[1])
            await asyncio.gather(
                self._pump(connection, reader, target[1], from_client=True),
                self._pump(connection, target[0], writer, from_client=False),
            )
            await _close(target[1])
            self._writers.discard(target[1])
        await _close(writer)
        self._writers.discard(writer)
        connection.ended.set()

    async def _pump(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        from_client: bool,
    ) -> None:
        try:
            while octets := await reader.read(65536):
                if not from_client:
                    await asyncio.sleep(self.reply_delay_s)
                connection.record(from_client, octets)
                writer.write(octets)
                await writer.drain()
            connection.record(from_client, b"")
            writer.write_eof()
        except OSError:
            connection.reset = True
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer sees a reset, as the other side did."""
    with contextlib.suppress(OSError):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
