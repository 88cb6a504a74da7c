"""A byte relay without any parsing: what Python and uvloop cost before they do anything."""

import asyncio
import gc
import sys

import uvloop

LISTEN, BACKEND = map(int, sys.argv[1:])


class Side(asyncio.Protocol):
    """One of the two connections of a session; what comes goes to the other one."""

    __slots__ = ("other", "transport")

    def __init__(self, other: "Side | None" = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other = other or Side(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other.transport:
            self.other.transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self.other.transport:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport:
            self.other.transport.resume_reading()


class Client(Side):
    """The client's side; nothing comes before the MTA's greeting, which is when it is connected."""

    __slots__ = ("connecting",)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self.connecting = loop.create_task(
            loop.create_connection(lambda: self.other, "127.0.0.1", BACKEND)
        )


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Client, "127.0.0.1", LISTEN, backlog=4096)
    gc.collect()
    gc.freeze()
    await server.serve_forever()


uvloop.run(main())
