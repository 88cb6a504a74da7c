"""`smtpproxy health` in each state of a service."""

import os
import signal
import smtplib
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually
from tests.support.program import SMTPPROXY, Program

Run = Callable[..., Program]


def health(path: Path, *options: str) -> tuple[int, str]:
    """Return the exit code of `smtpproxy health`, and its only line."""
    argv = [*SMTPPROXY, "health", *options]
    done = subprocess.run(
        argv,
        env={**os.environ, "RUNTIME_DIRECTORY": str(path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    (line,) = (done.stdout + done.stderr).splitlines()
    assert bool(done.stderr) == line.startswith("smtpproxy: ")
    return done.returncode, line


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of the first program, with its control socket."""
    return tmp_path / "run0"


def test_a_service_that_serves(run: Run, mta: LegacyMTA, directory: Path) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address, "-w", "2")
    program.port()
    assert health(directory) == (0, "ok")
    assert health(directory, "--ready") == (0, "ready")
    program.signal(signal.SIGHUP)
    program.event("reloaded")
    assert health(directory, "--ready") == (0, "ready")
    path = directory / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert not path.exists()
    # Named, since this machine's own service, if it has one, would answer otherwise.
    code, line = health(directory, "--control", str(path))
    assert (code, line.startswith(f"smtpproxy: no service answers at {path}")) == (1, True)


def test_the_first_query_waits_for_the_first_check(run: Run, directory: Path) -> None:
    """Without an admin address no check has run before; then the server comes back."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        settings = directory.parent / "p.toml"
        settings.write_text(
            '[listeners.smtp]\naddress = "127.0.0.1:0"\n'
            f'[backends.old]\nservers = ["{address}"]\nretry_after = 0.1\n'
        )
        program = run("-c", settings)
        program.port()
        assert health(directory, "--ready") == (1, "not ready: no server of old is up")
        assert health(directory) == (0, "ok")
        server.listen()
        thread = threading.Thread(target=_greet, args=(server,))
        thread.start()
        program.event("server_up")
        thread.join()
        assert health(directory, "--ready") == (0, "ready")


def _greet(server: socket.socket) -> None:
    """Answer one check."""
    connection, _ = server.accept()
    with connection:
        for reply in (b"220 mx\r\n", b"250 mx\r\n", b"221 mx\r\n"):
            connection.sendall(reply)
            connection.recv(1000)


def test_one_that_starts_is_healthy_and_not_ready(
    run: Run, mta: LegacyMTA, directory: Path
) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address)
    eventually(lambda: health(directory)[0] == 0 or None, "a control socket")
    assert health(directory, "--ready") in ((1, "not ready: starting"), (0, "ready"))
    program.port()
    assert health(directory, "--ready") == (0, "ready")


def test_one_that_drains_is_healthy_and_not_ready(
    run: Run, mta: LegacyMTA, directory: Path
) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address)
    with smtplib.SMTP("127.0.0.1", program.port(), timeout=10) as client:
        client.ehlo()
        client.mail("a@example.org")
        program.signal(signal.SIGTERM)
        program.event("draining")
        assert health(directory, "--ready") == (1, "not ready: draining")
        assert health(directory) == (0, "ok")
        client.close()
    assert program.wait() == 0


def test_a_second_service_leaves_the_socket_alone(
    run: Run, mta: LegacyMTA, directory: Path
) -> None:
    first = run("-l", "127.0.0.1:0", "-b", mta.address)
    first.port()
    inode = (directory / "control.sock").stat().st_ino
    same = {"RUNTIME_DIRECTORY": str(directory)}
    second = run("-l", "127.0.0.1:0", "-b", "127.0.0.1:1", env=same)
    reported = second.event("no_control_socket")
    assert reported["address"] == f"unix:{directory}/control.sock"
    assert reported["reason"] == "Address already in use; set another path with --control"
    second.port()
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert (directory / "control.sock").stat().st_ino == inode
    assert health(directory, "--ready") == (0, "ready")


def test_the_stale_socket_of_a_killed_service_is_replaced(
    run: Run, mta: LegacyMTA, directory: Path
) -> None:
    first = run("-l", "127.0.0.1:0", "-b", mta.address)
    first.port()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert (directory / "control.sock").exists()
    second = run("-l", "127.0.0.1:0", "-b", mta.address, env={"RUNTIME_DIRECTORY": str(directory)})
    second.port()
    assert health(directory) == (0, "ok")


def test_a_given_path_must_work(run: Run, mta: LegacyMTA, directory: Path, tmp_path: Path) -> None:
    flags = ("-l", "127.0.0.1:0", "-b", mta.address, "--control")
    run(*flags, tmp_path / "own.sock").port()
    assert health(directory, "--control", str(tmp_path / "own.sock")) == (0, "ok")
    again = run(*flags, tmp_path / "own.sock")
    assert again.event("cannot_listen")["address"] == f"unix:{tmp_path}/own.sock"
    assert again.wait() == 1
