"""Addresses: which texts are valid, and which messages report invalid ones."""

import pytest

from smtpproxy.config.address import canonical, canonical_network, parse_listener, parse_server
from smtpproxy.config.loader import from_flags
from smtpproxy.config.tls_validation import exposed_listeners


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("127.0.0.1:25", "127.0.0.1:25"),
            ("[0:0::1]:25", "[::1]:25"),
            ("[::ffff:127.0.0.1]:25", "127.0.0.1:25"),
            ("[::FFFF:0:0]:25", "0.0.0.0:25"),
            ("localhost:0", "localhost:0"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("fd:smtp", "fd:smtp"),
        ],
    )
    def test_valid_addresses_of_listeners(self, text: str, shown: str) -> None:
        assert str(parse_listener(text)) == shown

    @pytest.mark.parametrize(
        ("text", "advice"),
        [
            ("127.0.0.1", '"127.0.0.1:25"'),
            ("::1", '"[::1]:25"'),
            ("::1:2525", '"[::1]:2525"'),
            ("[::1]", '"[::1]:25"'),
            ("[127.0.0.1]:25", '"[::1]:25"'),
            (":25", '"127.0.0.1:25"'),
            ("*:25", '"127.0.0.1:25"'),
            ("127.0.0.1:smtp", "up to 65535"),
            ("127.0.0.1:65536", "up to 65535"),
            ("127.0.0.1:-1", "up to 65535"),
            ("127.0.0.1:\u0662\u0665", "up to 65535"),
            ("2600", '"127.0.0.1:2600"; a listener at "[::]:2600"'),
            ("10.0.0:25", "four numbers"),
            ("h\u00f6st:25", "host name"),
            ("-h:25", "host name"),
            ("h..x:25", "host name"),
            ("a b:25", "host name"),
            ("", "no host"),
            ("unix:run/x", "whole path"),
            ("unix:", "whole path"),
            ("unix:/" + "x" * 107, "107 bytes"),
            ("unix:/a\0b", "NUL"),
            ("fd:", 'such as "fd:smtp"'),
            ("fd:a:b", 'such as "fd:smtp"'),
        ],
    )
    def test_invalid_addresses(self, text: str, advice: str) -> None:
        for parse in (parse_listener, parse_server):
            with pytest.raises(ValueError) as raised:  # noqa: PT011  # the advice is the match
                parse(text)
            assert advice in str(raised.value)

    def test_a_server_may_be_a_name_and_needs_a_port_and_a_host(self) -> None:
        assert str(parse_server("MX.example.:25")) == "mx.example.:25"
        for text in ("h:0", "0.0.0.0:25", "[::]:25", "fd:smtp"):
            with pytest.raises(ValueError, match="a server needs"):
                parse_server(text)

    def test_loopback_addresses_are_only_for_this_machine(self) -> None:
        near = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.2]:1", "localhost:2"]
        far = ["0.0.0.0:3", "[::]:3", "10.0.0.1:1", "[fe80::1%eth0]:1"]
        settings = from_flags(None, [*near, "unix:/x", *far], ["h:1"])
        assert [
            str(settings.listeners[name].address) for name in exposed_listeners(settings)
        ] == far


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:0:1", "0.0.0.1"),
        ("::ffff:0:0:1", "::ffff:0:0:1"),
        ("::192.0.2.1", "::c000:201"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_equal_addresses_have_the_same_text(text: str, spelling: str) -> None:
    assert canonical(text) == spelling


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::/64", "::/64"),
        ("2001:DB8::/32", "2001:db8::/32"),
    ],
)
def test_a_network_of_mapped_addresses_is_one_of_ipv4(text: str, spelling: str) -> None:
    assert str(canonical_network(text)) == spelling
