"""SMTP smuggling between segments, through real sockets, at real MTAs.

The content of one message has in it what must not become an end of data, cut where the proxy drops
or keeps back octets, and a whole second transaction after it.  The MTA gets one message.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.interop import peers
from tests.interop.messages import Delivery, brief
from tests.interop.peers import Backend
from tests.interop.stage import configured
from tests.interop.tap import Tap
from tests.interop.wire import Wire
from tests.support.processes import Process, Workplace, eventually, free_port
from tests.support.programs import command, peers_directory, require_root, root_of, unavailable

SENDMAIL = "usr/libexec/sendmail/sendmail"
END = b"\n.\r\n"
CUTS = [
    (b"\r\0", END),
    (b"\r\0\0", END),
    (b"\r", b"\0", END),
    (b"\r\0\n", b".\r\n"),
    (b"\r\0\n.", b"\r\n"),
    (b"\r\0\n.\r", b"\n"),
    (b"\r\n.\0", b"\r\n"),
    (b"\n.", b"\r\n"),
]
SECOND = (
    b"MAIL FROM:<evil@sender.example>\r\nRCPT TO:<victim@rcpt.example>\r\nDATA\r\n"
    b"From: evil@sender.example\r\n\r\nsmuggled\r\n"
)


@contextmanager
def aiosmtpd() -> Iterator[Backend]:
    """Run aiosmtpd: it takes CRLF . CRLF alone for the end of data."""
    port = free_port()
    with Workplace("aiosmtpd") as work:
        mail = work.path / "mail"
        argv = [sys.executable, "-m", "aiosmtpd", "-n", "-l", f"127.0.0.1:{port}"]
        argv += ["-c", "aiosmtpd.handlers.Mailbox", str(mail)]
        with Process(argv, work.path / "printed") as process:
            process.await_greeting(port)
            yield Backend(port, partial(_maildir_files, mail), refuses=False)


_SENDMAIL = """\
V10/Berkeley
Cwmx.example
Djmx.example
Troot
O DaemonPortOptions=Addr=127.0.0.1,Port={port}
O DeliveryMode=queueonly
O QueueDirectory={work}/queue
O PidFile={work}/pid
O HelpFile=/dev/null
O AliasFile
O HostStatusDirectory
O Timeout.ident=0s
O DontProbeInterfaces=True
Scanonify=3
R$*<$*>$*\t$@ $2
Sparse=0
R$*\t$#keep $@ mx $: $1
Mlocal, P=/bin/false, F=DFMlns, A=false
Mprog, P=/bin/false, F=DFMlns, A=false
Mkeep, P=/bin/false, F=DFMnsu, A=false
"""
"""It accepts everything, and leaves it in its queue."""

_WITH_A_NAME = ("unshare", "--uts", "sh", "-c", 'hostname mx.example && exec "$@"', "sh")
"""Sendmail waits a minute for a host name with a dot in it."""


@contextmanager
def sendmail() -> Iterator[Backend]:
    """Run Sendmail: what it has accepted stays in its queue."""
    require_root("Sendmail")
    program = root_of("sendmail-bin", SENDMAIL) / SENDMAIL
    port = free_port()
    with Workplace("sendmail") as work:
        queue = work.directory("queue", mode=0o700)
        file = work.write("sendmail.cf", _SENDMAIL.format(port=port, work=work.path))
        argv = [*_WITH_A_NAME, program, "-bD", "-C", file]
        with Process(argv, work.path / "printed") as process:
            process.await_greeting(port)
            yield Backend(port, partial(_sendmail_queue, queue), refuses=False)


def _sendmail_queue(queue: Path) -> Iterator[Delivery]:
    for file in queue.glob("qf*"):
        octets = file.read_bytes()
        recipients = frozenset(each.decode() for each in re.findall(rb"(?m)^RPFD:<(.*)>$", octets))
        yield Delivery(recipients, octets + (queue / f"df{file.name[2:]}").read_bytes())


_SMTP_SERVER = """\
const {SMTPServer} = require('smtp-server');
const [port, directory] = process.argv.slice(2);
let number = 0;
new SMTPServer({
  authOptional: true, hidePIPELINING: true, hideSTARTTLS: true, disableReverseLookup: true,
  onData(stream, session, done) {
    const chunks = [];
    stream.on('data', chunk => chunks.push(chunk));
    stream.on('end', () => {
      const recipients = session.envelope.rcptTo.map(each => each.address).join(' ');
      const kept = Buffer.concat([Buffer.from(recipients + '\\n'), ...chunks]);
      require('fs').writeFileSync(`${directory}/${number++}`, kept);
      done();
    });
  },
}).listen(Number(port), '127.0.0.1');
"""


@contextmanager
def smtp_server() -> Iterator[Backend]:
    """Run nodemailer's smtp-server, of which many mail catchers are made."""
    port = free_port()
    modules = peers_directory() / "npm/node_modules"
    if not (modules / "smtp-server").exists():
        unavailable("npm package smtp-server is missing (see .ci/install-peers)")
    with Workplace("smtp-server") as work:
        mail = work.directory("mail")
        argv = [command("node", "nodejs"), work.write("server.js", _SMTP_SERVER), str(port), mail]
        with Process(argv, work.path / "printed", env={"NODE_PATH": str(modules)}) as process:
            process.await_greeting(port)
            yield Backend(port, partial(_smtp_server_files, mail), refuses=False)


def _smtp_server_files(directory: Path) -> Iterator[Delivery]:
    for file in directory.iterdir():
        recipients, _, octets = file.read_bytes().partition(b"\n")
        yield Delivery(frozenset(recipients.decode().split()), octets)


def _maildir_files(directory: Path) -> Iterator[Delivery]:
    for file in (directory / "new").glob("*"):
        octets = file.read_bytes()
        (recipients,) = re.findall(rb"(?m)^X-RcptTo: (.*)$", octets)
        yield Delivery(frozenset(recipients.decode().split(", ")), octets)


MTAS: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "aiosmtpd": aiosmtpd,
    "sendmail": sendmail,
    "smtp-server": smtp_server,
    **{name: peers.BACKENDS[name] for name in ("opensmtpd", "exim", "postfix", "smtp-sink-p")},
}


@pytest.mark.parametrize(
    "mta",
    [
        pytest.param(mta, id=name, marks=() if name == "opensmtpd" else pytest.mark.long)
        for name, mta in MTAS.items()
    ],
)
def test_cuts_between_segments_smuggle_nothing(
    mta: Callable[[], AbstractContextManager[Backend]],
) -> None:
    with mta() as backend, Tap(backend.port) as tap:
        with configured("", f'servers = ["127.0.0.1:{tap.port}"]') as (port, _):
            for number, cut in enumerate(CUTS):
                _smuggle(port, backend, tap, number, cut)
        for delivery in backend.kept():
            assert "victim@rcpt.example" not in delivery.recipients


def _smuggle(port: int, backend: Backend, tap: Tap, number: int, cut: tuple[bytes, ...]) -> None:
    message = brief()
    recipient = f"good{number}@rcpt.example"
    with Wire(port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        envelope = (b"MAIL FROM:<sender@sender.example>", f"RCPT TO:<{recipient}>".encode())
        assert wire.ask(*envelope, b"DATA") == [250, 250, 354]
        first, *others = cut
        for octets in (message.octets.rstrip() + first, *others[:-1]):
            wire.send_octets(octets)
            eventually(partial(_is_read, port, wire), "the proxy has read this segment")
        wire.send_octets(others[-1] + SECOND + b".\r\nQUIT\r\n")
        assert wire.replies(2) == [250, 221], cut
        assert wire.rest() == b""
    (connection,) = tap.settled(since=len(tap.connections) - 1)
    at_the_mta = connection.sent().partition(b"DATA\r\n")[2]
    assert at_the_mta.endswith(b"\r\nsmuggled\r\n.\r\nQUIT\r\n"), cut
    assert at_the_mta.count(b"\r\n.\r\n") == 1, cut
    assert backend.find(message).recipients == {recipient}


def _is_read(port: int, wire: Wire) -> bool | None:
    """Return whether the proxy has read all that was sent, from the kernel's socket table."""
    client = int(wire.own_address.rpartition(":")[2])
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        ports = [int(address.rpartition(":")[2], 16) for address in (local, remote)]
        unsent, unread = (int(queue, 16) for queue in queues.split(":"))
        if (ports == [port, client] and unread) or (ports == [client, port] and unsent):
            return None
    return True
