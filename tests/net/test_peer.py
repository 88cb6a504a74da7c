"""The peer: who the client is."""

import socket

import pytest

from smtpproxy.net.peer import endpoint, name_of


@pytest.mark.parametrize(
    ("told", "end", "name"),
    [
        (("192.0.2.1", 4711), ("192.0.2.1", 4711), "192.0.2.1:4711"),
        (("2001:db8::1", 4711, 0, 0), ("2001:db8::1", 4711), "[2001:db8::1]:4711"),
        (("fe80::1%lo", 4711, 0, 1), ("fe80::1%lo", 4711), "[fe80::1%lo]:4711"),
        (("::ffff:0:0:1", 4711, 0, 0), ("::ffff:0:0:1", 4711), "[::ffff:0:0:1]:4711"),
        (("::ffff:192.0.2.1", 4711, 0, 0), ("192.0.2.1", 4711), "192.0.2.1:4711"),
        (("::FFFF:c000:201", 4711), ("192.0.2.1", 4711), "192.0.2.1:4711"),
        ("", None, "unix"),
        (None, None, "unix"),
    ],
)
def test_an_end_of_a_connection_has_one_name(
    told: object, end: tuple[str, int] | None, name: str
) -> None:
    assert endpoint(told) == end
    assert name_of(end) == name


def test_a_client_of_a_socket_for_both_families_has_its_ipv4_address() -> None:
    """The MTA, the log and the networks in the settings know it by that one only."""
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening,
        socket.create_connection(("127.0.0.1", listening.getsockname()[1])) as client,
        listening.accept()[0] as accepted,
    ):
        assert accepted.getpeername()[0] == "::ffff:127.0.0.1"
        assert endpoint(accepted.getpeername()) == client.getsockname()
        assert endpoint(accepted.getsockname()) == client.getpeername()
