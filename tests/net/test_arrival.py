"""What comes ahead of a session: a PROXY header, a handshake; and who does not come in."""

import asyncio
import ssl

import pytest

from tests.net.wired import IMPLICIT, Stage, client, deliver

HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
BEHIND = 'proxy_protocol = ["127.0.0.0/8"]'


async def test_a_header_and_the_commands_behind_it_may_come_at_once(stage: Stage) -> None:
    async with client(await stage.start(BEHIND)) as one:
        one.writer.write(HEADER)
        assert await one.reply() == b"220 mx"
        await deliver(one)


@pytest.mark.parametrize(
    "octets",
    [b"EHLO c\r\n", b"PROXY TCP4 1\r\n", HEADER.replace(b"\r\n", b"\n"), b"\x16\x03\x01", b""],
)
async def test_without_a_good_header_there_is_no_session(stage: Stage, octets: bytes) -> None:
    port = await stage.start(BEHIND, timeouts="proxy_header = 0.2")
    async with client(port) as one:
        one.writer.write(octets)
        assert await one.rest() in (b"", b"reset")
    assert stage.backend.heard == []


async def test_a_second_header_is_a_bad_command(stage: Stage) -> None:
    async with client(await stage.start(BEHIND)) as one:
        one.writer.write(HEADER + HEADER + b"QUIT\r\n")
        assert (await one.reply(), await one.reply()) == (b"220 mx", b"250 PROX")


async def test_a_strangers_header_is_a_bad_command(stage: Stage) -> None:
    async with client(await stage.start('proxy_protocol = ["192.0.2.0/24"]')) as one:
        assert await one.reply() == b"220 mx"
        assert await one.ask(HEADER.rstrip()) == [b"250 PROX"]


async def test_a_handshake_may_come_in_one_segment_with_the_header(stage: Stage) -> None:
    """As HAProxy sends it when the client was quick."""
    port = await stage.start(f"{IMPLICIT}\n{BEHIND}")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        read, written = ssl.MemoryBIO(), ssl.MemoryBIO()
        inside = stage.client_context.wrap_bio(read, written, server_hostname="mx.example")
        header = HEADER
        while True:
            try:
                inside.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(header + written.read())
                header = b""
                read.write(await reader.read(65536))
        writer.write(written.read())
        while True:
            try:
                assert inside.read() == b"220 mx\r\n"
                break
            except ssl.SSLWantReadError:
                read.write(await reader.read(65536))
        writer.close()
        await writer.wait_closed()


async def test_who_is_one_too_many_gets_no_plaintext_where_tls_comes_first(stage: Stage) -> None:
    """And no handshake either, which would cost more than the session."""
    port = await stage.start(IMPLICIT, limits="sessions_per_address = 1\nexempt = []")
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port, **inside) as one:
        assert await one.reply() == b"220 mx"
        async with client(port) as other:
            assert await other.rest() in (b"", b"reset")
        await deliver(one)
    async with client(port, **inside) as again:
        assert await again.reply() == b"220 mx"


async def test_a_handshake_takes_a_place_and_gives_it_back(stage: Stage) -> None:
    port = await stage.start(IMPLICIT, limits="sessions_per_address = 1\nexempt = []")
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port) as silent:
        async with client(port) as other:
            assert await other.rest() in (b"", b"reset")
        silent.writer.write(b"EHLO in plaintext\r\n")
        await silent.rest()
    async with client(port, **inside) as one:
        assert await one.reply() == b"220 mx"


async def test_the_limits_count_the_client_of_the_header(stage: Stage) -> None:
    port = await stage.start(BEHIND, limits="sessions_per_address = 1")
    async with client(port) as one, client(port) as other, client(port) as third:
        one.writer.write(HEADER)
        assert await one.reply() == b"220 mx"
        other.writer.write(HEADER)
        assert (await other.reply()).startswith(b"421 4.7.0 ")
        third.writer.write(HEADER.replace(b".7 ", b".8 "))
        assert await third.reply() == b"220 mx"
