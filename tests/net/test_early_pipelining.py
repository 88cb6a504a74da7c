"""Early clients, who send their first commands before the greeting, through real sockets."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smtpproxy.config.address import Address
from smtpproxy.net import binding
from tests.net.raw import GREETING, Client, Mta, Proxy, on_uvloop, proxy, within_a_second

EARLY = "early_pipelining = true\n"
CERTIFICATE = 'certificate = "@/mx.pem"'
DEMANDED = 'proxy_protocol = ["127.0.0.0/8"]'
GROUP = b"EHLO c\r\nMAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\nDATA\r\n"
OFFER = b"250-mx\r\n250-AUTH PLAIN\r\n250-CHUNKING\r\n250-PIPELINING\r\n250 PIPECONNECT\r\n"
WITH_STARTTLS = OFFER.replace(b"250-PIPE", b"250-STARTTLS\r\n250-PIPE")
REPLIES = b"250 ok\r\n250 ok\r\n354 go\r\n"


@asynccontextmanager
async def early(tmp_path: Path, listener: str = "") -> AsyncIterator[tuple[Proxy, Client]]:
    """Start a proxy that offers PIPECONNECT, and connect a client that has sent nothing."""
    async with proxy(tmp_path) as here:
        await here.start(listener=EARLY + listener)
        yield here, here.client()


async def finish(here: Proxy, one: Client) -> None:
    """Hear the replies to GROUP, send the content, and check that it is delivered."""
    assert await one.hear(b"354 go\r\n") == b"220 mx\r\n" + OFFER + REPLIES
    one.send(b"hello\r\n.\r\nQUIT\r\n")
    assert await one.rest() == b"250 taken\r\n221 bye\r\n"
    assert here.mta.connections[0].messages == [b"hello"]
    assert here.mta.connections[0].lines == [*GROUP.splitlines(), b"QUIT"]


@on_uvloop
async def test_a_message_takes_two_waits(tmp_path: Path) -> None:
    async with early(tmp_path) as (here, one):
        one.send(GROUP)
        await finish(here, one)


@on_uvloop
async def test_implicit_tls_without_waiting_for_the_greeting(tmp_path: Path) -> None:
    async with early(tmp_path, f'tls = "implicit"\n{CERTIFICATE}') as (here, one):
        here.mta.silent = {GREETING}
        await one.secure()
        one.send(GROUP)
        await within_a_second(lambda: here.mta.open)
        here.mta.release()
        await finish(here, one)


@on_uvloop
async def test_ehlo_and_starttls_then_a_group_inside_tls(tmp_path: Path) -> None:
    async with early(tmp_path, f'tls = "starttls"\n{CERTIFICATE}') as (here, one):
        one.send(b"EHLO c\r\nSTARTTLS\r\n")
        ready = b"220 2.0.0 Ready to start TLS\r\n"
        assert await one.hear(ready) == b"220 mx\r\n" + WITH_STARTTLS + ready
        await one.secure()
        one.send(GROUP)
        assert await one.hear(b"354 go\r\n") == OFFER + REPLIES
        one.send(b"hello\r\n.\r\nQUIT\r\n")
        assert await one.rest() == b"250 taken\r\n221 bye\r\n"
        assert here.mta.connections[0].messages == [b"hello"]


@pytest.mark.parametrize("cut", [0, 1, 20, 44, 50], ids=str)
@on_uvloop
async def test_a_proxy_header_that_is_demanded_comes_first(cut: int, tmp_path: Path) -> None:
    async with early(tmp_path, DEMANDED) as (here, one):
        octets = b"PROXY TCP4 127.0.0.9 198.51.100.1 4711 25\r\n" + GROUP
        if cut:
            one.send(octets[:cut])
            await within_a_second(here.held)
        one.send(octets[cut:])
        await finish(here, one)


@on_uvloop
async def test_early_commands_without_the_demanded_header_are_refused(tmp_path: Path) -> None:
    async with early(tmp_path, DEMANDED) as (here, one):
        one.send(GROUP)
        assert (await one.rest()).startswith(b"421 4.3.5 ")
        assert here.mta.connections == []


@on_uvloop
async def test_a_refused_greeting_is_the_only_reply(tmp_path: Path) -> None:
    async with early(tmp_path) as (here, one):
        here.mta.silent = {GREETING}
        one.send(GROUP)
        await within_a_second(lambda: here.mta.open)
        here.mta.open[0].transport.write(b"554 not here\r\n")
        assert await one.rest() == b"554 not here\r\n"
        assert here.mta.connections[0].lines == []


@on_uvloop
async def test_it_is_offered_once_all_servers_are_known_and_offer_the_same(tmp_path: Path) -> None:
    second = Mta()
    async with proxy(tmp_path) as here:
        await here.mta.start()
        await second.start()
        second.replies[b"EHLO"] = here.mta.replies[b"EHLO"].replace(b"mx", b"mx2")
        here.mta.address += f'", "{second.address}'
        await here.start(listener=EARLY)
        assert b"PIPECONNECT" not in await offer(here)
        await within_a_second(lambda: second.connections and not second.open)
        assert second.connections[0].lines[-1] == b"QUIT"
        assert b"PIPECONNECT" in await offer(here)
        here.mta.replies[b"EHLO"] = b"250-mx\r\n250 AUTH PLAIN\r\n"
        assert b"PIPECONNECT" not in await offer(here)
        second.stop()


async def offer(here: Proxy) -> bytes:
    one = here.client()
    await one.hear(b"220 mx\r\n")
    one.send(b"EHLO c\r\n")
    heard = await one.hear(b"250 ")
    one.send(b"QUIT\r\n")
    await one.rest()
    return heard


@on_uvloop
async def test_tcp_fast_open_is_on_with_it_and_off_without(tmp_path: Path) -> None:
    for text, queue in ((EARLY, binding.FAST_OPEN_QUEUE), ("", 0)):
        async with proxy(tmp_path) as here:
            await here.start(listener=text)
            assert here.app is not None
            (listening,) = here.app._listeners[0]._listening
            assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == queue


def test_a_kernel_that_refuses_fast_open_is_no_error(tmp_path: Path) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, *_: object) -> None:  # type: ignore[override]  # one of three forms
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    with Refusing() as one:
        binding.set_fast_open(one, on=True)
    (unix,) = binding.listen(Address(path=str(tmp_path / "socket")))
    binding.set_fast_open(unix, on=True)
    unix.close()
