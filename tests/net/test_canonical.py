"""An address has one spelling, from every source: for the MTA, the log, the limits and the trust.

A proxy in front with a socket for both families names IPv4 clients as `::ffff:192.0.2.7`.
"""

import pytest

from tests.net.conftest import Logged
from tests.net.real_sockets import V1_HEADER, V2_HEADER, Stage, client, deliver
from tests.support.catalogue import client_of

MAPPED = bytes(10) + b"\xff\xff"
ENDS = MAPPED + bytes((192, 0, 2, 7)) + MAPPED + bytes((198, 51, 100, 1)) + b"\x12\x67\x00\x19"
HEADERS = {
    "v1": b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 4711 25\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24" + ENDS,
}
XCLIENT = (
    b"XCLIENT DESTADDR=IPV6:::ffff:198.51.100.1 DESTPORT=25 PORT=4711 ADDR=IPV6:::ffff:192.0.2.7"
)
IN_FRONT = {
    "v1": 'proxy_protocol = ["::ffff:127.0.0.0/104"]',
    "v2": 'proxy_protocol = ["::ffff:127.0.0.0/104"]',
    "xclient": 'xclient = ["::ffff:127.0.0.0/104"]',
}
SENT_TO_MTA = {
    "none": [],
    "proxy-v1": [b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"],
    "proxy-v2": [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x00\x19"
    ],
    "xclient": [b"XCLIENT DESTADDR=198.51.100.1 PORT=4711 ADDR=192.0.2.7"],
    "xforward": [b"XFORWARD PORT=4711 ADDR=192.0.2.7"],
}


@pytest.mark.parametrize("identity", SENT_TO_MTA)
@pytest.mark.parametrize("source", IN_FRONT)
async def test_a_mapped_address_is_that_of_ipv4(
    stage: Stage, logged: Logged, source: str, identity: str
) -> None:
    stage.backend.offers = [b"XCLIENT ADDR PORT DESTADDR", b"XFORWARD ADDR PORT"]
    stage.backend.owed_header = {"proxy-v1": V1_HEADER, "proxy-v2": V2_HEADER}.get(identity, 0)
    port = await stage.start(IN_FRONT[source], f'identity = "{identity}"')
    async with client(port) as one:
        one.writer.write(HEADERS.get(source, b""))
        assert await one.reply() == b"220 mx"
        if source == "xclient":
            await one.ask(b"EHLO front")
            assert await one.ask(XCLIENT) == [b"220 mx"]
        await deliver(one)
    assert [client_of(line) for line in logged("message_relayed")] == ["192.0.2.7:4711"]
    said = [line for line in stage.backend.heard if line.startswith((b"XCLIENT", b"XFORWARD"))]
    headers = stage.backend.headers
    if identity == "proxy-v2":
        headers = [each[:14] + b"\0\x0c" + each[16:28] for each in headers]  # without its TLVs
    assert [*headers, *said][-1:] == SENT_TO_MTA[identity]


async def test_clients_are_counted_by_their_canonical_address(stage: Stage) -> None:
    port = await stage.start(IN_FRONT["v1"], limits="sessions_per_address = 1")
    async with client(port) as one, client(port) as other:
        one.writer.write(b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n")
        assert await one.reply() == b"220 mx"
        other.writer.write(HEADERS["v1"])
        assert (await other.reply()).startswith(b"421 4.7.0 ")
