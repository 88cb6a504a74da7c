"""The steps of an exchange: lines to the backend that the client did not send."""

from collections.abc import Sequence

from smtpproxy.core.exchange import Exchange, ProxyStep
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import BackendTls, SessionPolicy
from tests.support.pipeline_stage import Observed


class Talk:
    """A pipeline, its observed exchanges, and a clock that ticks with each call."""

    def __init__(self, policy: SessionPolicy | None = None) -> None:
        self.exchanges = Observed()
        self.now = 1.0
        self.backend: list[bytes] = []
        self.watched: list[tuple[bytes, bytes]] = []
        self.pipeline = Pipeline(
            policy or SessionPolicy(hostname=b"px"),
            lambda _: None,
            self.exchanges,
            self.now,
            lambda _, sent, came: self.watched.append((sent, came)),
        )
        self.pipeline.connect_backend(self.backend.append)
        self.pipeline.allow_upgrades(lambda _: None, lambda _: b"")
        self.says(b"220 mx")

    def sends(self, *lines: bytes) -> None:
        self.now += 1
        self.pipeline.client_received(b"".join(line + b"\r\n" for line in lines), self.now)

    def says(self, *replies: bytes) -> None:
        for reply in replies:
            self.now += 1
            self.pipeline.backend_received(reply + b"\r\n", self.now)

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]


def test_a_refused_hello_logs_the_backends_reply() -> None:
    talk = Talk()
    talk.sends(b"EHLO x")
    talk.says(b"250-mx\r\n250 XOLD")
    assert talk.last.reply == b"250-mx\r\n250 PIPELINING\r\n"
    assert talk.last.steps == (ProxyStep(b"EHLO x\r\n", b"250-mx\r\n250 XOLD\r\n", 3.0, 4.0),)


def test_helo_in_place_of_ehlo() -> None:
    talk = Talk()
    talk.sends(b"EHLO x")
    talk.says(b"500 what", b"250 mx")
    assert talk.last.steps == (
        ProxyStep(b"EHLO x\r\n", b"500 what\r\n", 3.0, 4.0),
        ProxyStep(b"HELO x\r\n", b"250 mx\r\n", 4.0, 5.0),
    )


def test_starttls_of_the_proxy_and_the_ehlo_after_it() -> None:
    talk = Talk(SessionPolicy(hostname=b"px", backend_tls=BackendTls.REQUIRED))
    talk.sends(b"EHLO x")
    talk.says(b"250-mx\r\n250 STARTTLS", b"220 go")
    talk.pipeline.backend_secured(9.0)
    talk.now = 9.0
    talk.says(b"250 mx")
    assert [(step.line, step.sent, step.replied) for step in talk.last.steps] == [
        (b"EHLO x\r\n", 3.0, 4.0),
        (b"STARTTLS\r\n", 4.0, 5.0),
        (b"EHLO x\r\n", 9.0, 10.0),
    ]


def test_most_exchanges_have_none() -> None:
    talk = Talk()
    talk.sends(b"NOOP")
    talk.says(b"250 ok")
    assert (talk.last.steps, talk.last.bare_lf) == ((), False)


def forwarded(talk: Talk) -> Talk:
    """Have XFORWARD sent before MAIL, after which a client pipelines."""
    talk.pipeline.ehlo.pass_address(Introduced())
    talk.sends(b"EHLO x")
    talk.says(b"250-mx\r\n250 XFORWARD ADDR")
    talk.sends(b"MAIL FROM:<a@x>", b"RCPT TO:<b@y>", b"DATA")
    return talk


class Introduced:
    """Sends two lines of XFORWARD."""

    verb = b"XFORWARD"

    def lines(self, offered: bytes, hello: bytes) -> Sequence[bytes]:  # noqa: ARG002
        return [b"XFORWARD ADDR=192.0.2.1\r\n", b"XFORWARD HELO=x\r\n"]


FORWARDING = SessionPolicy(hostname=b"px", xforward=True)


def test_xforward_before_mail_is_a_step_of_mail() -> None:
    talk = forwarded(Talk(FORWARDING))
    talk.says(b"250 ok", b"250 ok", b"250 a", b"250 b", b"354 go")
    mail, rcpt, _ = talk.exchanges[-3:]
    assert mail.all_steps == (
        ProxyStep(b"XFORWARD ADDR=192.0.2.1\r\n", b"250 ok\r\n", 5.0, 6.0),
        ProxyStep(b"XFORWARD HELO=x\r\n", b"250 ok\r\n", 6.0, 7.0),
        ProxyStep(b"MAIL FROM:<a@x>\r\n", b"250 a\r\n", 7.0, 8.0),
    )
    assert rcpt.all_steps == ()


def test_xforward_before_mail_without_a_reply() -> None:
    talk = forwarded(Talk(FORWARDING))
    talk.says(b"250 ok")
    talk.pipeline.backend_lost(9.0)
    mail = talk.exchanges[2]
    assert (mail.line[:4], mail.reply[:3]) == (b"MAIL", b"421")
    assert [(step.line[9:13], step.reply) for step in mail.all_steps] == [
        (b"ADDR", b"250 ok\r\n"),
        (b"HELO", b""),
    ]


def test_a_421_to_xforward_before_mail() -> None:
    talk = forwarded(Talk(FORWARDING))
    talk.says(b"421 bye")
    mail = talk.exchanges[2]
    assert mail.reply == b"421 bye\r\n"
    assert mail.all_steps == (ProxyStep(b"XFORWARD ADDR=192.0.2.1\r\n", b"421 bye\r\n", 5.0, 6.0),)


def test_a_violation_after_xforward_before_mail() -> None:
    talk = forwarded(Talk(FORWARDING))
    talk.says(b"354 what")
    assert talk.exchanges[2].all_steps[0].reply == b"354 what\r\n"
    talk = forwarded(Talk(FORWARDING))
    talk.says(b"250 ok", b"250 ok", b"354 what")
    assert [step.reply for step in talk.exchanges[2].all_steps] == [
        *(b"250 ok\r\n", b"250 ok\r\n", b"354 what\r\n")
    ]


def test_a_client_that_closes_after_xforward_before_mail() -> None:
    talk = forwarded(Talk(FORWARDING))
    talk.pipeline.end("client_lost", 9.0)
    assert [each.verb.name for each in talk.exchanges[2:]] == [b"MAIL", b"RCPT", b"DATA"]
    assert [step.reply for step in talk.exchanges[2].all_steps] == [b""]


def test_a_lost_backend_has_not_said_421() -> None:
    talk = Talk()
    talk.sends(b"NOOP")
    talk.pipeline.backend_lost(9.0)
    assert talk.last.reply[:3] == b"421"
    assert talk.last.steps == (ProxyStep(b"NOOP\r\n", b"", 3.0, 0.0),)


def test_a_421_of_the_backends_own_is_no_step() -> None:
    talk = Talk()
    talk.sends(b"NOOP")
    talk.says(b"421 bye")
    assert talk.last.steps == ()


def test_a_violation_logs_what_the_backend_sent() -> None:
    talk = Talk()
    talk.sends(b"NOOP")
    talk.says(b"354 what")
    assert talk.last.steps == (ProxyStep(b"NOOP\r\n", b"354 what\r\n", 3.0, 4.0),)


def test_a_refused_group_logs_the_backends_replies() -> None:
    talk = Talk()
    talk.sends(b"MAIL FROM:<a@x>", b"RCPT TO:<b@y>", b"DATA")
    talk.says(b"250 a", b"250 b")
    talk.sends(b"ahead")
    talk.says(b"451 not now")
    (step,) = talk.last.steps
    assert (talk.last.reply[:3], step.reply) == (b"554", b"451 not now\r\n")


def test_what_was_not_sent_has_none() -> None:
    talk = Talk()
    talk.pipeline.fail("stopped", b"421 %s bye\r\n", 9.0)
    assert talk.last.steps == ()


def test_a_bare_lf_is_reported() -> None:
    talk = Talk()
    talk.pipeline.client_received(b"NOOP\n", 3.0)
    talk.says(b"250 ok")
    assert talk.backend == [b"NOOP\r\n"]
    assert talk.last.bare_lf


def test_content_is_watched_as_it_goes_and_as_it_came() -> None:
    talk = Talk()
    talk.sends(b"EHLO x")
    talk.says(b"250-mx\r\n250 CHUNKING")
    talk.sends(b"MAIL FROM:<a@x>", b"DATA")
    talk.says(b"250 a", b"354 go")
    talk.pipeline.client_received(b"a\nb\r\n.\r\nMAIL FROM:<a@x>\r\nBDAT 2\r\nhi", 9.0)
    talk.says(b"250 queued", b"250 a")
    assert talk.watched == [(b"a\r\nb\r\n.\r\n", b"a\nb\r\n.\r\n"), (b"hi", b"hi")]


def test_content_that_is_refused_is_watched_as_it_came() -> None:
    talk = Talk(SessionPolicy(hostname=b"px", message_bytes=5))
    talk.sends(b"MAIL FROM:<a@x>", b"DATA")
    talk.says(b"250 a", b"354 go")
    talk.sends(b"more than that", b".")
    assert talk.watched == [(b"more ", b"more than that\r\n.\r\n")]


def test_a_reply_may_quote_what_is_secret() -> None:
    talk = Talk()
    talk.sends(b"AUTH PLAIN c2Vj")
    talk.says(b"501 5.5.2 cannot decode c2Vj")
    assert talk.last.reply == b"501 5.5.2 *\r\n"
    talk.sends(b"AUTH PLAIN c2Vj")
    talk.says(b"535 5.7.8 no")
    assert talk.last.reply == b"535 5.7.8 no\r\n"


def test_a_broken_reply_may_quote_it_too() -> None:
    talk = Talk()
    talk.sends(b"AUTH PLAIN c2Vj")
    talk.says(b"what is c2Vj")
    assert talk.last.problem is not None
    assert talk.last.problem.octets == b""
    assert talk.last.steps == (ProxyStep(b"AUTH PLAIN *\r\n", b"", 3.0, 0.0),)


def test_what_follows_a_misplaced_password_is_secret_too() -> None:
    talk = Talk()
    talk.sends(b"AUTH LOGIN", b"c2Vj\0", b"c2Vj")
    talk.says(b"535 no", b"500 what")
    assert [exchange.line for exchange in talk.exchanges[1:]] == [
        *(b"AUTH LOGIN\r\n", b"*\r\n", b"*\r\n")
    ]
