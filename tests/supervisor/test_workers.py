"""Workers share the work, and a lost one is replaced."""

import contextlib
import fcntl
import json
import os
import signal
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually, free_port
from tests.support.program import SMTPPROXY, Program, is_alive, send

Run = Callable[..., Program]


def test_the_configured_number_of_workers_serves_one_address(mta: LegacyMTA, run: Run) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address, "-w", "3")
    port = program.port()
    assert len(program.workers()) == 3
    for _ in range(10):
        send(port)
    assert len(mta.messages) == 10
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    events = [fields["event"] for fields in program.log()]
    once = [event for event in events if event not in ("message_relayed", "session_closed")]
    assert once == ["listening", "draining", "stopped"]


def test_a_crashed_worker_is_replaced(mta: LegacyMTA, run: Run) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address)
    port = program.port()
    (worker,) = program.workers()
    os.kill(worker, signal.SIGKILL)
    lost = program.event("worker_lost")
    assert (lost["pid"], lost["exit_code"]) == (worker, -9)
    send(port)  # it waits for the new one
    assert worker not in program.workers()
    assert len(mta.messages) == 1


def test_a_hanging_worker_is_replaced(mta: LegacyMTA, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("timeouts = { heartbeat = 2 }")
    program = run("-c", file, "-l", "127.0.0.1:0", "-b", mta.address)
    port = program.port()
    (worker,) = program.workers()
    os.kill(worker, signal.SIGSTOP)
    assert program.event("worker_hangs")["pid"] == worker
    assert program.event("worker_lost")["pid"] == worker
    send(port)


@pytest.mark.long
def test_no_worker_hangs_because_of_a_blocked_log(mta: LegacyMTA, tmp_path: Path) -> None:
    """Lines longer than the pipe's buffer are lost, and mail is not affected."""
    file = tmp_path / "p.toml"
    file.write_text("timeouts = { heartbeat = 6 }\nlog = { level = 'debug' }")
    port = free_port()
    arguments = ["-c", str(file), "-l", f"127.0.0.1:{port}", "-b", mta.address]
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen([*SMTPPROXY, "run", *arguments], stderr=writer) as program:
        os.close(writer)
        try:
            eventually(lambda: _is_open(port) or None, "listening")
            children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
            workers = children.read_text()
            until = time.monotonic() + 4
            while time.monotonic() < until:
                with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
                    client.sendmail("a@x", [f"{n}" + "x" * 900 + "@y" for n in range(10)], b"text")
            assert children.read_text() == workers
            program.send_signal(signal.SIGTERM)
            assert program.wait(10) == 0
        finally:
            program.kill()
            os.close(reader)


def _is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_no_worker_is_replaced_because_all_were_stopped(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    """Ctrl-Z, a paused machine: the supervisor resumes first, and has had no message for long."""
    file = tmp_path / "p.toml"
    # One that was stopped has no lag to speak of.
    file.write_text("timeouts = { heartbeat = 4 }\nlimits = { event_loop_lag = 0 }")
    program = run("-c", file, "-l", "127.0.0.1:0", "-b", mta.address)
    port = program.port()
    (worker,) = program.workers()
    for pid in (worker, program.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.5)
    program.signal(signal.SIGCONT)
    time.sleep(0.2)
    assert is_alive(worker)
    os.kill(worker, signal.SIGCONT)
    send(port)
    assert program.workers() == [worker]
    assert not [fields for fields in program.log() if fields["event"].startswith("worker_")]


def test_workers_end_when_the_supervisor_is_killed(mta: LegacyMTA, run: Run) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address, "-w", "2")
    port = program.port()
    workers = program.workers()
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.ehlo()
        program.signal(signal.SIGKILL)
        program.wait()
        assert client.getreply()[0] == 421  # idle sessions get it unsolicited
        client.close()
    eventually(lambda: not any(map(is_alive, workers)) or None, "the end of the workers")


def test_an_address_in_use_is_logged_and_nothing_keeps_running(mta: LegacyMTA, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        program = run("-l", "127.0.0.1:0", "-l", address, "-b", mta.address)
        assert program.wait() == 1
    (reported,) = program.log()
    assert (reported["event"], reported["address"]) == ("cannot_listen", address)
    assert "in use" in reported["reason"]


def test_the_path_of_a_unix_socket_is_removed_at_the_end(
    mta: LegacyMTA, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    program = run("-l", f"unix:{path}", "-b", mta.address, "-w", "2")
    assert program.event("listening")["address"] == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert client.recv(100).startswith(b"220 ")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert not path.exists()


def test_a_second_signal_stops_at_once(mta: LegacyMTA, run: Run) -> None:
    program = run("-l", "127.0.0.1:0", "-b", mta.address, "-w", "2")
    with smtplib.SMTP("127.0.0.1", program.port(), timeout=10) as client:
        client.ehlo()
        client.mail("a@example.org")  # in a transaction: the drain would wait for it
        program.signal(signal.SIGTERM)
        program.event("draining")
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        client.close()
    assert {fields["level"] for fields in program.log()} == {"info"}


def printed_lines(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "run0" / "log").read_text().splitlines()]


def test_a_worker_that_fails_at_its_start_is_a_line_of_json(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from smtpproxy.worker import app\napp.App.start = lambda *_: 1 / 0\n"
    )
    options = ("-l", "127.0.0.1:0", "-b", "127.0.0.1:1", "--log-format", "json")
    program = run(*options, argv=SMTPPROXY, env={"PYTHONPATH": str(tmp_path)})
    assert program.wait() == 1
    reported = program.event("uncaught_exception")
    assert "ZeroDivisionError" in reported["exception"]
    assert len(printed_lines(tmp_path)) == len(program.log())


def test_an_exposed_listener_is_logged_as_an_open_relay_risk(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_text(
        '[listeners.open]\naddress = "0.0.0.0:0"\n[listeners.own]\naddress = "127.0.0.1:0"\n'
        '[backends.old]\nservers = ["127.0.0.1:1"]\n'
    )
    program = run("-c", file)
    reported = program.event("open_relay_risk")
    assert (reported["level"], reported["listener"], reported["backend"]) == (
        "warning",
        "open",
        "old",
    )
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert len([line for line in program.log() if line["event"] == "open_relay_risk"]) == 1
    assert len(printed_lines(tmp_path)) == len(program.log())
