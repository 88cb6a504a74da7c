"""What a reload does to listening sockets whose addresses overlap, without workers."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtpproxy.config.loader import load
from smtpproxy.config.schema import Settings
from smtpproxy.supervisor.listen_sockets import ListenSockets
from tests.support.processes import free_port

OVERLAPPING = [
    ("127.0.0.1", "0.0.0.0"),
    ("127.0.0.1", "[::]"),
    ("[::1]", "[::]"),
]


@pytest.fixture
def listen_sockets() -> Iterator[ListenSockets]:
    opened = ListenSockets()
    yield opened
    opened.close()


def settings(path: Path, *addresses: str) -> Settings:
    file = path / "settings"
    tables = (f'[listeners.l{at}]\naddress = "{each}"\n' for at, each in enumerate(addresses))
    file.write_text("".join(tables) + '[backends.b]\nservers = ["192.0.2.1:25"]\n')
    return load(file)


def change(opened: ListenSockets, to: Settings) -> None:
    opened.open(to)
    opened.keep_for(to)


def accepts(opened: ListenSockets, used: Settings, client: socket.socket) -> bool:
    """Return whether a client waits at one of the sockets of the only listener."""
    (descriptors,) = opened.descriptors(used)
    waiting = []
    for each in descriptors:
        with socket.socket(fileno=os.dup(each)) as listening:
            try:
                accepted, _ = listening.accept()
            except BlockingIOError:
                continue
            with accepted:
                waiting.append(accepted.getpeername()[:2])
    return waiting == [client.getsockname()[:2]]


@pytest.mark.parametrize(("one", "every"), OVERLAPPING)
def test_a_client_waiting_at_one_address_is_accepted_by_the_wildcard(
    one: str, every: str, listen_sockets: ListenSockets, tmp_path: Path
) -> None:
    port = free_port()
    change(listen_sockets, settings(tmp_path, f"{one}:{port}"))
    with socket.create_connection((one.strip("[]"), port)) as client:
        now = settings(tmp_path, f"{every}:{port}")
        change(listen_sockets, now)
        assert accepts(listen_sockets, now, client)


@pytest.mark.parametrize(("one", "every"), OVERLAPPING)
def test_a_client_of_one_address_gets_its_own_listener(
    one: str, every: str, listen_sockets: ListenSockets, tmp_path: Path
) -> None:
    port = free_port()
    change(listen_sockets, settings(tmp_path, f"{every}:{port}"))
    now = settings(tmp_path, f"{one}:{port}")
    listen_sockets.open(now)
    with socket.create_connection((one.strip("[]"), port)) as client:
        listen_sockets.keep_for(now)
        assert accepts(listen_sockets, now, client)
    change(listen_sockets, settings(tmp_path, f"{every}:{port}"))


def test_a_second_instance_is_refused_the_port_after_that(
    listen_sockets: ListenSockets, tmp_path: Path
) -> None:
    port = free_port()
    for address in ("[::]", "127.0.0.1", "0.0.0.0", "127.0.0.1"):
        change(listen_sockets, settings(tmp_path, f"{address}:{port}"))
        second = ListenSockets()
        with pytest.raises(OSError, match="in use"):
            second.open(settings(tmp_path, f"127.0.0.1:{port}"))
