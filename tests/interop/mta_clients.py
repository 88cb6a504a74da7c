"""MTAs as clients: each accepts messages into its own queue and relays them to the proxy.

Their own bounces go nowhere: mail for the sender is discarded.
"""

import re
import subprocess
from collections.abc import Sequence
from typing import Self

from tests.interop.clients import HELO, TIMEOUT_S, Mail, Result, SmtpTarget
from tests.interop.exim import ACCOUNT, Exim
from tests.interop.networks import Machine
from tests.interop.postfix import Postfix
from tests.support.processes import eventually

_POSTFIX = {
    "myhostname": HELO,
    "mydestination": "sender.example",
    "local_transport": "discard:",
    "smtp_host_lookup": "native",
    "smtp_destination_recipient_limit": "1000",
    # the message must stay as it is
    "disable_mime_output_conversion": "yes",
    "smtp_line_length_limit": "0",
}
_POSTFIX_TLS = {
    "smtp_tls_security_level": "secure",
    "smtp_tls_secure_cert_match": "mx.example",
}


def postfix(
    target: SmtpTarget,
    mails: Sequence[Mail],
    host: str = "127.0.0.1",
    machine: Machine | None = None,
) -> list[Result]:
    """Postfix's smtp(8): MAIL, all RCPT and DATA in one group; the final dot and QUIT, too."""
    settings = {**_POSTFIX, "relayhost": f"[{host}]:{target.port}"}
    if target.tls == "off":
        settings["smtp_tls_security_level"] = "none"
    else:
        settings |= {**_POSTFIX_TLS, "smtp_tls_CAfile": str(target.ca)}
        settings["smtp_tls_wrappermode"] = "yes" if target.tls == "implicit" else "no"
    if len(mails) > 1:
        settings["smtp_connection_cache_destinations"] = "127.0.0.1"
        settings["smtp_connection_cache_time_limit"] = "30s"  # not 2, for a busy machine
        settings["smtp_tls_connection_reuse"] = "yes"
    with Postfix(settings, machine=machine) as program:
        results = []
        for mail in mails:
            program.submit(mail.sender, list(mail.recipients), mail.message.as_kept())
            results.append(_postfix_result(program, mail))
        return results


def _postfix_result(program: Postfix, mail: Mail) -> Result:
    """Wait until the message has left the queue, and read its outcome from the log."""
    arrived = re.compile(rf" (\w+): message-id=<{mail.message.token}@")
    queue_id = eventually(lambda: arrived.search(program.log()), "message in Postfix's log")
    left = f" {queue_id[1]}: removed"
    eventually(lambda: left in program.log() or None, "message out of Postfix's queue", TIMEOUT_S)
    log = program.log()
    reported = dict(re.findall(rf" {queue_id[1]}: to=<([^>]*)>.* status=(\w+)", log))
    refused = frozenset(address for address, status in reported.items() if status == "bounced")
    assert set(reported.values()) <= {"sent", "bounced"}, log
    return Result("sent" in reported.values(), refused, log)


_EXIM = """\
primary_hostname = client.example
trusted_users = Debian-exim
untrusted_set_sender = *
begin routers
bounces:
  driver = redirect
  senders = :
  data = :blackhole:
  allow_fail
onward:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = onward
begin transports
onward:
  driver = smtp
  port = {port}
  allow_localhost
  hosts_try_fastopen =
  message_linelength_limit = 1000000
  max_rcpt = 1000
"""
_EXIM_TLS = """\
  hosts_require_tls = *
  tls_verify_hosts = *
  tls_verify_certificates = {ca}
  protocol = {protocol}
"""


def exim(target: SmtpTarget, mails: Sequence[Mail]) -> list[Result]:
    """Exim: groups like Postfix's, with BDAT where it is offered; half-closes after QUIT.

    So it does inside TLS, once it has handed its connection on for another message.
    """
    program = Exim(_EXIM.format(port=target.port) + _exim_tls(target))
    with program.work:
        for mail in mails:
            # one message is delivered at once; several are queued and then sent by one queue run
            mode = "-odi" if len(mails) == 1 else "-odq"
            argv = (mode, "-oi", "-f", mail.sender, "--", *mail.recipients)
            _exim(program, argv, mail.message.as_kept())
        if len(mails) > 1:
            _exim(program, ("-qq",))
        return [_exim_result(program, mail) for mail in mails]


def _exim_tls(target: SmtpTarget) -> str:
    if target.tls == "off":
        return "  hosts_avoid_tls = *\n"
    protocol = "smtps" if target.tls == "implicit" else "smtp"
    return _EXIM_TLS.format(ca=target.ca, protocol=protocol)


class QueueingExim:
    """An Exim that remembers what was offered, and then sends its first commands early.

    It makes a connection for each message, and tries again on request.
    """

    def __init__(self, target: SmtpTarget) -> None:
        text = _EXIM.format(port=target.port) + _exim_tls(target)
        retry = "  hosts_pipe_connect = *\nbegin retry\n* * F,1h,1s\n"
        self._program = Exim(text + retry)

    def __enter__(self) -> Self:
        self._program.work.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._program.work.__exit__(None, None, None)

    def log(self) -> str:
        """Return the log so far."""
        return self._program.log()

    def send(self, mail: Mail) -> Result:
        """Deliver a message, and wait for the result."""
        self.queue(mail)
        return _exim_result(self._program, mail)

    def queue(self, mail: Mail) -> None:
        """Try to deliver a message once."""
        argv = ("-odi", "-oi", "-f", mail.sender, "--", *mail.recipients)
        _exim(self._program, argv, mail.message.as_kept())

    def try_again(self) -> None:
        """Try once again to deliver what is in the queue."""
        _exim(self._program, ("-qff",))

    def retry(self, mail: Mail) -> Result:
        """Try again to deliver a message, and wait for the result."""
        self.try_again()
        return _exim_result(self._program, mail)


def _exim(program: Exim, argv: Sequence[str], octets: bytes = b"") -> None:
    done = subprocess.run(
        [*program.argv, *argv],
        input=octets,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=program.work.path,
        user=ACCOUNT,
        group=ACCOUNT,
        extra_groups=[],
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode in (0, 2), done.stdout.decode(errors="replace")  # 2: some bounced


def _exim_result(program: Exim, mail: Mail) -> Result:
    arrived = re.compile(rf" (\S+) <= .* id={mail.message.token}@")
    queue_id = eventually(lambda: arrived.search(program.log()), "message in Exim's log")[1]
    done = f" {queue_id} Completed"
    eventually(lambda: done in program.log() or None, f"Exim's end of {queue_id}", TIMEOUT_S)
    log = program.log()
    refused = frozenset(re.findall(rf" {queue_id} \*\* (\S+)", log))
    return Result(re.search(rf" {queue_id} [=-]> ", log) is not None, refused, log)
