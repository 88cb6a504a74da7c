"""The probe against real MTAs: the report on each, and that nothing is delivered."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import trustme

from tests.interop.messages import brief
from tests.interop.peers import BACKENDS, Backend, exim, postfix
from tests.interop.stage import configured
from tests.interop.wire import Wire
from tests.support.preloaded import completed
from tests.support.processes import Workplace

KEPT = [
    "✓  groups       RSET | RSET | NOOP          250 | 250 | 250",
    "✓               MAIL | RCPT | RSET | NOOP   250 | 250 | 250 | 250",
    "✓               RSET | RCPT | RSET | NOOP   250 | 503 | 250 | 250",
    "✓               RSET | RSET | QUIT          250 | 250 | 221",
]
OLD = {
    "smtpd_tls_mandatory_protocols": "TLSv1, TLSv1.1",
    "tls_high_cipherlist": "ALL:@SECLEVEL=0",
    "tls_medium_cipherlist": "ALL:@SECLEVEL=0",
}
with_pipelining = partial(postfix, {"smtpd_discard_ehlo_keywords": ""})


def test_an_mta_without_secure_renegotiation_is_reported_with_the_setting_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("mx.example", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    priorities = "NORMAL:-VERS-TLS1.3:%DISABLE_SAFE_RENEGOTIATION"
    with exim(chunking=False, keys=tmp_path, priorities=priorities) as mta:
        reported = probe(mta)
        assert "!               lacks secure renegotiation (RFC 5746)\n" in reported, reported
        assert "✓               1.2 works\n" in reported, reported
        line = 'minimum_tls = "1.1"           # it lacks secure renegotiation (RFC 5746)'
        assert line in reported, reported


def probe(mta: Backend, *options: str) -> str:
    """Return the output of the command, without trailing blanks."""
    address = f"127.0.0.1:{mta.port}"
    done = completed("probe", *options, "--timeout", "10", address, timeout_s=90)
    assert (done.returncode, done.stderr) == (0, "")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def deliver(port: int, mta: Backend) -> None:
    """Deliver one message, and check that it is the only one the MTA ever received."""
    message = brief()
    with Wire(port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        for command in (b"MAIL FROM:<a@sender.example>", b"RCPT TO:<good@rcpt.example>"):
            assert wire.ask(command) == [250]
        assert wire.ask(b"DATA") == [354]
        assert wire.ask(message.octets + b".") == [250]
        assert wire.ask(b"QUIT") == [221]
    mta.find(message)
    assert len(list(mta.kept())) == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (
            BACKENDS["opensmtpd"],
            [
                "✗  PIPELINING   not offered",
                "✗  groups       RSET | RSET | NOOP          500, then it closed the connection: 2",
                "✓  DATA         after a refused recipient: 503 ",
                "!  bare LF      ends a command",
                "✓  bare CR      does not end a command",
                "It lacks PIPELINING and loses commands sent in groups",
            ],
        ),
        (
            BACKENDS["exim"],
            [
                "✗  PIPELINING   not offered",
                "✗               MAIL | RCPT | RSET | NOOP   250 | 554, then it closed the",
                "✓  DATA         after a refused recipient: 503 ",
                "It lacks PIPELINING and loses commands sent in groups",
            ],
        ),
        (
            BACKENDS["postfix"],
            [
                "✗  PIPELINING   not offered",
                *KEPT,
                "✓  DATA         after a refused recipient: 554 ",
                "It lacks PIPELINING, but loses no commands sent in groups",
            ],
        ),
        (
            with_pipelining,
            [
                "✓  PIPELINING   offered, and works",
                *KEPT,
                "Its PIPELINING works",
            ],
        ),
        (
            BACKENDS["smtp-sink-e"],
            ["!  EHLO         is not known: 500 ", "helo_fallback = true", *KEPT],
        ),
        (BACKENDS["smtp-sink-p"], ["XCLIENT NAME HELO", "✓  bare LF      does not end a command"]),
    ],
    ids=["opensmtpd", "exim", "postfix", "postfix-pipelining", "smtp-sink-e", "smtp-sink-p"],
)
def test_the_report_on_each_mta(
    start: Callable[[], AbstractContextManager[Backend]], expected: list[str]
) -> None:
    with start() as mta:
        reported = probe(mta, "--relay-test", "somebody@rcpt.example")
        for line in [*expected, "✗  relay        from <> to <somebody@rcpt.example>: would be"]:
            assert line in reported, reported
        assert "\n?" not in reported, reported
        assert not list(mta.kept())
        if mta.refuses:  # not smtp-sink, which may not know EHLO
            deliver(mta.port, mta)


def test_a_refused_relay() -> None:
    with postfix() as mta:
        reported = probe(mta, "--relay-test", "bad@rcpt.example", "--from", "a@sender.example")
    assert (
        "✓  relay        from <a@sender.example> to <bad@rcpt.example>: RCPT is refused" in reported
    )


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        (
            {"smtpd_tls_security_level": "encrypt"},
            (),
            [
                "·  TLS          by STARTTLS, required for mail",
                "✓               1.3 and 1.2 work",
                "✓               verified by this machine's certificate authorities",
                'tls = "starttls"',
            ],
        ),
        (
            {"smtpd_tls_security_level": "encrypt", **OLD},
            (),
            [
                "✗               1.1 and 1.0 work, obsolete (RFC 8996)",
                "·               1.2 does not work: ",
                'minimum_tls = "1.1"',
            ],
        ),
        (
            {
                "smtpd_tls_security_level": "may",
                "smtpd_tls_wrappermode": "yes",
                "smtpd_upstream_proxy_protocol": "",
            },
            ("--implicit-tls",),
            ["·  TLS          implicit", "✓               1.3 and 1.2 work", 'tls = "implicit"'],
        ),
    ],
    ids=["starttls", "old", "implicit"],
)
def test_the_settings_for_tls_work(
    settings: dict[str, str],
    options: tuple[str, ...],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The proxy delivers a message with the suggested settings, unchanged."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("mx.example", "127.0.0.1")
    pem = b"".join(each.bytes() for each in (issued.private_key_pem, *issued.cert_chain_pems))
    with Workplace("keys") as work:
        file = work.write("mx.pem", pem.decode(), 0o600)
        with postfix({"smtpd_tls_chain_files": str(file), **settings}) as mta:
            reported = probe(mta, *options)
            for line in [*expected, *KEPT]:
                assert line in reported, reported
            assert not list(mta.kept())
            _, _, backend = reported.partition("[backends.mta]\n")
            with configured("", backend) as (port, _):
                deliver(port, mta)
