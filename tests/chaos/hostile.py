"""Hostile peers: clients and an MTA that reset, half-close or stall wherever they are."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.net.raw import Client, Connection, Mta

ENVELOPE = b"MAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\n"
WAIT_S = 0.5
"""How long a client waits for a reply before it ends."""


class HostileMta(Mta):
    """An MTA that replies or fails in some way at each command, until it is made honest."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(HostileConnection)
        self.chance = chance
        self.honest = False
        self.faults = 0


class HostileConnection(Connection):
    """One of its connections."""

    _mta: HostileMta

    def _answer(self, to: bytes, reply: bytes) -> None:
        act = self._mta.chance.random()
        if self._mta.honest or act > 0.12 or self.transport.is_closing():
            super()._answer(to, reply)
            return
        self._mta.faults += 1
        if act < 0.03:
            self.reset()
        elif act < 0.05:
            self.half_close()
        elif act < 0.07:
            self.transport.close()
        elif act < 0.09:
            self._deaf = True  # it says nothing more
        elif act < 0.10:
            self.transport.write(reply[:2])
            self._deaf = True
        elif act < 0.11:
            self.transport.pause_reading()
        else:
            self.transport.write(b"421 going down\r\n")
            self.transport.close()


@dataclass
class Ports:
    """The listeners of the proxy, and what a client sends first at each."""

    plain: int = 0
    starttls: int = 0
    implicit: int = 0
    header: int = 0
    xclient: int = 0


@dataclass
class Attack:
    """Clients that stop somewhere, from several addresses.

    named: the address that a proxy in front names.  ends: how many clients came to each end.
    """

    ports: Ports
    addresses: tuple[str, ...]
    named: str
    chance: random.Random
    ends: dict[str, int] = field(default_factory=dict)

    async def run(self, clients: int) -> None:
        """Run one client after the other up to some point."""
        for _ in range(clients):
            with contextlib.suppress(OSError, AssertionError, TimeoutError):
                await self._one()
        for client in (self._close_without_quit, self._send_no_client_hello):
            with contextlib.suppress(OSError, AssertionError, TimeoutError):
                await client()

    async def _close_without_quit(self) -> None:
        """Come to an end that few of the others come to."""
        with contextlib.closing(Client(self.ports.plain, self.addresses[0])) as one:
            await self._hear(one, b"220 mx\r\n")
            one.send(b"EHLO c\r\n")
            await self._hear(one, b"250 PIPELINING\r\n")
            one.half_close()
            await one.rest(WAIT_S)

    async def _send_no_client_hello(self) -> None:
        """Fail in the TLS handshake, as few of the others do."""
        with contextlib.closing(Client(self.ports.starttls, self.addresses[0])) as one:
            await self._hear(one, b"220 mx\r\n")
            one.send(b"STARTTLS\r\n")
            await self._hear(one, b"220 ")
            one.send(b"NOOP\r\n")
            await one.rest(WAIT_S)

    async def _one(self) -> None:
        way = self.chance.choice(("plain", "starttls", "implicit", "header", "xclient"))
        one = Client(getattr(self.ports, way), self.chance.choice(self.addresses))
        steps = self._steps(way, one)
        try:
            with contextlib.suppress(OSError, AssertionError, TimeoutError):
                for _ in range(self.chance.randrange(12)):
                    await anext(steps, None)
        finally:
            await steps.aclose()
            await self._end(one)

    async def _steps(self, way: str, one: Client) -> AsyncIterator[None]:
        """Yield after each step of a session; not all of them wait for a reply."""
        yield
        if way == "header":
            header = f"PROXY TCP4 {self.named} 127.0.0.1 4711 25\r\n".encode()
            one.send(header[:20])
            yield
            one.send(header[20:])
        if way == "implicit":
            async with asyncio.timeout(WAIT_S):
                await one.secure()
            yield
        await self._hear(one, b"220 mx\r\n")
        yield
        if way == "starttls":
            one.send(b"STARTTLS\r\n")
            yield
            await self._hear(one, b"220 ")
            async with asyncio.timeout(WAIT_S):
                await one.secure()
            yield
        one.send(b"EHLO c\r\n")
        yield
        await self._hear(one, b"250 PIPELINING\r\n")
        if way == "xclient":
            one.send(f"XCLIENT ADDR={self.named}\r\n".encode())
            yield
            await self._hear(one, b"220 mx\r\n")
            one.send(b"EHLO c\r\n")
            await self._hear(one, b"250 PIPELINING\r\n")
        what = self.chance.randrange(4)
        if what == 0:  # its replies are left unread
            for _ in range(20):
                one.send(b"NOOP\r\n" * 50)
                yield
        elif what == 1:
            one.send(ENVELOPE, b"BDAT 1000 LAST\r\n")
            yield
            one.send(b"x" * 500)
            yield
            one.send(b"x" * 500)
        else:
            one.send(ENVELOPE, b"DATA\r\n")
            yield
            await self._hear(one, b"354 go\r\n")
            for _ in range(self.chance.randrange(20)):
                one.send(b"x" * 70 + b"\r\n")
                yield
            one.send(b".\r\n")
        yield
        one.send(b"QUIT\r\n")
        yield

    async def _hear(self, one: Client, end: bytes) -> None:
        await one.hear(end, WAIT_S)

    async def _end(self, one: Client) -> None:
        end = self.chance.choice(("reset", "half-close", "close", "stall", "stall and reset"))
        self.ends[end] = self.ends.get(end, 0) + 1
        with contextlib.suppress(OSError):
            if end == "half-close":
                one.half_close()
            if end in ("half-close", "stall", "stall and reset"):
                await asyncio.sleep(self.chance.random())
            if end.endswith("reset"):
                one.reset()
        one.close()


async def deliver(port: int, source: str) -> None:
    """Deliver a message as an honest client does; raise if it is not accepted."""
    one = Client(port, source)
    try:
        await one.hear(b"220 mx\r\n", 10.0)
        one.send(b"EHLO c\r\n")
        await one.hear(b"250 PIPELINING\r\n", 10.0)
        one.send(ENVELOPE, b"DATA\r\n")
        await one.hear(b"354 go\r\n", 10.0)
        one.send(b"text\r\n.\r\nQUIT\r\n")
        heard = await one.hear(b"221 bye\r\n", 10.0)
        assert heard.startswith(b"250 taken\r\n"), heard
    finally:
        one.close()
