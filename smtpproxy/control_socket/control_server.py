"""The server of the control socket: HTTP/1.0, one request for each connection.

So `curl --unix-socket` works, too.  It uses no HTTP library, which a service without an admin
address does not load.  The socket's mode decides which users may connect; of these, only root and
the service's own user may watch sessions.  A watch lasts as long as its connection.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Protocol

import msgspec

from smtpproxy.admin import health
from smtpproxy.admin.health import HealthSource
from smtpproxy.control_socket import service_status
from smtpproxy.control_socket.service_status import ServiceStatus
from smtpproxy.trace import watch
from smtpproxy.trace.records import HEADER
from smtpproxy.trace.watch import WatchRequest

CONNECTIONS = 50
"""The most connections at once; further ones are closed."""
DEADLINE_S = 10.0
"""How long a request and its answer may take together."""
CLOSE_LIMIT_S = 1.0
"""How long a client may take to read what is left when the service ends its watch."""
_MOST_BYTES = 4096


class ServiceSource(HealthSource, Protocol):
    """The health and the status of the service."""

    async def status(self) -> ServiceStatus:
        """Return the status of the service, and of the replicas of its cluster."""


class WatchSource(Protocol):
    """Where sessions can be watched."""

    def why_no_watch(self, request: WatchRequest) -> tuple[int, str]:
        """Return the HTTP status and the line that refuse a watch; 200 and nothing if it may be."""

    def watch(
        self, request: WatchRequest, uid: int, pid: int, writer: asyncio.StreamWriter
    ) -> AbstractAsyncContextManager[None]:
        """Return the block in which sessions are watched.

        Args:
            request: Which ones.
            uid: The user id of the client.
            pid: Its process id.
            writer: Gets the lines.
        """


class ControlServer:
    """Answers the requests of other commands.

    Args:
        source: The health and the status of the service.
        watches: Its sessions.
    """

    def __init__(self, source: ServiceSource, watches: WatchSource) -> None:
        self._source = source
        self._watches = watches
        self._watching: dict[asyncio.StreamReader, asyncio.Event] = {}
        self._servers: list[asyncio.Server] = []
        self._open = 0

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Start to serve on listening sockets, which the caller keeps."""
        for each in sockets:
            own = each.dup()
            server = await asyncio.start_server(self._serve, sock=own, limit=_MOST_BYTES)
            self._servers.append(server)

    async def stop(self) -> None:
        """Accept no more connections, and end all watches; other clients still get their answer."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        watching = dict(self._watching)
        for reader in watching:
            reader.feed_eof()
        for ended in watching.values():
            await ended.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(DEADLINE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    request = self._watch_in(head, writer)
                    if not isinstance(request, WatchRequest):
                        writer.write(_response(*(request or await self._answer(head))))
                        await writer.drain()
                if isinstance(request, WatchRequest):
                    await self._watch(request, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _watch_in(
        self, head: bytes, writer: asyncio.StreamWriter
    ) -> WatchRequest | tuple[int, str] | None:
        """Return the watch that is requested, or the answer that refuses it; None: no watch is."""
        target = _words(head)[1:2]
        path, _, query = target[0].partition("?") if target else ("", "", "")
        if path != watch.PATH:
            return None
        _, uid = _peer(writer)
        if uid not in (0, os.geteuid()):
            return 403, "no permission to watch: be root, or the service's user\n"
        try:
            request = watch.parse(query)
        except ValueError as error:
            return 400, f"{error}\n"
        if not self._servers:  # nothing would end it
            return 503, "the service is stopping\n"
        status, why_not = self._watches.why_no_watch(request)
        return (status, f"{why_not}\n") if why_not else request

    async def _watch(
        self, request: WatchRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve a watch until the client closes, or the service stops."""
        pid, uid = _peer(writer)
        ended = self._watching[reader] = asyncio.Event()
        try:
            writer.write(_STREAM_HEAD + HEADER)
            async with self._watches.watch(request, uid, pid, writer):
                await reader.read(1)  # the client sends nothing more
            writer.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT_S):
                    await writer.wait_closed()
        finally:
            writer.transport.abort()
            del self._watching[reader]
            ended.set()

    async def _answer(self, head: bytes) -> tuple[int, str]:
        match _words(head):
            case ["GET", path, version] if version.startswith("HTTP/"):
                if health.is_asked_for(path):
                    return await health.answer(path, self._source)
                if path == service_status.PATH:
                    status = msgspec.json.encode(await self._source.status())
                    return 200, status.decode() + "\n"
                return 404, "not found\n"
            case _:
                return 400, "only GET is supported\n"


_STREAM_HEAD = (
    b"HTTP/1.0 200 OK\r\nContent-Type: application/jsonl; charset=utf-8\r\n"
    b"Connection: close\r\n\r\n"
)


def _words(head: bytes) -> list[str]:
    return head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Return the process id and the user id of the client."""
    form = "3i"
    connection = writer.get_extra_info("socket")
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form))
    pid, uid, _ = struct.unpack(form, found)
    return pid, uid


def _response(status: int, text: str) -> bytes:
    head = (
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text.encode())}\r\n"
        f"Connection: close\r\n\r\n"
    )
    return (head + text).encode()
