"""What listens in the demonstration: at a port of its own, ended with all that it has accepted."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, Self

CLOSE_DEADLINE_S = 5.0
TURNS_TO_OPEN = 3
"""So many turns of the loop after a client has connected, its protocol has been told of it."""


class Accepted(Protocol):
    """What a connection has begun; `gone` is set when nothing of it is left."""

    gone: asyncio.Event

    def abort(self) -> None:
        """Drop it now."""


class TcpServer:
    """Accepts connections; also an async context manager that starts and stops it.

    `accept` makes the protocol of a connection and adds what it has begun to `accepted`, which
    stays the owner's.  It is a base class, since both that listen here are used as it is: by their
    address, and for as long as a block lasts.
    """

    def __init__(
        self, accept: Callable[[], asyncio.Protocol], accepted: Sequence[Accepted]
    ) -> None:
        self._accept = accept
        self._accepted = accepted
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes any."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port)

    async def stop(self) -> None:
        """Stop listening, and abort all that is still open."""
        if self._server is None:
            return
        for _ in range(TURNS_TO_OPEN):  # to close in the midst of it would leave it half open
            await asyncio.sleep(0)
        self._server.close()
        for each in self._accepted:
            each.abort()
        await self._server.wait_closed()
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await asyncio.gather(*(each.gone.wait() for each in self._accepted))
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
