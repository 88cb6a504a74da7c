"""XCLIENT and XFORWARD: what the proxy sends about a client, in an unambiguous form."""

import contextlib
import re
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.config.address import canonical
from smtpproxy.net.client_attributes import (
    LINE_LIMIT,
    BadXclient,
    ClientAttributes,
    peer_named_by,
    xtext,
)
from smtpproxy.net.listener_security import ListenerSecurity, is_in
from smtpproxy.net.peer import Peer, name_of

ALL = frozenset(b"NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT SOURCE IDENT".split())
V4 = Peer("192.0.2.1:4711", ("198.51.100.7", 25))
V6 = Peer("[2001:db8::1]:4711", ("2001:db8::25", 25))


def test_all_known_attributes_are_sent_and_the_address_is_last() -> None:
    assert ClientAttributes(b"XCLIENT", V4).lines(ALL, b"EHLO c.example\r\n") == [
        (
            b"XCLIENT NAME=[UNAVAILABLE] HELO=c.example PROTO=ESMTP DESTADDR=198.51.100.7"
            b" DESTPORT=25 PORT=4711 ADDR=192.0.2.1\r\n"
        )
    ]
    assert ClientAttributes(b"XFORWARD", V6).lines(ALL, b"HELO c.example\r\n") == [
        (
            b"XFORWARD NAME=[UNAVAILABLE] HELO=c.example PROTO=SMTP SOURCE=REMOTE"
            b" PORT=4711 ADDR=IPV6:2001:db8::1\r\n"
        )
    ]


def test_only_attributes_that_the_backend_knows_are_sent() -> None:
    lines = ClientAttributes(b"XCLIENT", V4).lines(frozenset([b"ADDR", b"NAME"]), b"EHLO c\r\n")
    assert lines == [b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.1\r\n"]


def test_a_client_without_an_address_is_unavailable() -> None:
    lines = ClientAttributes(b"XCLIENT", Peer()).lines(frozenset([b"ADDR"]), b"EHLO c\r\n")
    assert lines == [b"XCLIENT ADDR=[UNAVAILABLE]\r\n"]


@pytest.mark.parametrize(
    ("octets", "text"),
    [(b"a b", b"a+20b"), (b"a+b=c", b"a+2Bb+3Dc"), (b"\r\n\0", b"+0D+0A+00"), (b"\xff", b"+FF")],
)
def test_special_characters_are_written_in_hexadecimal(octets: bytes, text: bytes) -> None:
    assert xtext(octets) == text


@given(st.binary(max_size=2040), st.sampled_from([V4, V6, Peer()]))
def test_no_name_can_end_its_value(name: bytes, peer: Peer) -> None:
    for verb in (b"XCLIENT", b"XFORWARD"):
        lines = ClientAttributes(verb, peer).lines(ALL, b"EHLO " + name + b"\r\n")
        for line in lines:
            assert len(line) <= LINE_LIMIT
            assert re.fullmatch(rb"%b( [A-Z]+=[!-<>-~]+)+\r\n" % verb, line)
            assert b"LOGIN" not in line
        words = b"".join(lines).split()
        assert words[-1].startswith(b"ADDR=")
        assert sum(word.startswith(b"ADDR=") for word in words) == 1
        (helo,) = [word[5:] for word in words if word.startswith(b"HELO=")]
        said = re.sub(rb"\+(..)", lambda hexed: bytes.fromhex(hexed[1].decode()), helo)
        assert helo == b"[UNAVAILABLE]" or said == name.strip()


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("192.0.2.9", True),
        ("192.0.3.9", False),
        ("2001:db8::5", True),
        ("2001:db9::5", False),
        ("fe80::1%eth0", False),
        ("", False),
    ],
)
def test_a_network_contains_its_addresses_in_every_spelling(host: str, inside: bool) -> None:
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert is_in(host, networks) == inside
    assert not is_in(host, ())
    security = ListenerSecurity(trusted=networks)
    assert security.policy_for(Peer(name_of((host, 1)))) is None


FRONT = Peer("198.51.100.1:40000", ("198.51.100.7", 25))

TAKEN = {
    b"ADDR=192.0.2.1 PORT=4711": Peer("192.0.2.1:4711", FRONT.target),
    b"addr=ipv6:2001:DB8::1 name=[UNAVAILABLE]": Peer("[2001:db8::1]:0", FRONT.target),
    b"NAME=c.example ADDR=192.0.2.1": Peer("192.0.2.1:0", FRONT.target, hostname=b"c.example"),
    b"ADDR=IPV6:::ffff:192.0.2.1 PORT=4711": Peer("192.0.2.1:4711", FRONT.target),
    b"DESTADDR=IPV6:::FFFF:cb00:7109": Peer(FRONT.name, ("203.0.113.9", 25)),
    b"ADDR=192.0.2.1 PORT=[TEMPUNAVAIL]": Peer("192.0.2.1:0", FRONT.target),
    b"DESTADDR=203.0.113.9 DESTPORT=587": Peer(FRONT.name, ("203.0.113.9", 587)),
    b"DESTADDR=203.0.113.9": Peer(FRONT.name, ("203.0.113.9", 25)),
    b"HELO=a+20b PROTO=smtp": FRONT,
}

NOT_TAKEN = [
    b"",
    b"ADDR",
    b"ADDR=",
    b"ADDR=[UNAVAILABLE]",
    b"ADDR=localhost",
    b"ADDR=192.0.2.256",
    b"ADDR=2001:db8::1",
    b"ADDR=IPV6:192.0.2.1",
    b"ADDR=192.0.2.1 ADDR=192.0.2.2",
    b"ADDR=192.0.2.1 PORT=65536",
    b"PORT=-1",
    b"ADDR=192.0.2.1 LOGIN=joe",
    b"REVERSE_NAME=c.example",
    b"NAME=a+2",
    b"NAME=a=b",
    b"NAME=a+0d+0a",
    b"PROTO=HTTP",
    b"NAME=\xc3\xa4",
]


@pytest.mark.parametrize("said", TAKEN)
def test_a_trusted_client_names_another_client(said: bytes) -> None:
    found = peer_named_by(FRONT, b"XCLIENT " + said + b"\r\n")
    assert found == replace(TAKEN[said], by_xclient=bool(re.search(rb"(?i)\bADDR=", said)))


ALICE = Peer("192.0.2.1:0", FRONT.target, login=b"alice")


@pytest.mark.parametrize(
    ("said", "login"),
    [
        ([b"ADDR=192.0.2.1 LOGIN=alice"], b"alice"),
        ([b"LOGIN=alice ADDR=192.0.2.1"], b"alice"),
        ([b"LOGIN=a+2Bb+40c ADDR=192.0.2.1"], b"a+2Bb+40c"),
        ([b"LOGIN=[UNAVAILABLE] ADDR=192.0.2.1"], b""),
        ([b"ADDR=192.0.2.1 LOGIN=alice", b"PORT=25"], b"alice"),
        ([b"ADDR=192.0.2.1 LOGIN=alice", b"LOGIN=[UNAVAILABLE]"], b""),
        ([b"ADDR=192.0.2.1 LOGIN=alice", b"ADDR=192.0.2.2"], b""),
        ([b"LOGIN=alice", b"ADDR=192.0.2.2"], b""),
    ],
)
def test_a_login_belongs_to_the_client_that_the_same_line_names(
    said: list[bytes], login: bytes
) -> None:
    peer = FRONT
    for line in said:
        peer = peer_named_by(peer, b"XCLIENT " + line + b"\r\n", login=True)
    assert peer.login == login


@pytest.mark.parametrize("login", [b"", b"a+2", b"a=b", b"a" * 256, b"a+0d"])
def test_an_invalid_login_is_refused(login: bytes) -> None:
    with pytest.raises(BadXclient):
        peer_named_by(FRONT, b"XCLIENT ADDR=192.0.2.1 LOGIN=" + login + b"\r\n", login=True)


def test_a_login_is_sent_only_by_xclient_and_only_if_it_is_offered() -> None:
    def sent(verb: bytes, *offered: bytes) -> list[bytes]:
        return ClientAttributes(verb, ALICE).lines(frozenset(offered), b"EHLO c\r\n")

    assert sent(b"XCLIENT", b"ADDR", b"LOGIN") == [b"XCLIENT LOGIN=alice ADDR=192.0.2.1\r\n"]
    assert sent(b"XCLIENT", b"ADDR") == [b"XCLIENT ADDR=192.0.2.1\r\n"]
    assert sent(b"XFORWARD", b"ADDR", b"LOGIN") == [b"XFORWARD ADDR=192.0.2.1\r\n"]
    assert b"LOGIN" not in ClientAttributes(b"XCLIENT", V4).lines(ALL, b"EHLO c\r\n")[0]
    assert "alice" not in repr(ALICE)


@pytest.mark.parametrize("said", NOT_TAKEN)
def test_an_invalid_xclient_is_refused(said: bytes) -> None:
    """Nor a client without an address, which an MTA would take for the proxy."""
    with pytest.raises(BadXclient) as error:
        peer_named_by(FRONT, b"XCLIENT " + said + b"\r\n")
    assert error.value.reply.startswith(b"501 5.5.4 ")


def test_the_target_of_a_redirected_client_is_not_changed() -> None:
    """It is the server of the session."""
    peer = Peer(FRONT.name, FRONT.target, redirected=True)
    assert peer_named_by(peer, b"XCLIENT DESTADDR=203.0.113.9\r\n") == peer


@given(st.ip_addresses().map(str).map(canonical), st.integers(0, 65535), st.binary(max_size=300))
def test_commands_made_by_one_proxy_are_read_by_the_next(
    host: str, port: int, hello: bytes
) -> None:
    said = Peer(
        name_of((host, port)),
        ("198.51.100.7", 25),
        hostname=b"c.example",
        login=b"joe",
        by_xclient=True,
    )
    lines = ClientAttributes(b"XCLIENT", said).lines(ALL, b"EHLO " + hello + b"\r\n")
    peer = FRONT
    for line in lines:
        peer = peer_named_by(peer, line, login=True)
    assert peer == said


@given(st.binary(max_size=200))
def test_nothing_but_its_own_error_is_raised(said: bytes) -> None:
    with contextlib.suppress(BadXclient):
        peer_named_by(FRONT, b"XCLIENT " + said + b"\r\n")
