"""The peer: the client's address."""

import asyncio
import socket
from typing import Any

import pytest

from smtpproxy.net.peer import Peer, TransportEnds, end_of, endpoint, name_of


@pytest.mark.parametrize(
    ("reported", "end", "name"),
    [
        (("192.0.2.1", 4711), ("192.0.2.1", 4711), "192.0.2.1:4711"),
        (("2001:db8::1", 4711, 0, 0), ("2001:db8::1", 4711), "[2001:db8::1]:4711"),
        (("fe80::1%lo", 4711, 0, 1), ("fe80::1%lo", 4711), "[fe80::1%lo]:4711"),
        (("::ffff:0:0:1", 4711, 0, 0), ("::ffff:0:0:1", 4711), "[::ffff:0:0:1]:4711"),
        (("::ffff:192.0.2.1", 4711, 0, 0), ("192.0.2.1", 4711), "192.0.2.1:4711"),
        (("::FFFF:c000:201", 4711), ("192.0.2.1", 4711), "192.0.2.1:4711"),
        ("", None, "unix"),
    ],
)
def test_an_endpoint_has_one_name(reported: object, end: tuple[str, int] | None, name: str) -> None:
    assert endpoint(reported) == end
    assert name_of(end) == name


def test_a_client_of_a_socket_for_both_families_has_its_ipv4_address() -> None:
    """The MTA, the log and the networks in the settings use only that one."""
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening,
        socket.create_connection(("127.0.0.1", listening.getsockname()[1])) as client,
        listening.accept()[0] as accepted,
    ):
        assert accepted.getpeername()[0] == "::ffff:127.0.0.1"
        assert endpoint(accepted.getpeername()) == client.getsockname()
        assert endpoint(accepted.getsockname()) == client.getpeername()


class Opened(asyncio.BaseTransport):
    """A transport with a socket of this family, and these addresses."""

    def __init__(self, family: int, **extra: object) -> None:
        super().__init__({**extra, "socket": socket.socket(family)})

    def close(self) -> None:
        self.get_extra_info("socket").close()


CLIENT, HERE = ("192.0.2.1", 4711), ("198.51.100.1", 25)


@pytest.mark.parametrize(
    ("family", "read", "peer", "name"),
    [
        (socket.AF_INET, {"peername": CLIENT, "sockname": HERE}, Peer("192.0.2.1:4711", HERE), ""),
        (socket.AF_INET, {"peername": None, "sockname": HERE}, None, "unknown"),
        (socket.AF_INET6, {"peername": None, "sockname": HERE}, None, "unknown"),
        (socket.AF_INET, {"peername": CLIENT, "sockname": None}, None, "192.0.2.1:4711"),
        (socket.AF_INET, {}, None, "unknown"),
        (socket.AF_UNIX, {"peername": "", "sockname": "/run/x"}, Peer(), "unix"),
        (socket.AF_UNIX, {"peername": None, "sockname": None}, Peer(), "unix"),
    ],
)
def test_a_unix_client_is_known_by_the_sockets_family(
    family: int, read: dict[str, Any], peer: Peer | None, name: str
) -> None:
    """A client with an unreadable address has reset its connection, and is no Unix client."""
    opened = Opened(family, **read)
    assert Peer.of(opened) == peer
    assert end_of(opened, "peername") == (name or "192.0.2.1:4711")
    opened.close()


class Mute(asyncio.BaseTransport):
    """A transport whose socket reports nothing, as that of a reset connection on some systems."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        raise OSError(22, "Invalid argument")


def test_a_socket_without_addresses_has_unknown_ones() -> None:
    assert Peer.of(Mute()) is None
    assert end_of(Mute(), "sockname") == "unknown"


def round_trip_of(connection: socket.socket) -> float | None:
    transport: Any = asyncio.BaseTransport({"socket": connection})
    return TransportEnds("client", transport, transport).all().client_rtt_s


def test_the_round_trip_to_a_client_is_what_the_kernel_has_measured() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        round_trip = round_trip_of(accepted)
        assert round_trip is not None
        assert 0 < round_trip < 1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_what_was_not_measured_has_no_round_trip(family: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as unconnected:
        assert round_trip_of(unconnected) is None


def test_a_connection_that_is_gone_has_no_round_trip() -> None:
    gone = socket.socket(socket.AF_INET)
    gone.close()
    assert round_trip_of(gone) is None
    mute: Any = Mute()
    assert TransportEnds("client", mute, mute).all().client_rtt_s is None
