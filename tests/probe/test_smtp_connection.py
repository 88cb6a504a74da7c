"""The probe's connection delivers nothing, and its waits and buffers are bounded."""

import socket
import time
from collections import deque
from time import monotonic

import pytest

from smtpproxy.core.replies import REPLY_LIMIT
from smtpproxy.probe import probe_run
from smtpproxy.probe.connector import ProbeOptions
from smtpproxy.probe.probe_run import Unreachable
from smtpproxy.probe.smtp_connection import (
    NoReply,
    NoReplyReason,
    ProbeReply,
    SmtpConnection,
    short,
)
from tests.probe.server import Script, Server, Session, examined

Pair = tuple[SmtpConnection, socket.socket]


@pytest.fixture
def pair() -> Pair:
    ours, theirs = socket.socketpair()
    return SmtpConnection(ours, 0.3, monotonic() + 60, lambda *_: None), theirs


class TestNothingIsDelivered:
    @pytest.mark.parametrize(
        "octets",
        [b"DATA\r\n", b"RSET\r\ndata\r\n", b".\r\n", b"x\r\n.\r\n", b"a\n.\n", b"BDAT 0 LAST\r\n"],
    )
    def test_whatever_is_sent(self, octets: bytes, pair: Pair) -> None:
        with pair[0] as connection, pair[1]:
            with pytest.raises(AssertionError):
                connection.say(octets)
            connection.abort()

    def test_after_an_accepted_recipient(self, pair: Pair) -> None:
        with pair[0] as connection, pair[1] as server:
            server.sendall(b"250 fine\r\n")
            connection.ask(b"RCPT TO:<a@b.example>")
            with pytest.raises(AssertionError):
                connection.ask_for_content()
            connection.abort()

    @pytest.mark.parametrize("reply", [b"354 go\r\n", b"250 fine\r\n", b""])
    def test_nothing_is_sent_after_data_that_may_have_been_accepted(
        self, reply: bytes, pair: Pair
    ) -> None:
        with pair[1] as server:
            server.sendall(reply)
            with pair[0] as connection:
                if reply:
                    connection.ask_for_content()
                else:
                    with pytest.raises(NoReply):
                        connection.ask_for_content()
            assert server.recv(100) == b"DATA\r\n"
            assert server.recv(100) == b""

    def test_a_refusal_of_data_leaves_the_connection_as_it_is(self, pair: Pair) -> None:
        with pair[1] as server:
            server.sendall(b"503 no\r\n221 bye\r\n")
            with pair[0] as connection:
                assert connection.ask_for_content().code == 503
            assert server.recv(100) == b"DATA\r\nQUIT\r\n"


class TestReplies:
    def test_are_taken_one_by_one(self, pair: Pair) -> None:
        with pair[0] as connection, pair[1] as server:
            server.sendall(b"250-a\r\n250 b\r\n550 c\r\n")
            assert connection.reply().octets == b"250-a\r\n250 b\r\n"
            assert connection.unread == b"550 c\r\n"
            assert connection.reply().line == "550 c"

    def test_an_exception_ends_the_connection_without_quit(self, pair: Pair) -> None:
        with pair[1] as server:
            with pytest.raises(KeyError), pair[0]:
                raise KeyError
            assert server.recv(100) == b""

    def test_are_escaped_for_a_terminal(self) -> None:
        reply = ProbeReply(220, b"220-\x1b[2J\xff\xc2\x9b\r\n220 end\r\n")
        assert reply.line == "220 \\x1b[2J\\xff\\xc2\\x9b"
        assert len(short(b"x" * 100_000)) < 200


def silent(session: Session) -> None:
    session.read()


def endless_line(session: Session) -> None:
    session.say(b"220 ")
    while True:
        session.say(b"x" * 65536)


def endless_reply(session: Session) -> None:
    while True:
        session.say(b"220-x\r\n" * 10_000)


def dripping(session: Session) -> None:
    while True:
        session.say(b"2")
        time.sleep(0.02)


def garbage(session: Session) -> None:
    session.say(b"\x16\x03\x01\x1b[2J\r\n")
    session.read()


def gone(session: Session) -> None:  # noqa: ARG001
    return


class TestHostileServers:
    @pytest.mark.parametrize(
        ("script", "said"),
        [
            (silent, "it sends no greeting: neither in plaintext nor inside TLS"),
            (endless_line, "it sends no greeting: it sent an invalid reply: 220 xxx"),
            (endless_reply, "it sends no greeting: it sent an invalid reply: 220-x"),
            (dripping, "it sends no greeting: neither in plaintext nor inside TLS"),
            (garbage, "it sends no greeting: it sent an invalid reply: \\x16\\x03\\x01\\x1b[2J"),
            (gone, "it sends no greeting: it closed the connection"),
        ],
    )
    def test_end_the_run_soon(self, script: Script, said: str) -> None:
        limit_s = 0.5 if script in (silent, dripping) else 60.0  # others end before their limit
        begun = monotonic()
        with Server(script=script) as server:
            options = ProbeOptions(server.address, limit_s)
            with pytest.raises(Unreachable) as raised:
                probe_run.examine(options, lambda _: None)
        assert str(raised.value).startswith(said)
        assert monotonic() - begun < 20

    @pytest.mark.parametrize("script", [endless_line, endless_reply])
    def test_do_not_fill_memory(self, script: Script, pair: Pair) -> None:
        piece = b"x" * 4096 if script is endless_line else b"220-x\r\n" * 585
        sent = 0
        with pair[1] as server, pair[0] as connection:
            server.setblocking(False)

            def take() -> None:
                nonlocal sent
                sent += server.send(piece)
                connection._reader.receive(connection._read(monotonic() + 1))
                assert connection._next() is None

            with pytest.raises(NoReply) as raised:
                deque(iter(take, 1))
            connection.abort()
        assert raised.value.how is NoReplyReason.BROKEN
        assert sent <= REPLY_LIMIT + 2 * len(piece)

    def test_slow_replies_reach_the_time_limit_of_the_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each reply is in time, but together they take too long."""
        monkeypatch.setattr("smtpproxy.probe.connector._WHOLE", 2)

        def slow(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while session.line():
                time.sleep(0.2)
                session.say(b"250 fine\r\n")

        begun = monotonic()
        with Server(script=slow) as server:
            found = examined(server, timeout_s=1)
        assert "groups" in found.undetermined
        assert monotonic() - begun < 20

    def test_the_time_limit_of_the_run_is_not_a_lost_reply(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run ends during the first group, which says nothing about the server."""
        monkeypatch.setattr("smtpproxy.probe.connector._WHOLE", 1)

        def slow(session: Session) -> None:
            session.say(b"220 mx\r\n")
            while octets := session.read():
                for line in octets.splitlines():
                    time.sleep(1.5 if octets.count(b"\n") > 1 else 0)
                    session.say(b"221 bye\r\n" if line == b"QUIT" else b"250 fine\r\n")

        with Server(script=slow) as server:
            found = examined(server, timeout_s=1)
        assert not found.groups
        assert found.undetermined["groups"].startswith("the whole run took too long")

    def test_invalid_replies_leave_checks_without_a_result(self) -> None:
        with Server({b"RSET": b"\0\0\r\n", b"NOOP": b"25\r\n"}) as server:
            found = examined(server, timeout_s=0.5)
        assert set(found.undetermined) == {"groups", "DATA", "bare LF", "bare CR"}
        assert found.undetermined["groups"] == "it sent an invalid reply: \\x00\\x00"
