"""Connecting to a server: several addresses, and never the proxy's address for a client."""

import asyncio
import errno
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
import trustme
import uvloop

from smtpproxy.config.address import ORIGINAL, Address
from smtpproxy.net import own_connections
from smtpproxy.net.backend import resolver
from smtpproxy.net.backend.backend_connection import BackendConnection, BackendEvents
from smtpproxy.net.backend.health_check import check
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.net.own_connections import Outgoing
from smtpproxy.net.peer import Peer
from smtpproxy.net.proxy_protocol import make_v1, make_v2, read_header
from smtpproxy.tls.error_text import OUR_OWN, NotForThisClient, error_text

LIVE, HOLE, DEAD = "127.0.0.1", "127.0.66.2", "127.0.66.3"
"""No other test uses the last two, so a port that is free at LIVE is free there, too."""
CLIENT = Peer("127.0.0.9:4711", ("127.0.0.1", 25))
NAME = "mx.example"

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def run(loop: NewLoop, what: Callable[[], Awaitable[None]]) -> None:
    """Run it on a loop of this kind, within 20 seconds."""

    async def within() -> None:
        async with asyncio.timeout(20):
            await what()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(within())


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """Make a port of HOLE drop connection attempts: its queue has room for one."""
    with (
        socket.create_server((HOLE, port), backlog=0),
        socket.create_connection((HOLE, port)),
    ):
        yield


def name_is(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Make NAME resolve to these addresses, in this order."""

    async def look_up(host: str, port: int) -> resolver.Found:
        if host != NAME:
            return await known(host, port)
        return [info for each in hosts for info in await known(each, port)]

    known = resolver.look_up
    monkeypatch.setattr(resolver, "look_up", look_up)


class Caller(asyncio.Protocol):
    """Sends a greeting, and ends after the reply."""

    def __init__(self) -> None:
        self.greeted = asyncio.Event()
        self.over = asyncio.Event()
        self.peername = self.sockname = ("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.peername = transport.get_extra_info("peername")
        self.sockname = transport.get_extra_info("sockname")
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert data == b"220 mx\r\n"
        self.greeted.set()
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.over.set()


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve as an MTA at LIVE until all clients have closed; yield the port."""
    over: list[asyncio.Task[None]] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        while line := await reader.readline():
            if not line.startswith(b"PROXY"):
                writer.write(b"221 mx\r\n" if line.startswith(b"QUIT") else b"250 mx\r\n")
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over.append(asyncio.create_task(greet(reader, writer)))

    listening = await asyncio.start_server(begin, LIVE, 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
        await asyncio.gather(*over)
    finally:
        listening.close()


@asynccontextmanager
async def hanging_up() -> AsyncIterator[int]:
    """Close each connection at LIVE after its first data; yield the port."""

    class HangingUp(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._transport = cast("asyncio.Transport", transport)

        def data_received(self, data: bytes) -> None:  # noqa: ARG002
            self._transport.abort()

    listening = await asyncio.get_running_loop().create_server(HangingUp, LIVE, 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a TLS context for the server, and one for its client."""
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(served)
    wanted = ssl.create_default_context()
    authority.configure_trust(wanted)
    return served, wanted


class TestSeveralAddresses:
    """With two addresses, the first may drop connection attempts, or have no listener."""

    @pytest.mark.parametrize("way", ["plain", "header", "tls", "transparent", "source"])
    @pytest.mark.parametrize("first", [HOLE, DEAD])
    @LOOPS
    def test_the_address_that_answers_is_used(
        self,
        loop: NewLoop,
        first: str,
        way: str,
        authority: trustme.CA,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if way == "transparent" and os.geteuid():
            pytest.skip("needs CAP_NET_ADMIN")
        served, wanted = contexts(authority)
        routes = {
            "plain": None,
            "header": BackendTransport(header=make_v1),
            "tls": BackendTransport(context=wanted),
            "transparent": BackendTransport(transparent=True),
            "source": BackendTransport(source="127.0.0.8"),
        }
        name_is(monkeypatch, first, LIVE)

        async def connect() -> None:
            caller = Caller()
            async with serving(served if way == "tls" else None) as port:
                with black_hole(port):
                    await Server(Address(NAME, port), routes[way]).connect(lambda: caller, CLIENT)
                    await caller.greeted.wait()
                await caller.over.wait()
            assert caller.peername[0] == LIVE
            source = {"transparent": CLIENT.host, "source": "127.0.0.8"}.get(way, LIVE)
            assert caller.sockname[0] == source

        run(loop, connect)

    @LOOPS
    def test_an_active_check_gets_the_same(
        self, loop: NewLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name_is(monkeypatch, HOLE, LIVE)

        async def look() -> None:
            async with serving() as port:
                with black_hole(port):
                    assert await check(Server(Address(NAME, port)), "proxy.example", 10) == ""

        run(loop, look)

    @LOOPS
    def test_cancelled_attempts_leave_nothing_open(
        self, loop: NewLoop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name_is(monkeypatch, HOLE, HOLE, HOLE)
        opened: list[socket.socket] = []
        two = asyncio.Event()

        class Socket(Outgoing):
            def __init__(self, *kind: int) -> None:
                super().__init__(*kind)
                opened.append(self)
                if len(opened) == 2:
                    two.set()

        async def give_up() -> None:
            with socket.create_server((HOLE, 0)) as free:
                port = free.getsockname()[1]
            with black_hole(port):
                monkeypatch.setattr("smtpproxy.net.backend.transport.Outgoing", Socket)
                connecting = asyncio.create_task(
                    Server(Address(NAME, port)).connect(Caller, None), name="connect"
                )
                await two.wait()
                monkeypatch.undo()
                connecting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await connecting
                assert [each.fileno() for each in opened] == [-1, -1]

        run(loop, give_up)

    @pytest.mark.parametrize(
        ("hosts", "reported"),
        [
            ((DEAD,), "Connection refused"),
            ((DEAD, LIVE), "Connection refused"),
            ((DEAD, "255.255.255.255"), "Network is unreachable"),
            ((DEAD, "255.255.255.255"), f"'{DEAD}', 9"),
        ],
    )
    @LOOPS
    def test_the_reasons_of_all_servers_are_reported(
        self, loop: NewLoop, hosts: tuple[str, ...], reported: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name_is(monkeypatch, *hosts)

        async def fail() -> None:
            with pytest.raises(OSError) as raised:  # noqa: PT011  # what it says is looked at below
                await Server(Address(NAME, 9)).connect(Caller, None)
            assert reported in error_text(raised.value)

        run(loop, fail)


@LOOPS
def test_a_connection_to_a_server_uses_tcp_keepalive(loop: NewLoop) -> None:
    found: list[int] = []

    class Session(BackendEvents):
        def backend_connected(self, backend: asyncio.Transport) -> None:
            opened = backend.get_extra_info("socket")
            found.append(opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            found.append(opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
            backend.abort()

    async def connect() -> None:
        with socket.create_server((LIVE, 0)) as listening:
            server = Server(Address(LIVE, listening.getsockname()[1]))
            await server.connect(lambda: BackendConnection(Session()), None)

    run(loop, connect)
    assert found == [1, 60]


class TestUnix:
    @pytest.mark.parametrize("route", [None, BackendTransport(header=make_v2)])
    @LOOPS
    def test_a_server_whose_queue_is_full_has_not_been_reached(
        self, loop: NewLoop, route: BackendTransport | None, tmp_path: Path
    ) -> None:
        path = str(tmp_path / "mta")

        async def fail() -> None:
            with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as other:
                listening.bind(path)
                listening.listen(0)
                other.connect(path)
                with pytest.raises(BlockingIOError):
                    await Server(Address(path=path), route).connect(Caller, None)

        run(loop, fail)


REFUSED = "Connection refused"
RoutesOf = Callable[[ssl.SSLContext], BackendTransport | None]
NONE: RoutesOf = lambda tls: None  # noqa: ARG005, E731  as the others of a table
HEADER: RoutesOf = lambda tls: BackendTransport(header=make_v1)  # noqa: ARG005, E731
LOCAL: RoutesOf = lambda tls: BackendTransport(header=make_v2)  # noqa: ARG005, E731
HEADER_AND_TLS: RoutesOf = lambda tls: BackendTransport(header=make_v1, context=tls)  # noqa: E731
TRANSPARENT: RoutesOf = lambda tls: BackendTransport(transparent=True)  # noqa: ARG005, E731


class TestWhoseTrouble:
    """A failure concerns the server if it did not get the client's address."""

    @pytest.mark.parametrize(
        ("route", "host", "peer", "why"),
        [
            (TRANSPARENT, DEAD, CLIENT, REFUSED),
            (TRANSPARENT, LIVE, Peer(), "the client has no address to connect from"),
            (TRANSPARENT, LIVE, Peer("0.0.0.0:1"), "the client has no address to connect from"),
            (TRANSPARENT, LIVE, Peer("[::]:1"), "the client has no address to connect from"),
            (TRANSPARENT, LIVE, Peer("[2001:db8::1]:1"), "no address of the client's family"),
            (TRANSPARENT, "::1", Peer("192.0.2.1:1"), "no address of the client's family"),
            (HEADER, LIVE, Peer(), "the client has no address for a PROXY header"),
            (LOCAL, LIVE, Peer(), "the client has no address for a PROXY header"),
            (HEADER_AND_TLS, LIVE, CLIENT, ""),  # closed, or reset: each loop in its own words
        ],
    )
    @LOOPS
    def test_failures_that_may_concern_the_client(
        self, loop: NewLoop, route: RoutesOf, host: str, peer: Peer, why: str
    ) -> None:
        async def fail() -> None:
            async with hanging_up() as port:
                server = Server(Address(host, port), route(ssl.create_default_context()))
                assert server.gets_address_of(peer)
                with pytest.raises(NotForThisClient) as raised:
                    await server.connect(Caller, peer)
                assert why in error_text(raised.value)

        if route is TRANSPARENT and host == DEAD and os.geteuid():
            pytest.skip("needs CAP_NET_ADMIN")
        run(loop, fail)

    @pytest.mark.parametrize(
        ("route", "peer"), [(NONE, CLIENT), (HEADER, CLIENT), (HEADER, None), (TRANSPARENT, None)]
    )
    @LOOPS
    def test_failures_that_concern_the_server(
        self, loop: NewLoop, route: RoutesOf, peer: Peer | None
    ) -> None:
        async def fail() -> None:
            server = Server(Address(DEAD, 9), route(ssl.create_default_context()))
            with pytest.raises(ConnectionRefusedError):
                await server.connect(Caller, peer)

        run(loop, fail)

    @pytest.mark.parametrize("route", [NONE, HEADER, TRANSPARENT])
    async def test_a_name_that_is_not_found_takes_the_server_down(
        self, route: RoutesOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def look_up(host: str, port: int) -> resolver.Found:  # noqa: ARG001
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        monkeypatch.setattr(resolver, "look_up", look_up)
        server = Server(Address(NAME, 9), route(ssl.create_default_context()))
        with pytest.raises(socket.gaierror):
            await server.connect(Caller, CLIENT)

    async def test_a_client_of_the_proxy_itself_has_no_original_server(self) -> None:
        server = Server(Address(ORIGINAL), BackendTransport())
        with pytest.raises(NotForThisClient, match="connected to the proxy itself"):
            await server.connect(Caller, CLIENT)

    async def test_an_active_check_needs_a_fixed_server(self) -> None:
        with pytest.raises(OSError, match="connected to the proxy itself"):
            await Server(Address(ORIGINAL), BackendTransport()).connect(Caller, None)

    async def test_a_shortage_of_this_machine_blames_neither_side(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def bind(*_: object) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "no port is left")

        monkeypatch.setattr("smtpproxy.net.backend.transport.bind_as", bind)
        with pytest.raises(OSError) as raised:  # noqa: PT011  # its number is looked at below
            await Server(Address(LIVE, 9), BackendTransport(transparent=True)).connect(
                Caller, CLIENT
            )
        assert raised.value.errno in OUR_OWN

    async def test_an_active_check_gets_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It does not mark the server as down, since it has no result."""

        async def connect(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(Server, "connect", connect)
        with pytest.raises(OSError, match="Too many"):
            await check(Server(Address(LIVE, 9)), "proxy.example")


@pytest.mark.parametrize("header", [make_v1, make_v2])
async def test_an_active_check_passes_the_proxys_own_address(
    header: Callable[[Peer], bytes],
) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.put_nowait(await reader.read(200))
        writer.close()

    listening = await asyncio.start_server(serve, LIVE, 0)
    server = Address(*listening.sockets[0].getsockname())
    await BackendTransport(header=header).connect(server, asyncio.Protocol, None)
    async with asyncio.timeout(5):
        peer, _ = read_header(await heard.get())
    assert peer is not None
    assert (peer.host, peer.target) == (LIVE, (server.host, server.port))
    listening.close()


async def test_a_look_up_without_a_thread_fails_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot start a thread") as raised:
            await Server(Address("no.such.example", 9)).connect(Caller, CLIENT)
        assert raised.value.errno in OUR_OWN


class TestSource:
    """The address to connect from, which is the same for clients and for health checks."""

    ROUTE = BackendTransport(source="127.0.0.8")

    @LOOPS
    def test_a_health_check_comes_from_it(self, loop: NewLoop) -> None:
        async def look() -> None:
            caller = Caller()
            async with serving() as port:
                await Server(Address(LIVE, port), self.ROUTE).connect(lambda: caller, None)
                await caller.over.wait()
            assert caller.sockname[0] == "127.0.0.8"

        run(loop, look)

    async def test_the_connection_is_known_as_the_services_own(self) -> None:
        caller = Caller()
        async with serving() as port:
            await Server(Address(LIVE, port), self.ROUTE).connect(lambda: caller, CLIENT)
            await caller.over.wait()
            assert own_connections._shared.has(caller.sockname, (LIVE, port))

    async def test_only_addresses_of_its_family_are_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caller = Caller()
        async with serving() as port:
            name_is(monkeypatch, "::1", LIVE)
            await Server(Address(NAME, port), self.ROUTE).connect(lambda: caller, CLIENT)
            await caller.over.wait()
        name_is(monkeypatch, "::1")
        with pytest.raises(OSError, match="no address of the source's family"):
            await Server(Address(NAME, port), self.ROUTE).connect(Caller, CLIENT)

    async def test_an_address_of_another_machine_is_an_error_of_this_machine(self) -> None:
        """So the server is not taken for down, but the client gets 421."""
        async with serving() as port:
            route = BackendTransport(source="192.0.2.1")
            with pytest.raises(OSError, match="Cannot assign") as found:
                await Server(Address(LIVE, port), route).connect(Caller, CLIENT)
        assert found.value.errno in OUR_OWN
