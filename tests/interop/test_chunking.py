"""CHUNKING in front of real MTAs without it: Exim's BDAT, and that of a client like Exchange.

Exim sends a group of MAIL, RCPT and BDAT by itself.  Exchange's is written here: a message in
several chunks that cut anywhere, with some lines that end in a bare LF.  The MTA keeps each message
once, with the bytes that it keeps of the same message by DATA.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise

import pytest

from tests.interop import mta_clients
from tests.interop.clients import Mail, SmtpTarget, smtplib_client
from tests.interop.dialogue import assert_lock_step, verb_groups
from tests.interop.messages import Message, awkward, brief, large, message, recipients
from tests.interop.peers import Backend
from tests.interop.stage import configured
from tests.interop.tap import Tap
from tests.interop.test_early_pipelining import waits
from tests.interop.test_smuggling import MTAS
from tests.interop.wire import Wire

USUAL = ("opensmtpd", "sendmail")
_NEWLINE = re.compile(rb"\r\r\n|\r\n|\n")
ENVELOPE = (b"MAIL FROM:<sender@sender.example>", b"RCPT TO:<good0@rcpt.example>")

each_mta = pytest.mark.parametrize(
    "mta",
    [
        pytest.param(MTAS[name], id=name, marks=() if name in USUAL else pytest.mark.long)
        for name in ("opensmtpd", "sendmail", "exim", "smtp-sink-p", "aiosmtpd")
    ],
)
Mta = Callable[[], AbstractContextManager[Backend]]


@contextmanager
def chunking_before(mta: Mta, listener: str = "") -> Iterator[tuple[int, Backend, Tap]]:
    """Run the proxy in front of an MTA; yield its port, the MTA, and the tap between them."""
    with mta() as backend, Tap(backend.port) as tap:
        settings = f'servers = ["127.0.0.1:{tap.port}"]\nchunking = "add"'
        with configured(listener, settings) as (port, _):
            yield port, backend, tap
            for connection in tap.settled():
                assert b"BDAT" not in connection.sent()
                if b"PIPELINING" not in connection.answered():  # as Sendmail offers
                    assert_lock_step(connection)


def assert_kept(mta: Mta, backend: Backend, each: Message, expected: bytes) -> None:
    """Check what an MTA has kept of a message."""
    delivery = backend.find(each)
    if mta in (MTAS["sendmail"], MTAS["aiosmtpd"]):  # these change the header
        assert delivery.kept.endswith(b"\n" + expected.partition(b"\n\n")[2])
    else:
        assert delivery.without_trace() == expected


def in_chunks(payload: bytes, size: int) -> bytes:
    """Return the BDAT commands for a message, in chunks of this size."""
    places = [*range(0, len(payload), size), len(payload)]
    *chunks, last = [payload[begin:end] for begin, end in pairwise(places)]
    octets = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in chunks)
    return octets + b"BDAT %d LAST\r\n%b" % (len(last), last)


def send_in_chunks(port: int, each: Message, size: int) -> None:
    """Send a message in one group, in chunks of this size."""
    with Wire(port) as wire:
        assert wire.replies(1) == [220]
        wire.send(b"EHLO client.example")
        assert b"250-CHUNKING\r\n" in wire.reply()
        wire.send_octets(b"\r\n".join((*ENVELOPE, in_chunks(each.octets, size))) + b"QUIT\r\n")
        chunks = -(-len(each.octets) // size)
        assert wire.replies(chunks + 3) == [*[250] * (2 + chunks), 221]
        assert wire.waits == 2
        assert wire.rest() == b""


@each_mta
def test_exim_sends_bdat_and_the_mta_keeps_what_it_would_have_sent_by_data(mta: Mta) -> None:
    """Three waits for a message: the greeting, EHLO, and all the rest."""
    with chunking_before(mta) as (port, backend, tap), Tap(port, reply_delay_s=0.03) as front:
        mails = [Mail(each, recipients(3)) for each in (awkward(), large(60_000), brief())]
        if mta is MTAS["aiosmtpd"]:  # which refuses long lines
            mails.pop(0)
        for mail in mails:
            [result] = mta_clients.exim(SmtpTarget(front.port), [mail])
            assert result.sent, result.output
            assert_kept(mta, backend, mail.message, mail.message.as_kept())
            assert backend.find(mail.message).recipients == set(mail.recipients)
        assert all(b"\r\nBDAT " in each.sent() for each in front.settled())
        first = verb_groups(front.connections[-1])
        assert first[:2] == [[b"EHLO"], [b"MAIL", *[b"RCPT"] * 3, b"BDAT", *first[1][5:]]]
        assert [b"DATA"] in verb_groups(tap.settled()[0])


@each_mta
def test_a_client_like_exchange_sends_chunks_that_cut_anywhere(mta: Mta) -> None:
    """By chunks of one byte and of many; the same message by DATA is kept the same."""
    text = b".\r\n..\r\n.\n.\r\nbare\nLF\n\n.\nQUIT\r\n.\r\r\nlast line without an end."
    with chunking_before(mta) as (port, backend, _):
        by_data = message(text)
        lines = Message(by_data.token, _NEWLINE.sub(b"\r\n", by_data.octets))
        [result] = smtplib_client(SmtpTarget(port), [Mail(lines, ("good0@rcpt.example",))])
        assert result.sent, result.output
        assert_kept(mta, backend, lines, lines.as_kept())
        for size in (1, 7, 100, 10_000):
            each = message(text)
            send_in_chunks(port, each, size)
            expected = lines.as_kept().replace(lines.token.encode(), each.token.encode())
            assert_kept(mta, backend, each, expected)
            assert backend.find(each).recipients == {"good0@rcpt.example"}


@each_mta
def test_a_message_without_a_last_chunk_is_none(mta: Mta) -> None:
    """Whatever the client does then, the MTA sees no end of data, and it serves the next one."""
    with chunking_before(mta) as (port, backend, tap):
        for end, codes in ((b"RSET", [421]), (b"QUIT", [221]), (b"", [])):
            each, octets = brief(), b"\r\n.\r\n"
            with Wire(port) as wire:
                assert wire.replies(1) == [220]
                assert wire.ask(b"EHLO client.example", *ENVELOPE) == [250, 250, 250]
                wire.send_octets(b"BDAT %d\r\n" % len(each.octets + octets) + each.octets + octets)
                assert wire.replies(1) == [250]
                if end:
                    assert wire.ask(end) == codes
                    assert wire.rest() == b""
            assert not tap.settled()[-1].sent().endswith(b"\r\n.\r\n")
            again = brief()
            send_in_chunks(port, again, 10_000)
            backend.find(again)
            assert not backend.has(each)


def test_exim_that_knows_the_listener_waits_once_for_a_message() -> None:
    """With early pipelining, from the second session on: it sends all before the greeting."""
    with (
        chunking_before(MTAS["opensmtpd"], "early_pipelining = true") as (port, backend, _),
        Tap(port, reply_delay_s=0.03) as front,
        mta_clients.QueueingExim(SmtpTarget(front.port)) as exim,
    ):
        for _ in range(2):
            mail = Mail(brief(), recipients(3))
            result = exim.send(mail)
            assert result.sent, result.output
            assert_kept(MTAS["opensmtpd"], backend, mail.message, mail.message.as_kept())
        first, second = front.settled()
        assert (waits(first), waits(second)) == (3, 1)


@each_mta
def test_the_replies_about_recipients_are_those_of_the_mta(mta: Mta) -> None:
    """Refused ones are reported; if all are, so is the chunk, and the session goes on."""
    with chunking_before(mta) as (port, backend, _):
        mail = Mail(brief(), recipients(3, 2))
        [result] = mta_clients.exim(SmtpTarget(port), [mail])
        assert result.sent, result.output
        refused = {each for each in mail.recipients if each.startswith("bad")}
        assert result.refused == (refused if backend.refuses else set())
        assert backend.find(mail.message).recipients == set(mail.recipients) - result.refused
        if backend.refuses:
            with Wire(port) as wire:
                assert wire.replies(1) == [220]
                assert wire.ask(b"EHLO client.example") == [250]
                octets = in_chunks(brief().octets, 100)
                wire.send(ENVELOPE[0], b"RCPT TO:<bad0@rcpt.example>", octets + b"RSET")
                chunks = octets.count(b"BDAT")
                mailed, refusal, *first_and_later, reset = wire.replies(3 + chunks)
                assert (mailed, refusal, reset) == (250, 550, 250)
                assert all(503 <= code <= 554 for code in first_and_later)
