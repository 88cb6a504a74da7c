"""TLS between real programs: for MTAs without TLS, and for clients without TLS."""

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.interop.dialogue import verb_groups
from tests.interop.messages import brief
from tests.interop.peers import Backend, exim, opensmtpd, postfix
from tests.interop.stage import configured
from tests.interop.tap import Tap
from tests.interop.wire import Wire
from tests.support.processes import Process, Workplace, eventually, free_port
from tests.support.programs import command

STARTTLS = 'tls = "starttls"\ncertificate = "{}/mx.pem"'


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with an authority's certificate, and one for mx.example and 127.0.0.1."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("mx.example", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    return tmp_path


def servers(port: int, more: str = "") -> str:
    return f'servers = ["127.0.0.1:{port}"]\n{more}'


def openssl(
    port: int, ca: Path, *options: str, commands: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Run OpenSSL's client with STARTTLS and these commands; it verifies the certificate."""
    return subprocess.run(
        [
            *(command("openssl"), "s_client", "-connect", f"127.0.0.1:{port}"),
            *("-starttls", "smtp", "-name", "client.example"),
            *("-CAfile", str(ca), "-verify_return_error", *options),
        ],
        input=commands,
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_openssl_verifies_the_certificate_and_is_served(keys: Path) -> None:
    """The MTA takes EHLO once only, and answers the second one with 503."""
    with opensmtpd() as mta, configured(STARTTLS.format(keys), servers(mta.port)) as (port, _):
        commands = b"EHLO client.example\r\nMAIL FROM:<a@sender.example>\r\nQUIT\r\n"
        options = ("-quiet", "-servername", "mx.example")
        done = openssl(port, keys / "ca.pem", *options, commands=commands)
        lines = done.stdout.splitlines()
    assert b"250 PIPELINING" in lines, done.stderr
    assert lines[-1].startswith(b"221 ")
    assert b"250 2.0.0: Ok" in lines[-2] or lines[-2].startswith(b"250 ")


@pytest.fixture(scope="module")
def either_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Run the proxy with keys of both kinds, for old clients too; give its port and authority."""
    directory = tmp_path_factory.mktemp("keys")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    for kind in trustme.KeyType:
        issued = authority.issue_cert("mx.example", key_type=kind)
        issued.private_key_and_cert_chain_pem.write_to_path(directory / f"{kind.name}.pem")
    listener = (
        f'tls = "starttls"\ncertificate = "{directory}/RSA.pem"\n'
        f'ecdsa_certificate = "{directory}/ECDSA.pem"\nminimum_tls = "1.0"\nciphers = "legacy"'
    )
    with opensmtpd() as mta, configured(listener, servers(mta.port)) as (port, _):
        yield port, directory / "ca.pem"


@pytest.mark.parametrize(
    ("options", "agreed"),
    [
        (("-tls1", "-cipher", "DEFAULT:@SECLEVEL=0"), ("TLSv1", "ECDHE-ECDSA-AES256-SHA")),
        (("-tls1", "-cipher", "AES128-SHA:@SECLEVEL=0"), ("TLSv1", "AES128-SHA")),
        (("-tls1_1", "-cipher", "ECDHE-RSA-AES128-SHA:@SECLEVEL=0"), ("TLSv1.1", "ECDHE-RSA-")),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"), ("TLSv1.2", "ECDHE-ECDSA-")),
        (("-tls1_2", "-cipher", "AES256-SHA256"), ("TLSv1.2", "AES256-SHA256")),
        (("-tls1_3", "-sigalgs", "RSA-PSS+SHA256"), ("TLSv1.3", "TLS_")),
        (("-tls1_3",), ("TLSv1.3", "TLS_")),
    ],
    ids=lambda value: " ".join(value[:3]),
)
def test_openssl_is_served_in_every_version_with_either_certificate(
    options: tuple[str, ...], agreed: tuple[str, str], either_certificate: tuple[int, Path]
) -> None:
    commands = b"EHLO client.example\nMAIL FROM:<a@sender.example>\nquit\n"
    more = ("-crlf", "-ign_eof", *options)
    done = openssl(*either_certificate, *more, commands=commands)
    shown = done.stdout.decode()
    assert "250 PIPELINING" in shown, shown + done.stderr.decode()
    version, cipher = agreed
    assert f"New, {version}, Cipher is {cipher}" in shown or (
        f"    Protocol  : {version}\n    Cipher    : {cipher}" in shown
    ), shown
    assert "\n221 " in shown
    if "-sigalgs" in options:
        assert "Peer signature type: RSA-PSS" in shown


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_a_group_is_answered_in_one_record_and_reaches_the_mta_one_by_one(
    implicit: bool, keys: Path
) -> None:
    listener = STARTTLS.format(keys)
    if implicit:
        listener = listener.replace("starttls", "implicit")
    context = ssl.create_default_context(cafile=keys / "ca.pem")
    rcpts = [b"RCPT TO:<%d@rcpt.example>" % each for each in range(20)]
    with (
        opensmtpd() as mta,
        Tap(mta.port) as tap,
        configured(listener, servers(tap.port, "[timeouts]\nreply_hold = 5")) as (port, _),
        Wire(port) as wire,
    ):
        if not implicit:
            assert wire.replies(1) == [220]
            assert wire.ask(b"STARTTLS") == [220]
        wire.secure(context, "mx.example")
        if implicit:
            assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        wire.send(b"MAIL FROM:<a@sender.example>", *rcpts, b"DATA")
        codes = [line[:3] for line in wire.one_read().splitlines()]
        assert codes == [b"250"] * 21 + [b"354"]
        wire.send(brief().octets + b".", b"QUIT")
        assert wire.replies(2) == [250, 221]
        alone = [b"EHLO", b"MAIL", *[b"RCPT"] * 20, b"DATA"]
        assert verb_groups(tap.only())[: len(alone)] == [[verb] for verb in alone]


@pytest.mark.parametrize("hello", [b"EHLO", b"HELO"])
def test_postfix_as_the_backend_is_reached_only_by_tls(hello: bytes, keys: Path) -> None:
    """It refuses everything in plaintext, so what it takes came inside TLS."""
    message = brief()
    with Workplace("keys") as work:
        pem = work.write("mx.pem", (keys / "mx.pem").read_text(), 0o600)
        settings = {
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_chain_files": str(pem),
            "smtpd_tls_loglevel": "1",
        }
        trust = f'tls = "starttls"\nca_file = "{keys}/ca.pem"\nserver_name = "mx.example"'
        with (
            postfix(settings) as mta,
            configured("", servers(mta.port, trust)) as (port, _),
            Wire(port) as wire,
        ):
            assert wire.replies(1) == [220]
            assert wire.ask(hello + b" client.example") == [250]
            group = (b"MAIL FROM:<a@sender.example>", b"RCPT TO:<good@rcpt.example>", b"DATA")
            assert wire.ask(*group) == [250, 250, 354]
            assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
            assert mta.find(message).without_trace() == message.as_kept()
            tls = "TLS connection established from"
            eventually(lambda: tls in mta.printed() or None, "TLS in the MTA's log")


def test_passed_through_the_tls_is_postfixs_own(keys: Path) -> None:
    """The proxy sees nothing of swaks' commands inside TLS; the certificate is the MTA's."""
    message = brief()
    with Workplace("keys") as work:
        pem = work.write("mx.pem", (keys / "mx.pem").read_text(), 0o600)
        settings = {"smtpd_tls_security_level": "encrypt", "smtpd_tls_chain_files": str(pem)}
        with (
            postfix(settings) as mta,
            configured('tls = "passthrough"', servers(mta.port)) as (port, process),
        ):
            done = subprocess.run(
                [
                    *(command("swaks"), "--server", "127.0.0.1", "--port", str(port), "--tls"),
                    "--tls-verify",
                    *("--tls-ca-path", str(keys / "ca.pem"), "--from", "a@sender.example"),
                    *("--to", "good@rcpt.example", "--no-data-fixup", "--data", "-"),
                ],
                input=message.octets.removesuffix(b"\r\n") + b"\r\n.",
                capture_output=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert b"PIPELINING" in done.stdout.partition(b"-> STARTTLS")[0]
            assert b"PIPELINING" not in done.stdout.partition(b"TLS started")[2]
            assert mta.find(message).without_trace() == message.as_kept()
            closed = '"session_closed"'
            eventually(lambda: closed in process.printed() or None, "the end of the session")
            assert '"commands":2' in process.printed()


NOT_SECURE = "NORMAL:-VERS-TLS1.3:%DISABLE_SAFE_RENEGOTIATION"
"""GnuTLS as a server without RFC 5746, such as those from before 2010."""


@pytest.mark.parametrize("minimum", ["1.2", "1.1"])
def test_an_mta_without_secure_renegotiation_needs_a_lower_minimum(
    minimum: str, keys: Path
) -> None:
    backend = f'tls = "starttls"\nca_file = "{keys}/ca.pem"\nminimum_tls = "{minimum}"'
    with (
        exim(chunking=False, keys=keys, priorities=NOT_SECURE) as mta,
        configured("", servers(mta.port, backend)) as (port, process),
        Wire(port) as wire,
    ):
        assert wire.replies(1) == [220]
        if minimum == "1.2":
            assert wire.ask(b"EHLO client.example") == [421]
            reason = '"reason":"unsafe legacy renegotiation disabled"'
            eventually(lambda: reason in process.printed() or None, "the reason")
            return
        message = brief()
        group = (b"EHLO client.example", b"MAIL FROM:<a@sender.example>")
        assert wire.ask(*group, b"RCPT TO:<good@rcpt.example>", b"DATA") == [250, 250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
        assert mta.find(message).without_trace() == message.as_kept()


@contextmanager
def gnutls_server(keys: Path, priorities: str) -> Iterator[int]:
    """Run GnuTLS' own server, which speaks no SMTP: it echoes what comes."""
    port = free_port()
    argv = [
        *(command("gnutls-serv", "gnutls-bin"), "--echo", "--port", str(port), "--quiet"),
        *("--priority", priorities, "--noticket"),
        *("--x509certfile", str(keys / "mx.pem"), "--x509keyfile", str(keys / "mx.pem")),
    ]
    with Workplace("gnutls") as work, Process(argv, work.path / "printed") as process:
        process.await_open(port)
        yield port


@pytest.mark.long
@pytest.mark.parametrize(
    ("priorities", "minimum", "version", "refused"),
    [
        ("NORMAL", "1.2", "TLSv1.3", ""),
        (NOT_SECURE, "1.2", "", "unsafe legacy renegotiation disabled"),
        (NOT_SECURE, "1.1", "TLSv1.2", ""),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.0", "1.1", "", "unsupported protocol"),
        ("NORMAL:-VERS-ALL:+VERS-TLS1.0:%DISABLE_SAFE_RENEGOTIATION", "1.0", "TLSv1", ""),
        ("NORMAL:-VERS-TLS1.3:-KX-ALL:+RSA", "1.2", "", "sslv3 alert handshake failure"),
        ("NORMAL:-VERS-TLS1.3:-KX-ALL:+RSA", "1.1", "TLSv1.2", ""),
    ],
)
def test_gnutls_is_reached_with_a_minimum_that_is_low_enough(
    priorities: str, minimum: str, version: str, refused: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    with gnutls_server(tmp_path, priorities) as target:
        backend = f'tls = "implicit"\nca_file = "{tmp_path}/ca.pem"\nminimum_tls = "{minimum}"'
        more = f'{backend}\n[log]\nlevel = "debug"'
        with (
            configured("", servers(target, more)) as (port, process),
            Wire(port) as wire,
        ):
            line = f'"side":"backend","version":"{version}"' if version else f'"reason":"{refused}"'
            eventually(lambda: line in process.printed() or None, line)
            wire.reset()


def test_postfix_gets_the_client_certificate_and_the_new_one_after_a_change(keys: Path) -> None:
    """It serves nobody else; a key that others may read is refused, and the old one kept."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(keys / "clients.pem")
    own = keys / "own.pem"

    def issue(name: str) -> None:
        issued = authority.issue_cert(name, common_name=name)
        own.touch(0o600)
        issued.private_key_and_cert_chain_pem.write_to_path(own)

    issue("one.example")
    with Workplace("keys") as work:
        pem = work.write("mx.pem", (keys / "mx.pem").read_text(), 0o600)
        clients = work.write("clients.pem", (keys / "clients.pem").read_text(), 0o644)
        settings = {
            "smtpd_tls_security_level": "encrypt",
            "smtpd_tls_chain_files": str(pem),
            "smtpd_tls_CAfile": str(clients),
            "smtpd_tls_req_ccert": "yes",
            "smtpd_tls_received_header": "yes",
        }
        backend = f'tls = "starttls"\nca_file = "{keys}/ca.pem"\nclient_certificate = "{own}"'
        with postfix(settings) as mta, configured("", servers(mta.port, backend)) as (port, run):
            assert b'CN "one.example"' in _received(mta, port)
            issue("two.example")
            own.chmod(0o644)
            run.hang_up()
            eventually(lambda: "other accounts can read" in run.printed() or None, "the refusal")
            assert b'CN "one.example"' in _received(mta, port)
            own.chmod(0o600)
            run.hang_up()
            eventually(lambda: '"event":"reloaded"' in run.printed() or None, "the reload")
            assert b'CN "two.example"' in _received(mta, port)


def _received(mta: Backend, port: int) -> bytes:
    """Deliver a message, and return it as kept, with its Received line."""
    message = brief()
    with Wire(port) as wire:
        assert wire.replies(1) == [220]
        group = (b"EHLO client.example", b"MAIL FROM:<a@sender.example>")
        assert wire.ask(*group, b"RCPT TO:<good@rcpt.example>", b"DATA") == [250, 250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
    return mta.find(message).kept


def test_a_new_certificate_is_read_at_reload_and_a_bad_one_keeps_the_old(keys: Path) -> None:
    with opensmtpd() as mta, configured(STARTTLS.format(keys), servers(mta.port)) as (port, run):
        first = _certificate(port)
        good = (keys / "mx.pem").read_text()
        inside = Wire(port)
        assert inside.replies(1) == [220]
        assert inside.ask(b"STARTTLS") == [220]
        inside.secure(ssl.create_default_context(cafile=keys / "ca.pem"), "mx.example")
        assert inside.ask(b"EHLO client.example", b"MAIL FROM:<a@sender.example>") == [250, 250]
        (keys / "mx.pem").write_text("no certificate")
        run.hang_up()
        eventually(lambda: "reload_failed" in run.printed() or None, "reload_failed")
        assert _certificate(port) == first
        other = trustme.CA().issue_cert("mx.example")
        other.private_key_and_cert_chain_pem.write_to_path(keys / "mx.pem")
        run.hang_up()
        eventually(lambda: _certificate(port) != first or None, "the new certificate")
        with inside:  # no client is dropped
            assert inside.ask(b"RCPT TO:<good@rcpt.example>", b"DATA") == [250, 354]
            message = brief()
            assert inside.ask(message.octets + b".", b"QUIT") == [250, 221]
            assert mta.find(message).without_trace() == message.as_kept()
        (keys / "mx.pem").write_text(good)


def _certificate(port: int) -> str:
    argv = (command("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-starttls", "smtp")
    done = subprocess.run(
        argv, input=b"QUIT\r\n", capture_output=True, timeout=30, check=False
    ).stdout.decode(errors="replace")
    begin = done.find("-----BEGIN CERTIFICATE")
    assert begin >= 0, done
    return done[begin : done.index("-----END CERTIFICATE")]
