"""The clients: real programs that send mail to a port of 127.0.0.1, all with the same interface.

    client(target, mails) -> one Result for each mail

Each can do TLS, by STARTTLS and from the start; then it insists on that and on the certificate.

Of several mails, swaks and msmtp send each in a connection of its own, the others all in one. MTAs
as clients are in mta_clients.py.
"""

import base64
import json
import os
import smtplib
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop.messages import Message
from tests.support.programs import command, node_modules

TIMEOUT_S = 60.0
HELO = "client.example"


@dataclass(frozen=True)
class SmtpTarget:
    """Where clients connect: `tls` is one of `stage.WAYS`, and is verified by the file `ca`."""

    port: int
    tls: str = "off"
    ca: Path = Path("/dev/null")


@dataclass(frozen=True)
class Mail:
    """A message with its envelope."""

    message: Message
    recipients: Sequence[str] = ("good@rcpt.example",)
    sender: str = "sender@sender.example"


@dataclass(frozen=True)
class Result:
    """The replies that the client reported: for the message, and for each recipient."""

    sent: bool
    refused: frozenset[str]
    output: str


Client = Callable[[SmtpTarget, Sequence[Mail]], list[Result]]


def smtplib_client(target: SmtpTarget, mails: Sequence[Mail]) -> list[Result]:
    """Python's own, in lock step."""
    results = []
    with _smtplib(target) as connection:
        for mail in mails:
            octets = mail.message.octets
            refused = connection.sendmail(mail.sender, list(mail.recipients), octets)
            results.append(Result(True, frozenset(refused), str(refused)))
    return results


def _smtplib(target: SmtpTarget) -> smtplib.SMTP:
    where = ("127.0.0.1", target.port, HELO)
    if target.tls == "off":
        return smtplib.SMTP(*where, timeout=TIMEOUT_S)
    context = ssl.create_default_context(cafile=target.ca)
    if target.tls == "implicit":
        return smtplib.SMTP_SSL(*where, timeout=TIMEOUT_S, context=context)
    connection = smtplib.SMTP(*where, timeout=TIMEOUT_S)
    connection.starttls(context=context)
    return connection


def swaks(target: SmtpTarget, mails: Sequence[Mail]) -> list[Result]:
    """Swaks; it sends MAIL, all RCPT and DATA in one group where PIPELINING is offered."""
    return [_swaks(target, mail) for mail in mails]


def _swaks(target: SmtpTarget, mail: Mail) -> Result:
    tls = {"off": (), "starttls": ("--tls",), "implicit": ("--tls-on-connect",)}[target.tls]
    # with --no-data-fixup it is sent as it travels, dots doubled, and swaks adds one CRLF
    content = mail.message.octets.removesuffix(b"\r\n").replace(b"\r\n.", b"\r\n..") + b"\r\n."
    argv = (
        *(command("swaks"), "--server", "127.0.0.1", "--port", str(target.port), "--pipeline"),
        *((*tls, "--tls-verify", "--tls-ca-path", str(target.ca)) if tls else ()),
        *("--helo", HELO, "--from", mail.sender, "--to", ",".join(mail.recipients)),
        *("--timeout", f"{TIMEOUT_S:.0f}", "--suppress-data", "--no-data-fixup", "--data", "-"),
    )
    return _run(argv, mail, content)


def curl(target: SmtpTarget, mails: Sequence[Mail]) -> list[Result]:
    """Curl, in lock step; several messages go through one connection."""
    url = f"{'smtps' if target.tls == 'implicit' else 'smtp'}://127.0.0.1:{target.port}/{HELO}"
    tls = () if target.tls == "off" else ("--ssl-reqd", "--cacert", str(target.ca))
    with tempfile.TemporaryDirectory() as directory:
        argv = [command("curl"), "--disable", "--silent", "--show-error"]
        for number, mail in enumerate(mails):
            file = Path(directory) / str(number)
            file.write_bytes(mail.message.octets)
            argv += [] if number == 0 else ["--next", "--silent", "--show-error"]
            argv += ["--verbose", "--noproxy", "*", "--max-time", str(TIMEOUT_S)]
            argv += ["--url", url, *tls, "--upload-file", str(file)]
            argv += ["--mail-from", mail.sender, "--mail-rcpt-allowfails"]
            argv += [word for address in mail.recipients for word in ("--mail-rcpt", address)]
        return _each(argv, mails)


def msmtp(target: SmtpTarget, mails: Sequence[Mail]) -> list[Result]:
    """Msmtp; it gives up a message when one recipient is refused."""
    return [_msmtp(target, mail) for mail in mails]


def _msmtp(target: SmtpTarget, mail: Mail) -> Result:
    starttls = "on" if target.tls == "starttls" else "off"
    tls = ("--tls=on", f"--tls-starttls={starttls}", f"--tls-trust-file={target.ca}")
    argv = (
        *(command("msmtp"), "--file=/dev/null", "--host=127.0.0.1", f"--port={target.port}"),
        *(("--tls=off",) if target.tls == "off" else tls),
        *("--auth=off", f"--domain={HELO}", f"--from={mail.sender}", "--debug"),
        *("--", *mail.recipients),
    )
    return _run(argv, mail, mail.message.as_kept())


_NODEMAILER = """\
const nodemailer = require('nodemailer');
const { port, name, mails, security } = JSON.parse(require('fs').readFileSync(0));
const transport = nodemailer.createTransport({
    host: '127.0.0.1', port, name, pool: true, maxConnections: 1, ...security,
    connectionTimeout: 30000, socketTimeout: 30000,
});
(async () => {
    for (const mail of mails) {
        const raw = Buffer.from(mail.octets, 'base64');
        const envelope = { from: mail.from, to: mail.to };
        const info = await transport.sendMail({ envelope, raw });
        console.log(JSON.stringify({ rejected: info.rejected, response: info.response }));
    }
    transport.close();
})();
"""


def nodemailer(target: SmtpTarget, mails: Sequence[Mail]) -> list[Result]:
    """Nodemailer, with a pool of one connection; it sends all RCPT in one group."""
    environment = {"NODE_PATH": str(node_modules("node-nodemailer"))}
    security: dict[str, object] = {"ignoreTLS": True}
    if target.tls != "off":
        implicit = target.tls == "implicit"
        security = {"secure": implicit, "requireTLS": True, "tls": {"ca": target.ca.read_text()}}
    work = {"port": target.port, "name": HELO, "security": security}
    work["mails"] = [_as_json(mail) for mail in mails]
    argv = (command("node", "nodejs"), "-e", _NODEMAILER)
    done = _call(argv, json.dumps(work).encode(), environment)
    assert done.returncode == 0, done.stdout
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [Result(True, frozenset(each["rejected"]), each["response"]) for each in answers]


def _as_json(mail: Mail) -> dict[str, object]:
    octets = base64.b64encode(mail.message.octets).decode()
    return {"from": mail.sender, "to": list(mail.recipients), "octets": octets}


def _each(argv: Sequence[str], mails: Sequence[Mail]) -> list[Result]:
    """Run one command for all mails; a reported recipient counts for the mail that had it."""
    done = _call(argv)
    return [_result(done, mail) for mail in mails]


def _run(argv: Sequence[str], mail: Mail, octets: bytes = b"") -> Result:
    return _result(_call(argv, octets), mail)


def _result(done: subprocess.CompletedProcess[str], mail: Mail) -> Result:
    refusals = [line for line in done.stdout.splitlines() if "550" in line]
    refused = {each for each in mail.recipients if any(each in line for line in refusals)}
    return Result(done.returncode == 0, frozenset(refused), done.stdout)


def _call(
    argv: Sequence[str], octets: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv,
        input=octets,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        timeout=TIMEOUT_S,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    return subprocess.CompletedProcess(done.args, done.returncode, text)
