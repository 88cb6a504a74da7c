"""The pipeline: what the transcripts can't show (times, counts, what the caller and observers see).

Its dialogues are in tests/core/transcripts.
"""

import pytest

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import ClientTls, SessionPolicy
from smtpproxy.core.replies import REPLY_LIMIT
from smtpproxy.core.reply_buffer import HELD_OCTETS
from tests.support.model_mta import MtaStage
from tests.support.pipeline_stage import Observed, Stage, check_observed, seen_by_observers


def _stage(given: str = "EHLO", policy: SessionPolicy | None = None) -> Stage:
    stage = Stage(policy)
    stage.come_to(given)
    return stage


def test_greeting_is_owed_until_it_has_come() -> None:
    stage = Stage()
    assert stage.pipeline.greeting_owed
    stage.backend(b"220 mx")
    assert stage.pipeline.greeting_owed
    stage.backend(b"\r\n")
    assert not stage.pipeline.greeting_owed
    stage.client(b"NOOP\r\n")
    assert not stage.pipeline.greeting_owed


def test_backend_is_connected_before_anything_is_sent_to_it() -> None:
    pipeline = Pipeline(SessionPolicy(), [].append, Observed(), 1.0)
    pipeline.client_received(b"EHLO x\r\n", 2.0)
    with pytest.raises(AssertionError, match="nothing is connected"):
        pipeline.backend_received(b"220 mx\r\n", 3.0)


def test_upgrade_is_set_where_the_rules_speak_of_tls() -> None:
    pipeline = Pipeline(SessionPolicy(client_tls=ClientTls.OFFERED), [].append, Observed(), 1.0)
    pipeline.connect_backend([].append)
    pipeline.backend_received(b"220 mx\r\n", 2.0)
    with pytest.raises(AssertionError, match="nothing is connected"):
        pipeline.client_received(b"STARTTLS\r\n", 3.0)


def test_introduce_must_be_set_if_a_client_is_trusted() -> None:
    pipeline = Pipeline(SessionPolicy(trusted=True), [].append, Observed(), 1.0)
    pipeline.connect_backend([].append)
    pipeline.backend_received(b"220 mx\r\n", 2.0)
    with pytest.raises(AssertionError, match="nothing is connected"):
        pipeline.client_received(b"XCLIENT ADDR=192.0.2.1\r\n", 3.0)


def test_exchange_has_its_four_times() -> None:
    stage = _stage()
    stage.client(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\n")
    framed = stage.now
    stage.backend(b"250 a\r\n")
    first_replied = stage.now
    stage.backend(b"250 b\r\n")
    first, second = stage.observed[-2:]
    assert (first.framed, first.sent, first.replied, first.flushed) == (
        framed,
        framed,
        first_replied,
        stage.now,
    )
    assert (second.framed, second.sent, second.replied) == (framed, first_replied, stage.now)
    assert (first.pipelined, second.pipelined) == (False, True)


def test_content_has_its_times_and_octets() -> None:
    stage = _stage("DATA")
    stage.client(b"hello\r\n")
    stage.client(b".\r\n")
    ended = stage.now
    stage.backend(b"250 queued\r\n")
    content = stage.observed[-1]
    assert (content.verb.name, content.line, content.octets) == (b".", b"", 7)
    assert (content.framed, content.sent, content.replied) == (ended, ended, stage.now)
    assert content.ends_message


def test_local_reply_was_never_sent() -> None:
    stage = _stage()
    stage.client(b"TURN\r\n")
    assert (stage.observed[-1].sent, stage.observed[-1].code) == (0.0, 502)


def test_observer_sees_what_was_flushed_in_one_write_together() -> None:
    seen: list[list[bytes]] = []

    class Writes(Observed):
        def settled(self, exchanges: list[Exchange]) -> None:
            seen.append([exchange.line for exchange in exchanges])

    stage = _stage()
    stage.pipeline.reply_buffer.observer = Writes()
    stage.client(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nNOOP\r\nRSET\r\nRSET\r\n")
    for _ in range(4):
        stage.backend(b"250 ok\r\n")
    stage.happen("B< EOF")
    assert seen == [
        [b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n", b"NOOP\r\n"],
        [b"RSET\r\n", b"RSET\r\n"],
    ]


def test_observer_sees_at_the_end_what_got_no_reply() -> None:
    stage = _stage()
    stage.client(b"RSET\r\nRSET\r\nAUTH PLAIN c2Vj\r\n")
    stage.happen("stop")
    unanswered = [exchange for exchange in stage.observed if not exchange.flushed]
    assert [exchange.line for exchange in unanswered] == [b"RSET\r\n", b"AUTH PLAIN *\r\n"]
    assert not any(exchange.code or exchange.reply for exchange in unanswered)


def test_answered_exchanges_are_let_go_of() -> None:
    stage = _stage("MAIL CHUNKING")
    stage.client(b"RSET\r\nFROB\r\n")
    stage.backend(b"250 ok\r\n")
    stage.backend(b"250 ok\r\n")
    pipeline = stage.pipeline
    answered = stage.observed[-2:]
    assert not [*pipeline.in_flight, *pipeline.framer.queue, *pipeline.reply_buffer.exchanges]
    assert pipeline.framer.last not in answered
    assert pipeline.framer.gate not in answered


def test_waiting_returns_the_running_limit_and_its_start() -> None:
    stage = Stage()
    assert stage.pipeline.waiting() == ("greeting", 1000.0)
    stage.come_to("EHLO CHUNKING")
    stage.client(b"NO")
    assert stage.pipeline.waiting() == ("client", stage.now)
    stage.client(b"OP\r\nMAIL FROM:<a>\r\n")
    assert stage.pipeline.waiting() == ("command", stage.now)
    sent = stage.now
    stage.client(b"RS")  # what the client sends does not help the backend
    assert stage.pipeline.waiting() == ("command", sent)
    stage.backend(b"250 noop\r\n")
    assert stage.pipeline.waiting() == ("command", stage.now)


def test_the_time_limit_of_a_client_begins_when_it_is_read_again() -> None:
    stage = Stage(SessionPolicy())
    stage.backend(b"220 mx\r\n")
    stage.pipeline.client_resumed(stage.now + 5)
    assert stage.pipeline.waiting() == ("client", stage.now + 5)


def test_waiting_for_several_in_flight_restarts_with_each_reply() -> None:
    stage = _stage("EHLO PIPELINING")
    stage.client(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\n")
    stage.backend(b"250 a\r\n")
    assert stage.pipeline.waiting() == ("command", stage.now)


def test_waiting_for_content_restarts_with_each_chunk() -> None:
    stage = _stage("DATA")
    stage.client(b"hello\r\n")
    assert stage.pipeline.waiting() == ("content", stage.now)
    stage.client(b".\r\n")
    assert stage.pipeline.waiting() == ("end_of_data", stage.now)


def test_held_replies_are_bounded() -> None:
    stage = _stage(policy=SessionPolicy(consecutive_errors=10**6))
    reply = b"550 " + b"x" * 500 + b"\r\n"
    stage.client(b"RCPT TO:<a>\r\n" * 900)
    for _ in range(800):
        stage.backend(reply)
        assert stage.pipeline.reply_buffer.octets < HELD_OCTETS
        assert (
            sum(len(exchange.reply) for exchange in stage.pipeline.reply_buffer.exchanges)
            < HELD_OCTETS
        )
    assert max(map(len, stage.to_client)) < HELD_OCTETS + len(reply)
    assert len(stage.to_client) < 30


def test_held_replies_are_flushed_when_there_are_16_kib_of_them() -> None:
    assert HELD_OCTETS == 16 * 1024
    for octets, flushed in ((HELD_OCTETS // 8, True), (HELD_OCTETS // 8 - 1, False)):
        stage = _stage()
        stage.client(b"RCPT TO:<a>\r\n" * 9)
        for _ in range(8):
            assert stage.to_client == []
            stage.backend(b"250 " + b"x" * (octets - 6) + b"\r\n")
        assert bool(stage.to_client) == flushed


def test_held_since_is_the_time_of_the_first_held_reply() -> None:
    stage = _stage()
    stage.client(b"RSET\r\nRSET\r\nRSET\r\nRSET\r\n")
    assert stage.pipeline.reply_buffer.since == 0.0
    stage.backend(b"250 first\r\n")
    first = stage.now
    stage.backend(b"250 second\r\n")
    assert stage.pipeline.reply_buffer.since == first
    stage.happen("hold")
    assert stage.pipeline.reply_buffer.since == 0.0
    stage.backend(b"250 third\r\n")
    assert stage.pipeline.reply_buffer.since == stage.now


def test_replies_go_to_the_sink_that_was_named_last() -> None:
    stage = _stage()
    inside: list[bytes] = []
    stage.pipeline.connect_client(inside.append)
    stage.client(b"NOOP\r\n")
    stage.backend(b"250 ok\r\n")
    assert (stage.to_client, inside) == ([], [b"250 ok\r\n"])


def test_a_line_is_waited_for_since_its_first_octet() -> None:
    stage = _stage("EHLO")
    stage.client(b"NO")
    since = stage.now
    for octets in (b"OP", b"x" * 3000, b"y"):  # it is refused, and goes on
        stage.client(octets)
        if len(octets) > 1000:
            since = stage.now  # the refusal is its answer
        assert stage.pipeline.waiting() == ("client", since)
    stage.client(b"\r\n")
    assert stage.pipeline.waiting() == ("client", stage.now)


def test_content_and_payload_are_waited_for_since_they_began() -> None:
    stage = _stage("DATA")
    began = stage.now
    for _ in range(3):
        stage.client(b"text\r\n")
        assert stage.pipeline.waiting() == ("content", stage.now)
        assert stage.pipeline.content_since == began
    stage = _stage("MAIL CHUNKING")
    stage.client(b"BDAT 10\r\n")
    began = stage.now
    stage.client(b"12345")
    assert stage.pipeline.content_since == began


@pytest.mark.parametrize("octets", [b"250-x\r\n" * 100, b"junk\r\n" * 100, b"\0" * 700])
def test_backend_that_talks_on_after_its_refusal_takes_no_room(octets: bytes) -> None:
    stage = _stage("DATA")
    stage.backend(b"552 too big\r\n")
    for _ in range(1000):
        stage.client(b"more\r\n")
        stage.backend(octets)
    assert len(stage.pipeline.matcher.reader.unread) <= REPLY_LIMIT + 4096
    stage.client(b".\r\n")
    assert stage.sent_to_client.endswith(b"552 too big\r\n")


@pytest.mark.parametrize(
    "line", [b"NOOP\r\n", b"RCPT TO:<b>\r\n", b"FROB\r\n", b"DATA\r\n", b"\r\n"]
)
def test_client_that_is_read_while_full_or_not_takes_bounded_room(line: bytes) -> None:
    stage = _stage(policy=SessionPolicy(queue_commands=50, queue_bytes=5000))
    segment = line * 20
    for _ in range(10_000):
        if stage.pipeline.full or stage.pipeline.ended:
            break
        stage.client(segment)
    framer = stage.pipeline.framer
    assert len(framer.queue) <= 50
    assert framer.queue_octets + len(framer.unframed) < 5000 + len(segment)


@pytest.mark.long
def test_a_megabyte_of_recipients_in_one_segment_is_served() -> None:
    stage = MtaStage(SessionPolicy())
    stage.settle()
    stage.client(b"EHLO c\r\n")
    stage.settle()
    count = 1_000_000 // len(b"RCPT TO:<b>\r\n")
    stage.client(b"MAIL FROM:<a>\r\n" + b"RCPT TO:<b>\r\n" * count)
    assert stage.pipeline.full
    stage.settle()
    assert not stage.pipeline.full
    assert stage.sent_to_client.count(b"250 RCPT TO:<b>\r\n") == count
    # the first of each full queue is framed when the last of the one before it is answered
    assert stage.pipeline.framer.pipelined == count - count // 1000


def test_messages_are_those_that_the_backend_took() -> None:
    stage = _stage("DATA CHUNKING")
    stage.client(b"x\r\n.\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 1\r\nxBDAT 1 LAST\r\ny")
    for number, reply in enumerate((b"250 queued\r\n", *[b"250 ok\r\n"] * 3), 1):
        stage.backend(reply)
        assert stage.pipeline.transaction.messages == 1, number
    stage.backend(b"250 queued\r\n")
    assert stage.pipeline.transaction.messages == 2


def test_transaction_is_open_from_mail_to_its_end() -> None:
    stage = _stage()
    for line, reply, open_then in (
        (b"MAIL FROM:<a>\r\n", b"550 no\r\n", False),
        (b"MAIL FROM:<a>\r\n", b"250 ok\r\n", True),
        (b"EHLO x\r\n", b"550 no\r\n", True),
        (b"RSET\r\n", b"250 ok\r\n", False),
        (b"SAML FROM:<a>\r\n", b"250 ok\r\n", True),
        (b"HELO x\r\n", b"250 ok\r\n", False),
    ):
        stage.client(line)
        stage.backend(reply)
        assert stage.pipeline.transaction.open == open_then, line


@pytest.mark.parametrize("happening", ["expire", "stop", "break down", "B< EOF", "unavailable"])
@pytest.mark.parametrize("given", ["greeting", "EHLO", "MAIL", "DATA"])
def test_session_ends_once_and_with_one_421(given: str, happening: str) -> None:
    stage = _stage(given)
    stage.client(b"hello\r\n")
    for _ in range(2):
        stage.happen(happening)
        stage.happen("stop")
    assert [write[:3] for write in stage.to_client] == [b"421"]
    check_observed(stage)


def test_pipelined_figure_is_the_round_trips_saved() -> None:
    stage = MtaStage(SessionPolicy())
    stage.settle()
    for group in (
        b"EHLO c\r\n",
        b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n",
        b"x\r\n.\r\nNOOP\r\n",
    ):
        stage.client(group)
        stage.settle()
    assert (stage.pipeline.framer.commands, stage.pipeline.framer.pipelined) == (5, 3)


def test_nothing_of_an_auth_is_seen_by_observers() -> None:
    secrets = [b"c2VjcmV0MQ==", b"c2VjcmV0Mg==", b"c2VjcmV0Mw=="]
    stage = _stage("EHLO AUTH")
    stage.client(b"AUTH PLAIN " + secrets[0] + b"\r\n")
    stage.backend(b"334 go on\r\n")
    stage.client(secrets[1] + b"\r\n")
    stage.backend(b"334 go on\r\n")
    stage.client(secrets[2] + b"\r\n")
    stage.happen("B< EOF")
    assert stage.pipeline.ended
    assert b"".join(stage.to_backend).count(b"c2VjcmV0") == 3
    assert not [secret for secret in secrets if secret in seen_by_observers(stage.observed)]


@pytest.mark.parametrize("offers", ["CHUNKING", ""])
def test_a_refused_chunk_began_with_its_command(offers: str) -> None:
    """Refused by the MTA while its payload arrives, or by the proxy."""
    stage = _stage(f"EHLO {offers}", policy=SessionPolicy(early_pipelining=True))
    stage.client(b"BDAT 9\r\nabc")
    began = stage.now
    if offers:
        stage.backend(b"503 no sender\r\n")
    for _ in range(3):
        stage.client(b"x")
        assert stage.pipeline.waiting() == ("content", stage.now)
        assert stage.pipeline.content_since == began
    stage.client(b"xxx")
    assert stage.pipeline.waiting() == ("client", stage.now)


def test_interruptible_is_what_the_backend_is_not_at_work_on() -> None:
    stage = Stage()
    assert not stage.pipeline.interruptible, "the greeting is owed"
    stage.come_to("EHLO")
    assert stage.pipeline.interruptible
    stage.client(b"NOOP\r\n")
    assert stage.pipeline.interruptible, "nothing depends on its reply"
    stage.backend(b"250 ok\r\n")
    steps = [(b"MAIL FROM:<a>\r\n", b"250 a\r\n"), (b"RCPT TO:<b>\r\n", b"250 b\r\n")]
    for command, reply in steps:
        stage.client(command)
        assert not stage.pipeline.interruptible, command
        stage.backend(reply)
        assert stage.pipeline.interruptible, "a transaction that stands still"
    stage.client(b"DATA\r\n")
    assert not stage.pipeline.interruptible
    stage.backend(b"354 go\r\n")
    assert not stage.pipeline.interruptible
    stage.client(b"x\r\n.\r\n")
    assert not stage.pipeline.interruptible, "the backend may have taken it"
    stage.backend(b"250 queued\r\n")
    assert stage.pipeline.interruptible


def test_an_auth_dialogue_that_waits_for_the_client_is_interruptible() -> None:
    stage = _stage("EHLO AUTH")
    stage.client(b"AUTH LOGIN\r\n")
    assert not stage.pipeline.interruptible
    stage.backend(b"334 VXNlcg==\r\n")
    assert stage.pipeline.interruptible
