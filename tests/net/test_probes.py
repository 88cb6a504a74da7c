"""Probes of load balancers: those that only connect, and those that are named in the settings."""

import asyncio
import socket
import struct

import pytest

from smtpproxy.net import pre_session, probe_session
from tests.net.conftest import Logged
from tests.net.real_sockets import IMPLICIT, STARTTLS, Client, Stage, client, deliver

HERE = '["127.0.0.0/8"]'
PROBES = f"probes = {HERE}"
PROXY = f"proxy_protocol = {HERE}"
HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n" + bytes.fromhex("2000 0000")
LISTENERS = {
    "plain": "",
    "starttls": STARTTLS,
    "passthrough": 'tls = "passthrough"',
    "implicit": IMPLICIT,
    "proxy": PROXY,
    "implicit, proxy": f"{IMPLICIT}\n{PROXY}",
}
PLAIN = ("plain", "starttls", "passthrough")
REFUSED = b"421 4.3.2 HOST Error: this address is served as a probe only"


async def events(logged: Logged, stage: Stage) -> list[tuple[str, str]]:
    """Wait until no session is left, and return all events with their levels."""
    assert stage.app is not None
    await stage.app.wait_until_empty(10)
    names = (
        "probe_closed",
        "session_closed",
        "client_turned_away",
        "tls_failed",
        "clients_refused",
    )
    return [(name, line["level"]) for name in names for line in logged(name)]


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("kind", LISTENERS)
async def test_a_connection_without_data_is_one_debug_line(
    stage: Stage, logged: Logged, kind: str, how: str
) -> None:
    port = await stage.start(LISTENERS[kind])
    async with client(port) as one:
        if kind in PLAIN:
            assert await one.reply() == b"220 mx"
        if how == "reset":
            reset(one)
        elif how == "half-close":
            one.writer.write_eof()
            assert await one.rest() in (b"", b"reset")
    assert await events(logged, stage) == [("probe_closed", "debug")]
    assert logged("probe_closed")[0]["reason"] in ("client_closed", "client_lost")


def reset(one: Client) -> None:
    """Close the connection as HAProxy's checks do."""
    opened = one.writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.writer.transport.abort()


@pytest.mark.parametrize("header", [HEADER, V2_LOCAL], ids=["v1", "LOCAL"])
@pytest.mark.parametrize("kind", ["proxy", "implicit, proxy"])
async def test_a_proxy_header_alone_is_one_debug_line(
    stage: Stage, logged: Logged, kind: str, header: bytes
) -> None:
    async with client(await stage.start(LISTENERS[kind])) as one:
        one.writer.write(header)
        if kind == "proxy":
            assert await one.reply() == b"220 mx"
    assert await events(logged, stage) == [("probe_closed", "debug")]


async def test_a_tls_handshake_alone_is_one_debug_line(stage: Stage, logged: Logged) -> None:
    port = await stage.start(IMPLICIT)
    async with client(port, ssl=stage.client_context, server_hostname="mx.example") as one:
        assert await one.reply() == b"220 mx"
    assert await events(logged, stage) == [("probe_closed", "debug")]


@pytest.mark.parametrize(
    ("kind", "said"), [("plain", b"N"), ("implicit", b"\x16"), ("proxy", b"P")]
)
async def test_one_octet_makes_it_a_session(
    stage: Stage, logged: Logged, kind: str, said: bytes
) -> None:
    async with client(await stage.start(LISTENERS[kind])) as one:
        if kind == "plain":
            assert await one.reply() == b"220 mx"
        one.writer.write(said)
        one.writer.write_eof()
        await one.rest()
    assert ("probe_closed", "debug") not in await events(logged, stage)
    assert len(logged("session_closed")) == 1


@pytest.mark.parametrize("kind", LISTENERS)
async def test_a_probe_is_answered_by_the_proxy_alone(
    stage: Stage, logged: Logged, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its network must send a PROXY header, and it sends none."""
    monkeypatch.setattr(pre_session, "HEADER_WAIT_S", 0.05)
    limits = "sessions_per_address = 1\nexempt = []"
    port = await stage.start(f"{LISTENERS[kind]}\n{PROBES}", limits=limits)
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    tls = inside if kind.startswith("implicit") else {}
    host = socket.gethostname().encode()
    async with client(port, **tls), client(port, **tls) as one:
        assert await one.reply() == b"220 %b ESMTP" % host
        assert await one.ask(b"EHLO lb", b"helo lb", b"NOOP", b"RSET x", b"QUIT") == [
            *(b"250 " + host, b"250 " + host, b"250 2.0.0 Ok", b"250 2.0.0 Ok"),
            b"221 2.0.0 %b closing connection" % host,
        ]
        assert await one.rest() in (b"", b"reset")
    assert await events(logged, stage) == [("probe_closed", "debug")] * 2
    assert "quit" in {line["reason"] for line in logged("probe_closed")}
    assert stage.backend.heard == []
    assert stage.backend.connections == 0


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", V2_LOCAL], ids=["UNKNOWN", "LOCAL"])
async def test_a_header_without_a_client_is_a_probe(stage: Stage, header: bytes) -> None:
    async with client(await stage.start(f"{PROXY}\n{PROBES}")) as one:
        one.writer.write(header)
        assert (await one.reply()).endswith(b" ESMTP")
    assert stage.backend.connections == 0


async def test_a_header_with_a_client_starts_that_clients_session(stage: Stage) -> None:
    """The load balancer's own address is that of a probe; the clients that it names send mail."""
    async with client(await stage.start(f"{PROXY}\n{PROBES}")) as one:
        one.writer.write(HEADER)
        assert await one.reply() == b"220 mx"
        await deliver(one)


async def test_a_client_of_another_network_sends_mail(stage: Stage) -> None:
    async with client(await stage.start('probes = ["192.0.2.0/24"]')) as one:
        assert await one.reply() == b"220 mx"
        await deliver(one)


async def test_a_header_that_comes_late_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the greeting of a probe by then: no mail is accepted for the wrong client."""
    monkeypatch.setattr(pre_session, "HEADER_WAIT_S", 0.0)
    async with client(await stage.start(f"{PROXY}\n{PROBES}")) as one:
        assert (await one.reply()).startswith(b"220 ")
        one.writer.write(HEADER + b"EHLO c\r\n")
        assert (await one.reply()).startswith(b"421 4.3.2 ")
    assert stage.backend.connections == 0


async def test_a_malformed_header_stays_an_error(stage: Stage, logged: Logged) -> None:
    async with client(await stage.start(f"{PROXY}\n{PROBES}")) as one:
        one.writer.write(b"PROXY TCP4 1\r\n")
        assert (await one.rest()).startswith(b"421 4.3.5 ")
    assert logged("client_turned_away")[0]["kind"] == "bad_proxy_header"


@pytest.mark.parametrize(
    "said",
    [
        b"MAIL FROM:<a@a>\r\n",
        b"STARTTLS\r\n",
        b"XCLIENT ADDR=192.0.2.1\r\n",
        b"GET / HTTP/1.0\r\n",
        b"\r\n",
        b"\n",
        b"x" * (probe_session.LINE_OCTETS + 1),
        b"NOOP\r\n" * (probe_session.MOST_COMMANDS + 1),
    ],
    ids=["MAIL", "STARTTLS", "XCLIENT", "GET", "empty", "bare LF", "a long line", "many commands"],
)
async def test_other_commands_of_a_probe_get_421(stage: Stage, logged: Logged, said: bytes) -> None:
    async with client(await stage.start(PROBES)) as one:
        assert (await one.reply()).startswith(b"220 ")
        one.writer.write(said)
        *_, last = (await one.rest()).splitlines()
        assert last == REFUSED.replace(b"HOST", socket.gethostname().encode())
    assert await events(logged, stage) == [("probe_closed", "debug")]
    assert logged("probe_closed")[0]["reason"] == "not_a_probe"
    assert stage.backend.connections == 0


async def test_cuts_between_octets_do_not_matter(stage: Stage) -> None:
    async with client(await stage.start(PROBES)) as one:
        assert (await one.reply()).startswith(b"220 ")
        for octet in b"ehlo x\nNOOP\r\nQUIT\r\n":
            one.writer.write(bytes([octet]))
            await asyncio.sleep(0)
        assert [line[:3] for line in (await one.rest()).splitlines()] == [b"250", b"250", b"221"]


async def test_an_inactive_probe_has_the_time_limit_of_a_client(
    stage: Stage, logged: Logged
) -> None:
    async with client(await stage.start(PROBES, timeouts="client = 0.2")) as one:
        assert (await one.reply()).startswith(b"220 ")
        assert (await one.rest()).startswith(b"421 4.4.2 ")
    assert await events(logged, stage) == [("probe_closed", "debug")]


async def test_a_drain_ends_it(stage: Stage) -> None:
    async with client(await stage.start(PROBES)) as one:
        assert (await one.reply()).startswith(b"220 ")
        assert stage.app is not None
        stage.app.drain()
        assert (await one.rest()).startswith(b"421 4.3.2 ")
        await stage.app.wait_until_empty(5)


async def test_it_counts_as_a_session_of_the_service(stage: Stage, logged: Logged) -> None:
    """If clients are refused, a load balancer should notice."""
    port = await stage.start(PROBES, limits="sessions = 1")
    async with client(port) as one, client(port) as other:
        assert (await one.reply()).startswith(b"220 ")
        assert (await other.reply()).startswith(b"421 4.3.2 ")
    assert ("clients_refused", "warning") in await events(logged, stage)
