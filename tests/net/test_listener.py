"""The listener, with real sockets."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smtpproxy.config.address import Address
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.net import binding
from smtpproxy.net.backend.server_pool import Server, ServerPool
from smtpproxy.net.listener import Listener
from smtpproxy.net.listener_context import ListenerContext
from smtpproxy.net.timeouts import SessionTimeouts
from smtpproxy.net.write_batching import WriteBatcher
from tests.net.fakes import LIMITS, Watcher
from tests.support.processes import free_port


class AnyWatcher(Watcher):
    """Accepts sessions of any client; `clients` are their addresses, without ports."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[str] = []

    def session(self, listener: str, backend: str, client: str) -> "AnyWatcher":  # noqa: ARG002
        self.clients.append(client.rpartition(":")[0])
        return self


def only(address: Address) -> ServerPool:
    return ServerPool([Server(address)], changed=lambda *_: None)


@pytest.fixture
async def mta(tmp_path: Path) -> AsyncIterator[Address]:
    """A server on a Unix socket that greets, and answers everything with 250."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        while await reader.readline():
            writer.write(b"250 ok\r\n")
        writer.close()

    path = str(tmp_path / "mta.sock")
    server = await asyncio.start_unix_server(serve, path)
    yield Address(path=path)
    server.close()


async def talk(address: str) -> bytes:
    """Connect, send QUIT, and return everything received."""
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(b"QUIT\r\n")
    async with asyncio.timeout(5):
        octets = await reader.read()
    writer.close()
    await writer.wait_closed()
    return octets


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "unix"])
async def test_a_session_goes_through(host: str, mta: Address, tmp_path: Path) -> None:
    path = str(tmp_path / "proxy.sock")
    wanted = Address(path=path) if host == "unix" else Address(host=host, port=free_port())
    timeouts = SessionTimeouts(LIMITS, reply_hold=0.2)
    listener = Listener(
        wanted,
        ListenerContext(
            "l", "b", SessionPolicy(), only(mta), timeouts, WriteBatcher(), AnyWatcher()
        ),
    )
    await listener.open()
    (address,) = listener.addresses
    assert await talk(address) == b"220 mx\r\n250 ok\r\n"
    await timeouts.wait_until_empty(5)
    assert not timeouts.sessions
    listener.close()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await talk(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_accepted_connections_use_tcp_keepalive(host: str) -> None:
    (listening,) = binding.listen(Address(host=host, port=0))
    with listening:
        listening.setblocking(True)
        with socket.create_connection(listening.getsockname()[:2]):
            client, _ = listening.accept()
            with client:
                assert kept_alive(client) == (1, 60, 30, 6)


def kept_alive(opened: socket.socket) -> tuple[int, ...]:
    tcp = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
    return (
        opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        *(opened.getsockopt(socket.IPPROTO_TCP, option) for option in tcp),
    )


def listener_at(address: Address, mta: Address, **options: bool) -> tuple[Listener, AnyWatcher]:
    watcher = AnyWatcher()
    service = ListenerContext(
        "l",
        "b",
        SessionPolicy(),
        only(mta),
        SessionTimeouts(LIMITS, reply_hold=0.2),
        WriteBatcher(),
        watcher,
    )
    return Listener(address, service, **options), watcher


async def test_a_wildcard_of_ipv6_includes_ipv4(mta: Address) -> None:
    """And an IPv4 client has an IPv4 address."""
    listener, watcher = listener_at(Address(host="::", port=0), mta)
    await listener.open()
    ports = {int(address.rpartition(":")[2]) for address in listener.addresses}
    (port,) = ports
    assert listener.addresses == [f"[::]:{port}", f"0.0.0.0:{port}"]
    for host in ("127.0.0.1", "[::1]"):
        assert await talk(f"{host}:{port}") == b"220 mx\r\n250 ok\r\n"
    assert watcher.clients == ["127.0.0.1", "[::1]"]
    listener.close()


async def test_a_wildcard_of_ipv6_leaves_ipv4_to_others_on_request(mta: Address) -> None:
    port = free_port()
    listener, _ = listener_at(Address(host="::", port=port), mta, with_ipv4=False)
    await listener.open()
    with pytest.raises(ConnectionRefusedError):
        await talk(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", port)):
        assert await talk(f"[::1]:{port}") == b"220 mx\r\n250 ok\r\n"
    listener.close()


async def test_a_free_port_is_free_for_both_families(
    mta: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is free for IPv6 may be in use for IPv4."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        bind = socket.socket.bind
        offered = [taken]

        class Socket(socket.socket):
            def bind(self, name: tuple[str, int]) -> None:  # type: ignore[override]
                host, port, *rest = name
                bind(self, (host, port or (offered.pop() if offered else 0), *rest))

        monkeypatch.setattr("smtpproxy.net.binding.socket.socket", Socket)
        listener, _ = listener_at(Address(host="::", port=0), mta)
        await listener.open()
        assert not offered
        assert len({address.rpartition(":")[2] for address in listener.addresses}) == 1
        listener.close()


async def test_a_stale_socket_is_replaced_but_a_live_one_is_not(
    mta: Address, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    timeouts = SessionTimeouts(LIMITS, reply_hold=0.2)
    listener_context = ListenerContext(
        "l", "b", SessionPolicy(), only(mta), timeouts, WriteBatcher(), AnyWatcher()
    )
    first = Listener(Address(path=str(path)), listener_context)
    await first.open()
    second = Listener(Address(path=str(path)), listener_context)
    with pytest.raises(OSError, match="in use"):
        await second.open()
    assert await talk(f"unix:{path}") == b"220 mx\r\n250 ok\r\n"
    await timeouts.wait_until_empty(5)
    assert not timeouts.sessions
    first.close()
    assert not path.exists()


async def test_an_address_in_use_is_an_error(mta: Address) -> None:
    timeouts = SessionTimeouts(LIMITS, reply_hold=0.2)
    listener_context = ListenerContext(
        "l", "b", SessionPolicy(), only(mta), timeouts, WriteBatcher(), AnyWatcher()
    )
    first = Listener(Address(host="127.0.0.1", port=0), listener_context)
    await first.open()
    port = int(first.addresses[0].rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        await Listener(Address(host="127.0.0.1", port=port), listener_context).open()
    first.close()


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_unix_socket_has_its_mode_whatever_the_umask(
    umask: int, mode: int, tmp_path: Path
) -> None:
    address = Address(path=str(tmp_path / "s"))
    before = os.umask(umask)
    try:
        opened = binding.listen(address, mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "s").stat().st_mode & 0o777 == mode
    binding.close(opened, address)


def test_a_unix_socket_never_has_a_more_open_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even before its mode is set."""
    address = Address(path=str(tmp_path / "s"))
    seen = []
    chmod = Path.chmod

    def look(path: Path, mode: int) -> None:
        seen.append(path.stat().st_mode & 0o777)
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", look)
    before = os.umask(0)
    try:
        opened = binding.listen(address)
    finally:
        os.umask(before)
    binding.close(opened, address)
    assert seen == [0o600]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_shared_socket_is_never_blocking(kind: str, tmp_path: Path) -> None:
    """A copy takes over the timeout of its original; the kernel has one flag for all of them."""
    path = str(tmp_path / "s")
    address = Address(path=path) if kind == "unix" else Address(host="127.0.0.1")
    (listening,) = binding.listen(address)
    with listening, binding.adopt(os.dup(listening.fileno())) as adopted, adopted.dup():
        assert not os.get_blocking(listening.fileno())


def test_two_instances_that_start_at_once_keep_their_sockets(tmp_path: Path) -> None:
    """Without a lock the second would remove a socket of the first that does not listen yet."""
    address = Address(path=str(tmp_path / "proxy.sock"))

    def start(begin: threading.Barrier) -> list[socket.socket]:
        begin.wait()
        try:
            return binding.listen(address)
        except OSError:
            return []

    with ThreadPoolExecutor(2) as threads:
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(address.path)
            opened = [*threads.map(start, [threading.Barrier(2)] * 2)]
            assert sorted(map(len, opened)) == [0, 1]
            binding.close(opened[0] + opened[1], address)


def test_a_socket_of_another_process_is_not_removed(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "s"))
    ours = binding.listen(address)
    Path(address.path).unlink()
    others = binding.listen(address)
    binding.close(ours, address)
    assert Path(address.path).is_socket()
    binding.close(others, address)
    assert not Path(address.path).exists()
