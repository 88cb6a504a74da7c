"""The probe finds what a server offers, lacks and does wrong, and reports nothing else."""

import asyncio
import socket
from pathlib import Path

import pytest

from smtpproxy.config.address import Address, parse_server
from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.probe import connector, probe_run
from smtpproxy.probe.behaviour_checks import NewlineResult
from smtpproxy.probe.connector import ProbeOptions
from smtpproxy.probe.findings import Findings
from smtpproxy.probe.pipelining_checks import GroupEnd
from smtpproxy.probe.probe_run import Unreachable
from tests.probe.server import CLOSE, Server, Session, examined

REFUSED = {b"smtpproxy-probe@refused.invalid": b"550 no"}


REFUSED_NAME = "EHLO is refused; try another name than probe.example with --helo"


async def examined_legacy(failing: str, refused: dict[bytes, bytes] | None = None) -> Findings:
    async with LegacyMTA(failing=failing, refused=REFUSED if refused is None else refused) as mta:
        options = ProbeOptions(
            parse_server(mta.address), 5.0, "probe.example", relay_to="a@b.example"
        )
        found = await asyncio.to_thread(probe_run.examine, options, lambda _: None)
        assert mta.messages == []
    assert found.undetermined == {}
    return found


class TestGroups:
    @pytest.mark.parametrize(
        ("failing", "ends"),
        [
            ("none", [GroupEnd.ANSWERED] * 4),
            (
                "flush-on-failure",
                [GroupEnd.ANSWERED, GroupEnd.ANSWERED, GroupEnd.LOST, GroupEnd.ANSWERED],
            ),
            ("flush-always", [GroupEnd.LOST] * 4),
            ("hand-over", [GroupEnd.ANSWERED, GroupEnd.LOST, GroupEnd.ANSWERED, GroupEnd.ANSWERED]),
            ("opensmtpd", [GroupEnd.CLOSED] * 4),
        ],
    )
    async def test_show_each_fault_of_a_legacy_mta(
        self, failing: str, ends: list[GroupEnd]
    ) -> None:
        assert [group.end for group in (await examined_legacy(failing)).groups] == ends

    def test_that_end_in_quit_lose_the_commands_before_it(self) -> None:
        def frontbridge(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                if octets.endswith(b"QUIT\r\n"):
                    session.say(b"221 bye\r\n")
                    return
                session.say(b"250 fine\r\n" * octets.count(b"\r\n"))
            return

        with Server(script=frontbridge) as server:
            found = examined(server, timeout_s=1.0)
        assert [group.end for group in found.groups] == [*[GroupEnd.ANSWERED] * 3, GroupEnd.CLOSED]
        assert [reply.code for reply in found.groups[3].replies] == [221]

    def test_with_more_replies_than_commands(self) -> None:
        def generous(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                count = octets.count(b"\r\n")
                session.say(b"250 fine\r\n" * (count + (count > 1)))

        with Server(script=generous) as server:
            found = examined(server, timeout_s=1.0)
        assert {group.end for group in found.groups} == {GroupEnd.SURPLUS}

    def test_answered_differently_from_single_commands(self) -> None:
        def grudging(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                count = octets.count(b"\r\n")
                quits = octets.endswith(b"QUIT\r\n")
                code = b"221" if quits else b"250"
                session.say(b"503 no\r\n" * (count - 1) + code + b" fine\r\n")
                if quits:
                    return

        with Server(script=grudging) as server:
            found = examined(server)
        assert {group.end for group in found.groups} == {GroupEnd.DIFFERENT}

    def test_answered_late_are_not_lost(self) -> None:
        """A reply that comes after one more command is late, not lost."""

        def slow(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                for line in octets.splitlines():
                    if octets.count(b"\r\n") > 2 and line == b"NOOP":
                        octets = session.read()  # reply only after the next command
                        session.say(b"250 late\r\n")
                    session.say(b"221 bye\r\n" if line == b"QUIT" else b"250 fine\r\n")
                    if line == b"QUIT":
                        return

        with Server(script=slow) as server:
            found = examined(server)
        assert found.groups[0].end is GroupEnd.ANSWERED
        assert len(found.groups[0].replies) == 3

    def test_answered_with_garbage(self) -> None:
        def garbling(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                session.say(b"250 fine\r\n" if octets.count(b"\r\n") == 1 else b"\xff\0\r\n")

        with Server(script=garbling) as server:
            found = examined(server)
        assert {group.end for group in found.groups} == {GroupEnd.BROKEN}


class TestHello:
    @pytest.mark.parametrize("code", [b"500", b"502"])
    def test_helo_only(self, code: bytes) -> None:
        with Server({b"EHLO": code + b" what?\r\n"}) as server:
            found = examined(server)
        assert found.ehlo_refused is not None
        assert found.hello is not None
        assert found.hello.line == "250 fine"
        assert not found.refusal
        assert len(found.groups) == 4

    @pytest.mark.parametrize(
        ("reply", "said"),
        [
            (b"550 go away", REFUSED_NAME),
            (b"501 bad name", REFUSED_NAME),
            (b"451 not now", "EHLO is refused at present: try again later"),
            (CLOSE, "no reply to EHLO: it closed the connection"),
        ],
    )
    def test_any_other_refusal_of_ehlo_ends_the_run(self, reply: bytes, said: str) -> None:
        with Server({b"EHLO": reply if reply == CLOSE else reply + b"\r\n"}) as server:
            found = examined(server)
        assert found.refusal == said
        assert not any(line.startswith(b"HELO") for line in server.heard)
        assert found.ehlo_refused is None

    def test_helo_is_refused_too(self) -> None:
        with Server({b"EHLO": b"500 what?\r\n", b"HELO": b"550 no\r\n"}) as server:
            found = examined(server)
        assert found.refusal.startswith("EHLO and HELO are refused")

    @pytest.mark.parametrize(
        ("greeting", "said"),
        [
            (b"554 no\r\n", "it refuses connections from this machine"),
            (
                b"421 busy\r\n",
                "it refuses connections from this machine at present: try again later",
            ),
        ],
    )
    def test_is_not_sent_after_a_refusing_greeting(self, greeting: bytes, said: str) -> None:
        with Server(greeting=greeting) as server:
            found = examined(server)
        assert found.refusal == said
        assert [line for line in server.heard if line != b"QUIT\r\n"] == []

    def test_sends_a_qualified_host_name_or_an_address_literal(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for host, name in (("old.example.org", b"old.example.org"), ("box", b"[127.0.0.1]")):
            monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
            with Server() as server:
                examined(server, name="")
            assert b"EHLO " + name + b"\r\n" in server.heard

    def test_an_address_literal_of_ipv6_has_its_tag(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "box")
        assert connector._own_name("fe80::1%eth0") == "[IPv6:fe80::1]"


class TestData:
    async def test_accepted_without_recipients(self) -> None:
        found = await examined_legacy("data-accepted")
        assert found.data is not None
        assert found.data.reply.code == 354
        assert found.data.refused is not None

    async def test_refused_without_recipients(self) -> None:
        found = await examined_legacy("none")
        assert found.data is not None
        assert found.data.reply.code == 554

    def test_is_never_sent_after_an_accepted_recipient(self) -> None:
        """Not even after RSET, which the server may ignore."""
        with Server({b"DATA": b"354 go\r\n"}) as server:
            found = examined(server, relay_to="a@b.example")
        assert found.data is not None
        assert found.data.refused is None
        ended = 0
        for session in server.sessions:
            if b"DATA\r\n" in session.heard:
                assert not any(line.startswith(b"RCPT") for line in session.heard)
                assert session.heard[-1] == b"DATA\r\n"
                ended += 1
        assert ended == 1

    def test_accepted_ends_in_a_connection_reset(self) -> None:
        with Server({b"DATA": b"354 go\r\n", b"RCPT": b"550 no\r\n"}) as server:
            examined(server)
        (session,) = (each for each in server.sessions if b"DATA\r\n" in each.heard)
        assert session.was_reset
        assert session.heard[-1] == b"DATA\r\n"

    def test_is_not_sent_if_mail_is_refused(self) -> None:
        with Server({b"MAIL": b"530 authenticate\r\n"}) as server:
            found = examined(server, relay_to="a@b.example")
        assert found.undetermined == {"DATA": "MAIL was refused: 530 authenticate"}
        assert found.relay is not None
        assert found.relay.verb == "MAIL"
        assert b"DATA\r\n" not in server.heard


class TestNewlines:
    @pytest.mark.parametrize(
        ("octet", "answer", "newline"),
        [
            (b"\n", b"250 fine\r\n", NewlineResult.ENDS),
            (b"\r", b"250 fine\r\n", NewlineResult.ENDS),
            (b"\n", b"500 bare\r\n", NewlineResult.REFUSED),
            (b"\r", b"500 bare\r\n", NewlineResult.REFUSED),
            (b"\n", b"", NewlineResult.NOTHING),
            (b"\r", b"", NewlineResult.NOTHING),
            (b"\n", CLOSE, NewlineResult.CLOSES),
        ],
    )
    def test_are_distinguished(self, octet: bytes, answer: bytes, newline: NewlineResult) -> None:
        def script(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                if octets == b"NOOP" + octet and answer != b"":
                    if answer == CLOSE:
                        return
                    session.say(answer)
                elif octets.endswith(b"\n") and octets != b"NOOP\n":
                    session.say(b"250 fine\r\n" * octets.count(b"\n"))

        with Server(script=script) as server:
            found = examined(server)
        assert (found.lf if octet == b"\n" else found.cr) is newline


class TestRelay:
    def test_sends_only_mail_and_rcpt(self) -> None:
        with Server() as server:
            found = examined(server, sender="me@here.example", relay_to="a@b.example")
        (session,) = (
            each for each in server.sessions if b"RCPT TO:<a@b.example>\r\n" in each.heard
        )
        assert session.heard == [
            b"EHLO probe.example\r\n",
            b"MAIL FROM:<me@here.example>\r\n",
            b"RCPT TO:<a@b.example>\r\n",
            b"RSET\r\n",
            b"QUIT\r\n",
        ]
        assert found.relay is not None
        assert found.relay.would

    @pytest.mark.parametrize("code", [450, 550])
    def test_a_refusal_keeps_its_code(self, code: int) -> None:
        with Server({b"RCPT": b"%d no\r\n" % code}) as server:
            found = examined(server, relay_to="a@b.example")
        assert found.relay is not None
        assert not found.relay.would
        assert found.relay.reply.code == code

    async def test_runs_only_on_request(self) -> None:
        assert (await examined_legacy("helo-only")).relay is not None
        with Server() as server:
            assert (examined(server)).relay is None


class TestReach:
    def test_a_unix_socket(self, tmp_path: Path) -> None:
        with Server(path=str(tmp_path / "smtp.sock")) as server:
            found = examined(server, name="")
        assert found.ip == ""
        assert not found.refusal
        assert len(found.groups) == 4

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            (Address(host="127.0.0.1", port=1), "it can't be reached: connection refused"),
            (Address(path="/nowhere/x"), "it can't be reached: no such file or directory"),
            (Address(host="nowhere.invalid", port=25), "it can't be reached: "),
        ],
    )
    def test_an_unreachable_server(self, address: Address, said: str) -> None:
        with pytest.raises(Unreachable) as raised:
            probe_run.examine(ProbeOptions(address, 5.0), lambda _: None)
        assert str(raised.value).startswith(said)

    def test_a_server_that_refuses_later_connections(self) -> None:
        """The checks without a result are listed, and the other findings are kept."""
        sessions = 0

        def script(session: Session) -> None:
            nonlocal sessions
            sessions += 1
            session.say(b"220 mx\r\n" if sessions == 1 else b"421 too many\r\n")
            while session.line():
                session.say(b"250 fine\r\n")

        with Server(script=script) as server:
            found = examined(server)
        assert set(found.undetermined) == {"groups", "DATA", "bare LF", "bare CR"}
        assert set(found.undetermined.values()) == {"the connection was refused: 421 too many"}
