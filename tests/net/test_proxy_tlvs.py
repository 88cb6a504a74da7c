"""TLVs of PROXY headers: what the log shows of those that come in, and what the backend gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.net.peer import Peer
from smtpproxy.net.proxy_protocol import make_v2, read_header
from smtpproxy.net.proxy_tlvs import NOT_VERIFIED, ProxyTlvs, SslTlv
from tests.net.conftest import Logged
from tests.net.real_sockets import IMPLICIT, STARTTLS, V2_HEADER, Client, Stage, client, deliver

FROM_A_PROXY = 'proxy_protocol = ["127.0.0.0/8"]'
PROXY_V2 = 'identity = "proxy-v2"'
FRONT = Peer("192.0.2.7:4711", ("198.51.100.1", 25))
TOLD = ProxyTlvs(b"front.example", SslTlv(7, 0, b"TLSv1.2", b"client.example"), b"\x07id")
SHOWN = {
    "forwarded_authority": "front.example",
    "forwarded_unique_id": r"\x07id",
    "forwarded_tls": "TLSv1.2",
    "forwarded_cn": "client.example",
}


def sent(stage: Stage, number: int = -1) -> ProxyTlvs:
    """Return what the backend got in a header."""
    header = stage.backend.headers[number]
    peer, taken = read_header(header)  # which checks the checksum, too
    assert b"\x03\x00\x04" in header
    assert taken == len(header)
    assert peer is not None
    return peer.tlvs or ProxyTlvs()


def session_id(logged: Logged) -> bytes:
    return bytes(logged("session_closed")[-1]["session"].encode())


async def greeted(one: Client, header: bytes = b"") -> None:
    one.writer.write(header)
    assert await one.reply() == b"220 mx"


async def deliver_after_header(stage: Stage, port: int, tlvs: ProxyTlvs, *, implicit: bool) -> None:
    """Deliver a message after a header, which implicit TLS follows if it is asked for."""
    async with client(port) as one:
        one.writer.write(make_v2(FRONT, tlvs))
        if implicit:
            await one.writer.start_tls(stage.client_context, server_hostname="mx.example")
        await greeted(one)
        await deliver(one)


def from_header(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name.startswith("forwarded_")}


async def test_the_log_shows_them_as_the_word_of_the_proxy_in_front(
    stage: Stage, logged: Logged
) -> None:
    async with client(await stage.start(FROM_A_PROXY)) as one:
        await greeted(one, make_v2(FRONT, TOLD))
        await deliver(one)
    for event in ("proxy_header_read", "message_relayed", "session_closed"):
        (line,) = logged(event)
        assert from_header(line) == SHOWN
        assert "tls" not in line
    assert logged("tls_started") == []


async def test_without_tlvs_the_log_shows_none(stage: Stage, logged: Logged) -> None:
    async with client(await stage.start(FROM_A_PROXY)) as one:
        await greeted(one, make_v2(FRONT, ProxyTlvs(ssl=SslTlv(0))))  # a client in plaintext
        await deliver(one)
    assert logged("proxy_header_read") == []
    assert from_header(logged("session_closed")[0]) == {}


async def test_a_trace_has_them(stage: Stage, tmp_path: Path) -> None:
    trace = f'{FROM_A_PROXY}\n[trace]\ndirectory = "{tmp_path}/traces"\nwhen = "all"\n'
    port = await stage.start(trace)
    async with client(port) as one:
        await greeted(one, make_v2(FRONT, TOLD))
        await deliver(one)
    await stage.stop()
    (file,) = (tmp_path / "traces").glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    (noted,) = [each for each in records if each["what"] == "noted"]
    assert noted["event"] == "proxy_header_read"
    assert from_header(noted) == SHOWN
    assert "version" not in noted


@pytest.mark.parametrize("listener", ["", STARTTLS], ids=["plaintext", "STARTTLS"])
async def test_a_client_that_connects_in_plaintext_has_the_sessions_id(
    stage: Stage, logged: Logged, listener: str
) -> None:
    """TLS that begins later comes too late: the header has gone, before the greeting."""
    stage.backend.owed_header = V2_HEADER
    async with client(await stage.start(listener, PROXY_V2)) as one:
        await greeted(one)
        if listener:
            await one.ask(b"EHLO c")
            await one.secure(stage)
        await deliver(one)
    assert sent(stage) == ProxyTlvs(unique_id=session_id(logged))


async def test_a_client_with_implicit_tls_is_named_with_it(stage: Stage, logged: Logged) -> None:
    stage.backend.owed_header = V2_HEADER
    port = await stage.start(IMPLICIT, PROXY_V2)
    async with client(port, ssl=stage.client_context, server_hostname="mx.example") as one:
        await greeted(one)
        await deliver(one)
    (line,) = logged("tls_started")
    told = sent(stage)
    assert (told.authority, told.unique_id) == (b"mx.example", session_id(logged))
    assert told.ssl == SslTlv(
        1, NOT_VERIFIED, line["version"].encode(), b"", line["cipher"].encode()
    )


async def test_a_client_that_asks_for_no_name_has_no_authority(stage: Stage) -> None:
    stage.backend.owed_header = V2_HEADER
    port = await stage.start(IMPLICIT, PROXY_V2)
    context = stage.client_context
    context.check_hostname = False
    async with client(port, ssl=context, server_hostname="127.0.0.1") as one:  # which is no name
        await greeted(one)
        await deliver(one)
    told = sent(stage)
    assert told.authority == b""
    assert told.ssl is not None


async def test_the_name_selects_the_certificate_and_is_the_authority(stage: Stage) -> None:
    other = '\n[listeners.smtp.sni."other.example"]\ncertificate = "@/other.example.pem"'
    stage.backend.owed_header = V2_HEADER
    port = await stage.start(IMPLICIT + other, PROXY_V2)
    async with client(port, ssl=stage.client_context, server_hostname="other.example") as one:
        await greeted(one)
        await deliver(one)
    assert sent(stage).authority == b"other.example"


@pytest.mark.parametrize("implicit", [False, True], ids=["plaintext", "implicit TLS"])
async def test_what_the_proxy_in_front_says_is_passed_on(stage: Stage, *, implicit: bool) -> None:
    """TLS with the proxy in front is not the client's."""
    stage.backend.owed_header = V2_HEADER
    port = await stage.start(f"{IMPLICIT if implicit else ''}\n{FROM_A_PROXY}", PROXY_V2)
    await deliver_after_header(stage, port, TOLD, implicit=implicit)
    assert sent(stage) == TOLD


async def test_a_proxy_in_front_that_knows_no_tls_has_passed_it_through(
    stage: Stage, logged: Logged
) -> None:
    stage.backend.owed_header = V2_HEADER
    port = await stage.start(f"{IMPLICIT}\n{FROM_A_PROXY}", PROXY_V2)
    await deliver_after_header(stage, port, ProxyTlvs(unique_id=b"id-of-front"), implicit=True)
    told = sent(stage)
    assert (told.authority, told.unique_id) == (b"mx.example", b"id-of-front")
    assert told.ssl is not None
    assert f"{told.ssl.version.decode()} " in logged("message_relayed")[0]["tls"]


@pytest.mark.parametrize("named", [b"XCLIENT ADDR=192.0.2.9", b"XCLIENT NAME=client.example"])
async def test_a_client_that_xclient_names_is_not_that_of_the_header(
    stage: Stage, logged: Logged, named: bytes
) -> None:
    """A new name alone leaves it the same client."""
    stage.backend.owed_header = V2_HEADER
    trusted = 'xclient = ["192.0.2.7"]'
    async with client(await stage.start(f"{FROM_A_PROXY}\n{trusted}", PROXY_V2)) as one:
        await greeted(one, make_v2(FRONT, TOLD))
        await one.ask(b"EHLO front")
        assert await one.ask(named) == [b"220 mx"]
        await deliver(one)
    assert sent(stage, 0) == TOLD
    (line,) = logged("message_relayed")
    if b"ADDR" in named:
        assert sent(stage, 1) == ProxyTlvs(unique_id=session_id(logged))
        assert from_header(line) == {}
    else:
        assert sent(stage, 1) == TOLD
        assert from_header(line) == SHOWN


async def test_the_tls_of_a_proxy_that_names_its_client_is_not_the_clients(
    stage: Stage, logged: Logged
) -> None:
    stage.backend.owed_header = V2_HEADER
    port = await stage.start(f'{STARTTLS}\nxclient = ["127.0.0.0/8"]', PROXY_V2)
    async with client(port) as one:
        await greeted(one)
        await one.ask(b"EHLO front")
        await one.secure(stage)
        await one.ask(b"EHLO front")
        assert await one.ask(b"XCLIENT ADDR=192.0.2.9") == [b"220 mx"]
        await deliver(one)
    assert sent(stage, 1) == ProxyTlvs(unique_id=session_id(logged))


@pytest.mark.parametrize(
    ("tlvs", "why"),
    [
        (ProxyTlvs(unique_id=b"x" * 129), "unique id too long"),
        (ProxyTlvs(authority=b"\xff"), "invalid authority"),
    ],
)
async def test_a_malformed_one_is_refused_with_its_reason(
    stage: Stage, logged: Logged, tlvs: ProxyTlvs, why: str
) -> None:
    async with client(await stage.start(FROM_A_PROXY)) as one:
        one.writer.write(make_v2(FRONT, tlvs))
        assert (await one.reply()).startswith(b"421 4.3.5 ")
    assert stage.backend.connections == 0
    (line,) = logged("client_turned_away")
    assert line["reason"] == f"{why}; its network is in proxy_protocol"
