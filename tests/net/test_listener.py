"""The listener: real sockets, as the system gives them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smtpproxy.config.address import Address
from smtpproxy.core.policy import Rules
from smtpproxy.net.backend.server_pool import Server, Servers
from smtpproxy.net.listener import Listener
from smtpproxy.net.listener_context import Service
from smtpproxy.net.timeouts import Sweeper
from smtpproxy.net.write_batching import Outbox
from tests.net.fakes import LIMITS, Watcher


class AnyWatcher(Watcher):
    """Takes sessions of any client."""

    def session(self, listener: str, client: str) -> "AnyWatcher":  # noqa: ARG002
        return self


def only(address: Address) -> Servers:
    return Servers([Server(address)], changed=lambda *_: None)


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
    """Connect, say QUIT, and return all that comes."""
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
    wanted = (
        Address(path=str(tmp_path / "proxy.sock")) if host == "unix" else Address(host=host, port=0)
    )
    sweeper = Sweeper(LIMITS, hold=0.2)
    listener = Listener(wanted, Service("l", Rules(), only(mta), sweeper, Outbox(), AnyWatcher()))
    await listener.open()
    (address,) = listener.addresses
    assert not address.endswith(":0")
    assert await talk(address) == b"220 mx\r\n250 ok\r\n"
    await sweeper.wait_until_empty(5)
    assert not sweeper.sessions
    listener.close()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        await talk(address)


async def test_a_socket_left_behind_is_replaced_but_a_live_one_is_not(
    mta: Address, tmp_path: Path
) -> None:
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    sweeper = Sweeper(LIMITS, hold=0.2)
    service = Service("l", Rules(), only(mta), sweeper, Outbox(), AnyWatcher())
    first = Listener(Address(path=str(path)), service)
    await first.open()
    second = Listener(Address(path=str(path)), service)
    with pytest.raises(OSError, match="in use"):
        await second.open()
    assert await talk(f"unix:{path}") == b"220 mx\r\n250 ok\r\n"
    await sweeper.wait_until_empty(5)
    assert not sweeper.sessions
    first.close()
    assert not path.exists()


async def test_an_address_in_use_is_an_error(mta: Address) -> None:
    sweeper = Sweeper(LIMITS, hold=0.2)
    service = Service("l", Rules(), only(mta), sweeper, Outbox(), AnyWatcher())
    first = Listener(Address(host="127.0.0.1", port=0), service)
    await first.open()
    port = int(first.addresses[0].rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        await Listener(Address(host="127.0.0.1", port=port), service).open()
    first.close()
