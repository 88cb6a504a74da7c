"""systemd: the sockets that it passes, and the notifications that it gets."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smtpproxy import __version__
from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually
from tests.support.program import SMTPPROXY, Program, send

Run = Callable[..., Program]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd reads notifications from."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def reported(systemd: socket.socket, first: str) -> dict[str, str]:
    """Return the next notification that begins with this field."""

    def look() -> dict[str, str] | None:
        fields = dict(line.split("=", 1) for line in systemd.recv(4096).decode().splitlines())
        return fields if first in fields else None

    return eventually(look, f"notification {first}")


def test_the_status_is_reported(
    mta: LegacyMTA, run: Run, systemd: socket.socket, tmp_path: Path
) -> None:
    file = tmp_path / "p.toml"
    file.touch()
    env = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "300000"}
    program = run("-c", file, "-l", "127.0.0.1:0", "-b", mta.address, env=env)
    status = f"smtpproxy {__version__}: 0 sessions, 1 workers"
    assert reported(systemd, "READY") == {"READY": "1", "STATUS": status}
    reported(systemd, "WATCHDOG")
    program.signal(signal.SIGHUP)
    assert int(reported(systemd, "RELOADING")["MONOTONIC_USEC"]) > 0
    reported(systemd, "READY")
    file.write_text("x")
    program.signal(signal.SIGHUP)
    reported(systemd, "RELOADING")
    reported(systemd, "READY")  # a bad file: the reload is over all the same
    program.signal(signal.SIGTERM)
    reported(systemd, "STOPPING")
    assert program.wait() == 0


def test_a_service_that_ends_while_it_reloads_is_not_ready_again(
    mta: LegacyMTA, run: Run, systemd: socket.socket, tmp_path: Path
) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        f'[listeners.smtp]\naddress = "127.0.0.1:0"\n[backends.b]\nservers = ["{mta.address}"]\n'
    )
    program = run("-c", file, env={"NOTIFY_SOCKET": systemd.getsockname()})
    reported(systemd, "READY")
    program.signal(signal.SIGHUP)
    reported(systemd, "RELOADING")
    program.signal(signal.SIGTERM)
    reported(systemd, "STOPPING")
    assert program.wait() == 0
    systemd.setblocking(False)
    rest = []
    with contextlib.suppress(BlockingIOError):
        while True:
            rest.append(systemd.recv(4096))
    assert not [each for each in rest if each.startswith(b"READY")]
    assert "reload_failed" not in [fields["event"] for fields in program.log()]


def test_sockets_that_it_passes_are_taken_by_name(mta: LegacyMTA, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[admin]\naddress = "fd:admin"\ntoken = "0123456789abcdef"\n')
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        arguments = ["-c", str(file), "-l", "fd:smtp", "-b", mta.address, "-w", "2"]
        # As systemd does it: descriptors from 3 on, and a process id that is only known then.
        script = (
            f"exec 3<&{first.fileno()} 4<&{second.fileno()}; "
            'export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=admin:smtp; exec "$@"'
        )
        for each in (first, second):
            os.set_inheritable(each.fileno(), True)
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *SMTPPROXY, "run", *arguments],
            stderr=subprocess.PIPE,
            close_fds=False,
        )
        assert process.stderr is not None
        try:
            for each in (first, second):
                address = f'"address":"127.0.0.1:{each.getsockname()[1]}"'
                assert address.encode() in process.stderr.readline()
            assert b'"event":"open_relay_risk","listener":"' in process.stderr.readline()
            send(second.getsockname()[1])
            with socket.create_connection(first.getsockname(), 10) as client:
                client.sendall(
                    b"GET /healthz HTTP/1.0\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n"
                )
                assert client.recv(1000).startswith(b"HTTP/1.0 200 ")
        finally:
            process.terminate()
            assert process.wait(20) == 0
            process.stderr.close()
    assert len(mta.messages) == 1


def test_a_socket_that_was_not_passed_is_an_error(mta: LegacyMTA, run: Run) -> None:
    program = run("-l", "fd:smtp", "-b", mta.address)
    assert program.wait() == 1
    (error,) = [fields for fields in program.log() if fields["event"] == "cannot_listen"]
    assert (error["address"], "no socket of this name" in error["reason"]) == ("fd:smtp", True)
