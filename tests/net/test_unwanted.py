"""A client that the MTA refuses does not affect other clients."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from smtpproxy.config.loader import load
from smtpproxy.net.proxy_protocol import read_header
from smtpproxy.worker.app import App
from tests.net.conftest import Logged

UNWANTED, WANTED = "127.0.0.9", "127.0.0.10"
NOT_YOU = b"450 4.7.1 try again later, 127.0.0.9\r\n"
READY = b"220 mx ready\r\n"
BUSY = b"421 4.3.2 busy\r\n"
XCLIENT_OFFERED = b"250-mx\r\n250 XCLIENT ADDR\r\n"

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
WITH_ADDRESS = [
    pytest.param("proxy-v1"),
    pytest.param("proxy-v2"),
    pytest.param("transparent", marks=ROOT),
]
WITHOUT_ADDRESS = ["none", "xforward", "xclient"]


class Mta:
    """Greets each client in its way, if it gets the client's address.

    greeting: by the client's address.  greeted: whom it has greeted.
    """

    def __init__(self, *, header: bool) -> None:
        self._header = header
        self.greeting: Callable[[str], bytes] = lambda host: NOT_YOU if host == UNWANTED else READY
        self.greeted: list[str] = []
        self.serving: list[asyncio.Task[None]] = []

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = writer.get_extra_info("peername")[0]
        if self._header:
            octets, taken = b"", 0
            while not taken:
                octets += await reader.read(1)
                peer, taken = read_header(octets)
            host = peer.host if peer else host
        self.greeted.append(host)
        writer.write(self.greeting(host))
        while line := await reader.readline():
            if line.startswith(b"XCLIENT"):
                writer.write(NOT_YOU)
            else:
                writer.write(b"221 bye\r\n" if line.startswith(b"QUIT") else XCLIENT_OFFERED)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


Begin = Callable[..., Awaitable[tuple[Mta, int]]]


@pytest.fixture
async def begin(tmp_path: Path, logged: Logged) -> AsyncIterator[Begin]:  # noqa: ARG001
    """Return a function that starts an MTA and the proxy in front, and returns the proxy's port."""
    started: list[App] = []
    servers: list[asyncio.Server] = []
    mtas: list[Mta] = []

    async def start(
        identity: str, host: str = "127.0.0.1", listen: str = "127.0.0.1:0"
    ) -> tuple[Mta, int]:
        mta = Mta(header=identity.startswith("proxy"))
        server = await asyncio.start_server(mta.begin, host.strip("[]"), 0)
        servers.append(server)
        mtas.append(mta)
        port = server.sockets[0].getsockname()[1]
        file = tmp_path / "smtpproxy.toml"
        file.write_text(
            f'[listeners.l]\naddress = "{listen}"\n[backends.mx]\n'
            f'servers = ["{host}:{port}"]\nidentity = "{identity}"\nretry_after = 60\n'
        )
        app = App(load(file))
        await app.start()
        started.append(app)
        return mta, int(app.addresses[0].rpartition(":")[2])

    yield start
    for app in started:
        await app.stop()
    for server in servers:
        server.close()
    for mta in mtas:
        await asyncio.gather(*mta.serving, return_exceptions=True)


async def greeting(port: int, host: str, proxy: str = "127.0.0.1") -> bytes:
    """Connect to the proxy from an address; return what it sends up to a greeting or its close."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(proxy, port, local_addr=(host, 0))
        said = await reader.readline()
        if said.startswith(b"220"):
            writer.write(b"QUIT\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        return said


@pytest.mark.parametrize("identity", WITH_ADDRESS)
async def test_it_gets_the_mtas_own_reply_and_the_server_stays_up(
    identity: str, begin: Begin, logged: Logged
) -> None:
    mta, port = await begin(identity)
    for _ in range(3):
        assert await greeting(port, UNWANTED) == NOT_YOU
    assert await greeting(port, WANTED) == READY
    assert await greeting(port, UNWANTED) == NOT_YOU
    assert logged("server_down") == []
    given_up = logged("server_given_up")
    assert [fields["reason"] for fields in given_up] == ["greeted with 450"] * 4
    assert {fields["client_ip"] for fields in given_up} == {UNWANTED}
    assert {fields["level"] for fields in given_up} == {"info"}
    assert mta.greeted.count("127.0.0.1") == 1, "looked at once, as the proxy itself"


async def test_the_same_with_xclient(begin: Begin, logged: Logged) -> None:
    _, port = await begin("xclient")
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(UNWANTED, 0))
        writer.write(b"EHLO c.example\r\n")
        assert await reader.read() == READY + NOT_YOU
        writer.close()
        await writer.wait_closed()
    assert logged("server_down") == []
    (given_up,) = logged("server_given_up")
    assert (given_up["client_ip"], given_up["reason"]) == (UNWANTED, "refused XCLIENT with 450")
    assert given_up["server"]


@pytest.mark.parametrize("identity", WITH_ADDRESS)
async def test_a_server_that_refuses_every_client_is_down(
    identity: str, begin: Begin, logged: Logged
) -> None:
    """The proxy detects it by a separate connection."""
    mta, port = await begin(identity)
    mta.greeting = lambda host: BUSY  # noqa: ARG005
    assert await greeting(port, UNWANTED) == BUSY
    async with asyncio.timeout(20):
        while not logged("server_down"):
            await asyncio.sleep(0.01)
    assert [fields["reason"] for fields in logged("server_down")] == ["greeted with 421"]


@pytest.mark.parametrize("identity", WITHOUT_ADDRESS)
async def test_a_failure_without_the_clients_address_concerns_all_clients(
    identity: str, begin: Begin, logged: Logged
) -> None:
    """It sends its greeting before it gets the client's address."""
    mta, port = await begin(identity)
    mta.greeting = lambda host: BUSY  # noqa: ARG005
    assert await greeting(port, UNWANTED) == BUSY
    assert [fields["reason"] for fields in logged("server_down")] == ["greeted with 421"]


@pytest.mark.parametrize(
    ("server", "listen", "client"),
    [("127.0.0.1", "[::1]:0", "::1"), ("[::1]", "127.0.0.1:0", UNWANTED)],
)
async def test_a_client_of_the_other_family_alone_is_refused(
    server: str, listen: str, client: str, begin: Begin, logged: Logged
) -> None:
    _, port = await begin("transparent", server, listen)
    said = await greeting(port, client, "::1" if ":" in client else "127.0.0.1")
    assert said.startswith(b"421 4.4.1 ")
    (given_up,) = logged("server_given_up")
    assert given_up["client_ip"] == client
    assert given_up["reason"] == "the server has no address of the client's family"
    assert logged("server_down") == []
