"""SIGHUP: new settings, the same sockets, no client refused and no session interrupted."""

import os
import signal
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually, free_port
from tests.support.program import Program, send

Run = Callable[..., Program]


class File:
    """A settings file that can be rewritten."""

    def __init__(self, path: Path, mta: LegacyMTA) -> None:
        self.path = path
        self._mta = mta

    def write(self, *listeners: str, more: str = "") -> None:
        tables = "".join(
            f'[listeners.l{number}]\naddress = "{each}"\n{more}\n'
            for number, each in enumerate(listeners)
        )
        self.path.write_text(f'{tables}[backends.old]\nservers = ["{self._mta.address}"]\n')


@pytest.fixture
def file(tmp_path: Path, mta: LegacyMTA) -> File:
    file = File(tmp_path / "p.toml", mta)
    file.write("127.0.0.1:0")
    return file


def test_an_open_session_continues_and_new_ones_use_the_new_settings(
    mta: LegacyMTA, run: Run, file: File
) -> None:
    program = run("-c", file.path)
    port = program.port()
    old = program.workers()
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        assert client.ehlo()[0] == 250
        assert client.mail("a@example.org")[0] == 250
        file.write("127.0.0.1:0", more='capabilities = {hide = ["PIPELINING"]}')
        program.signal(signal.SIGHUP)
        assert program.event("reloaded")["workers"] == 1
        assert b"PIPELINING" not in send(port)
        assert client.rcpt("b@example.org")[0] == 250
        assert client.data(b"Subject: kept\r\n\r\n")[0] == 250
        client.close()
    assert len(mta.messages) == 2
    eventually(lambda: not set(old) & set(program.workers()) or None, "the end of the old worker")


def test_a_crashed_worker_is_replaced_by_one_with_the_same_certificate(
    run: Run, file: File, tmp_path: Path
) -> None:
    """The files on disk may be half of a new pair by then, so the old contents are kept."""
    authority, pem = trustme.CA(), tmp_path / "mx.pem"
    authority.issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(pem)
    file.write("127.0.0.1:0", more=f'tls = "starttls"\ncertificate = "{pem}"')
    context = ssl.create_default_context()
    authority.configure_trust(context)
    program = run("-c", file.path)
    port = program.port()
    pem.write_text("no certificate")
    os.kill(program.workers()[0], signal.SIGKILL)
    program.event("worker_lost")
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client._host = "mx.example"  # type: ignore[attr-defined]  # whom it verifies
        client.starttls(context=context)
        assert client.ehlo()[0] == 250


def test_weak_tls_is_logged_at_start_and_reload(mta: LegacyMTA, run: Run, file: File) -> None:
    pem = file.path.with_name("mx.pem")
    trustme.CA().issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(pem)
    file.path.write_text(
        f'[listeners.smtp]\naddress = "127.0.0.1:0"\ntls = "starttls"\ncertificate = "{pem}"\n'
        f'ciphers = "legacy"\n[backends.old]\nservers = ["{mta.address}"]\n'
        'tls = "opportunistic"\nminimum_tls = "1.0"\n'
    )
    program = run("-c", file.path)
    weak = program.event("weak_tls")
    assert (weak["listener"], weak["backend"]) == ("smtp", None)
    weak = program.event("weak_tls")
    assert (weak["backend"], weak["reason"]) == ("old", "TLS 1.0 is allowed")
    file.path.write_text(file.path.read_text().replace("1.0", "1.1"))
    program.signal(signal.SIGHUP)
    assert program.event("weak_tls")["listener"] == "smtp"
    assert program.event("weak_tls")["reason"] == "TLS 1.1 is allowed"
    program.event("reloaded")


def test_a_client_that_never_ends_its_transaction_does_not_keep_an_old_worker(
    mta: LegacyMTA, run: Run, file: File
) -> None:
    file.path.write_text(
        file.path.read_text() + "[timeouts]\ndrain = 0.2\ntransaction_grace = 0.4\n"
    )
    program = run("-c", file.path)
    with smtplib.SMTP("127.0.0.1", program.port(), timeout=10) as client:
        old = program.workers()
        client.ehlo()
        client.mail("a@example.org")
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        assert client.getreply()[0] == 421
        client.close()
    reported = program.event("session_closed")
    assert (reported["reason"], reported["messages"]) == ("stopped", 0)
    eventually(lambda: not set(old) & set(program.workers()) or None, "the end of the old worker")
    assert not mta.messages


def test_no_client_is_refused_during_a_reload(mta: LegacyMTA, run: Run, file: File) -> None:
    program = run("-c", file.path, "-w", "2")
    port = program.port()
    over = threading.Event()
    failed: list[Exception] = []
    sent = [0, 0, 0]

    def clients(which: int) -> None:
        while not over.is_set():
            try:
                send(port)
                sent[which] += 1
            except (OSError, smtplib.SMTPException) as error:
                failed.append(error)

    threads = [threading.Thread(target=clients, args=(which,)) for which in range(len(sent))]
    for thread in threads:
        thread.start()
    for _ in range(3):
        program.signal(signal.SIGHUP)
        program.event("reloaded")
    over.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(mta.messages) == sum(sent) > 3


def test_a_reload_ends_when_no_old_worker_accepts_clients(run: Run, file: File) -> None:
    program = run("-c", file.path)
    port = program.port()
    (old,) = program.workers()
    os.kill(old, signal.SIGSTOP)
    program.signal(signal.SIGHUP)
    eventually(lambda: len(program.workers()) == 2 or None, "a new worker")
    send(port)
    assert "reloaded" not in [fields["event"] for fields in program.log()]
    os.kill(old, signal.SIGCONT)
    program.event("reloaded")


def test_a_bad_certificate_changes_nothing(mta: LegacyMTA, run: Run, file: File) -> None:
    pem = file.path.with_suffix(".pem")
    issued = trustme.CA().issue_cert("mx.example").private_key_and_cert_chain_pem
    issued.write_to_path(str(pem))
    file.write("127.0.0.1:0", more=f'tls = "starttls"\ncertificate = "{pem}"')
    program = run("-c", file.path)
    port = program.port()
    old = program.workers()
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        assert client.ehlo()[0] == 250
        pem.write_text("-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n")
        program.signal(signal.SIGHUP)
        (problem,) = program.event("reload_failed")["problems"]
        assert "listeners.l0.certificate: is not a PEM file" in problem
        assert client.noop()[0] == 250
    assert program.workers() == old
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        assert client.starttls()[0] == 220  # with the certificate that there was
    issued.write_to_path(str(pem))
    program.signal(signal.SIGHUP)
    program.event("reloaded")
    assert len(mta.sessions) == 2


def test_a_bad_file_changes_nothing_and_every_problem_is_logged(run: Run, file: File) -> None:
    program = run("-c", file.path)
    port = program.port()
    workers = program.workers()
    file.path.write_text(file.path.read_text() + "servres = 3\nguard_data = 7\n")
    program.signal(signal.SIGHUP)
    problems = program.event("reload_failed")["problems"]
    assert [problem.split(": ")[1] for problem in problems] == [
        "backends.old.servres",
        "backends.old.guard_data",
    ]
    assert program.workers() == workers
    send(port)
    file.write("127.0.0.1:0")
    program.signal(signal.SIGHUP)
    program.event("reloaded")
    send(port)


def test_an_address_that_cannot_be_bound_changes_nothing(run: Run, file: File) -> None:
    program = run("-c", file.path)
    port = program.port()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        file.write("127.0.0.1:0", "[::1]:0", taken)
        program.signal(signal.SIGHUP)
        assert program.event("cannot_listen")["address"] == taken
        program.event("reload_failed")
    send(port)


def test_the_mode_of_a_unix_socket_follows_the_settings(
    run: Run, file: File, tmp_path: Path
) -> None:
    path, admin = tmp_path / "s", tmp_path / "admin"
    file.write(f"unix:{path}", more=f'[admin]\naddress = "unix:{admin}"')
    program = run("-c", file.path)
    program.event("listening")
    assert [each.stat().st_mode & 0o777 for each in (path, admin)] == [0o600, 0o600]
    text = Path(file.path).read_text()
    Path(file.path).write_text(text.replace(f'unix:{path}"', f'unix:{path}"\nmode = "0660"'))
    program.signal(signal.SIGHUP)
    program.event("reloaded")
    assert [each.stat().st_mode & 0o777 for each in (path, admin)] == [0o660, 0o600]


def test_listeners_can_be_added_and_removed(run: Run, file: File, tmp_path: Path) -> None:
    path, port = tmp_path / "s", free_port()
    file.write(f"unix:{path}", f"127.0.0.1:{port}")
    program = run("-c", file.path)
    assert program.event("listening")["address"] == f"unix:{path}"
    assert program.port() == port
    file.write("[::1]:0", f"127.0.0.1:{port}")
    program.signal(signal.SIGHUP)
    added = program.event("listening")["address"]
    assert added.startswith("[::1]:")
    program.event("reloaded")
    assert not path.exists()
    send(port)
    send(int(added.rpartition(":")[2]), "::1")
    file.write("[::1]:0")
    program.signal(signal.SIGHUP)
    program.event("reloaded")

    def refused() -> bool | None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return None

    eventually(refused, "the end of the listener")


def test_the_log_changes_with_the_file(run: Run, file: File) -> None:
    program = run("-c", file.path)
    port = program.port()
    file.path.write_text(file.path.read_text() + '[log]\nlevel = "debug"\n')
    program.signal(signal.SIGHUP)
    program.event("reloaded")
    send(port)
    program.event("session_opened")  # logged only at debug
