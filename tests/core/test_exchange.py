"""The exchange: how one command is answered, and what observers see of it."""

import pytest

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange, ProxyStep
from smtpproxy.core.violations import ClientViolation
from tests.support.compiled import attributes_of


def _exchange(verb: bytes, line: bytes = b"") -> Exchange:
    return Exchange(verbs.table_for(verbs.Sync.SAFE)[verb], line, 5.0)


def test_begins_framed_and_with_nothing_else() -> None:
    exchange = _exchange(b"MAIL", b"MAIL FROM:<a>\r\n")
    assert (exchange.framed, exchange.sent, exchange.replied, exchange.flushed) == (5.0, 0, 0, 0)
    assert (exchange.reply, exchange.code, exchange.refusal) == (b"", 0, b"")
    assert exchange.problem is None
    assert not exchange.closes
    assert not exchange.pipelined


def test_takes_refusal_and_end_from_its_row() -> None:
    assert _exchange(b"TURN").refusal.startswith(b"502 ")
    assert _exchange(b"QUIT").closes
    assert _exchange(b"GET").closes


@pytest.mark.parametrize("closes", [True, False])
def test_is_refused_by_a_violation(closes: bool) -> None:
    exchange = _exchange(b"NOOP")
    violation = ClientViolation("x", b"500 no\r\n", closes=closes)
    exchange.refuse(violation)
    assert (exchange.problem, exchange.refusal) == (violation, b"500 no\r\n")
    assert exchange.closes is closes


def test_a_copy_has_every_attribute_but_the_replaced_ones() -> None:
    exchange = _exchange(b"MAIL", b"MAIL FROM:<a>\r\n")
    exchange.refuse(ClientViolation("x", b"500 no\r\n", closes=True))
    exchange.octets, exchange.code, exchange.reply = 1, 250, b"250 ok\r\n"
    exchange.pipelined = exchange.bare_lf = True
    exchange.sent, exchange.replied, exchange.flushed = 6.0, 7.0, 8.0
    exchange.steps = [ProxyStep(b"RSET\r\n", b"250 ok\r\n", 6.0, 7.0)]
    names = attributes_of(Exchange)
    new = _exchange(b"RSET", b"")
    new.framed = 0.0
    values = [getattr(exchange, name) for name in names]
    assert all(value != getattr(new, name) for name, value in zip(names, values, strict=True))
    same = exchange.replaced(exchange.line, exchange.reply, exchange.steps)
    assert [getattr(same, name) for name in names] == values
    short = exchange.replaced(b"MAIL", b"250", ())
    assert (short.line, short.reply, short.steps) == (b"MAIL", b"250", ())
    assert exchange.line == b"MAIL FROM:<a>\r\n"


def test_a_fault_may_replace_its_reply_or_delay_it() -> None:
    exchange = _exchange(b"NOOP", b"NOOP\r\n")
    exchange.replace_reply(b"451 later\r\n")
    exchange.delay(9.0)
    assert (exchange.refusal, exchange.sent) == (b"451 later\r\n", 9.0)


def test_knows_whether_it_decides_on_a_message() -> None:
    assert Exchange(verbs.END_OF_DATA_ROW, b"", 0.0).ends_message
    assert _exchange(b"BDAT", b"BDAT 5 last\r\n").ends_message
    assert not _exchange(b"BDAT", b"BDAT 5\r\n").ends_message
    assert not _exchange(b"DATA", b"DATA\r\n").ends_message


def test_shows_its_line_or_else_its_name() -> None:
    assert repr(_exchange(b"NOOP", b"NOOP\r\n")) == r"<Exchange b'NOOP\r\n' -> b''>"
    assert repr(Exchange(verbs.END_OF_DATA_ROW, b"", 0.0)) == "<Exchange b'.' -> b''>"


def test_has_no_room_for_anything_else() -> None:
    with pytest.raises(AttributeError):
        _exchange(b"NOOP").surprise = 1  # type: ignore[attr-defined]  # that is the point


@pytest.mark.parametrize(
    ("verb", "possible", "impossible"),
    [
        (b"EHLO", [b"250 a", b"250-a\r\n550 b", b"550-a\r\n250 b"], [b"354 a", b"354-a\r\n250 b"]),
        (b"DATA", [b"354 a", b"354-a\r\n354 b", b"450 a"], [b"250 a", b"334 a", b"354-a\r\n554 b"]),
        (b"DATA", [b"250-a\r\n550 b"], [b"554-a\r\n354 b", b"334-a\r\n354 b"]),
        (b"AUTH", [b"334 a", b"235 a", b"535 a"], [b"354 a", b"334-a\r\n535 b", b"235-a\r\n334 b"]),
        (b"NOOP", [b"250 a", b"599 a", b"400 a"], [b"300 a", b"334 a", b"399 a"]),
    ],
)
def test_replies_that_may_answer_it(
    verb: bytes, possible: list[bytes], impossible: list[bytes]
) -> None:
    for reply in possible + impossible:
        code = int(reply.split(b"\r\n")[-1][:3])
        assert _exchange(verb).may_be_answered(code, reply) == (reply in possible)


def test_bdat_may_be_accepted_when_its_payload_was_sent() -> None:
    exchange = _exchange(b"BDAT")
    assert not exchange.may_be_answered(250, b"250 a")
    assert exchange.may_be_answered(550, b"550 a")
    exchange.sent = 5.0
    assert exchange.may_be_answered(250, b"250 a")


def test_secret_is_cut_whatever_it_is() -> None:
    auth = _exchange(b"AUTH", b"AUTH PLAIN c2Vj\r\n")
    data = Exchange(verbs.AUTH_LINE_ROW, b"c2Vj\r\n", 0.0)
    mail = _exchange(b"MAIL", b"MAIL FROM:<a> SIZE=1 X=2\r\n")
    for exchange in (auth, data, mail):
        exchange.redact_line()
    assert (auth.line, data.line) == (b"AUTH PLAIN *\r\n", b"*\r\n")
    assert mail.line == b"MAIL FROM:<a> SIZE=1 X=2\r\n"


def test_closes_for_a_reason() -> None:
    exchange = _exchange(b"QUIT")
    assert exchange.close_reason == "quit"
    exchange.refuse(ClientViolation("not_smtp", b"221 x\r\n"))
    assert exchange.close_reason == "not_smtp"
    assert Exchange(verbs.END_OF_DATA_ROW, b"", 0.0).close_reason == "content_refused"


def test_rewritten_content_is_no_reason_to_close() -> None:
    exchange = Exchange(verbs.END_OF_DATA_ROW, b"", 0.0)
    exchange.problem = ClientViolation("bare_lf", b"550 bare\r\n")
    exchange.reply = b"250 ok\r\n"
    assert exchange.rewritten
    assert exchange.close_reason == "content_refused"
    exchange.reply = b"550 bare\r\n"
    assert not exchange.rewritten
