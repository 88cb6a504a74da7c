"""The PROXY header: read as another implementation reads it, whatever the octets are."""

import struct
from dataclasses import replace
from ipaddress import ip_address
from socket import SocketKind
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol.result import (
    ProxyResult,
    ProxyResultIPv4,
    ProxyResultIPv6,
    ProxyResultLocal,
    ProxyResultUnknown,
)
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from smtpproxy.config.address import canonical
from smtpproxy.net import proxy_tlvs
from smtpproxy.net.peer import Peer, name_of
from smtpproxy.net.proxy_protocol import (
    MADE_LIMIT,
    BadProxyHeader,
    make_v1,
    make_v2,
    read_header,
)
from smtpproxy.net.proxy_tlvs import ProxyTlvs, SslTlv

V2 = b"\r\n\r\n\0\r\nQUIT\n"
V4_PEER = Peer("192.0.2.1:4711", ("198.51.100.7", 25))
V6_PEER = Peer("[2001:db8::1]:4711", ("2001:db8::25", 25))

ports = st.integers(0, 65535)
v4_ends = st.tuples(st.ip_addresses(v=4).map(str), ports)
v6_hosts = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None)
v6_ends = st.tuples(v6_hosts.map(str), ports)
peers = st.builds(Peer, v4_ends.map(name_of), v4_ends) | st.builds(
    Peer, v6_ends.map(name_of), v6_ends
)


def v2(command: int, family: int, addresses: bytes, size: int | None = None) -> bytes:
    """Return a version 2 header; `size` sets a wrong length."""
    return (
        V2
        + struct.pack("!BBH", command, family, len(addresses) if size is None else size)
        + (addresses)
    )


V4_ADDRESSES = bytes((192, 0, 2, 1, 198, 51, 100, 7)) + struct.pack("!HH", 4711, 25)
V4_AS_V6_ADDRESSES = (
    bytes.fromhex("00000000000000000000ffff c0000201 00000000000000000000ffff c6336407")
    + V4_ADDRESSES[8:]
)

GOOD = {
    "v1 over IPv4": (b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 25\r\n", V4_PEER),
    "v1 over IPv6": (b"PROXY TCP6 2001:db8::1 2001:DB8::25 4711 25\r\n", V6_PEER),
    "v1 over IPv6 for both families": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::FFFF:c633:6407 4711 25\r\n",
        V4_PEER,
    ),
    "v2 over IPv6 for both families": (v2(0x21, 0x21, V4_AS_V6_ADDRESSES), V4_PEER),
    "v1 UNKNOWN alone": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with whatever": (b"PROXY UNKNOWN ffff:f...f:ffff x 65535\r\n", None),
    "v1 as long as can be": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None),
    "v2 over IPv4": (v2(0x21, 0x11, V4_ADDRESSES), V4_PEER),
    "v2 with TLVs": (v2(0x21, 0x11, V4_ADDRESSES + b"\x04\0\x03abc"), V4_PEER),
    "v2 LOCAL": (v2(0x20, 0x00, b""), None),
    "v2 LOCAL with addresses": (v2(0x20, 0x11, V4_ADDRESSES), None),
    "v2 unspecified": (v2(0x21, 0x00, b"abc"), None),
    "v2 Unix": (v2(0x21, 0x31, b"\0" * 216), None),
    "v2 as long as can be": (
        v2(0x21, 0x11, V4_ADDRESSES + b"\x04\x0f\xe1" + b"\0" * 4065),
        V4_PEER,
    ),
}

BAD = {
    "SMTP": b"EHLO client.example\r\n",
    "HTTP": b"GET / HTTP/1.1\r\n",
    "a ClientHello": b"\x16\x03\x01",
    "v1 of 108 octets": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "v1 without end": b"PROXY " + b"x" * 101,
    "v1 with LF alone": b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 25\n",
    "v1 with CR inside": b"PROXY UNKNOWN x\ry\r\n",
    "v1 in small letters": b"proxy TCP4 192.0.2.1 198.51.100.7 4711 25\r\n",
    "v1 with two spaces": b"PROXY  TCP4 192.0.2.1 198.51.100.7 4711 25\r\n",
    "v1 with a word more": b"PROXY TCP4 192.0.2.1 198.51.100.7 4711 25 x\r\n",
    "v1 with a word less": b"PROXY TCP4 192.0.2.1 198.51.100.7 4711\r\n",
    "v1 with an address of the other family": b"PROXY TCP4 2001:db8::1 2001:db8::2 4711 25\r\n",
    "v1 with a name": b"PROXY TCP4 localhost 198.51.100.7 4711 25\r\n",
    "v1 with no such address": b"PROXY TCP4 192.0.2.256 198.51.100.7 4711 25\r\n",
    "v1 with leading zeros": b"PROXY TCP4 192.0.2.01 198.51.100.7 4711 25\r\n",
    "v1 with no such port": b"PROXY TCP4 192.0.2.1 198.51.100.7 65536 25\r\n",
    "v1 with a port with zeros": b"PROXY TCP4 192.0.2.1 198.51.100.7 04711 25\r\n",
    "v1 with a signed port": b"PROXY TCP4 192.0.2.1 198.51.100.7 +4711 25\r\n",
    "v1 of UDP": b"PROXY UDP4 192.0.2.1 198.51.100.7 4711 25\r\n",
    "v2 of version 1": v2(0x11, 0x11, V4_ADDRESSES),
    "v2 with no such command": v2(0x22, 0x11, V4_ADDRESSES),
    "v2 with no such family": v2(0x21, 0x41, V4_ADDRESSES),
    "v2 with no such transport": v2(0x21, 0x13, V4_ADDRESSES),
    "v2 announcing 65535 octets": v2(0x21, 0x11, b"", 65535),
    "v2 too short for IPv4": v2(0x21, 0x11, V4_ADDRESSES[:-1]),
    "v2 too short for IPv6": v2(0x21, 0x21, V4_ADDRESSES),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_valid_header_is_read_and_nothing_after_it(name: str) -> None:
    octets, peer = GOOD[name]
    for after in (b"", b"EHLO x\r\n", octets):
        assert read_header(octets + after) == (peer, len(octets))
    for cut in range(len(octets)):
        assert read_header(octets[:cut]) == (None, 0)


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_header_is_detected(name: str) -> None:
    with pytest.raises(BadProxyHeader):
        read_header(BAD[name])


@given(peers)
def test_headers_made_here_are_read_by_both_implementations(peer: Peer) -> None:
    for made, other in ((make_v1(peer), ProxyProtocolV1()), (make_v2(peer), ProxyProtocolV2())):
        assert read_header(made) == (peer, len(made))
        assert ends(other.unpack(made)) == (peer.source, peer.target)


V1, V2_HERE = ProxyProtocolV1(), ProxyProtocolV2()
RESULTS = {4: ProxyResultIPv4, 6: ProxyResultIPv6}
tlvs = st.binary(max_size=100).map(lambda octets: ProxyProtocolTLV(init={0xE0: octets}))


@given(peers, tlvs)
def test_headers_made_by_others_are_read(peer: Peer, tlv: ProxyProtocolTLV) -> None:
    assert peer.source is not None
    assert peer.target is not None
    ends = [(ip_address(host), port) for host, port in (peer.source, peer.target)]
    kind: Any = RESULTS[ends[0][0].version]
    made = V1.pack(kind(*ends))
    assert read_header(made + b"EHLO x\r\n") == (peer, len(made))
    made = V2_HERE.pack(kind(*ends, protocol=SocketKind.SOCK_STREAM, tlv=tlv))
    assert len(made) > (52 if ends[0][0].version == 6 else 28)
    assert read_header(made + b"EHLO x\r\n") == (peer, len(made))


def test_headers_without_a_client_from_others_are_read() -> None:
    for made in (V1.pack(ProxyResultUnknown()), V2_HERE.pack(ProxyResultLocal())):
        assert read_header(made) == (None, len(made))


@given(st.builds(Peer, v4_ends.map(name_of), v6_ends))
def test_ends_of_two_families_are_both_made_ipv6(peer: Peer) -> None:
    """Both addresses keep their meaning."""
    assert make_v1(peer).startswith(b"PROXY TCP6 ")
    for made in (make_v1(peer), make_v2(peer)):
        assert read_header(made) == (peer, len(made))


def test_the_proxy_itself_on_a_unix_socket_has_no_address() -> None:
    for made in (make_v1(Peer()), make_v2(Peer())):
        assert read_header(made) == (None, len(made))


def test_a_scope_is_left_out() -> None:
    peer = Peer("[fe80::1%eth0]:1", ("fe80::2", 25))
    assert make_v1(peer) == b"PROXY TCP6 fe80::1 fe80::2 1 25\r\n"


words = st.sampled_from(
    [b"TCP4", b"TCP6", b"UNKNOWN", b"UDP4", b"192.0.2.1", b"1.2.3", b"::1", b"2001:db8::1", b"25"]
) | st.from_regex(rb"[0-9A-Za-z:.+-]{0,6}", fullmatch=True)


@given(st.lists(words, max_size=6), st.sampled_from([b"\r\n", b"\n", b"\r"]))
def test_a_version_1_header_is_read_as_another_implementation_reads_it(
    line: list[bytes], end: bytes
) -> None:
    agree(b"PROXY " + b" ".join(line) + end, ProxyProtocolV1())


@given(
    st.sampled_from([0x20, 0x21]) | st.integers(0, 255),
    st.sampled_from([0x00, 0x11, 0x21, 0x31]) | st.integers(0, 255),
    st.binary(max_size=60),
)
def test_a_version_2_header_is_read_as_another_implementation_reads_it(
    command: int, family: int, octets: bytes
) -> None:
    agree(v2(command, family, octets), ProxyProtocolV2())


@given(st.binary(max_size=200))
def test_nothing_but_its_own_error_is_ever_raised(octets: bytes) -> None:
    for begin in (b"", b"PROXY ", V2, V2 + b"\x21\x11"):
        try:
            _, taken = read_header(begin + octets)
        except BadProxyHeader:
            continue
        assert 0 <= taken <= len(begin + octets)


def agree(octets: bytes, other: ProxyProtocolV1 | ProxyProtocolV2) -> None:
    """A valid result here must be the result of the other implementation, too."""
    try:
        peer, taken = read_header(octets)
    except BadProxyHeader:
        return
    if peer is None or not taken:
        return
    try:
        assert ends(other.unpack(octets[:taken])) == (peer.source, peer.target)
    except (ValueError, struct.error):
        # it looks into the TLVs, too, which are skipped here
        assert octets.startswith(V2), "the other one does not read it"
        assert taken > 28


def ends(result: ProxyResult) -> tuple[object, object]:
    """Return both endpoints of the other implementation's result."""
    assert isinstance(result, ProxyResultIPv4 | ProxyResultIPv6)
    source, target = result.source, result.dest
    return (canonical(str(source[0])), source[1]), (canonical(str(target[0])), target[1])


def with_tlvs(octets: bytes) -> bytes:
    """Return a version 2 header for TCP over IPv4 with these octets after its addresses."""
    head = make_v2(Peer("192.0.2.7:4711", ("198.51.100.1", 25)))[:28]
    return head[:14] + (12 + len(octets)).to_bytes(2, "big") + head[16:] + octets


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def summed(before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a header with a checksum between other TLVs."""
    header = with_tlvs(before + tlv(3, bytes(4)) + after)
    at = 28 + len(before) + 3
    crc = proxy_tlvs._crc32c(header)
    return header[:at] + crc.to_bytes(4, "big") + header[at + 4 :]


SNI, ID = tlv(2, b"mx.example"), tlv(5, b"x" * 128)
INSIDE = tlv(0x21, b"TLSv1.3") + tlv(0x22, b"client")
GOOD_TLVS = {
    "none": with_tlvs(b""),
    "several": with_tlvs(SNI + ID + tlv(0x20, bytes(5) + INSIDE)),
    "empty": with_tlvs(tlv(4, b"")),
    "unknown": with_tlvs(tlv(0xEE, b"own")),
    "many": with_tlvs(tlv(4, b"") * proxy_tlvs.TLV_LIMIT),
    "checksum": summed(),
    "checksum among others": summed(SNI, ID),
}
BAD_TLVS = {
    "cut in its head": (with_tlvs(b"\x02\x00"), "malformed TLV"),
    "longer than the header": (with_tlvs(SNI[:-1]), "malformed TLV"),
    "nothing after another one": (with_tlvs(SNI + b"\x05"), "malformed TLV"),
    "SSL without its head": (with_tlvs(tlv(0x20, bytes(4))), "malformed TLV"),
    "inside SSL": (with_tlvs(tlv(0x20, bytes(5) + INSIDE[:-1]) + ID), "malformed TLV"),
    "too many": (with_tlvs(tlv(4, b"") * 65), "too many TLVs"),
    "too many inside": (with_tlvs(tlv(0x20, bytes(5) + tlv(4, b"") * 64)), "too many TLVs"),
    "a short checksum": (with_tlvs(tlv(3, b"abc")), "malformed TLV"),
    "two checksums": (summed(b"", tlv(3, bytes(4))), "malformed TLV"),
    "a unique id of 129 octets": (with_tlvs(tlv(5, b"x" * 129)), "unique id too long"),
    "a host name of 256 octets": (with_tlvs(tlv(2, b"x" * 256)), "invalid authority"),
    "a host name that is not UTF-8": (with_tlvs(tlv(2, b"m\xfcller")), "invalid authority"),
    "two host names": (with_tlvs(SNI + SNI), "repeated TLV"),
    "two unique ids": (with_tlvs(ID + ID), "repeated TLV"),
    "two names in a certificate": (with_tlvs(tlv(0x20, bytes(5) + INSIDE * 2)), "repeated TLV"),
    "a damaged SSL": (summed(tlv(0x20, bytes(5) + INSIDE)).replace(b"v1.3", b"v1.2"), "checksum"),
    "a wrong checksum": (with_tlvs(tlv(3, bytes(4))), "wrong checksum"),
    "another address": (summed().replace(b"\xc0\x00\x02\x07", b"\xc0\x00\x02\x08"), "wrong"),
    "another name": (summed(SNI).replace(b"mx.", b"my."), "wrong checksum"),
}


@pytest.mark.parametrize("name", GOOD_TLVS)
def test_tlvs_are_accepted_in_every_cut(name: str) -> None:
    header = GOOD_TLVS[name]
    for size in range(len(header)):
        assert read_header(header[:size]) == (None, 0)
    peer, taken = read_header(header + b"EHLO c\r\n")
    assert (peer and peer.name, taken) == ("192.0.2.7:4711", len(header))


@pytest.mark.parametrize("name", BAD_TLVS)
def test_a_header_with_malformed_or_damaged_tlvs_is_refused(name: str) -> None:
    header, why = BAD_TLVS[name]
    for size in range(len(header)):
        assert read_header(header[:size]) == (None, 0)
    with pytest.raises(BadProxyHeader, match=why):
        read_header(header)


@pytest.mark.parametrize("place", [12, 13], ids=["command", "family"])
@pytest.mark.parametrize("bit", range(8))
def test_no_bit_of_a_summed_header_changes_the_client_into_the_proxy_in_front(
    place: int, bit: int
) -> None:
    """LOCAL and the families without an address of a client mean the connection's own address."""
    header = bytearray(summed(SNI, b""))
    header[place] ^= 1 << bit
    with pytest.raises(BadProxyHeader):
        read_header(bytes(header))


@pytest.mark.parametrize(("command", "family"), [(0x20, 0x00), (0x20, 0x11), (0x21, 0x12)])
def test_a_checksum_without_a_client_is_checked_too(command: int, family: int) -> None:
    addresses = V4_ADDRESSES if family else b""
    header = v2(command, family, addresses + SNI + tlv(3, bytes(4)))
    with pytest.raises(BadProxyHeader, match="wrong checksum"):
        read_header(header)
    header = header[:-4] + proxy_tlvs._crc32c(header).to_bytes(4, "big")
    assert read_header(header) == (None, len(header))


def test_tlvs_inside_ssl_have_types_of_their_own() -> None:
    header = with_tlvs(tlv(0x20, bytes(5) + tlv(3, b"abc")))
    assert read_header(header)[1] == len(header)
    with pytest.raises(BadProxyHeader, match="repeated TLV"):
        read_header(with_tlvs(tlv(0x20, bytes(5) + INSIDE) + tlv(0x20, bytes(5))))


@pytest.mark.parametrize(("command", "family"), [(0x20, 0x00), (0x20, 0x11), (0x21, 0x12)])
def test_tlvs_without_a_client_are_ignored_unless_they_show_damage(
    command: int, family: int
) -> None:
    addresses = V4_ADDRESSES if family else b""
    header = v2(command, family, addresses + tlv(5, b"x" * 129))
    assert read_header(header) == (None, len(header))
    ssl = tlv(0x20, bytes(5) + INSIDE[:-1])  # and so not well-formed either
    with pytest.raises(BadProxyHeader, match="wrong checksum"):
        read_header(v2(command, family, addresses + ssl + tlv(3, bytes(4))))


SSL = SslTlv(7, 0, b"TLSv1.3", "Jörg".encode(), b"TLS_AES_256_GCM_SHA384")
TOLD = ProxyTlvs(b"mx.example", SSL, b"\0" * 16)


@pytest.mark.parametrize(
    "told",
    [
        TOLD,
        ProxyTlvs(authority="mü.example".encode()),
        ProxyTlvs(ssl=SslTlv(0)),
        ProxyTlvs(unique_id=b"x" * 128),
    ],
)
@pytest.mark.parametrize("peer", [V4_PEER, V6_PEER])
def test_tlvs_made_here_are_read_by_both_implementations(peer: Peer, told: ProxyTlvs) -> None:
    made = make_v2(peer, told)
    assert read_header(made) == (replace(peer, tlvs=told), len(made))
    other = V2_HERE.unpack(made).tlv
    assert other.authority == (told.authority.decode() or None)
    assert other.unique_id == told.unique_id
    if told.ssl is not None:
        assert other.ssl.has_ssl == bool(told.ssl.client & 1)
        assert other.ssl.verify == told.ssl.verify
        assert (other.ssl.version or "").encode() == told.ssl.version
        assert (other.ssl.cn or "").encode() == told.ssl.cn
        assert (other.ssl.cipher or "").encode() == told.ssl.cipher


@given(st.text(max_size=60), st.binary(max_size=128), st.binary(max_size=300))
def test_a_header_is_never_longer_than_exim_reads(name: str, unique_id: bytes, cn: bytes) -> None:
    """Exim takes the rest for commands; what does not fit is left out whole."""
    told = ProxyTlvs(name.encode(), SslTlv(7, 0, b"TLSv1.2", cn), unique_id)
    for peer in (V4_PEER, V6_PEER):
        made = make_v2(peer, told)
        assert len(made) <= MADE_LIMIT == 232
        read, taken = read_header(made)
        assert read is not None
        assert taken == len(made)
        got = read.tlvs or ProxyTlvs()
        assert got.authority in (b"", told.authority)
        assert got.unique_id in (b"", told.unique_id)
        assert got.ssl in (None, told.ssl)
        if len(cn) <= 64:
            assert got.ssl == told.ssl  # it comes first


SHOWN = {
    "all": (
        TOLD,
        {
            "forwarded_authority": "mx.example",
            "forwarded_unique_id": "\\x00" * 16,
            "forwarded_tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
            "forwarded_cn": "Jörg",
        },
    ),
    "an unverified certificate": (
        ProxyTlvs(ssl=SslTlv(7, 18, b"TLSv1.3", b"root")),
        {"forwarded_tls": "TLSv1.3"},
    ),
    "no certificate": (ProxyTlvs(ssl=SslTlv(1, 0, b"TLSv1.3", b"x")), {"forwarded_tls": "TLSv1.3"}),
    "no TLS": (ProxyTlvs(ssl=SslTlv(0, 0, b"TLSv1.3", b"x")), {}),
    "hostile": (
        ProxyTlvs(b"\x1b[2J\r\nx", SslTlv(3, 0, b"\xff", b"n" * 900)),
        {
            "forwarded_authority": "\\x1b[2J\\r\\nx",
            "forwarded_tls": "\\xff",
            "forwarded_cn": "n" * 252 + "...",
        },
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_log_shows_what_the_proxy_in_front_says_escaped_and_cut(name: str) -> None:
    told, shown = SHOWN[name]
    assert told.shown() == shown


def test_the_checksum_is_crc32c() -> None:
    """RFC 3720 appendix B.4."""
    assert proxy_tlvs._crc32c(bytes(32)) == 0x8A9136AA
    assert proxy_tlvs._crc32c(b"123456789") == 0xE3069283
