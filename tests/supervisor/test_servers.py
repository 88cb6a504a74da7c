"""Servers with several workers: one event for each change, one queue for connection slots."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually, free_port
from tests.support.program import Program, send

Run = Callable[..., Program]


def write(path: Path, servers: list[str], more: str) -> Path:
    path.write_text(
        f'[listeners.smtp]\naddress = "127.0.0.1:0"\n[backends.old]\nservers = {servers}\n{more}\n'
    )
    return path


def _greeted(clients: list["Client"]) -> "Client | None":
    return next((client for client in clients if client.greeting()), None)


class Client:
    """A client that waits for its greeting, and sends at most NOOP."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
        self._socket.setblocking(False)
        self.got = b""

    def greeting(self) -> bytes | None:
        """Return the next line, if there is one."""
        try:
            self.got += self._socket.recv(1000)
        except BlockingIOError:
            return None
        return self.got if self.got.endswith(b"\n") else None

    def noop(self) -> bytes | None:
        """Send NOOP; return the last reply if it is not positive."""
        with contextlib.suppress(OSError):  # the proxy has closed
            self._socket.send(b"NOOP\r\n")
        last = (self.greeting() or b"").split(b"\r\n")[-2:-1]
        return next((line for line in last if line[:1] != b"2"), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@pytest.fixture
def dead() -> str:
    """An address at which no process listens."""
    return f"127.0.0.1:{free_port()}"


def test_workers_learn_from_one_another_that_a_server_is_down(
    mta: LegacyMTA, run: Run, tmp_path: Path, dead: str
) -> None:
    program = run("-c", write(tmp_path / "p", [dead, mta.address], "retry_after = 60"), "-w", "2")
    port = program.port()
    for _ in range(8):
        send(port)
    program.signal(signal.SIGTERM)
    program.wait()
    down = [fields for fields in program.log() if fields["event"] == "server_down"]
    assert [(fields["server"], fields["reason"]) for fields in down] == [
        (dead, "Connection refused")
    ]


def test_a_check_finds_a_server_down_and_up_without_clients(
    mta: LegacyMTA, run: Run, tmp_path: Path, dead: str
) -> None:
    host, _, port = dead.rpartition(":")
    checks = "health_check_interval = 2"  # which is also the time limit of a check
    program = run("-c", write(tmp_path / "p", [dead, mta.address], checks))
    assert program.event("server_down")["server"] == dead
    with socket.create_server((host, int(port))) as back:
        connection, _ = back.accept()
        with connection, connection.makefile("rwb", buffering=0) as file:
            file.write(b"220 back\r\n")
            assert file.readline().startswith(b"EHLO ")
            file.write(b"250-back\r\n250 HELP\r\n")
            assert file.readline() == b"QUIT\r\n"
            file.write(b"221 bye\r\n")
            assert file.readline() == b""
        assert program.event("server_up")["server"] == dead
    assert mta.sessions[0].events  # the other one is checked as well


def test_connection_slots_are_shared_by_all_workers(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    file = write(tmp_path / "p", [mta.address], "max_connections = 2")
    program = run("-c", file, "-w", "2", "--log-level", "debug")
    port = program.port()
    with Client(port) as one, Client(port) as two:
        for client in (one, two):
            assert eventually(client.greeting, "a greeting").startswith(b"220 ")
        with Client(port) as three, Client(port) as gone, Client(port) as four:
            gone.__exit__()
            assert program.event("probe_closed")["reason"] == "client_lost"
            assert len(mta.sessions) == 2
            waiting = [three, four]  # the order of two workers' requests is not known
            for holder in (one, two):
                assert not any(client.greeting() for client in waiting)
                holder.__exit__()
                served = eventually(partial(_greeted, waiting), "the place of another")
                waiting.remove(served)
    assert len(mta.sessions) == 4


def test_a_client_that_has_waited_too_long_for_a_slot_gets_421(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    more = "max_connections = 1\nmax_wait = 2"
    program = run("-c", write(tmp_path / "p", [mta.address], more), "-w", "2")
    port = program.port()
    with Client(port) as one:
        assert eventually(one.greeting, "a greeting").startswith(b"220 ")
        with Client(port) as two:
            assert eventually(two.greeting, "a refusal").startswith(b"421 4.3.2 ")
        assert program.event("session_closed")["reason"] == "backend_full"


def test_a_client_that_waits_for_a_slot_is_refused_although_the_supervisor_hangs(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    more = "max_connections = 1\nmax_wait = 2"
    program = run("-c", write(tmp_path / "p", [mta.address], more))
    port = program.port()
    program.signal(signal.SIGSTOP)
    try:
        with Client(port) as one:
            assert eventually(one.greeting, "a refusal").startswith(b"421 4.3.2 ")
    finally:
        program.signal(signal.SIGCONT)
    with Client(port) as two:  # the request of the first one holds no slot
        assert eventually(two.greeting, "a greeting").startswith(b"220 ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_address_does_not_hold_every_slot(
    mta: LegacyMTA, run: Run, tmp_path: Path, workers: str
) -> None:
    """It holds all slots, sends NOOP now and then, and waits for more slots."""
    more = "max_connections = 10\nmax_wait = 10"
    program = run("-c", write(tmp_path / "p", [mta.address], more), "-w", workers)
    port = program.port()
    with contextlib.ExitStack() as clients:
        hogs = [clients.enter_context(Client(port, "127.0.0.2")) for _ in range(10)]
        for hog in hogs:
            assert eventually(hog.greeting, "a greeting").startswith(b"220 ")
        for _ in range(20):
            clients.enter_context(Client(port, "127.0.0.2"))
        other = clients.enter_context(Client(port, "127.0.0.3"))

        def greeted() -> bytes | None:
            for hog in hogs:
                hog.noop()
            return other.greeting()

        assert eventually(greeted, "a place for another address").startswith(b"220 ")
        ended = [hog.noop() for hog in hogs]
    assert any(reply and reply.startswith(b"421 4.3.2 ") for reply in ended)
    closed = program.event("session_closed")
    assert (closed["reason"], closed["client_ip"]) == ("connection_slot_reclaimed", "127.0.0.2")


def test_a_crashed_worker_releases_its_connection_slots(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    program = run("-c", write(tmp_path / "p", [mta.address], "max_connections = 1"))
    port = program.port()
    with Client(port) as one:
        assert eventually(one.greeting, "a greeting").startswith(b"220 ")
        os.kill(program.workers()[0], signal.SIGKILL)
        program.event("worker_lost")  # before that, the dying one may still accept
        send(port)
