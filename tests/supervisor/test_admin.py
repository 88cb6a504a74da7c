"""The admin address: reloads, crashed workers, servers that go down, and the end."""

import http.client
import os
import re
import signal
import smtplib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually, free_port
from tests.support.program import Program, send
from tests.support.scrape import scrape, total

Run = Callable[..., Program]
TOKEN = "0123456789abcdef"
OTHER_TOKEN = "fedcba9876543210"


class File:
    """A settings file that can be rewritten."""

    def __init__(self, path: Path, mta: LegacyMTA) -> None:
        self.path = path
        self.server = mta.address

    def write(self, admin: str, more: str = "") -> Path:
        self.path.write_text(
            '[listeners.smtp]\naddress = "127.0.0.1:0"\n'
            f'[backends.old]\nservers = ["{self.server}"]\n'
            f"{more}\n[admin]\n{admin}\n"
        )
        return self.path


@pytest.fixture
def file(tmp_path: Path, mta: LegacyMTA) -> File:
    return File(tmp_path / "p.toml", mta)


def ask(address: str, path: str, token: str = "") -> tuple[int, str]:
    """Return the status and the text."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as response:
            return response.status, response.read().decode()


def snapshot(address: str) -> dict[str, float]:
    """Return the values of /metrics, without the label that each has."""
    _, text = ask(address, "/metrics")
    text = re.sub(r'(,)?smtpproxy_instance="[^"]*"(?(1)|,?)', "", text).replace("{}", "")
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(number) for name, _, number in samples}


class TestReload:
    def test_the_address_moves_and_viewers_are_disconnected(self, run: Run, file: File) -> None:
        old = f"127.0.0.1:{free_port()}"
        program = run("-c", file.write(f'address = "{old}"'))
        assert program.event("admin_listening")["address"] == old
        program.port()
        viewer = http.client.HTTPConnection(old, timeout=10)
        viewer.request("GET", "/events")
        events = viewer.getresponse()
        file.write('address = "[::1]:0"')
        program.signal(signal.SIGHUP)
        new = program.event("admin_listening")["address"]
        program.event("reloaded")
        assert ask(new, "/readyz") == (200, "ready\n")
        with closing(viewer), events:
            assert events.read().startswith(b"data: "), "an event, and then the end"
        with pytest.raises(ConnectionRefusedError):
            ask(old, "/readyz")

    def test_a_new_token_applies_at_once(self, run: Run, file: File) -> None:
        program = run("-c", file.write(f'address = "127.0.0.1:0"\ntoken = "{TOKEN}"'))
        address = program.event("admin_listening")["address"]
        assert ask(address, "/metrics", TOKEN)[0] == 200
        file.write(f'address = "127.0.0.1:0"\ntoken = "{OTHER_TOKEN}"')
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        assert ask(address, "/metrics", TOKEN)[0] == 401
        assert ask(address, "/metrics", OTHER_TOKEN)[0] == 200

    def test_a_token_file_is_read_again_and_a_bad_one_changes_nothing(
        self, run: Run, file: File, tmp_path: Path
    ) -> None:
        secret = tmp_path / "token"
        secret.touch(0o600)
        secret.write_text(f"{TOKEN}\n")
        program = run("-c", file.write(f'address = "127.0.0.1:0"\ntoken_file = "{secret}"'))
        address = program.event("admin_listening")["address"]
        assert ask(address, "/metrics", TOKEN)[0] == 200
        secret.write_text(f"{OTHER_TOKEN}\n")
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        assert ask(address, "/metrics", TOKEN)[0] == 401
        secret.chmod(0o604)
        program.signal(signal.SIGHUP)
        (problem,) = program.event("reload_failed")["problems"]
        assert "admin.token_file: has the mode 0604" in problem
        assert ask(address, "/metrics", OTHER_TOKEN)[0] == 200

    def test_an_address_that_cannot_be_bound_changes_nothing(self, run: Run, file: File) -> None:
        program = run("-c", file.write('address = "127.0.0.1:0"'))
        address = program.event("admin_listening")["address"]
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = f"127.0.0.1:{other.getsockname()[1]}"
            file.write(f'address = "{taken}"')
            program.signal(signal.SIGHUP)
            assert program.event("cannot_listen")["address"] == taken
            program.event("reload_failed")
        assert snapshot(address)["smtpproxy_config_last_reload_successful"] == 0
        file.write('address = "127.0.0.1:0"')
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        assert snapshot(address)["smtpproxy_config_last_reload_successful"] == 1

    def test_it_can_be_added_and_removed(self, run: Run, file: File, tmp_path: Path) -> None:
        program = run("-c", file.write(""))
        port = program.port()
        path = tmp_path / "admin"
        file.write(f'address = "unix:{path}"')
        program.signal(signal.SIGHUP)
        assert program.event("admin_listening")["address"] == f"unix:{path}"
        program.event("reloaded")
        send(port)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.0 200"
        file.write("")
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        assert not path.exists()


class Choosy(socketserver.StreamRequestHandler):
    """An MTA that gets clients' addresses by a PROXY header, and refuses one client."""

    def handle(self) -> None:
        _, _, host, *_ = self.rfile.readline().split()
        if host == b"127.0.0.9":
            self.wfile.write(b"450 not you\r\n")
            return
        self.wfile.write(b"220 mx\r\n")
        for line in self.rfile:
            self.wfile.write(b"221 mx\r\n" if line.startswith(b"QUIT") else b"250 mx\r\n")


@pytest.fixture
def choosy() -> Iterator[str]:
    """The address of a choosy MTA."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Choosy) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


class TestCounters:
    def test_no_count_is_lost_or_decreases_when_workers_change(
        self, mta: LegacyMTA, run: Run, file: File
    ) -> None:
        program = run("-c", file.write('address = "127.0.0.1:0"'), "-w", "2")
        address = program.event("admin_listening")["address"]
        port = program.port()
        seen: dict[str, float] = {}

        def relayed() -> float:
            """Check that no counter has decreased, and return the number of relayed messages."""
            now = snapshot(address)
            for name, number in seen.items():
                if re.match(r"smtpproxy_\w+_(total|bucket|sum|count)\b", name):
                    assert now.get(name, 0) >= number, name
            seen.update(now)
            return total(scrape(address), "messages_total", outcome="relayed") or 0

        for _ in range(6):
            send(port)
        eventually(lambda: relayed() == 6 or None, "six messages")
        for worker in program.workers():
            os.kill(worker, signal.SIGKILL)
            program.event("worker_lost")
            assert relayed() == 6
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        for _ in range(6):
            send(port)
        eventually(lambda: relayed() == 12 or None, "twelve messages")
        eventually(lambda: len(program.workers()) == 2 or None, "the end of the old workers")
        program.signal(signal.SIGHUP)
        program.event("reloaded")
        eventually(lambda: len(program.workers()) == 2 or None, "the end of the old workers")
        assert relayed() == 12
        assert len(mta.messages) == 12
        assert seen["smtpproxy_workers_lost_total"] == 2

    def test_each_worker_reports_its_usage(self, run: Run, file: File) -> None:
        program = run("-c", file.write('address = "127.0.0.1:0"'), "-w", "2")
        address = program.event("admin_listening")["address"]
        program.port()
        found = snapshot(address)
        for worker, pid in enumerate(sorted(program.workers())):
            label = f'{{worker="{worker}"}}'
            fds = len([*Path(f"/proc/{pid}/fd").iterdir()])
            assert abs(found[f"smtpproxy_worker_open_fds{label}"] - fds) <= 3
            assert 10e6 < found[f"smtpproxy_worker_resident_memory_bytes{label}"] < 500e6
            assert 0 < found[f"smtpproxy_worker_cpu_seconds_total{label}"] < 60
            assert 0 <= found[f"smtpproxy_worker_event_loop_lag_seconds{label}"] < 10

    def test_each_is_explained(self, run: Run, file: File) -> None:
        program = run("-c", file.write('address = "127.0.0.1:0"', "max_connections = 3"))
        address = program.event("admin_listening")["address"]
        send(program.port())
        _, text = ask(address, "/metrics")
        texts = re.findall(r"(?m)^# HELP (smtpproxy_\w+) ?(.*)$", text)
        assert len(texts) > 20
        assert [name for name, reported in texts if not reported] == []


class TestReadiness:
    def test_not_ready_without_a_server_and_ready_again_without_traffic(
        self, run: Run, file: File
    ) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            file.server = f"127.0.0.1:{server.getsockname()[1]}"
            program = run("-c", file.write('address = "127.0.0.1:0"', "retry_after = 0.1"))
            address = program.event("admin_listening")["address"]
            assert program.event("server_down")["server"] == file.server
            assert ask(address, "/readyz") == (503, "not ready: no server of old is up\n")
            assert ask(address, "/healthz") == (200, "ok\n")
            server.listen()
            for reply in (b"220 mx\r\n", b"250 mx\r\n", b"221 mx\r\n"):
                if reply.startswith(b"220"):
                    connection, _ = server.accept()
                else:
                    connection.recv(1000)
                connection.sendall(reply)
            assert program.event("server_up")["server"] == file.server
            assert ask(address, "/readyz") == (200, "ready\n")
            connection.close()

    @pytest.mark.parametrize(("ready", "status"), [("all", 503), ("any", 200)])
    def test_a_setting_decides_whether_every_backend_is_needed(
        self, run: Run, file: File, ready: str, status: int
    ) -> None:
        """A backend that no listener names is not needed."""
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            more = "".join(
                f'[backends.{name}]\nservers = ["127.0.0.1:{nobody.getsockname()[1]}"]\n'
                for name in ("gone", "spare")
            )
            more += '[listeners.other]\naddress = "127.0.0.1:0"\nbackend = "gone"\n'
            file.write(f'address = "127.0.0.1:0"\nready = "{ready}"', more)
            text = file.path.read_text().replace(
                "[backends.old]", 'backend = "old"\n[backends.old]'
            )
            file.path.write_text(text)
            program = run("-c", file.path)
            address = program.event("admin_listening")["address"]
            eventually(lambda: ask(address, "/readyz")[0] == status or None, "the checks")
            if status == 503:
                assert ask(address, "/readyz")[1] == "not ready: no server of gone is up\n"
            assert ask(address, "/readyz/old") == (200, "ready\n")
            assert ask(address, "/readyz/spare")[0] == 503
            assert ask(address, "/readyz/none")[0] == 404

    def test_one_client_that_the_mta_refuses_changes_nothing(
        self, run: Run, file: File, choosy: str
    ) -> None:
        file.server = choosy
        program = run("-c", file.write('address = "127.0.0.1:0"', 'identity = "proxy-v1"'))
        address = program.event("admin_listening")["address"]
        proxy = ("127.0.0.1", program.port())
        for _ in range(3):
            with socket.create_connection(proxy, 10, ("127.0.0.9", 0)) as unwanted:
                assert unwanted.makefile("rb").read() == b"450 not you\r\n"
            given_up = program.event("server_given_up")
            assert given_up["client_ip"] == "127.0.0.9"
            assert given_up["reason"] == "greeted with 450"
            assert ask(address, "/readyz") == (200, "ready\n")
        with socket.create_connection(proxy, 10) as wanted:
            assert wanted.recv(100) == b"220 mx\r\n"
        program.signal(signal.SIGTERM)
        assert program.wait() == 0
        assert "server_down" not in [fields["event"] for fields in program.log()]

    def test_not_ready_and_still_answering_while_it_drains(self, run: Run, file: File) -> None:
        program = run("-c", file.write('address = "127.0.0.1:0"'))
        address = program.event("admin_listening")["address"]
        with smtplib.SMTP("127.0.0.1", program.port(), timeout=10) as client:
            client.ehlo()
            client.mail("a@example.org")  # in a transaction: the drain waits for it
            program.signal(signal.SIGTERM)
            program.event("draining")
            assert ask(address, "/readyz") == (503, "not ready: draining\n")
            assert ask(address, "/healthz") == (200, "ok\n")
            client.close()
        assert program.wait() == 0

    def test_not_ready_without_a_worker(self, run: Run, file: File) -> None:
        program = run("-c", file.write('address = "127.0.0.1:0"'))
        address = program.event("admin_listening")["address"]
        program.port()
        answers = []
        for _ in range(3):  # each later one is replaced a little later
            (worker,) = program.workers()
            os.kill(worker, signal.SIGKILL)
            program.event("worker_lost")
            answers.append(ask(address, "/readyz"))
            eventually(lambda: ask(address, "/readyz")[0] == 200 or None, "a new worker")
        assert answers[-1] == (503, "not ready: no worker is ready\n")
