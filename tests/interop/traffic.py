"""Clients under way on one machine and a strict MTA on another, with an account of each message.

Each attempt to send a message has a token of its own.  So what the MTA accepted can be compared
with what clients were told: each acknowledged token must be there once, any other at most once.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from time import monotonic

from tests.interop.lan import Host
from tests.support.processes import STOP_S, eventually

CLIENTS = 4
CONNECT_S = 3.0
"""How long a client waits for a connection; then it tries again."""
PATIENCE_S = 5.0
"""How long a client waits for a reply."""
PAUSE_S = 0.1
"""How long a client waits between two messages, or two attempts."""
REPLY_DELAY_S = 0.005
_V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11"
"""The start of a PROXY header of version 2 with an IPv4 client."""


@contextmanager
def loop_on(host: Host) -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread whose sockets are those of a machine."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        host.enter()
        loop.run_forever()

    thread = threading.Thread(target=run, name=host.name)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())  # what has been closed, is
        loop.close()


@dataclass
class Mta:
    """What the MTA has seen.

    accepted: the tokens of all messages that it has acknowledged, in order.
    clients: the addresses that PROXY headers named.
    connections: how many there were, by the address that they came from.
    wrong: what arrived while a reply was owed.
    open: the connections that are open.
    """

    accepted: list[str] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    connections: Counter[str] = field(default_factory=Counter)
    wrong: list[bytes] = field(default_factory=list)
    open: set[asyncio.Transport] = field(default_factory=set)


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, mta: Mta, *, proxy_header: bool) -> None:
        self._mta = mta
        self._header_due = proxy_header
        self._unread = b""
        self._owes = False
        self._in_content = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._mta.open.add(transport)
        self._mta.connections[transport.get_extra_info("peername")[0]] += 1
        if not self._header_due:
            self._reply(b"220 mx.example")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._mta.open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self._header_due:
            self._read_header()
        elif self._owes:
            self._mta.wrong.append(data)
        elif self._in_content:
            content, end, rest = self._unread.partition(b"\r\n.\r\n")
            if end:
                self._unread, self._in_content = rest, False
                self._mta.accepted.append(content.decode())
                self._reply(b"250 accepted")
        elif self._unread.endswith(b"\r\n"):
            lines, self._unread = self._unread.splitlines(), b""
            self._mta.wrong += lines[1:]
            self._in_content = lines[0] == b"DATA"
            code = {b"DATA": b"354", b"QUIT": b"221"}.get(lines[0], b"250")
            self._reply(code + b" to " + lines[0])

    def _read_header(self) -> None:
        if len(self._unread) < 16 or len(self._unread) < (size := 16 + self._unread[15]):
            return
        header, rest = self._unread[:size], self._unread[size:]
        if header.startswith(_V2):
            self._mta.clients.add(str(IPv4Address(header[16:20])))
        else:
            self._mta.wrong.append(header)
        self._mta.wrong += [rest] * bool(rest)
        self._header_due, self._unread = False, b""
        self._reply(b"220 mx.example")

    def _reply(self, line: bytes) -> None:
        self._owes = True
        asyncio.get_running_loop().call_later(REPLY_DELAY_S, self._send, line)

    def _send(self, line: bytes) -> None:
        self._owes = False
        if self.transport.is_closing():
            return
        self.transport.write(line + b"\r\n")
        if line.startswith(b"221"):
            self.transport.close()


@contextmanager
def mta_on(host: Host, *, proxy_header: bool = False) -> Iterator[Mta]:
    """Run the MTA at port 25 of a machine; with `proxy_header` each connection begins with one."""
    mta = Mta()
    with loop_on(host) as loop:

        async def serve() -> asyncio.Server:
            return await loop.create_server(
                lambda: _Connection(mta, proxy_header=proxy_header), host.address, 25
            )

        async def close(server: asyncio.Server) -> None:
            server.close()
            for each in mta.open:
                each.abort()
            await server.wait_closed()

        server = asyncio.run_coroutine_threadsafe(serve(), loop).result(STOP_S)
        try:
            yield mta
        finally:
            asyncio.run_coroutine_threadsafe(close(server), loop).result(STOP_S)


@dataclass
class Traffic:
    """What clients have been told.

    attempted: the tokens of all messages of which an end of data was sent.
    acknowledged: the times at which messages were acknowledged, by token.
    greeted: how many sessions began.
    served: when the client connected, and when its first message was acknowledged.
    refused: when the client connected that got no greeting with 220, and why.
    cut: why sessions ended before their QUIT.
    """

    attempted: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    greeted: int = 0
    served: list[tuple[float, float]] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def await_messages(self, more: int = 20) -> None:
        """Wait until some more messages have been acknowledged."""
        wanted = len(self.acknowledged) + more
        eventually(lambda: len(self.acknowledged) >= wanted or None, "more acknowledged messages")

    def await_client_after(self, moment: float) -> float:
        """Wait for a client that connected after a moment; return how long after it was served."""

        def first() -> float | None:
            return min((at for since, at in list(self.served) if since > moment), default=None)

        return eventually(first, "a client that is served") - moment

    def assert_all_served(self) -> None:
        """Fail if any client was refused, or any session cut."""
        assert (self.refused, self.cut) == ([], [])

    def assert_account(self, mta: Mta) -> None:
        """Fail unless the MTA has each acknowledged message once, and no other one twice."""
        accepted = Counter(mta.accepted)
        assert mta.wrong == []
        assert [token for token in self.acknowledged if accepted[token] != 1] == []
        assert [token for token in self.attempted if accepted[token] > 1] == []


@contextmanager
def traffic_from(host: Host, address: str) -> Iterator[Traffic]:
    """Run clients on a machine that send messages to port 25 of an address, without an end."""
    traffic = Traffic()
    with loop_on(host) as loop:
        over = asyncio.Event()

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(CLIENTS):
                    group.create_task(_client(traffic, address, number, over))

        running = asyncio.run_coroutine_threadsafe(run(), loop)
        try:
            yield traffic
        finally:
            loop.call_soon_threadsafe(over.set)
            running.result(STOP_S)


class _Unexpected(Exception):
    """A reply that says no, or none."""


async def _client(traffic: Traffic, address: str, number: int, over: asyncio.Event) -> None:
    session = 0
    while not over.is_set():
        session += 1
        # The first client's sessions are long, so that some are open whatever happens.
        messages = 12 if number == 0 else 1 + (number + session) % 4
        connected = monotonic()
        greeted = False
        try:
            async with _connection(address) as (reader, writer):
                await _expect(reader, b"220")
                greeted = True
                traffic.greeted += 1
                await _ask(reader, writer, b"EHLO client.example", b"250")
                for message in range(messages):
                    if message:
                        await asyncio.sleep(PAUSE_S)
                    token = f"{address}.{connected}.{number}.{message}"
                    await _send(traffic, reader, writer, token)
                    if not message:
                        traffic.served.append((connected, monotonic()))
                    if over.is_set():
                        break
                await _ask(reader, writer, b"QUIT", b"221")
        except (_Unexpected, OSError) as error:
            why = f"{type(error).__name__} {error}"
            if greeted:
                traffic.cut.append(why)
            else:
                traffic.refused.append((connected, why))
        await asyncio.sleep(PAUSE_S)


@contextlib.asynccontextmanager
async def _connection(
    address: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(address, 25)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _send(
    traffic: Traffic, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str
) -> None:
    writer.write(b"MAIL FROM:<a@sender.example>\r\nRCPT TO:<b@rcpt.example>\r\nDATA\r\n")
    for code in (b"250", b"250", b"354"):
        await _expect(reader, code)
    traffic.attempted.append(token)
    await _ask(reader, writer, token.encode() + b"\r\n.", b"250")
    traffic.acknowledged.append(token)


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes, code: bytes
) -> None:
    writer.write(line + b"\r\n")
    await _expect(reader, code)


async def _expect(reader: asyncio.StreamReader, code: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S):
        line = b"   -"
        while line[3:4] == b"-":
            line = await reader.readline()
    if not line.startswith(code):
        raise _Unexpected(f"{line!r} for {code!r}")
