"""Each limit has its reply, its log event and its metric, as a client and an operator see them."""

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually
from tests.support.program import SMTPPROXY, Program
from tests.support.scrape import scrape, total

Run = Callable[..., Program]
TOO_BUSY = b"421 4.3.2 mx.example Error: too busy, try again later\r\n"
TOO_MANY = b"421 4.7.0 mx.example Error: too many connections from your address\r\n"


class Proxy:
    """The program with some limits, and its log lines about them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._admin = program.event("admin_listening")["address"]
        self.port = program.port()

    def counts(self, sample: str, number: int, **labels: str) -> None:
        """Wait until a metric has a value."""

        def look() -> bool | None:
            return total(scrape(self._admin), sample, **labels) == number or None

        eventually(look, f"{sample} is {number}", 15)

    def refused(self, reason: str, clients: int) -> None:
        """Check that clients were refused for a reason."""
        assert self.program.event("clients_refused")["reason"] == reason
        self.counts("clients_refused_total", clients, reason=reason)


class Client:
    """A client that sends what a test gives it."""

    def __init__(self, port: int, header: bytes = b"") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._socket.sendall(header)
        self._replies = self._socket.makefile("rb")
        self.greeting = self.reply()

    def reply(self) -> bytes:
        """Read a reply; return nothing if the connection is closed without one."""
        lines = [self._replies.readline()]
        while lines[-1][3:4] == b"-":
            lines.append(self._replies.readline())
        return b"".join(lines)

    def say(self, *lines: bytes) -> list[bytes]:
        """Send lines in one group; return the replies."""
        self.send(b"".join(line + b"\r\n" for line in lines))
        return [self.reply() for _ in lines]

    def send(self, octets: bytes) -> None:
        self._socket.sendall(octets)

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


@pytest.fixture
def start(mta: LegacyMTA, run: Run, tmp_path: Path) -> Callable[..., Proxy]:
    """Return a function that starts the program with limits."""

    def starts(limits: str, listener: str = "", **options: object) -> Proxy:
        file = tmp_path / "p"
        file.write_text(
            f"""
            hostname = "mx.example"
            [listeners.smtp]
            address = "127.0.0.1:0"
            {listener}
            [backends.old]
            servers = ["{mta.address}"]
            [admin]
            address = "127.0.0.1:0"
            [limits]
            {limits}
            """
        )
        return Proxy(run("-c", file, **options))

    return starts


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    with ExitStack() as stack:

        def connects(port: int, header: bytes = b"") -> Client:
            client = Client(port, header)
            stack.callback(client.close)
            return client

        yield connects


Start = Callable[..., Proxy]
Connect = Callable[..., Client]


def from_(address: str) -> bytes:
    family = "TCP6" if ":" in address else "TCP4"
    here = "2001:db8::9" if ":" in address else "192.0.2.9"
    return f"PROXY {family} {address} {here} 4711 25\r\n".encode()


BEHIND_A_BALANCER = 'proxy_protocol = ["127.0.0.0/8"]'


def test_sessions(start: Start, connect: Connect) -> None:
    proxy = start("sessions = 2")
    served = [connect(proxy.port) for _ in range(2)]
    assert [connect(proxy.port).greeting for _ in range(3)] == [TOO_BUSY] * 3
    assert [client.say(b"NOOP")[0][:3] for client in served] == [b"250"] * 2
    proxy.refused("sessions", 3)


def test_sessions_of_an_address(start: Start, connect: Connect) -> None:
    proxy = start('sessions_per_address = 1\nexempt = ["198.51.100.0/24"]', BEHIND_A_BALANCER)
    assert connect(proxy.port, from_("192.0.2.1")).greeting.startswith(b"220")
    assert connect(proxy.port, from_("192.0.2.1")).greeting == TOO_MANY
    assert connect(proxy.port, from_("192.0.2.2")).greeting.startswith(b"220")
    # An IPv6 network of 64 bits is one address.
    assert connect(proxy.port, from_("2001:db8::1")).greeting.startswith(b"220")
    assert connect(proxy.port, from_("2001:db8::ffff:2")).greeting == TOO_MANY
    assert connect(proxy.port, from_("2001:db8:0:1::1")).greeting.startswith(b"220")
    for _ in range(3):
        assert connect(proxy.port, from_("198.51.100.7")).greeting.startswith(b"220")
    proxy.refused("sessions_per_address", 2)


def test_new_sessions_in_a_minute(start: Start, connect: Connect) -> None:
    proxy = start("new_sessions_per_minute = 2\nexempt = []")
    for _ in range(2):
        client = connect(proxy.port)
        assert client.say(b"QUIT")[0].startswith(b"221")
        client.close()
    assert connect(proxy.port).greeting == TOO_MANY
    proxy.refused("new_sessions_per_minute", 1)


def test_loopback_is_exempt_by_default(start: Start, connect: Connect) -> None:
    proxy = start("sessions_per_address = 1\nnew_sessions_per_minute = 1")
    assert [connect(proxy.port).greeting[:3] for _ in range(3)] == [b"220"] * 3


def test_a_lagging_event_loop(start: Start, connect: Connect) -> None:
    proxy = start("event_loop_lag = 2")
    served = connect(proxy.port)
    (worker,) = proxy.program.workers()
    os.kill(worker, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        time.sleep(3)  # longer than the limit, and a tick of the measurement
        os.kill(worker, signal.SIGCONT)
        assert client.recv(100) == TOO_BUSY
    assert served.say(b"NOOP")[0].startswith(b"250")
    proxy.refused("event_loop_lag", 1)
    eventually(lambda: connect(proxy.port).greeting[:3] == b"220" or None, "it has caught up")


def test_commands_in_a_second(start: Start, connect: Connect) -> None:
    proxy = start("commands_per_second = 20")
    client = connect(proxy.port)
    client.say(b"EHLO c")
    before = time.monotonic()
    for number in (45, 5):  # at 20 a second, but for the first second's, the others come later
        assert [reply[:3] for reply in client.say(*[b"RSET"] * number)] == [b"250"] * number
    assert time.monotonic() - before > 1
    assert proxy.program.event("client_slowed")["client_ip"] == "127.0.0.1"
    proxy.counts("clients_slowed_total", 1)


def test_errors(start: Start, connect: Connect) -> None:
    proxy = start("consecutive_errors = 2")
    client = connect(proxy.port)
    said = client.say(b"TURN", b"TURN", b"TURN")
    assert [reply[:3] for reply in said] == [b"502"] * 3
    assert client.reply() == b"421 4.7.0 mx.example Error: too many errors\r\n"
    assert client.reply() == b""
    reported = proxy.program.event("limit_reached")
    assert reported["limit"] == "consecutive_errors"
    assert proxy.program.event("session_closed")["reason"] == "too_many_errors"
    proxy.counts("limits_reached_total", 1, limit="consecutive_errors")


def test_recipients(start: Start, connect: Connect) -> None:
    proxy = start("recipients = 2")
    client = connect(proxy.port)
    client.say(b"EHLO c")
    group = [b"RCPT TO:<%d@example.org>" % each for each in range(4)]
    said = client.say(b"MAIL FROM:<a@example.org>", *group, b"DATA")
    assert [reply[:3] for reply in said] == [b"250"] * 3 + [b"452"] * 2 + [b"354"]
    assert said[3] == b"452 4.5.3 Error: too many recipients\r\n"
    client.send(b"Subject: x\r\n\r\ntext\r\n.\r\n")
    assert client.reply().startswith(b"250")
    reported = proxy.program.event("limit_reached")
    assert (reported["limit"], reported["command"]) == ("recipients", "RCPT TO:<2@example.org>")
    proxy.counts("limits_reached_total", 2, limit="recipients")
    events = [line["event"] for line in proxy.program.log()]
    assert events.count("limit_reached") == 1  # for each limit of a session


def test_size_is_lowered_and_a_mail_that_declares_more_is_refused(
    start: Start, connect: Connect
) -> None:
    proxy = start("message_bytes = 100")
    client = connect(proxy.port)
    assert b"SIZE 100\r\n" in client.say(b"EHLO c")[0]
    refused, taken = client.say(b"MAIL FROM:<a@b.c> SIZE=101", b"MAIL FROM:<a@b.c> SIZE=100")
    assert (refused, taken[:3]) == (b"552 5.3.4 Error: message too big\r\n", b"250")
    assert proxy.program.event("limit_reached")["limit"] == "message_bytes"
    proxy.counts("limits_reached_total", 1, limit="message_bytes")


def test_a_message_that_is_too_big_is_refused_at_its_end(
    start: Start, connect: Connect, mta: LegacyMTA
) -> None:
    proxy = start("message_bytes = 100")
    client = connect(proxy.port)
    client.say(b"EHLO c")
    said = client.say(b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.org>", b"DATA")
    assert said[-1].startswith(b"354")
    client.send(b"x" * 70 + b"\r\n")
    client.send(b"x" * 70 + b"\r\n.\r\nNOOP\r\n")
    assert client.reply() == b"552 5.3.4 Error: message too big\r\n"
    assert client.reply() == b""
    assert mta.messages == []
    reported = proxy.program.event("limit_reached")
    assert reported["limit"] == "message_bytes"
    proxy.counts("limits_reached_total", 1, limit="message_bytes")


def test_a_client_that_only_arrives_takes_descriptors_too(start: Start, connect: Connect) -> None:
    script = ("bash", "-c", 'ulimit -n 96; exec "$@"', "bash", *SMTPPROXY)
    proxy = start("", BEHIND_A_BALANCER, argv=script)
    served = connect(proxy.port, from_("192.0.2.1"))
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=20))
            for _ in range(70)
        ]
        assert silent[-1].recv(100) == TOO_BUSY
        assert served.say(b"NOOP")[0].startswith(b"250")
    assert proxy.program.event("clients_refused")["reason"] == "file_descriptors"
    eventually(
        lambda: connect(proxy.port, from_("192.0.2.1")).greeting[:3] == b"220" or None, "a place"
    )


def test_without_any_descriptor_clients_wait_and_nothing_spins(
    start: Start, connect: Connect
) -> None:
    proxy = start("")
    served = connect(proxy.port)
    (worker,) = proxy.program.workers()
    soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (8, hard))
    proxy.refused("file_descriptors", 1)
    greeted: list[bytes] = []
    waits = threading.Thread(target=lambda: greeted.append(connect(proxy.port).greeting))
    waits.start()
    before = _cpu_ticks(worker)
    waits.join(1)
    assert served.say(b"NOOP")[0].startswith(b"250")
    assert _cpu_ticks(worker) - before < 20  # of a hundred
    assert greeted == []
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
    waits.join(20)
    assert greeted[0].startswith(b"220")


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
