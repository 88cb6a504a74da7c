"""The server of the control socket: HTTP/1.0, one request for each connection.

So `curl --unix-socket` works, too.  It uses no HTTP library, which a service without an admin
address does not load.  The socket's mode decides which users may connect.
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from http import HTTPStatus

from smtpproxy.admin import health
from smtpproxy.admin.health import HealthSource

CONNECTIONS = 50
"""The most connections at once; further ones are closed."""
DEADLINE_S = 10.0
"""How long a request and its answer may take together."""
_MOST_BYTES = 4096


class ControlServer:
    """Answers the requests of other commands.

    Args:
        source: The health of the service.
    """

    def __init__(self, source: HealthSource) -> None:
        self._source = source
        self._servers: list[asyncio.Server] = []
        self._open = 0

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Start to serve on listening sockets, which the caller keeps."""
        for each in sockets:
            own = each.dup()
            server = await asyncio.start_server(self._serve, sock=own, limit=_MOST_BYTES)
            self._servers.append(server)

    def stop(self) -> None:
        """Accept no more connections; open ones still get their answer."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(DEADLINE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(*await self._answer(head)))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[int, str]:
        match head.split(b"\r\n", 1)[0].decode("latin-1").split(" "):
            case ["GET", path, version] if version.startswith("HTTP/"):
                if health.is_asked_for(path):
                    return await health.answer(path, self._source)
                return 404, "not found\n"
            case _:
                return 400, "only GET is supported\n"


def _response(status: int, text: str) -> bytes:
    head = (
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text.encode())}\r\n"
        f"Connection: close\r\n\r\n"
    )
    return (head + text).encode()
