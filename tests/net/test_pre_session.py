"""The pre-session: PROXY header and TLS handshake, and which clients are refused."""

import asyncio
import re
import ssl

import pytest

from smtpproxy.net.pre_session import TLS_ALERT
from tests.net.conftest import Logged
from tests.net.real_sockets import IMPLICIT, STARTTLS, Stage, client, deliver
from tests.support.catalogue import client_of

HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
FROM_PROXY = 'proxy_protocol = ["127.0.0.0/8"]'
V2_BEGIN = b"\r\n\r\n\0\r\nQUIT\n"
V2_HEADER = V2_BEGIN + bytes.fromhex("2111 000c c0000207 c6336401 1267 0019")
V2_LOCAL = V2_BEGIN + bytes.fromhex("2000 0000")

BAD = {
    "nothing": b"",
    "a command": b"EHLO c\r\n",
    "a ClientHello": b"\x16\x03\x01",
    "malformed": b"PROXY TCP4 1\r\n",
    "LF only": HEADER.replace(b"\r\n", b"\n"),
    "over 107 octets": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "over 107 octets without end": b"PROXY UNKNOWN " + b"x" * 1000,
    "never ending": HEADER[:20],
    "version 2 of 65535 octets": V2_BEGIN + b"\x21\x11\xff\xff",
    "version 2 without its end": V2_HEADER[:-1],
}
MISSING = re.compile(rb"421 4\.3\.5 [^ ]+ Error: PROXY header is missing or malformed\r\n")
REFUSED = b"451 4.3.5 Error: PROXY header was not expected here"
UNEXPECTED = re.compile(rb"220 mx\r\n" + re.escape(REFUSED) + rb"\r\n")
TOO_SLOW = {"nothing", "never ending", "version 2 without its end"}


async def test_a_header_and_commands_may_come_in_one_segment(stage: Stage) -> None:
    async with client(await stage.start(FROM_PROXY)) as one:
        one.writer.write(HEADER)
        assert await one.reply() == b"220 mx"
        await deliver(one)


async def test_a_header_may_come_octet_by_octet(stage: Stage, logged: Logged) -> None:
    for header in (HEADER, V2_HEADER):
        async with client(stage.port or await stage.start(FROM_PROXY)) as one:
            for octet in header + b"EHLO c\r\n":
                one.writer.write(bytes([octet]))
                await asyncio.sleep(0)
            assert await one.reply() == b"220 mx"
            await deliver(one, greeted=1)
    assert [client_of(line) for line in logged("message_relayed")] == ["192.0.2.7:4711"] * 2


@pytest.mark.parametrize("at", range(1, len(HEADER) + 4))
async def test_cuts_between_octets_do_not_matter(stage: Stage, at: int) -> None:
    octets = HEADER + b"NOOP\r\n"
    async with client(await stage.start(FROM_PROXY)) as one:
        one.writer.write(octets[:at])
        await asyncio.sleep(0.002)
        one.writer.write(octets[at:])
        assert [await one.reply(), await one.reply()] == [b"220 mx", b"250 NOOP"]


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2_LOCAL], ids=["UNKNOWN", "LOCAL"])
async def test_without_a_named_client_it_is_the_connecting_one(
    stage: Stage, logged: Logged, header: bytes
) -> None:
    async with client(await stage.start(FROM_PROXY)) as one:
        one.writer.write(header)
        assert await one.reply() == b"220 mx"
        await deliver(one)
        own = one.writer.get_extra_info("sockname")
    assert client_of(logged("message_relayed")[0]) == f"127.0.0.1:{own[1]}"


@pytest.mark.parametrize("name", BAD)
async def test_without_a_valid_header_there_is_no_session(
    stage: Stage, logged: Logged, name: str
) -> None:
    limit = "proxy_header = 0.2" if name in TOO_SLOW else ""
    async with client(await stage.start(FROM_PROXY, timeouts=limit)) as one:
        one.writer.write(BAD[name])
        assert MISSING.fullmatch(await one.rest())
    assert stage.backend.heard == []
    (reported,) = logged("client_turned_away")
    kind = "proxy_header_time_limit" if name in TOO_SLOW else "bad_proxy_header"
    assert reported["kind"] == kind
    assert reported["reason"].endswith("; its network is in proxy_protocol")
    assert logged("session_closed")[0]["reason"] == reported["kind"]


@pytest.mark.parametrize("header", [HEADER, V2_HEADER], ids=["v1", "v2"])
async def test_an_incomplete_header_is_invalid(stage: Stage, logged: Logged, header: bytes) -> None:
    port = await stage.start(FROM_PROXY)
    for size in (1, 2, len(header) - 1):
        async with client(port) as one:
            one.writer.write(header[:size])
            one.writer.write_eof()
            assert MISSING.fullmatch(await one.rest())
    expected = ["cut short; its network is in proxy_protocol"] * 3
    assert [reported["reason"] for reported in logged("client_turned_away")] == expected


MODES = {
    "off": "",
    "starttls": STARTTLS,
    "passthrough": 'tls = "passthrough"',
    "implicit": IMPLICIT,
}
STRANGER = 'proxy_protocol = ["192.0.2.0/24"]'


@pytest.mark.parametrize("header", [HEADER, V2_HEADER, V2_LOCAL], ids=["v1", "v2", "LOCAL"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("others", ["", STRANGER], ids=["nobody", "others"])
async def test_a_header_from_an_untrusted_client_never_reaches_the_backend(
    stage: Stage, logged: Logged, mode: str, header: bytes, others: str
) -> None:
    async with client(await stage.start(f"{MODES[mode]}\n{others}")) as one:
        one.writer.write(header + b"EHLO c\r\n")
        rest = await one.rest()
    assert rest == TLS_ALERT if mode == "implicit" else UNEXPECTED.fullmatch(rest)
    assert stage.backend.heard == []
    (reported,) = logged("client_turned_away") + logged("client_violation")
    assert reported["kind"] == "proxy_header_unexpected"
    assert reported["reason"] == "its network is not in proxy_protocol"
    assert [line["reason"] for line in logged("session_closed")] == ["proxy_header_unexpected"]


@pytest.mark.parametrize("header", [HEADER, V2_HEADER], ids=["v1", "v2"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_header_cut_into_octets_never_reaches_the_backend(
    stage: Stage, logged: Logged, mode: str, header: bytes
) -> None:
    async with client(await stage.start(f'{MODES[mode]}\nsync = "strict"')) as one:
        for octet in header:
            one.writer.write(bytes([octet]))
            await asyncio.sleep(0)
        await one.rest()
    assert stage.backend.heard == []
    (reported,) = logged("client_turned_away") + logged("client_violation")
    assert reported["kind"] == "proxy_header_unexpected"


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_a_header_inside_tls_never_reaches_the_backend(
    stage: Stage, logged: Logged, mode: str
) -> None:
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    port = await stage.start(MODES[mode])
    async with client(port, **(inside if mode == "implicit" else {})) as one:
        assert await one.reply() == b"220 mx"
        if mode == "starttls":
            await one.secure(stage)
        assert await one.ask(HEADER.rstrip()) == [REFUSED]
        assert await one.rest() in (b"", b"reset")
    assert not [line for line in stage.backend.heard if line.startswith(b"PROXY")]
    assert logged("client_violation")[0]["kind"] == "proxy_header_unexpected"


@pytest.mark.parametrize("header", [HEADER, V2_HEADER], ids=["v1", "v2"])
async def test_a_second_header_never_reaches_the_backend(
    stage: Stage, logged: Logged, header: bytes
) -> None:
    async with client(await stage.start(FROM_PROXY)) as one:
        one.writer.write(HEADER + header + b"QUIT\r\n")
        assert (await one.reply(), await one.reply()) == (b"220 mx", REFUSED)
    assert stage.backend.heard == []
    assert client_of(logged("client_violation")[0]) == "192.0.2.7:4711"


async def test_a_second_header_before_tls_never_reaches_the_backend(
    stage: Stage, logged: Logged
) -> None:
    async with client(await stage.start(f"{IMPLICIT}\n{FROM_PROXY}")) as one:
        one.writer.write(HEADER + HEADER)
        assert await one.rest() == TLS_ALERT
    assert logged("client_turned_away")[0]["kind"] == "proxy_header_unexpected"


@pytest.mark.parametrize("mode", MODES)
async def test_a_missing_header_gets_a_reply(stage: Stage, logged: Logged, mode: str) -> None:
    async with client(await stage.start(f"{MODES[mode]}\n{FROM_PROXY}")) as one:
        one.writer.write(b"EHLO c\r\n")
        rest = await one.rest()
    assert rest == TLS_ALERT if mode == "implicit" else MISSING.fullmatch(rest)
    assert stage.backend.heard == []
    (reported,) = logged("client_turned_away")
    assert reported["reason"] == "no PROXY header; its network is in proxy_protocol"


async def test_the_clienthello_has_the_time_limit_of_a_handshake(
    stage: Stage, logged: Logged
) -> None:
    async with client(await stage.start(IMPLICIT, timeouts="tls_handshake = 0.2")) as one:
        assert await one.rest() in (b"", b"reset")
    assert logged("client_turned_away")[0]["kind"] == "client_hello_time_limit"


async def test_a_handshake_may_come_in_one_segment_with_the_header(stage: Stage) -> None:
    """As HAProxy sends it if the client was fast."""
    port = await stage.start(f"{IMPLICIT}\n{FROM_PROXY}")
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


async def test_a_client_over_the_limit_gets_no_plaintext_with_implicit_tls(stage: Stage) -> None:
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


async def test_a_handshake_counts_as_a_session_until_it_fails(stage: Stage) -> None:
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
    port = await stage.start(FROM_PROXY, limits="sessions_per_address = 1")
    async with client(port) as one, client(port) as other, client(port) as third:
        one.writer.write(HEADER)
        assert await one.reply() == b"220 mx"
        other.writer.write(HEADER)
        assert (await other.reply()).startswith(b"421 4.7.0 ")
        third.writer.write(HEADER.replace(b".7 ", b".8 "))
        assert await third.reply() == b"220 mx"
