"""The report's text for each finding, and the suggested settings, which pass the check."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smtpproxy.config.address import Address
from smtpproxy.config.loader import load
from smtpproxy.config.schema import BackendSettings
from smtpproxy.probe import probe_report, suggested_config
from smtpproxy.probe.behaviour_checks import DataWithoutRecipients, NewlineResult, RelayResult
from smtpproxy.probe.findings import Findings
from smtpproxy.probe.pipelining_checks import GroupEnd, GroupResult
from smtpproxy.probe.smtp_connection import ProbeReply
from smtpproxy.probe.tls_checks import CertificateFindings, TlsFindings

ADDRESS = Address(host="192.0.2.5", port=25)
NOW = datetime.now(UTC)
LOCAL = Address(host="127.0.0.1", port=25)


def reply(text: str) -> ProbeReply:
    return ProbeReply(int(text[:3]), text.encode("latin-1") + b"\r\n", 0.002)


def hello(*capabilities: str) -> ProbeReply:
    lines = ["mx", *capabilities]
    return reply("\r\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"]))


def group(end: GroupEnd = GroupEnd.ANSWERED, replies: int = 3) -> GroupResult:
    return GroupResult(
        (b"RSET", b"RSET", b"NOOP"), (reply("250 ok"),) * replies, (250, 250, 250), end
    )


def findings(**changed: Any) -> Findings:
    base: dict[str, Any] = {"hello": hello("SIZE"), "groups": [group()], "name": "me.example"}
    return Findings(**{"address": ADDRESS, "greeting": reply("220 mx"), **base, **changed})


def encryption(backend: BackendSettings | None, *working: str, **changed: Any) -> TlsFindings:
    versions = {each: "" if each in working else "no" for each in ("1.3", "1.2", "1.1", "1.0")}
    certificate = CertificateFindings(
        ("mx.example",), "Some CA", False, NOW, NOW + timedelta(days=90), "RSA 2048"
    )
    return TlsFindings(versions, **{"certificate": certificate, "backend": backend, **changed})


def backend(**settings: Any) -> BackendSettings:
    return BackendSettings(servers=[ADDRESS], **settings)


def shown(found: Findings, encoding: str = "utf-8", width: int = 200) -> str:
    octets = io.BytesIO()
    file = io.TextIOWrapper(octets, encoding)
    probe_report.show(Console(file=file, width=width, highlight=False, markup=False), found)
    file.flush()
    return octets.getvalue().decode(encoding)


def settings(found: Findings, tmp_path: Path) -> tuple[str, BackendSettings]:
    """Return the suggested settings as text and as loaded."""
    file = tmp_path / "p.toml"
    text = "\n".join(suggested_config.settings(found))
    file.write_text(text)
    return text, load(file).backends["mta"]


class TestReport:
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({}, "✓  EHLO         250 mx"),
            ({"ehlo_refused": reply("500 what?")}, "!  EHLO         is not known: 500 what?"),
            (
                {"greeting": reply("220 ********")},
                "edited by a firewall between here and the server",
            ),
            ({"is_implicit": True}, "inside implicit TLS"),
            ({"hello": hello("SIZE 5", "DSN")}, "passed on    SIZE 5, DSN"),
            (
                {"hello": hello("XCLIENT ADDR")},
                "XCLIENT ADDR  always: would break framing or trust",
            ),
            ({"hello": hello("XXXXXXXA", "XXXXXXXX")}, "XXXXXXXX  masked by a firewall"),
            ({"hello": hello("STARTTLS")}, "STARTTLS  unless the listener sets tls"),
            ({"hello": hello("REQUIRETLS")}, "REQUIRETLS  unless both sides are inside TLS"),
            ({"hello": hello("X-NEW 1")}, "X-NEW 1  unless the listener's capabilities.allow"),
            ({"hello": hello(*map(str, range(60)))}, "38, 39 and 20 more"),
            ({}, "✗  PIPELINING   not offered"),
            ({"hello": hello("PIPELINING")}, "✓  PIPELINING   offered, and works"),
            ({}, "✓  groups       RSET | RSET | NOOP          250 | 250 | 250"),
            ({"groups": [group(GroupEnd.LOST, 1)]}, "250, the rest was discarded: 2 of 3 lost"),
            (
                {"groups": [group(GroupEnd.SILENT, 0)]},
                "no reply, then no reply to anything: 3 of 3 lost",
            ),
            ({"groups": [group(GroupEnd.SURPLUS)]}, "250 | 250 | 250, more replies than commands"),
            (
                {"data": DataWithoutRecipients(reply("550 no"), reply("354 go"))},
                "✗  DATA         after a refused recipient: 354 go",
            ),
            (
                {"data": DataWithoutRecipients(None, reply("503 no"))},
                "✓  DATA         without any recipient: 503 no",
            ),
            (
                {"lf": NewlineResult.ENDS},
                "!  bare LF      ends a command, and may end a content line",
            ),
            ({"cr": NewlineResult.ENDS}, "✗  bare CR      ends a command"),
            ({"cr": NewlineResult.NOTHING}, "✓  bare CR      does not end a command"),
            ({}, "TLS          STARTTLS is not offered"),
            (
                {"relay": RelayResult("", "a@b.example", "RCPT", reply("250 ok"))},
                "✗  relay        from <> to <a@b.example>: would be relayed for this machine: 250",
            ),
            (
                {"relay": RelayResult("x@y.example", "a@b.example", "RCPT", reply("450 grey"))},
                "?  relay        from <x@y.example> to <a@b.example>: RCPT is refused temporarily",
            ),
            (
                {"relay": RelayResult("", "a@b.example", "MAIL", reply("550 no"))},
                "✓  relay        from <> to <a@b.example>: MAIL is refused: 550 no",
            ),
            ({"undetermined": {"groups": "it closed the connection"}}, "?  groups       it closed"),
            (
                {"seconds": {"greeting": [2.0], "NOOP": [0.00004, 0.0015, 0.02]}},
                "reply times  greeting 2.0 s, NOOP 1.5 ms  (medians)",
            ),
            ({"seconds": {"greeting": [2.0], "NOOP": [0.001]}}, "slowest: greeting, 2.0 s"),
        ],
    )
    def test_shows(self, changed: dict[str, Any], said: str) -> None:
        assert said in shown(findings(**changed))

    @pytest.mark.parametrize(
        ("tls", "said"),
        [
            (encryption(backend(tls="starttls"), "1.2", "1.3"), "✓               1.3 and 1.2 work"),
            (encryption(None, "1.0"), "✗               1.0 works, obsolete (RFC 8996)"),
            (encryption(None, "1.3", "1.0"), "!               1.0 works, obsolete (RFC 8996)"),
            (encryption(None, "1.3"), "·               1.2 does not work: no"),
            (encryption(None), "✗               1.3 does not work: no"),
            (encryption(None, "1.3"), "certificate  for mx.example, by Some CA, RSA 2048"),
            (encryption(None, "1.3", certificate=None), "no readable certificate"),
            (
                encryption(backend(tls="starttls"), "1.3"),
                "✓               verified by this machine's certificate authorities",
            ),
            (encryption(None, "1.3"), "!               could not be verified: "),
            (encryption(backend(tls="opportunistic"), "1.3"), "could not be verified: "),
            (
                encryption(
                    backend(tls="starttls", server_name="mx.example"),
                    "1.3",
                    unverified="wrong name",
                ),
                "!               verified, but only for mx.example: wrong name",
            ),
            (encryption(None, "1.3", unverified="self-signed"), "does not verify: self-sign"),
            (encryption(None, "1.3", is_injectable=True), "CVE-2011-0411"),
            (
                encryption(None, "1.3", undetermined="it closed the connection"),
                "?               it clo",
            ),
        ],
    )
    def test_shows_tls(self, tls: TlsFindings, said: str) -> None:
        assert said in shown(findings(hello=hello("STARTTLS"), tls=tls))

    @pytest.mark.parametrize(
        ("begins", "ends", "said"),
        [
            (-9, 90, "✓               valid until "),
            (-9, 9, "!               valid until "),
            (-9, -2, "✗               expired on "),
            (2, 90, "✗               not valid before "),
        ],
    )
    def test_shows_when_a_certificate_is_valid(self, begins: int, ends: int, said: str) -> None:
        times = (NOW + timedelta(days=begins), NOW + timedelta(days=ends))
        certificate = CertificateFindings(tuple("abcdef"), "x", True, *times, "EC 256")
        reported = shown(findings(tls=encryption(None, "1.3", certificate=certificate)))
        assert said in reported
        assert "for a, b, c, d and 2 more, by itself, EC 256" in reported

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({}, "It lacks PIPELINING, but loses no commands sent in groups"),
            (
                {"groups": [group(GroupEnd.LOST, 1)]},
                "It lacks PIPELINING and loses commands sent",
            ),
            ({"hello": hello("PIPELINING")}, "Its PIPELINING works"),
            (
                {"hello": hello("PIPELINING"), "groups": [group(GroupEnd.LOST, 1)]},
                "It offers PIPELINING but loses commands",
            ),
            ({"groups": []}, "Whether it answers groups of commands is not known."),
        ],
    )
    def test_ends_with_a_conclusion(self, changed: dict[str, Any], said: str) -> None:
        assert shown(findings(**changed)).splitlines()[-1].startswith(said)

    def test_a_refusal_has_no_conclusion(self) -> None:
        reported = shown(findings(hello=reply("550 no"), groups=[], refusal="EHLO is refused"))
        assert "✗  EHLO         550 no" in reported
        assert "PIPELINING" not in reported

    def test_is_ascii_on_an_old_terminal(self) -> None:
        reported = shown(findings(lf=NewlineResult.ENDS, undetermined={"x": "y"}), "ascii")
        assert "x  PIPELINING   not offered" in reported
        assert "+  EHLO " in reported

    def test_is_complete_on_a_narrow_terminal(self) -> None:
        reported = shown(findings(hello=hello(*(f"WORD{n}" for n in range(30)))), width=60)
        assert all(f"WORD{n}" in reported for n in range(30))
        assert max(map(len, reported.splitlines())) <= 60

    def test_escapes_the_text_of_the_server(self) -> None:
        nasty = "\x1b[31m\x9b\x07\x00"
        found = findings(
            greeting=reply("220 " + nasty),
            hello=hello(nasty, "X-" + nasty),
            data=DataWithoutRecipients(None, reply("503 " + nasty)),
            relay=RelayResult("", "a@b.example", "RCPT", reply("550 " + nasty)),
        )
        assert not set(shown(found)) & {"\x1b", "\x9b", "\x07", "\x00"}


class TestSettings:
    def test_are_the_defaults_if_nothing_is_wrong(self, tmp_path: Path) -> None:
        text, reported = settings(findings(), tmp_path)
        assert reported == backend()
        assert "pipelining" not in text

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            (
                {"hello": hello("PIPELINING"), "groups": [group(GroupEnd.LOST, 1)]},
                {"pipelining": "never"},
            ),
            ({"hello": hello("PIPELINING")}, {"pipelining": "auto"}),
            ({"hello": hello("XCLIENT NAME ADDR")}, {"identity": "xclient"}),
            ({"hello": hello("XCLIENT NAME HELO")}, {"identity": "none"}),
        ],
    )
    def test_follow_from_findings(
        self, changed: dict[str, Any], expected: dict[str, Any], tmp_path: Path
    ) -> None:
        assert settings(findings(**changed), tmp_path)[1] == backend(**expected)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"ehlo_refused": reply("500 what?")}, "helo_fallback = true"),
            ({"data": DataWithoutRecipients(None, reply("354 go"))}, "guard_data = true"),
            ({}, '# identity = "transparent"'),
            ({}, '# chunking = "add"'),
            ({"address": Address(path="/run/mta.sock")}, "On a Unix socket"),
            (
                {"relay": RelayResult("", "a@b.example", "RCPT", reply("250 ok"))},
                "It relays for this machine",
            ),
            ({"hello": hello("STARTTLS")}, "Without these, clients lose STARTTLS"),
            ({"is_implicit": True}, "Clients that use implicit TLS need a certificate here"),
        ],
    )
    def test_give_the_reason(self, changed: dict[str, Any], said: str, tmp_path: Path) -> None:
        assert said in settings(findings(**changed), tmp_path)[0]

    @pytest.mark.parametrize(
        "changed", [{"hello": hello("CHUNKING")}, {"ehlo_refused": reply("500 what?")}]
    )
    def test_do_not_add_chunking_where_it_is_offered_or_cannot_be(
        self, changed: dict[str, Any], tmp_path: Path
    ) -> None:
        assert "chunking" not in settings(findings(**changed), tmp_path)[0]

    def test_do_not_guard_data_if_its_pipelining_is_used(self, tmp_path: Path) -> None:
        """DATA is always forwarded then."""
        data = DataWithoutRecipients(None, reply("354 go"))
        text, _ = settings(findings(hello=hello("PIPELINING"), data=data), tmp_path)
        assert "guard_data" not in text

    @pytest.mark.parametrize(
        ("expected", "working"),
        [
            ({"tls": "starttls"}, ["1.3"]),
            ({"tls": "starttls", "server_name": "mx.example"}, ["1.3"]),
            ({"tls": "opportunistic"}, ["1.3"]),
            ({"tls": "opportunistic", "minimum_tls": "1.0"}, ["1.0"]),
            ({"tls": "implicit", "verify": False}, ["1.3"]),
            ({"tls": "implicit"}, ["1.3"]),
        ],
    )
    def test_contain_the_tls_settings_that_worked(
        self, expected: dict[str, Any], working: list[str], tmp_path: Path
    ) -> None:
        tls = encryption(backend(**expected), *working)
        found = findings(tls=tls, is_implicit=expected["tls"] == "implicit")
        assert settings(found, tmp_path)[1] == backend(**expected)

    def test_show_how_to_verify_a_certificate(self, tmp_path: Path) -> None:
        tls = encryption(backend(tls="opportunistic"), "1.3", unverified="self-signed")
        text, _ = settings(findings(tls=tls), tmp_path)
        assert "to verify its certificate (self-signed)" in text
        assert "ca_file" in text

    def test_do_not_suggest_a_ca_file_for_an_expired_certificate(self, tmp_path: Path) -> None:
        expired = CertificateFindings((), "x", False, NOW, NOW - timedelta(days=1), "RSA 512")
        tls = encryption(backend(tls="opportunistic"), "1.3", certificate=expired)
        text, _ = settings(findings(tls=tls), tmp_path)
        assert "Its certificate has expired" in text
        assert "ca_file" not in text

    def test_have_no_tls_on_this_machine_unless_required(self, tmp_path: Path) -> None:
        tls = encryption(backend(tls="starttls"), "1.3")
        assert settings(findings(address=LOCAL, tls=tls), tmp_path)[1].tls == "off"
        insisting = findings(address=LOCAL, tls=tls, insists_on_tls=True)
        assert settings(insisting, tmp_path)[1].tls == "starttls"

    def test_have_no_tls_if_none_works(self, tmp_path: Path) -> None:
        text, reported = settings(findings(tls=encryption(None, "1.3")), tmp_path)
        assert reported.tls == "off"
        assert "Its TLS does not work" in text

    @pytest.mark.parametrize(
        "address",
        [
            Address(host="::1", port=25),
            Address(host="mta.example.org", port=25),
            Address(path='/run/"odd"\\ ü\x7f\t.sock'),
        ],
    )
    def test_name_the_server_whatever_it_is(self, address: Address, tmp_path: Path) -> None:
        assert settings(findings(address=address), tmp_path)[1].servers == [address]
