"""Limits of the whole service: new clients are refused, and open sessions are served."""

import resource
import smtplib
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.program import SMTPPROXY, Program

Run = Callable[..., Program]


def client(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, timeout=20)


def refusal(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        return connection.recv(1000)


def test_sessions_are_counted_over_all_workers(mta: LegacyMTA, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_text("limits = { sessions = 5 }")
    program = run("-c", file, "-l", "127.0.0.1:0", "-b", mta.address, "-w", "2")
    port = program.port()
    with ExitStack() as stack:
        clients = [stack.enter_context(client(port)) for _ in range(5)]
        assert refusal(port).startswith(b"421 4.3.2 ")
        reported = program.event("clients_refused")
        assert (reported["reason"], reported["client_ip"], reported["clients"]) == (
            "sessions",
            "127.0.0.1",
            1,
        )
        assert all(each.noop()[0] == 250 for each in clients)
    with client(port) as again:
        assert again.noop()[0] == 250


def test_short_of_descriptors_it_serves_open_sessions_and_refuses_new_clients(
    mta: LegacyMTA, run: Run
) -> None:
    script = 'ulimit -n 96; exec "$@"'
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 96
    program = run(
        "-l", "127.0.0.1:0", "-b", mta.address, argv=("bash", "-c", script, "bash", *SMTPPROXY)
    )
    port = program.port()
    with ExitStack() as stack:
        clients = []
        while len(clients) < 48:  # each takes two of the 96
            try:
                clients.append(stack.enter_context(client(port)))
            except smtplib.SMTPConnectError:
                break
        assert 16 <= len(clients) < 48
        for _ in range(20):
            assert refusal(port).startswith(b"421 4.3.2 ")
        assert program.event("clients_refused")["reason"] == "file_descriptors"
        assert all(each.noop()[0] == 250 for each in clients)
