"""A trusted client that names another one by XCLIENT: the session is then that of the other.

For the limits, for the log, and for the MTA, by every identity.
"""

import pytest

from tests.net.conftest import Logged
from tests.net.real_sockets import IMPLICIT, STARTTLS, V1_HEADER, Client, Stage, client, deliver
from tests.support.catalogue import client_of

TRUSTED = 'xclient = ["127.0.0.0/8"]'
SPEAKS = b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=4711"
HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 %d\r\n"


def clients_of(event: str, logged: Logged) -> list[str]:
    """Return the clients that the log names with an event."""
    return [client_of(line) for line in logged(event)]


async def introduce(one: Client, said: bytes = SPEAKS) -> bytes:
    assert await one.reply() == b"220 mx"
    assert b"250-XCLIENT NAME ADDR " in (await one.ask(b"EHLO front"))[0]
    return (await one.ask(said))[0]


async def test_the_log_names_the_client_that_the_proxy_names(stage: Stage, logged: Logged) -> None:
    async with client(await stage.start(TRUSTED)) as one:
        assert await introduce(one) == b"220 mx"
        await deliver(one)
        assert await one.rest() == b""
    assert clients_of("message_relayed", logged) == ["192.0.2.7:4711"]
    first, second = clients_of("session_closed", logged)
    assert first.startswith("127.0.0.1:")
    assert second == "192.0.2.7:4711"
    assert stage.backend.heard[:3] == [b"EHLO front", b"QUIT", b"EHLO c"]


async def test_the_mta_gets_a_connection_of_that_client(stage: Stage) -> None:
    stage.backend.owed_header = V1_HEADER
    port = await stage.start(TRUSTED, 'identity = "proxy-v1"')
    async with client(port) as one:
        assert await introduce(one) == b"220 mx"
    first, second = stage.backend.headers
    assert first.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
    assert second == HEADER % port


async def test_the_mta_gets_that_client_by_xclient(stage: Stage) -> None:
    """Postfix accepts one XCLIENT in a session, if the named client may not send more."""
    stage.backend.offers = [b"XCLIENT ADDR PORT"]
    async with client(await stage.start(TRUSTED, 'identity = "xclient"')) as one:
        assert await introduce(one) == b"220 mx"
        await deliver(one)
    said = [line for line in stage.backend.heard if line.startswith(b"XCLIENT")]
    assert len(said) == 2
    assert said[0].endswith(b" ADDR=127.0.0.1")
    assert said[1] == b"XCLIENT PORT=4711 ADDR=192.0.2.7"


async def test_the_mta_gets_that_client_by_xforward_for_each_message(stage: Stage) -> None:
    stage.backend.offers = [b"XFORWARD ADDR"]
    message = (b"MAIL FROM:<a@a>", b"RCPT TO:<b@b>", b"DATA")
    async with client(await stage.start(TRUSTED, 'identity = "xforward"')) as one:
        assert await introduce(one) == b"220 mx"
        await one.ask(b"EHLO c")
        for _ in range(2):
            await one.ask(*message)
            await one.ask(b"hello\r\n.")
    said = [line for line in stage.backend.heard if line.startswith(b"XFORWARD")]
    assert said == [b"XFORWARD ADDR=192.0.2.7"] * 2


async def test_the_limits_count_the_client_that_xclient_names(stage: Stage) -> None:
    port = await stage.start(TRUSTED, limits="sessions_per_address = 1")
    async with client(port) as one, client(port) as other, client(port) as third:
        assert await introduce(one) == b"220 mx"
        assert (await introduce(other)).startswith(b"421 4.7.0 ")
        assert await other.rest() == b""
        assert await introduce(third, SPEAKS.replace(b".7", b".8")) == b"220 mx"
    async with client(port) as again:
        assert await introduce(again) == b"220 mx"


@pytest.mark.parametrize("tls", [STARTTLS, IMPLICIT], ids=["starttls", "implicit"])
async def test_inside_tls_the_session_stays_there(stage: Stage, tls: str) -> None:
    port = await stage.start(f"{TRUSTED}\n{tls}\nrequire_tls = true")
    inside = {"ssl": stage.client_context, "server_hostname": "mx.example"}
    async with client(port, **(inside if tls == IMPLICIT else {})) as one:
        if tls == STARTTLS:
            await one.reply()
            await one.secure(stage)
            assert b"250-XCLIENT " in (await one.ask(b"EHLO front"))[0]
            assert (await one.ask(SPEAKS))[0] == b"220 mx"
        else:
            assert await introduce(one) == b"220 mx"
        assert (await one.ask(b"EHLO c", b"STARTTLS"))[1].startswith(b"554 ")
        await deliver(one)


@pytest.mark.parametrize("tls", ["", STARTTLS], ids=["plain", "starttls"])
async def test_a_named_client_may_not_name_another_one(stage: Stage, tls: str) -> None:
    """It may be a client's own XCLIENT, which the proxy in front forwards unchanged (nginx)."""
    async with client(await stage.start(f"{TRUSTED}\n{tls}")) as one:
        if tls:
            await one.reply()
            await one.secure(stage)
            await one.ask(b"EHLO front", SPEAKS)
        else:
            assert await introduce(one) == b"220 mx"
        hello, refused, forwarded = await one.ask(
            b"EHLO c", b"XCLIENT ADDR=127.0.0.1", b"XFORWARD ADDR=127.0.0.1"
        )
        assert b"XCLIENT" not in hello
        assert refused == forwarded == b"550 5.7.0 Error: insufficient authorization"
        await deliver(one)


async def test_it_may_send_several_attributes_with_the_address_last(
    stage: Stage, logged: Logged
) -> None:
    async with client(await stage.start(TRUSTED)) as one:
        assert await introduce(one, b"XCLIENT HELO=c NAME=c.example") == b"220 mx"
        assert await one.ask(SPEAKS) == [b"220 mx"]
        await deliver(one)
    assert clients_of("message_relayed", logged) == ["192.0.2.7:4711"]


async def test_a_client_without_an_address_is_refused(stage: Stage) -> None:
    """An MTA would take a client without an address for the proxy."""
    async with client(await stage.start(TRUSTED)) as one:
        reply = await introduce(one, b"XCLIENT ADDR=[UNAVAILABLE]")
        assert reply == b"501 5.5.4 Error: bad XCLIENT attribute value"
        await deliver(one)


async def test_a_server_that_refuses_that_client_is_reported_in_the_reply(stage: Stage) -> None:
    async with client(await stage.start(TRUSTED)) as one:
        assert await one.reply() == b"220 mx"
        await stage.stop_backend()
        assert (await one.ask(b"NOOP", SPEAKS))[1].startswith(b"421 4.4.1 ")


LOGIN = b"XCLIENT ADDR=192.0.2.7 LOGIN=alice NAME=[UNAVAILABLE]"


@pytest.mark.parametrize("offered", [b"ADDR LOGIN", b"ADDR"], ids=["offered", "not offered"])
async def test_the_mta_gets_the_login_that_the_proxy_in_front_names(
    stage: Stage, logged: Logged, offered: bytes
) -> None:
    """No log line has it, at any level."""
    stage.backend.offers = [b"XCLIENT " + offered]
    port = await stage.start(TRUSTED, 'identity = "xclient"')
    async with client(port) as one:
        assert await one.reply() == b"220 mx"
        assert b" DESTPORT LOGIN\r\n" in (await one.ask(b"EHLO front"))[0]
        assert await one.ask(LOGIN) == [b"220 mx"]
        await deliver(one)
    said = [line for line in stage.backend.heard if line.startswith(b"XCLIENT")]
    login = b"LOGIN=alice " if b"LOGIN" in offered else b""
    assert said[1] == b"XCLIENT " + login + b"ADDR=192.0.2.7"
    assert b"LOGIN" not in said[0]
    lines = [*logged("exchange"), *logged("message_relayed"), *logged("session_closed")]
    assert "alice" not in str(lines)


@pytest.mark.parametrize("identity", ["none", "proxy-v1", "xforward"])
async def test_a_login_that_the_mta_cannot_get_is_refused(stage: Stage, identity: str) -> None:
    stage.backend.owed_header = V1_HEADER if identity == "proxy-v1" else 0
    async with client(await stage.start(TRUSTED, f'identity = "{identity}"')) as one:
        assert await one.reply() == b"220 mx"
        assert b"LOGIN" not in (await one.ask(b"EHLO front"))[0]
        assert await one.ask(LOGIN) == [b"501 5.5.4 Error: bad XCLIENT attribute name"]


async def test_a_client_that_is_not_trusted_names_no_login(stage: Stage) -> None:
    """Nor does one that a trusted proxy has named: it would be an open relay."""
    stage.backend.offers = [b"XCLIENT ADDR LOGIN"]
    port = await stage.start('xclient = ["192.0.2.0/25"]', 'identity = "xclient"')
    async with client(port) as one:
        await one.reply()
        hello, refused = await one.ask(b"EHLO c", LOGIN)
        assert b"XCLIENT" not in hello
        assert refused == b"550 5.7.0 Error: insufficient authorization"
        await deliver(one)
    assert b"alice" not in b" ".join(stage.backend.heard)
    await stage.stop()
    async with client(await stage.start(TRUSTED, 'identity = "xclient"')) as one:
        assert await introduce(one) == b"220 mx"
        assert (await one.ask(b"EHLO c", LOGIN))[1].startswith(b"550 ")
    assert b"alice" not in b" ".join(stage.backend.heard)


async def test_the_client_that_a_trusted_xforward_names_is_logged_with_its_message_only(
    stage: Stage, logged: Logged
) -> None:
    stage.backend.offers = [b"XFORWARD NAME ADDR"]
    message = (b"MAIL FROM:<a@a>", b"RCPT TO:<b@b>", b"DATA")
    named = (
        b"XFORWARD ADDR=IPV6:2001:db8::7 NAME=c.example",
        b"XFORWARD ADDR=192.0.2.7",
        b"XFORWARD NAME=[UNAVAILABLE] addr=192.0.2.8",
        b"",
    )
    async with client(await stage.start(TRUSTED)) as one:
        await one.reply()
        await one.ask(b"EHLO front")
        for line in named:
            if line:
                assert await one.ask(line) == [b"250 XFOR"]
            await one.ask(*message)
            await one.ask(b"hello\r\n.")
        await one.ask(b"XFORWARD ADDR=192.0.2.9", b"EHLO front", *message)
        await one.ask(b"hello\r\n.")
    assert [
        (line.get("forwarded_ip"), line.get("forwarded_name")) for line in logged("message_relayed")
    ] == [
        ("2001:db8::7", "c.example"),
        ("192.0.2.7", None),
        ("192.0.2.8", None),
        (None, None),
        (None, None),
    ]
    assert {line["client_ip"] for line in logged("message_relayed")} == {"127.0.0.1"}
