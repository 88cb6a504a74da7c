"""A real Exim as an early client: what it sends before the greeting, and what it saves."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

from tests.bench.native import CannotBuildError, build
from tests.interop.clients import Mail, SmtpTarget
from tests.interop.dialogue import assert_lock_step, verb_groups
from tests.interop.messages import brief, recipients
from tests.interop.mta_clients import QueueingExim
from tests.interop.networks import MTA, networks
from tests.interop.peers import BACKENDS, Backend, opensmtpd
from tests.interop.stage import configured
from tests.interop.tap import Connection, Tap
from tests.support.processes import PreloadedProcess, Process, Workplace, eventually, free_port
from tests.support.programs import unavailable

RTT_S = 0.1
ENVELOPE = [b"MAIL", b"RCPT", b"RCPT", b"RCPT"]


@contextmanager
def far_away(port: int) -> Iterator[int]:
    """Put a link with a round trip of RTT_S before a port; yield the port of its other end."""
    try:
        relay = build() / "delayrelay"
    except CannotBuildError as error:
        unavailable(str(error))
    far = free_port()
    ends = ("--listen", f"127.0.0.1:{far}", "--target", f"127.0.0.1:{port}")
    argv = (str(relay), *ends, "--delay-ms", f"{RTT_S * 500:g}")
    with Workplace("relay") as work, Process(argv, work.path / "relay") as process:
        process.await_open(far)
        yield far


@contextmanager
def proxy_before(mta: Backend, listener: str = "") -> Iterator[tuple[int, Tap]]:
    """Run the proxy with early pipelining; yield its port, and the tap between it and the MTA."""
    listener = f"early_pipelining = true\n{listener}"
    with Tap(mta.port) as tap:
        backend = f'servers = ["127.0.0.1:{tap.port}"]'
        with configured(listener, backend) as (port, _):
            yield port, tap


def waits(connection: Connection) -> int:
    """Return how often the client waited: sent something, and was then sent something."""
    senders = [chunk.from_client for chunk in connection.chunks if chunk.octets]
    turns = sum(mine and not following for mine, following in pairwise(senders))
    return turns + (not senders[0])  # the greeting


def duration(connection: Connection) -> float:
    """Return how long the session took, to the last reply."""
    at = [chunk.at for chunk in connection.chunks if chunk.octets]
    return at[-1] - connection.opened_at


def test_exim_needs_two_waits_for_a_message_from_the_second_on() -> None:
    """And at least 0.3 s for it, if the round trip takes 0.1 s; the first message has four."""
    with (
        BACKENDS["opensmtpd"]() as mta,
        proxy_before(mta) as (port, tap),
        far_away(port) as far,
        Tap(far) as front,
        QueueingExim(SmtpTarget(front.port)) as exim,
    ):
        mails = [Mail(brief(b"%d" % number), recipients(3)) for number in range(3)]
        for mail in mails:
            result = exim.send(mail)
            assert result.sent, result.output
            assert mta.find(mail.message).recipients == set(mail.recipients)
        priming, *early = front.settled()
        assert waits(priming) == 4
        assert verb_groups(priming)[:2] == [[b"EHLO"], [*ENVELOPE, b"DATA"]]
        assert b"\r\n250 PIPECONNECT\r\n" in priming.answered()
        for connection in early:
            assert waits(connection) == 2
            assert verb_groups(connection)[0] == [b"EHLO", *ENVELOPE, b"DATA"]
            assert duration(connection) >= 3 * RTT_S
        for connection in tap.settled():
            assert_lock_step(connection)


def test_exim_sends_starttls_with_its_ehlo_and_a_group_inside_tls(keys: Path) -> None:
    """The tap in front sees EHLO and STARTTLS in one group; the rest is in the proxy's log."""
    certificate = f'tls = "starttls"\ncertificate = "{keys}/mx.pem"'
    with (
        BACKENDS["opensmtpd"]() as mta,
        proxy_before(mta, certificate) as (port, tap),
        Tap(port, reply_delay_s=0.03) as front,
        QueueingExim(SmtpTarget(front.port, "starttls", keys / "ca.pem")) as exim,
    ):
        for number in range(2):
            mail = Mail(brief(b"%d" % number), recipients(3))
            result = exim.send(mail)
            assert result.sent, result.output
            assert mta.find(mail.message).recipients == set(mail.recipients)
        priming, early = front.settled()
        assert verb_groups(priming)[:2] == [[b"EHLO"], [b"STARTTLS"]]
        assert verb_groups(early)[0] == [b"EHLO", b"STARTTLS"]
        assert waits(early) < waits(priming) - 1
        for connection in tap.settled():
            assert_lock_step(connection)


def test_of_an_mta_that_lost_chunking_exim_learns_in_time_and_loses_no_message() -> None:
    """It sends BDAT early, by the offer that it remembers; the MTA sees nothing of it."""
    with ExitStack() as stack:
        before = stack.enter_context(BACKENDS["exim-chunking"]())
        now = stack.enter_context(BACKENDS["opensmtpd"]())
        first, _ = stack.enter_context(proxy_before(before))
        second, tap = stack.enter_context(proxy_before(now))
        front = stack.enter_context(Tap(first, reply_delay_s=0.03))
        exim = stack.enter_context(QueueingExim(SmtpTarget(front.port)))
        priming = Mail(brief(b"first"), recipients(3))
        assert exim.send(priming).sent
        front.target_port = second
        mail = Mail(brief(b"MAIL FROM:<smuggled@evil.example>"), recipients(3))
        exim.queue(mail)
        eventually(lambda: " == good0@" in exim.log() or None, "the deferral in Exim's log")
        assert not now.has(mail.message)
        assert "451 4.5.1 Error: BDAT is not available now" in exim.log()
        result = exim.retry(mail)
        assert result.sent, result.output
        assert now.find(mail.message).recipients == set(mail.recipients)
        early = front.settled()[1]
        assert verb_groups(early)[0][:6] == [b"EHLO", *ENVELOPE, b"BDAT"]
        for connection in tap.settled():
            assert b"BDAT" not in connection.sent()
            assert_lock_step(connection)
        assert b"smuggled" not in tap.connections[0].sent()


_IN_THE_SYN = """
import socket, sys
for _ in range(2):  # the first one gets the cookie (RFC 7413 section 3)
    with socket.socket() as client:
        group = "\\r\\n".join(sys.argv[2:] + [""]).encode()
        client.sendto(group, socket.MSG_FASTOPEN, (sys.argv[1], 25))
        while octets := client.recv(65536):
            sys.stdout.write(octets.decode())
"""


def test_a_group_in_the_syn_is_served() -> None:
    """TCP Fast Open, in namespaces: the proxy's kernel counts the connections with data."""
    with (
        networks("early") as row,
        opensmtpd(listen=(MTA,), machine=row.mta),
        Workplace("settings") as work,
    ):
        row.proxy.run("sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
        settings = work.write(
            "smtpproxy.toml",
            '[listeners.smtp]\naddress = "10.91.1.1:25"\nearly_pipelining = true\n'
            f'[backends.mta]\nservers = ["{MTA}:25"]\n',
        )
        argv = ("run", "-c", settings)
        with PreloadedProcess(argv, work.path / "log", network=row.proxy.network):
            row.proxy.await_listening(25)
            group = ("EHLO client.example", "MAIL FROM:<a@sender.example>", "QUIT")
            printed = row.client.run("python3", "-c", _IN_THE_SYN, "10.91.1.1", *group)
            assert re.findall(r"^(\d+) ", printed, re.MULTILINE) == ["220", "250", "250", "221"] * 2
            names, values = re.findall(
                r"^TcpExt: (.*)$", row.proxy.run("cat", "/proc/net/netstat"), re.MULTILINE
            )
            counted = dict(zip(names.split(), values.split(), strict=True))
            assert counted["TCPFastOpenPassive"] == "1"
