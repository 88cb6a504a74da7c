"""`[::]` includes IPv4, however its socket was made, unless another listener uses IPv4."""

import signal
import smtplib
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import free_port
from tests.support.program import SMTPPROXY, Program, send

Run = Callable[..., Program]
TOKEN = "0123456789abcdef"
HOSTS = ("127.0.0.1", "::1")


def write(path: Path, mta: LegacyMTA, *listeners: str, admin: str = "") -> Path:
    tables = "".join(
        f"[listeners.l{number}]\naddress = {each}\n" for number, each in enumerate(listeners)
    )
    path.write_text(f'{tables}[backends.old]\nservers = ["{mta.address}"]\n{admin}')
    return path


def plain_hosts(program: Program) -> list[str]:
    """Return the clients' addresses in the log."""
    closed = [fields for fields in program.log() if fields["event"] == "session_closed"]
    return [fields["client_ip"] for fields in closed]


def test_workers_serve_both_families(mta: LegacyMTA, run: Run) -> None:
    port = free_port()
    program = run("-l", f"[::]:{port}", "-b", mta.address, "-w", "2")
    reported = [program.event("listening")["address"] for _ in range(2)]
    assert reported == [f"[::]:{port}", f"0.0.0.0:{port}"]
    for host in HOSTS:
        send(port, host)
        program.event("session_closed")
    assert plain_hosts(program) == ["127.0.0.1", "::1"]


def test_a_port_chosen_by_the_system_serves_both_families(mta: LegacyMTA, run: Run) -> None:
    program = run("-l", "[::]:0", "-b", mta.address)
    port = program.port()
    for host in HOSTS:
        send(port, host)


def test_the_admin_address_serves_both_families(mta: LegacyMTA, run: Run, tmp_path: Path) -> None:
    port = free_port()
    admin = f'[admin]\naddress = "[::]:{port}"\ntoken = "{TOKEN}"\n'
    program = run("-c", write(tmp_path / "p", mta, '"127.0.0.1:0"', admin=admin))
    program.port()
    for host in ("127.0.0.1", "[::1]"):
        url = f"http://{host}:{port}/healthz"
        with urlopen(Request(url, headers={"Authorization": f"Bearer {TOKEN}"})) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_reload_moves_ipv4_between_listeners_without_refusing_a_client(
    mta: LegacyMTA, run: Run, tmp_path: Path, host: str
) -> None:
    """From one listener to another and back, all with the same socket."""
    port = free_port()
    file = tmp_path / "p"
    everything = f'"[::]:{port}"'
    without = everything + '\ncapabilities = {hide = ["PIPELINING"]}'
    of_its_own = f'"{host}:{port}"'
    program = run("-c", write(file, mta, without))
    program.port()
    over = threading.Event()
    failed: list[Exception] = []

    def come_and_go() -> None:
        while not over.is_set():
            try:
                send(port)
            except (OSError, smtplib.SMTPException) as error:
                failed.append(error)

    client = threading.Thread(target=come_and_go)
    client.start()
    try:
        for listeners, offered in (
            ((without,), (False, False)),
            ((without, of_its_own), (True, False)),
            ((everything,), (True, True)),
            ((f'"[::1]:{port}"', of_its_own), (True, True)),
        ):
            write(file, mta, *listeners)
            program.signal(signal.SIGHUP)
            program.event("reloaded")
            assert tuple(b"PIPELINING" in send(port, host) for host in HOSTS) == offered
    finally:
        over.set()
        client.join()
    assert not failed


SYSTEMD = """
import os, socket, sys
host, port, *command = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
both = family == socket.AF_INET6
listening = socket.create_server((host, int(port)), family=family, dualstack_ipv6=both)
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"}
os.execv(sys.executable, [sys.executable, *command])
"""
"""Opens a socket as smtpproxy.socket has it, and becomes the program."""


def by_systemd(host: str, port: int) -> tuple[str, ...]:
    """Return the command line of a program that gets a socket at this address."""
    python, *command = SMTPPROXY
    return (python, "-c", SYSTEMD, host, str(port), *command)


def test_a_socket_from_systemd_serves_both_families(mta: LegacyMTA, run: Run) -> None:
    """One socket for both families: its IPv4 clients have IPv4 addresses even so."""
    port = free_port()
    program = run("-l", "fd:smtp", "-b", mta.address, argv=by_systemd("::", port))
    program.event("listening")
    for host in HOSTS:
        send(port, host)
        program.event("session_closed")
    assert plain_hosts(program) == ["127.0.0.1", "::1"]


def test_ipv4_belongs_to_a_socket_from_systemd(mta: LegacyMTA, run: Run) -> None:
    port = free_port()
    listeners = ("-l", "fd:smtp", "-l", f"[::]:{port}")
    program = run(*listeners, "-b", mta.address, argv=by_systemd("0.0.0.0", port))
    reported = [program.event("listening")["address"] for _ in range(2)]
    assert reported == [f"0.0.0.0:{port}", f"[::]:{port}"]
    for host in HOSTS:
        send(port, host)
