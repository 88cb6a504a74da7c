"""The backends: real MTAs without PIPELINING, each with a port and a directory of its own.

All accept mail for `*@rcpt.example`, and all but smtp-sink refuse `bad*@rcpt.example` with 550.
None looks up a name, limits a rate or sends anything on: each keeps its messages where `find` reads
them.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tests.interop.exim import ACCOUNT, Exim
from tests.interop.jail import Jail
from tests.interop.messages import Delivery, Message
from tests.interop.networks import Machine
from tests.interop.postfix import Postfix, programs_environment
from tests.support.processes import Process, Workplace, eventually, free_port
from tests.support.programs import require_root, root_of


@dataclass(frozen=True)
class Backend:
    """A running MTA; `kept` yields every message that it has kept so far."""

    port: int
    kept: Callable[[], Iterable[Delivery]]
    refuses: bool = True  # does it refuse bad*@rcpt.example?
    printed: Callable[[], str] = str  # its log so far, where a test reads it

    def find(self, message: Message) -> Delivery:
        """Wait until this message has been kept and return it; fail if it is there twice."""
        return eventually(partial(self._look_for, message), f"message {message.token}")

    def has(self, message: Message) -> bool:
        """Return whether this message has been stored by now."""
        return self._look_for(message) is not None

    def _look_for(self, message: Message) -> Delivery | None:
        token = message.token.encode()
        found = [delivery for delivery in self.kept() if token in delivery.kept[:16384]]
        assert len(found) < 2, f"message {message.token} was delivered {len(found)} times"
        return found[0] if found else None


_OPENSMTPD = """\
smtp max-message-size "64M"
smtp limit max-rcpt 1000
smtp limit max-mails 1000
{listeners}
action keep relay host smtp://127.0.0.1:9
match from any for any rcpt-to regex "^bad" reject
match from any for any action keep
"""


@contextmanager
def opensmtpd(
    listen: Sequence[str] = ("127.0.0.1",), machine: Machine | None = None
) -> Iterator[Backend]:
    """Run OpenSMTPD: it lacks PIPELINING, and answers a client that pipelines with 500 and a close.

    Its paths are compiled in, so it runs in a jail. Its delivery side is paused: messages stay in
    the queue, as plain text. On a machine of its own it listens at port 25.
    """
    require_root("OpenSMTPD")
    root = root_of("opensmtpd", "usr/sbin/smtpd")
    programs = ("usr/sbin/smtpd", "usr/sbin/smtpctl")
    jail = Jail("opensmtpd", root, programs, ("opensmtpd", "opensmtpq"))
    for directory in ("var/lib/opensmtpd/empty", "var/run", "tmp"):
        jail.work.directory(directory)
    jail.work.directory("var/spool/smtpd", mode=0o711)
    port = 25 if machine else free_port()
    listeners = [f"listen on {each} port {port} hostname mx.example" for each in listen]
    jail.work.write("etc/smtpd.conf", _OPENSMTPD.format(listeners="\n".join(listeners)))
    argv = jail.argv("/usr/sbin/smtpd", "-d", "-P", "mda", "-P", "mta")
    argv = [*(machine.inside if machine else ()), *argv]
    with jail.work, Process(argv, jail.path / "printed") as process:
        if machine:
            machine.await_listening(port)
        else:
            process.await_greeting(port)
        queue = jail.path / "var/spool/smtpd/queue"
        yield Backend(port, partial(_opensmtpd_queue, queue), printed=process.printed)


def _opensmtpd_queue(queue: Path) -> Iterator[Delivery]:
    # a message's directory is moved here whole, once the message has been accepted
    for directory in queue.glob("*/*"):
        envelopes = directory.glob(f"{directory.name}*")
        recipients = frozenset(map(_opensmtpd_recipient, envelopes))
        yield Delivery(recipients, (directory / "message").read_bytes())


def _opensmtpd_recipient(envelope: Path) -> str:
    fields = dict(line.split(": ", 1) for line in envelope.read_text().splitlines())
    return fields["rcpt"]


# A delivery agent that keeps the recipients, an empty line and the message in one file.
_KEEP = """\
#!/bin/sh
# keep DIRECTORY RECIPIENT...
directory=$1
shift
file=$(mktemp "$directory/.XXXXXXXXXX") || exit 75
{ printf '%s\\n' "$@"; echo; cat; } >"$file" && mv "$file" "$directory/${file##*/.}"
"""


def _add_agent(work: Workplace, account: str) -> Path:
    """Put the agent into a workplace, and return the directory that it will deliver to."""
    work.write("keep", _KEEP, 0o755)
    return work.directory("mail", account)


def _agents_files(directory: Path) -> Iterator[Delivery]:
    for file in directory.glob("[!.]*"):
        envelope, _, octets = file.read_bytes().partition(b"\n\n")
        yield Delivery(frozenset(envelope.decode().split("\n")), octets)


_EXIM = """\
primary_hostname = mx.example
daemon_smtp_ports = {port}
pipelining_advertise_hosts =
chunking_advertise_hosts = {chunking}
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
acl_smtp_rcpt = rcpt
{tls}
begin acl
rcpt:
  {insist}
  deny message = no such recipient: $local_part@$domain
       local_parts = ^bad
  accept
begin routers
keep:
  driver = accept
  transport = keep
begin transports
keep:
  driver = pipe
  command = @work@/keep @work@/mail $pipe_addresses
  path = /usr/bin:/bin
  batch_max = 10000
  message_prefix =
  message_suffix =
  user = Debian-exim
"""


_EXIM_TLS = """\
tls_advertise_hosts = *
tls_certificate = @work@/mx.pem
"""


@contextmanager
def exim(*, chunking: bool, keys: Path | None = None, priorities: str = "") -> Iterator[Backend]:
    """Run Exim without PIPELINING, with or without CHUNKING; with keys it insists on STARTTLS.

    Its TLS is that of GnuTLS; `priorities` are those of versions, ciphers and extensions.
    """
    port = free_port()
    tls = _EXIM_TLS if keys else "tls_advertise_hosts ="
    tls += f"\ntls_require_ciphers = {priorities}" if priorities else ""
    insist = "deny !encrypted = *" if keys else ""
    offered = "*" if chunking else ""
    program = Exim(_EXIM.format(port=port, chunking=offered, tls=tls, insist=insist))
    if keys:
        pem = program.work.write("mx.pem", (keys / "mx.pem").read_text(), 0o600)
        shutil.chown(pem, ACCOUNT)
    mail = _add_agent(program.work, ACCOUNT)
    printed = program.work.path / "printed"
    with program.work, Process((*program.argv, "-bdf"), printed, user=ACCOUNT) as process:
        process.await_greeting(port)
        yield Backend(port, partial(_agents_files, mail))


_POSTFIX = {
    "myhostname": "mx.example",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "default_transport": "keep",
    "keep_destination_recipient_limit": "10000",
    "smtpd_discard_ehlo_keywords": "pipelining",
    "smtpd_peername_lookup": "no",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "smtpd_recipient_restrictions": (
        "check_recipient_access regexp:@work@/refused, permit_mynetworks, reject"
    ),
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "10000",
    "smtpd_hard_error_limit": "10000",
    "smtpd_junk_command_limit": "10000",
    "smtpd_client_connection_count_limit": "0",
}


@contextmanager
def postfix(settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Backend]:
    """Run Postfix's smtpd with PIPELINING switched off; it offers CHUNKING, too."""
    port = free_port()
    services = (
        f"127.0.0.1:{port} inet n - n - - smtpd\n"
        "keep unix - n n - - pipe user=nobody argv=@work@/keep @work@/mail ${recipient}\n"
    )
    program = Postfix({**_POSTFIX, **settings}, services)
    program.work.write("refused", "/^bad/ 550 5.1.1 no such recipient\n")
    mail = _add_agent(program.work, "nobody")
    with program:
        if "smtpd_upstream_proxy_protocol" in settings:
            program.process.await_open(port)
        else:
            program.process.await_greeting(port)
        yield Backend(port, partial(_agents_files, mail), printed=program.log)


_POSTSCREEN = {
    "postscreen_upstream_proxy_protocol": "haproxy",
    "postscreen_access_list": "permit_mynetworks",
    "postscreen_cache_map": "btree:@work@/data/postscreen_cache",
    "postscreen_greet_wait": "1s",
    "postscreen_greet_banner": "mx.example wait",
    "postscreen_greet_action": "enforce",
    "relay_domains": "rcpt.example",
    "relay_transport": "keep",
    "smtpd_relay_restrictions": "reject_unauth_destination",
    "smtpd_recipient_restrictions": "reject_unauth_destination",
    **{
        f"postscreen_{each}": value
        for test in ("pipelining", "non_smtp_command", "bare_newline")
        for each, value in ((f"{test}_enable", "yes"), (f"{test}_action", "enforce"))
    },
}


@contextmanager
def postscreen() -> Iterator[Backend]:
    """Run Postfix after its postscreen, with all tests of the protocol, and PROXY headers owed.

    A client that passes gets 450, and is let through when it comes back; its own networks (where
    the proxy is) are not tested.
    """
    port = free_port()
    services = (
        f"127.0.0.1:{port} inet n - n - 1 postscreen\n"
        "smtpd pass - - n - - smtpd\n"
        "dnsblog unix - - n - 0 dnsblog\n"
        "tlsproxy unix - - n - 0 tlsproxy\n"
        "keep unix - n n - - pipe user=nobody argv=@work@/keep @work@/mail ${recipient}\n"
    )
    program = Postfix({**_POSTFIX, **_POSTSCREEN}, services)
    mail = _add_agent(program.work, "nobody")
    with program:
        program.process.await_open(port)
        kept = partial(_agents_files, mail)
        yield Backend(port, kept, refuses=False, printed=program.log)


@contextmanager
def smtp_sink(option: str) -> Iterator[Backend]:
    """Run Postfix's smtp-sink: with `-p` it lacks PIPELINING, with `-e` it knows HELO only."""
    root = root_of("postfix", "usr/sbin/smtp-sink")
    port = free_port()
    work = Workplace("sink")
    as_root = os.geteuid() == 0
    mail = work.directory("mail", "nobody" if as_root else None)
    account = ("-u", "nobody") if as_root else ()
    argv = (root / "usr/sbin/smtp-sink", *account, option, "-d", f"{mail}/", f"127.0.0.1:{port}")
    environment = programs_environment(root)
    with work, Process((*argv, "100"), work.path / "printed", environment) as process:
        process.await_greeting(port)
        yield Backend(port, partial(_sink_files, mail), refuses=False)


def _sink_files(directory: Path) -> Iterator[Delivery]:
    for file in directory.iterdir():
        octets = file.read_bytes()
        head, _, _ = octets.partition(b"\nReceived:")
        recipients = re.findall(r"(?m)^X-Rcpt-Args: <([^>]*)>", head.decode())
        yield Delivery(frozenset(recipients), octets.removesuffix(b"\n"))


BACKENDS: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "opensmtpd": opensmtpd,
    "exim": partial(exim, chunking=False),
    "exim-chunking": partial(exim, chunking=True),
    "postfix": postfix,
    "smtp-sink-p": partial(smtp_sink, "-p"),
    "smtp-sink-e": partial(smtp_sink, "-e"),
}


def sealed_exim(keys: Path) -> AbstractContextManager[Backend]:
    """Run the Exim with CHUNKING; it insists on STARTTLS."""
    return exim(chunking=True, keys=keys)


def sealed_postfix(keys: Path) -> AbstractContextManager[Backend]:
    """Run Postfix's smtpd; it insists on STARTTLS."""
    chain = str(keys / "mx.pem")
    return postfix({"smtpd_tls_security_level": "encrypt", "smtpd_tls_chain_files": chain})


SEALED: dict[str, Callable[[Path], AbstractContextManager[Backend]]] = {
    "exim+tls": sealed_exim,
    "postfix+tls": sealed_postfix,
}
