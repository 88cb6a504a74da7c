"""The handshake on a closing or lost connection: it ends at once, with a reason."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.tls import handshake
from tests.net.raw import Client, Proxy, client_context, on_uvloop, proxy, within_a_second

STARTTLS = 'tls = "starttls"\ncertificate = "@/mx.pem"'
IMPLICIT = 'tls = "implicit"\ncertificate = "@/mx.pem"'
TLS = {"starttls": STARTTLS, "implicit": IMPLICIT}


async def before_its_handshake(here: Proxy, tls: str) -> Client:
    await here.start(listener=TLS[tls])
    one = here.client()
    if tls == "starttls":
        await one.hear(b"220 mx\r\n")
        one.send(b"STARTTLS\r\n")
        await one.hear(b"220 2.0.0 Ready to start TLS\r\n")
    return one


@pytest.mark.parametrize("end", [Client.close, Client.half_close, Client.reset])
@pytest.mark.parametrize("hello", [False, True], ids=["before it", "in it"])
@pytest.mark.parametrize("tls", TLS)
@on_uvloop
async def test_a_client_lost_before_or_in_its_handshake_keeps_no_place(
    tls: str, hello: bool, end: Callable[[Client], None], tmp_path: Path
) -> None:
    """On a transport that is closing, the loop's start_tls never returns."""
    async with proxy(tmp_path) as here:
        one = await before_its_handshake(here, tls)
        await within_a_second(lambda: here.held())
        if hello:
            one.say_client_hello()
            await one.some()
        end(one)
        await here.lets_go()
        silent = tls == "implicit" and not hello
        assert here.reasons() == ["client_lost" if silent else "client_tls_failed"]


@pytest.mark.parametrize("hello", [False, True], ids=["at once", "with its hello"])
@on_uvloop
async def test_a_client_lost_before_it_is_accepted_gets_no_handshake(
    hello: bool, tmp_path: Path
) -> None:
    async with proxy(tmp_path) as here:
        await here.start(listener=IMPLICIT)
        one = here.client()
        if hello:
            one.say_client_hello()
        one.close()
        await within_a_second(here.reasons)
        await here.lets_go()
        assert here.reasons() == ["client_tls_failed" if hello else "client_lost"]


@on_uvloop
async def test_a_client_lost_after_starttls_gets_no_handshake(tmp_path: Path) -> None:
    async with proxy(tmp_path) as here:
        await here.start(listener=STARTTLS)
        one = here.client()
        await one.hear(b"220 mx\r\n")
        one.send(b"STARTTLS\r\n")
        one.reset()
        await here.lets_go()


class _Recorder(asyncio.Protocol):
    """Records that its connection was lost."""

    lost = False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True


@on_uvloop
async def test_a_connection_lost_as_the_handshake_ends_is_reported_to_the_new_protocol() -> None:
    """The loop has reported it to the handshake's protocol then, and to no other."""
    waiting, successor = handshake._Waiting(), _Recorder()
    waiting.hand_over(successor)
    assert not successor.lost
    waiting.connection_lost(None)
    assert successor.lost


@on_uvloop
async def test_a_transport_that_is_closing_gets_no_handshake() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    whys: asyncio.Queue[str] = asyncio.Queue()
    for written in (b"", b"x"):
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *server.sockets[0].getsockname()
        )
        transport.write(written)
        transport.close()
        begun = handshake.begin(
            transport,
            client_context(),
            lambda _: asyncio.Protocol(),
            whys.put_nowait,
            limit_s=5.0,
            server_name="mx.example",
            as_server=False,
        )
        async with asyncio.timeout(20):
            assert await whys.get() == "closed"
            await begun
    server.close()
