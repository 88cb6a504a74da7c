"""Framing: octets from the client become exchanges on the queue, or go straight to the backend.

The framer is on its own here: the test opens its gates, as the pipeline does.
"""

import pytest

from smtpproxy.core import replies, verbs
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.framing import CLOSED, COMMANDS, ENDED, Framer
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.verbs import Sync


class Framing:
    """A framer after the greeting, and what it sent to the backend."""

    def __init__(self, policy: SessionPolicy | None = None) -> None:
        self.sent: list[bytes] = []
        greeting = Exchange(verbs.GREETING_ROW, b"", 1.0)
        self.framer = Framer(policy or SessionPolicy(), greeting, self.sent.append)
        greeting.flushed = 1.0
        self.framer.open_commands()

    def receive(self, octets: bytes) -> None:
        self.framer.receive(octets, 2.0)

    @property
    def queued(self) -> list[bytes]:
        return [exchange.line or exchange.refusal for exchange in self.framer.queue]


def test_lines_become_exchanges_in_order() -> None:
    framing = Framing()
    framing.receive(b"MAIL FROM:<a>\r\nrcpt TO:<b>\nNOOP\r\nVRFY x\r\n\r\nRSET")
    assert framing.queued == [
        b"MAIL FROM:<a>\r\n",
        b"rcpt TO:<b>\r\n",
        b"NOOP\r\n",
        b"VRFY x\r\n",
        b"\r\n",
    ]
    assert framing.framer.unframed == b"RSET"
    framing.framer.open_commands()  # the empty line was a gate
    framing.receive(b"\r\n")
    assert framing.queued[-1] == b"RSET\r\n"
    assert framing.framer.commands == 6


def test_line_cut_anywhere_is_framed_once() -> None:
    for cut in range(1, 12):
        framing = Framing()
        framing.receive(b"NOOP x\r\nRSET\r\n"[:cut])
        framing.receive(b"NOOP x\r\nRSET\r\n"[cut:])
        assert framing.queued == [b"NOOP x\r\n", b"RSET\r\n"]


def test_octets_before_the_gate_opens_wait_unframed() -> None:
    sent: list[bytes] = []
    framer = Framer(SessionPolicy(), Exchange(verbs.GREETING_ROW, b"", 1.0), sent.append)
    framer.receive(b"NOOP\r\n", 2.0)
    assert (framer.queue, framer.unframed) == ([], b"NOOP\r\n")
    framer.open_commands()
    framer.frame_waiting(3.0)
    assert [exchange.line for exchange in framer.queue] == [b"NOOP\r\n"]


def test_gate_holds_back_what_follows() -> None:
    framing = Framing()
    framing.receive(b"RSET\r\nAUTH LOGIN\r\nam9l\r\n")
    assert framing.queued == [b"RSET\r\n", b"AUTH LOGIN\r\n"]
    assert framing.framer.mode == CLOSED
    framing.framer.open_auth_data()
    framing.framer.frame_waiting(3.0)
    assert framing.queued[2:] == [b"am9l\r\n"]
    assert framing.framer.queue[2].verb is verbs.AUTH_LINE_ROW


def test_guarded_gate_refuses_what_follows() -> None:
    for octets in ([b"DATA\r\nx"], [b"DATA\r\n", b"x"]):
        framing = Framing()
        for segment in octets:
            framing.receive(segment)
        assert framing.framer.queue[0].refusal == replies.NOT_SYNCHRONIZED
        assert framing.framer.queue[0].closes
        assert (framing.framer.mode, framing.framer.unframed) == (ENDED, b"")
        framing.receive(b"RSET\r\n")
        assert len(framing.framer.queue) == 1


def test_guarded_gate_opens_if_nothing_was_sent_early() -> None:
    framing = Framing()
    framing.receive(b"DATA\r\n")
    framing.framer.frame_waiting(3.0)
    assert framing.framer.queue[0].refusal == b""


def test_content_goes_straight_on_and_ends() -> None:
    framing = Framing()
    content = Exchange(verbs.END_OF_DATA_ROW, b"", 2.0)
    framing.framer.open_content(content)
    framing.receive(b"RSET\r\n.")
    assert not framing.framer.content_over
    framing.receive(b"\r\nNOOP\r\n")
    assert framing.framer.content_over
    assert b"".join(framing.sent) == b"RSET\r\n.\r\n"
    assert framing.queued == [b"NOOP\r\n"]
    assert content.octets == 6


def test_refused_content_is_read_and_dropped() -> None:
    framing = Framing(SessionPolicy(bare_newlines=BareNewlines.REJECT))
    content = Exchange(verbs.END_OF_DATA_ROW, b"", 2.0)
    framing.framer.open_content(content)
    framing.receive(b"a\r\nb\nc\r\nd\r\n")
    framing.receive(b"e\r\n.\r\n")
    assert framing.sent == [b"a\r\n"]
    assert content.refusal == replies.BARE_NEWLINE["bare_lf"]
    assert framing.framer.content_over


def test_content_that_the_backend_refused_keeps_that_refusal() -> None:
    framing = Framing(SessionPolicy(bare_newlines=BareNewlines.REJECT))
    content = Exchange(verbs.END_OF_DATA_ROW, b"", 2.0)
    content.refusal = b"552 big\r\n"
    framing.framer.open_content(content)
    framing.receive(b"a\nb\r\n.\r\n")
    assert (framing.sent, content.refusal) == ([], b"552 big\r\n")


def test_an_end_of_data_that_is_none_is_taken_once() -> None:
    framing = Framing()
    framing.framer.open_content(Exchange(verbs.END_OF_DATA_ROW, b"", 2.0))
    framing.receive(b"a\n.\n")
    taken = framing.framer.take_mistaken_end()
    assert taken is not None
    assert taken.kind == "bare_lf"
    framing.receive(b"b")
    assert framing.framer.take_mistaken_end() is None


def test_payload_is_counted() -> None:
    framing = Framing()
    framing.receive(b"BDAT 7\r\n.\r\nRS\r\nNOOP\r\n")
    assert framing.framer.payload == 7
    framing.framer.open_payload()
    framing.framer.frame_waiting(3.0)
    assert framing.sent == [b".\r\nRS\r\n"]
    assert framing.queued[1:] == [b"NOOP\r\n"]
    assert framing.framer.payload == 0
    assert framing.framer.queue[0].octets == 7


def test_payload_is_passed_on_as_it_comes() -> None:
    framing = Framing()
    framing.receive(b"BDAT 3\r\n")
    framing.framer.open_payload()
    for octets in (b"a", b"\r", b"\nRSET\r\n"):
        assert not framing.framer.content_over
        framing.receive(octets)
    assert framing.framer.content_over
    assert framing.sent == [b"a", b"\r", b"\n"]
    assert framing.queued[1:] == [b"RSET\r\n"]


def test_payload_of_nothing_lets_commands_follow() -> None:
    framing = Framing()
    framing.receive(b"BDAT 0\r\nNOOP\r\n")
    framing.framer.open_payload()
    framing.framer.frame_waiting(3.0)
    assert framing.sent == []
    assert framing.queued[1:] == [b"NOOP\r\n"]


def test_refused_line_is_skipped_to_its_end() -> None:
    framing = Framing(SessionPolicy(command_line=10))
    framing.receive(b"NOOP 12345678\r\nRSET\r\nNOOP 123456")
    assert framing.queued == [replies.LINE_TOO_LONG, b"RSET\r\n", replies.LINE_TOO_LONG]
    framing.receive(b"7890" * 1000)
    assert framing.framer.unframed == b""
    framing.receive(b"\r\nNOOP\r\n")
    assert framing.queued[3:] == [b"NOOP\r\n"]


@pytest.mark.parametrize(
    "octets", [b"BDAT x\r\n", b"BDAT 1\rLAST\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"SSH-2"]
)
def test_nothing_is_framed_after_a_refusal_that_closes(octets: bytes) -> None:
    framing = Framing()
    framing.receive(b"RSET\r\n" + octets + b"\r\nQUIT\r\n")
    assert len(framing.framer.queue) == 2
    assert framing.framer.queue[1].closes
    assert framing.framer.mode == ENDED
    framing.receive(b"RSET\r\n")
    assert len(framing.framer.queue) == 2


@pytest.mark.parametrize("data", [b"a\rb\r\n", b"a\0\n", b"x" * 12288])
def test_auth_data_that_is_refused_closes_and_is_not_shown(data: bytes) -> None:
    framing = Framing()
    framing.framer.open_auth_data()
    framing.receive(data)
    assert framing.framer.queue[0].closes
    problem = framing.framer.queue[0].problem
    assert problem is not None
    assert problem.octets == b""


def test_auth_data_waits_for_its_end() -> None:
    framing = Framing()
    framing.framer.open_auth_data()
    framing.receive(b"  DATA")
    assert framing.queued == []
    framing.receive(b"\nRSET\r\n")
    assert framing.queued == [b"  DATA\r\n"]
    assert framing.framer.unframed == b"RSET\r\n"


def test_auth_line_may_be_longer_than_others() -> None:
    framing = Framing(SessionPolicy(command_line=20, auth_line=40))
    framing.receive(b"auth PLAIN " + b"x" * 27 + b"\r\n")
    assert framing.framer.queue[0].verb.name == b"AUTH"
    framing = Framing(SessionPolicy(command_line=20, auth_line=40))
    framing.receive(b"AUTH PLAIN " + b"x" * 28 + b"\r\n")
    assert framing.queued == [replies.LINE_TOO_LONG]


def test_full_queue_keeps_what_is_left_until_it_is_empty() -> None:
    framing = Framing(SessionPolicy(queue_commands=2))
    framing.receive(b"NOOP 1\r\nNOOP 2\r\nNOOP 3\r\nNOOP 4\r\n")
    assert framing.framer.full
    assert framing.framer.pop().line == b"NOOP 1\r\n"
    framing.framer.frame_waiting(3.0)
    framing.receive(b"NOOP 5\r\n")
    assert framing.queued == [b"NOOP 2\r\n"]
    assert not framing.framer.full
    framing.framer.pop()
    framing.framer.frame_waiting(4.0)
    assert framing.queued == [b"NOOP 3\r\n", b"NOOP 4\r\n"]
    assert framing.framer.unframed == b"NOOP 5\r\n"


def test_full_counts_octets_queued_and_unframed() -> None:
    framing = Framing(SessionPolicy(queue_bytes=20))
    framing.receive(b"NOOP 1\r\nNOOP 2\r\nNOO")
    assert not framing.framer.full
    framing.receive(b"P")
    assert framing.framer.full
    framing.framer.pop()
    assert not framing.framer.full


def test_whole_lines_that_wait_make_it_full_with_nothing_in_the_queue_too() -> None:
    framing = Framing(SessionPolicy(queue_commands=1, queue_bytes=20))
    framing.receive(b"NOOP 1\r\nNOOP 2\r\nNOOP 3\r\nNOOP 4\r\n")
    framing.framer.pop()
    assert framing.queued == []
    assert framing.framer.full


def test_pipelined_is_what_was_framed_before_the_reply_before_it_was_flushed() -> None:
    framing = Framing()
    framing.receive(b"RSET\r\nRSET\r\nFROB\r\nRSET\r\n")
    assert [framing.framer.pop().pipelined for _ in range(3)] == [False, True, True]
    framing.framer.last.flushed = 3.0
    framing.framer.open_commands()
    framing.framer.frame_waiting(3.0)
    assert [exchange.pipelined for exchange in framing.framer.queue] == [False]
    assert (framing.framer.commands, framing.framer.pipelined) == (4, 2)


def test_what_is_forgotten_is_only_the_last() -> None:
    framing = Framing()
    framing.receive(b"RSET\r\nRSET\r\n")
    first, second = framing.framer.queue
    framing.framer.forget(first)
    assert framing.framer.last is second
    framing.framer.forget(second)
    assert framing.framer.last is not second
    assert framing.framer.last.flushed


def test_secret_after_a_guarded_gate_is_not_shown() -> None:
    framing = Framing(SessionPolicy(sync=Sync.STRICT))
    framing.framer.table = SessionPolicy(sync=Sync.STRICT).helo_table
    framing.receive(b"AUTH LOGIN\r\nc2VjcmV0\r\n")
    problem = framing.framer.queue[0].problem
    assert problem is not None
    assert problem.octets == b""


def test_white_space_after_a_guarded_gate_shows_nothing() -> None:
    framing = Framing()
    framing.receive(b"DATA\r\n \r\n")
    problem = framing.framer.queue[0].problem
    assert problem is not None
    assert (problem.kind, problem.octets) == ("not_synchronized", b"")


def test_commands_follow_commands() -> None:
    framing = Framing()
    framing.receive(b"NOOP\r\n")
    assert framing.framer.mode == COMMANDS
