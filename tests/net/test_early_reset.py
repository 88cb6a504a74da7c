"""A client that resets its connection: the MTA gets its own address, or nothing of it.

An MTA takes a client that is not named for the proxy, and relays for the proxy.  So of every
connection that the MTA saw: it was introduced as the client's own, or it was not introduced and
carried no message.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from smtpproxy.config.address import Address
from smtpproxy.metrics import definitions
from smtpproxy.net.binding import listen
from smtpproxy.net.proxy_protocol import read_header
from tests.net.raw import (
    CLIENT,
    CONTENT,
    Client,
    Connection,
    Proxy,
    on_uvloop,
    proxy,
    within_a_second,
)
from tests.support.programs import unavailable

NAMED = "127.0.0.7"
"""The client that a proxy in front names; a loopback address, so that connections can use it."""
HEADER = f"PROXY TCP4 {NAMED} 127.0.0.1 4711 25\r\n".encode()
SPEAKS = f"XCLIENT ADDR={NAMED} PORT=4711\r\n".encode()
ENVELOPE = b"MAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\n"
BURST = b"EHLO c\r\n" + ENVELOPE + b"BDAT 4 LAST\r\ntextQUIT\r\n"
CERTIFICATE = 'certificate = "@/mx.pem"'


@dataclass(frozen=True)
class Way:
    """How a client connects to the proxy.

    listener: its settings.  client: the address of whom it serves.  first: what stands before all
    that the client itself says.
    """

    listener: str = ""
    client: str = CLIENT
    first: bytes = b""


PLAIN, STARTTLS, IMPLICIT = "plain", "starttls", "implicit"
PROXY, XCLIENT, TRANSPARENT = "PROXY in front", "XCLIENT in front", "transparent listener"
WAYS = {
    PLAIN: Way(),
    STARTTLS: Way(f'tls = "starttls"\n{CERTIFICATE}'),
    IMPLICIT: Way(f'tls = "implicit"\n{CERTIFICATE}'),
    PROXY: Way('proxy_protocol = ["127.0.0.9/32"]', NAMED, HEADER),
    XCLIENT: Way('xclient = ["127.0.0.9/32"]', NAMED, b"EHLO front\r\n" + SPEAKS),
    TRANSPARENT: Way("transparent = true"),
}


# --- how far a client comes before it resets -----------------------------------------------------


async def at_accept(here: Proxy, way: str) -> Client:  # noqa: ARG001
    """The connection is reset before the proxy accepts it."""
    return here.client()


async def in_the_first_burst(here: Proxy, way: str) -> Client:
    """The same, after the client has sent everything."""
    one = here.client()
    if way == IMPLICIT:
        one.say_client_hello()
    elif way == STARTTLS:
        one.send(b"EHLO c\r\nSTARTTLS\r\n")
        one.say_client_hello()
    else:
        one.send(WAYS[way].first + BURST)
    return one


async def when_accepted(here: Proxy, way: str) -> Client:
    """The reset comes after the proxy has read the address, and before the data."""
    one = here.client()
    await within_a_second(here.held)
    if way == IMPLICIT:
        one.say_client_hello()
    else:
        one.send(WAYS[way].first + BURST)
    return one


async def in_the_handshake(here: Proxy, way: str) -> Client:
    """Or in anything else that precedes the session of that client."""
    one = here.client()
    if way == IMPLICIT:
        one.say_client_hello()
        await one.some()
    elif way == STARTTLS:
        await one.hear(b"220 ")
        one.send(b"STARTTLS\r\n")
        await one.hear(b"220 ")
        one.say_client_hello()
        await one.some()
    else:
        first = WAYS[way].first
        one.send(first[: len(first) - 4] or b"EHL")
        await within_a_second(here.held)
    return one


async def come_in(here: Proxy, way: str) -> Client:
    """Get as far as a client that connects directly and has sent EHLO."""
    one = here.client()
    if way == IMPLICIT:
        await one.secure()
    elif way == PROXY:
        one.send(HEADER)
    await one.hear(b"220 mx\r\n")
    if way == STARTTLS:
        one.send(b"STARTTLS\r\n")
        await one.hear(b"220 ")
        await one.secure()
    elif way == XCLIENT:
        one.send(WAYS[way].first)
        await one.hear(b"220 mx\r\n")
    one.send(b"EHLO c\r\n")
    await one.hear(b"250 PIPELINING\r\n")
    return one


async def in_mid_group(here: Proxy, way: str) -> Client:
    one = await come_in(here, way)
    here.mta.silent = {b"RCPT"}
    one.send(ENVELOPE, b"DATA\r\n")
    await within_a_second(lambda: b"RCPT TO:<b@b>" in here.mta.connections[-1].lines)
    return one


async def in_content(here: Proxy, way: str) -> Client:
    one = await come_in(here, way)
    one.send(ENVELOPE, b"DATA\r\n")
    await one.hear(b"354 go\r\n")
    one.send(b"half a mess")
    return one


async def after_the_dot(here: Proxy, way: str) -> Client:
    one = await come_in(here, way)
    here.mta.silent = {CONTENT}
    one.send(ENVELOPE, b"DATA\r\n")
    await one.hear(b"354 go\r\n")
    one.send(b"text\r\n.\r\nQUIT\r\n")
    await within_a_second(lambda: here.mta.connections[-1].messages)
    return one


MOMENTS: list[Callable[[Proxy, str], Awaitable[Client]]] = [
    at_accept,
    in_the_first_burst,
    when_accepted,
    in_the_handshake,
    in_mid_group,
    in_content,
    after_the_dot,
]

# --- how the MTA learns who it is ----------------------------------------------------------------


def by_header(connection: Connection) -> str:
    if not connection.header:
        return ""
    peer, taken = read_header(connection.header)
    assert taken == len(connection.header)
    return peer.host if peer else "the proxy itself"


def by_command(connection: Connection) -> str:
    said = [line for line in connection.lines if line.startswith((b"XCLIENT", b"XFORWARD"))]
    found = re.search(rb" ADDR=(\S+)", b" ".join(said))
    return found[1].decode() if found else ""


def by_source(connection: Connection) -> str:
    return connection.source


def by_nothing(connection: Connection) -> str:  # noqa: ARG001
    return ""


IDENTITIES = {
    "none": by_nothing,
    "proxy-v1": by_header,
    "proxy-v2": by_header,
    "xclient": by_command,
    "xforward": by_command,
    "transparent": by_source,
}


def prepare(here: Proxy, identity: str) -> None:
    """Make the MTA expect clients' addresses in this way."""
    here.mta.expects_header = identity in ("proxy-v1", "proxy-v2")
    offered = {"xclient": b"250-XCLIENT ADDR PORT\r\n", "xforward": b"250-XFORWARD ADDR PORT\r\n"}
    here.mta.replies[b"EHLO"] = b"250-mx\r\n" + offered.get(identity, b"") + b"250 CHUNKING\r\n"
    here.mta.replies[b"XCLI"] = b"220 mx\r\n"


def require_transparency() -> None:
    """Skip if connections cannot use other machines' addresses."""
    try:
        (listening,) = listen(Address(host="127.0.0.1"), transparent=True)
    except OSError as error:
        unavailable(f"a transparent socket is not available here: {error}")
    listening.close()


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("identity", IDENTITIES)
@on_uvloop
async def test_the_mta_gets_the_clients_own_address_or_no_message(
    identity: str, way: str, tmp_path: Path
) -> None:
    if way == TRANSPARENT or identity == "transparent":
        require_transparency()
    async with proxy(tmp_path) as here:
        prepare(here, identity)
        await here.start(listener=WAYS[way].listener, backend=f'identity = "{identity}"')
        for moment in MOMENTS:
            here.mta.connections.clear()
            here.mta.silent.clear()
            one = await moment(here, way)
            one.reset()
            here.mta.release()
            await within_a_second(lambda: not here.held(), here.held)
            for connection in here.mta.connections:
                who = IDENTITIES[identity](connection)
                reported = f"{moment.__name__}: {who}, {connection.lines}"
                # A proxy in front is a client, too, before it speaks for another one.
                assert who in ("", CLIENT, WAYS[way].client), reported
                if connection.messages and identity != "none":
                    assert who == WAYS[way].client, reported
        await here.lets_go()


@pytest.mark.parametrize("way", WAYS)
@on_uvloop
async def test_a_client_with_an_unreadable_address_is_closed_first(
    way: str, tmp_path: Path
) -> None:
    """It is counted, and logged at debug; no limit by address can apply to it."""
    async with proxy(tmp_path) as here:
        if way == TRANSPARENT:
            require_transparency()
        await here.start(listener=WAYS[way].listener)
        for _ in range(3):
            (await in_the_first_burst(here, way)).reset()
        assert here.app is not None

        def lost() -> list[float]:
            refused = here.app.snapshot().samples_of(definitions.CLIENTS_REFUSED)
            return [each.value for each in refused if each.label("reason") == "client_lost"]

        await within_a_second(lambda: lost() == [3])
        await here.lets_go()
        assert here.mta.connections == []
        assert here.reasons() == []
        (reported,) = here.logged("clients_lost")
        assert (reported["level"], reported["clients"]) == ("debug", 1)
