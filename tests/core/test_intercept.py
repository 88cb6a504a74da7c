"""Interception: a caller may refuse a command in its turn, make it wait, or end the session."""

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.policy import SessionPolicy
from tests.support.pipeline_stage import Stage, check_observed

VERBS = frozenset((b"EHLO", b"MAIL", b"RCPT", b"NOOP", b"BDAT"))


class Caller:
    """Refuses commands that contain a word, makes them wait, or ends the session."""

    def __init__(self, **policy: object) -> None:
        self.stage = Stage(SessionPolicy(intercepted=VERBS, **policy))  # type: ignore[arg-type]  # names of fields
        self.stage.come_to("greeting")
        self.stage.pipeline.intercept_with(self.intercept)
        self.waits = True
        self.asked: list[bytes] = []

    def intercept(self, exchange: Exchange) -> bool:
        self.asked.append(exchange.line)
        if b"refuse" in exchange.line:
            exchange.refusal = b"450 not now\r\n"
        if b"end" in exchange.line:
            self.stage.pipeline.end("fault_injected", self.stage.now)
        return b"wait" in exchange.line and self.waits


def test_only_the_commands_of_the_policy_are_intercepted() -> None:
    caller = Caller()
    caller.stage.client(b"RSET\r\nNOOP\r\n")
    caller.stage.backend(b"250 ok\r\n")
    assert caller.asked == [b"NOOP\r\n"]


def test_what_is_not_refused_is_sent_whatever_its_verb() -> None:
    """Without a limit of recipients or CHUNKING, there is nothing else to check."""
    caller = Caller()
    for line in (b"EHLO x", b"MAIL FROM:<a>", b"RCPT TO:<b>", b"NOOP"):
        caller.stage.client(line + b"\r\n")
        assert caller.stage.to_backend.pop() == line + b"\r\n"
        caller.stage.backend(b"250 ok\r\n")
    assert len(caller.asked) == 4


def test_a_refusal_has_its_turn_and_the_backend_never_gets_the_command() -> None:
    caller = Caller()
    caller.stage.client(b"MAIL FROM:<a>\r\nRCPT TO:<refuse>\r\nRCPT TO:<b>\r\n")
    caller.stage.backend(b"250 a\r\n")
    caller.stage.backend(b"250 b\r\n")
    assert caller.stage.sent_to_client.endswith(b"250 a\r\n450 not now\r\n250 b\r\n")
    assert caller.stage.to_backend == [b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n"]
    assert caller.stage.pipeline.transaction.rejected == 1
    check_observed(caller.stage)


def test_a_command_waits_until_it_may_go() -> None:
    caller = Caller()
    caller.stage.client(b"NOOP wait\r\n")
    caller.stage.client(b"RSET\r\n")
    assert caller.stage.to_backend == []
    assert caller.stage.pipeline.waiting() == ("command", 1002.0)
    caller.waits = False
    caller.stage.pipeline.resume(1010.0)
    assert caller.stage.to_backend == [b"NOOP wait\r\n"]
    caller.stage.backend(b"250 ok\r\n")
    assert caller.stage.to_backend == [b"NOOP wait\r\n", b"RSET\r\n"]
    assert caller.stage.pipeline.waiting()[0] == "command"


def test_the_session_may_end_instead() -> None:
    caller = Caller()
    caller.stage.client(b"RSET\r\nNOOP end wait\r\nRSET\r\n")
    caller.stage.backend(b"250 ok\r\n")
    assert caller.stage.to_backend == [b"RSET\r\n"]
    assert caller.stage.sent_to_client.endswith(b"250 ok\r\n")
    assert caller.stage.pipeline.ended == "fault_injected"
    check_observed(caller.stage)


def test_a_chunk_is_still_checked() -> None:
    caller = Caller()
    caller.stage.client(b"BDAT 1 LAST\r\nx")
    assert caller.stage.pipeline.ended == "bdat_not_offered"


def test_limits_hold_as_ever() -> None:
    caller = Caller(recipients=1)
    caller.stage.client(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\n")
    caller.stage.backend(b"250 a\r\n")
    caller.stage.backend(b"250 b\r\n")
    assert caller.stage.sent_to_client.endswith(b"452 4.5.3 Error: too many recipients\r\n")
