"""A TCP server for the demo, which aborts its connections when it stops."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, Self

CLOSE_DEADLINE_S = 5.0
TURNS_TO_OPEN = 3
"""The loop iterations from a client's connect until its protocol's `connection_made`."""


class Accepted(Protocol):
    """An object that handles an accepted connection."""

    gone: asyncio.Event
    """Set when all its connections are closed."""

    def abort(self) -> None:
        """Abort its connections."""


class TcpServer:
    """A TCP server; as an async context manager it starts and stops.

    It is a base class, since the MTA and the network of the demo are both used as servers.

    Args:
        accept: Makes the protocol of a connection, and adds its handler to `accepted`.
        accepted: The handlers, owned by the caller.
        port: The port to listen on as a context manager; 0: a free one.
    """

    def __init__(
        self, accept: Callable[[], asyncio.Protocol], accepted: Sequence[Accepted], port: int = 0
    ) -> None:
        self._port = port
        self._accept = accept
        self._accepted = accepted
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """The address it listens on, HOST:PORT."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start listening; port 0 takes a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port)

    async def stop(self) -> None:
        """Stop listening, and abort the connections that are still open."""
        if self._server is None:
            return
        # A connection that is being accepted is open after these iterations; no event reports that
        # there is none.  Closing during an accept would leave it half open.
        for _ in range(TURNS_TO_OPEN):
            await asyncio.sleep(0)
        self._server.close()
        for each in self._accepted:
            each.abort()
        await self._server.wait_closed()
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await asyncio.gather(*(each.gone.wait() for each in self._accepted))
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start(port=self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
