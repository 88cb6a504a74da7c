"""A watch: what it may record, its request, and the lines that a client gets of it."""

from ipaddress import ip_network

import msgspec
import pytest

from smtpproxy.trace.records import HEADER, FileHeader, Gap, encode
from smtpproxy.trace.watch import (
    Content,
    RecordsLost,
    Watching,
    WatchRequest,
    encode_line,
    parse,
    read_line,
    why_not,
)


@pytest.mark.parametrize(
    ("wanted", "allowed", "networks", "reason"),
    [
        ("none", "none", [], ""),
        ("none", "none", ["10.0.0.0/8"], ""),
        ("headers", "headers", [], ""),
        ("headers", "full", [], ""),
        ("full", "full", ["192.0.2.0/24"], ""),
        ("full", "full", ["10.0.0.0/8", "192.0.0.0/16"], ""),
        ("headers", "none", [], 'trace.content is "none"'),
        ("full", "none", [], 'trace.content is "none"'),
        ("full", "headers", [], 'trace.content is "headers"'),
        ("full", "full", ["192.0.2.0/25"], "content of 192.0.2.0/24: trace.networks"),
        ("full", "full", ["::/0"], "content of 192.0.2.0/24: trace.networks"),
    ],
)
def test_content_is_no_more_than_the_settings_allow(
    wanted: Content, allowed: Content, networks: list[str], reason: str
) -> None:
    request = WatchRequest(("192.0.2.0/24",), wanted)
    found = why_not(request, allowed, list(map(ip_network, networks)))
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    "request_",
    [
        WatchRequest(("192.0.2.7/32",)),
        WatchRequest(("192.0.2.0/24", "2001:db8::/32"), "full", only_problems=True),
    ],
)
def test_a_request_is_read_as_it_was_made(request_: WatchRequest) -> None:
    path, _, query = request_.target.partition("?")
    assert path == "/trace/watch"
    assert parse(query) == request_


def test_mapped_addresses_are_those_of_ipv4() -> None:
    assert parse("client=::ffff:192.0.2.7").networks == ("192.0.2.7/32",)


def test_each_line_is_read() -> None:
    gap = Gap("s-1", 7)
    lines = [HEADER, encode(gap), encode_line(Watching()), encode_line(RecordsLost(9))]
    assert list(map(read_line, lines)) == [FileHeader(1), gap, Watching(), RecordsLost(9)]
    for line in (b"", b"{}", b'{"what":"watching', b'{"what":"records_lost","records":-1}'):
        with pytest.raises(msgspec.DecodeError):
            read_line(line)
