"""The dialogues of RFC 2920 section 4, octet by octet, with real MTAs as backends."""

import pytest

from tests.interop.messages import brief
from tests.interop.peers import BACKENDS
from tests.interop.stage import Stage
from tests.interop.wire import Wire

REFUSING = pytest.mark.parametrize("stage", [x for x in BACKENDS if "sink" not in x], indirect=True)

MAIL = b"MAIL FROM:<sender@sender.example>"
GOOD = [b"RCPT TO:<good%d@rcpt.example>" % number for number in range(3)]
BAD = [b"RCPT TO:<bad%d@rcpt.example>" % number for number in range(2)]


def test_in_lock_step_it_takes_9_waits(stage: Stage) -> None:
    """RFC 2920 section 4, the first example; dialogue (a)."""
    message = brief()
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"HELO client.example") == [250]
        for command in (MAIL, *GOOD):
            assert wire.ask(command) == [250]
        assert wire.ask(b"DATA") == [354]
        assert wire.ask(message.octets + b".", replies=1) == [250]
        assert wire.ask(b"QUIT") == [221]
        assert wire.waits == 9
        assert wire.rest() == b""
    assert stage.backend.find(message).without_trace() == message.as_kept()


def test_pipelined_it_takes_4_waits(stage: Stage) -> None:
    """RFC 2920 section 4, the second example; dialogue (b)."""
    message = brief()
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        assert wire.ask(MAIL, *GOOD, b"DATA") == [250, 250, 250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
        assert wire.waits == 4
        assert wire.rest() == b""
    assert stage.backend.find(message).without_trace() == message.as_kept()


@REFUSING
def test_all_recipients_refused_data_is_refused_too(stage: Stage) -> None:
    """RFC 2920 section 4, the third example; dialogue (c)."""
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        assert wire.ask(MAIL, *BAD, b"DATA") == [250, 550, 550, 554]
        assert wire.ask(b"QUIT") == [221]
        assert wire.waits == 4
        assert wire.rest() == b""
    assert b"DATA" not in stage.tap.settled()[-1].sent()


@REFUSING
def test_some_recipients_refused_the_others_get_the_message(stage: Stage) -> None:
    """Dialogue (e): the last recipient is a refused one."""
    message = brief()
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        assert wire.ask(MAIL, GOOD[0], *BAD, b"DATA") == [250, 250, 550, 550, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
        assert wire.waits == 4
    assert stage.backend.find(message).recipients == {"good0@rcpt.example"}


def test_a_transaction_follows_the_end_of_data_in_one_group(stage: Stage) -> None:
    """RFC 2920 section 3.1: content may be the first thing of a group."""
    first, second = brief(b"first"), brief(b"second")
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        assert wire.ask(MAIL, GOOD[0], b"DATA") == [250, 250, 354]
        assert wire.ask(first.octets + b".", MAIL, GOOD[1], b"DATA") == [250, 250, 250, 354]
        assert wire.ask(second.octets + b".", b"QUIT") == [250, 221]
    assert stage.backend.find(first).recipients == {"good0@rcpt.example"}
    assert stage.backend.find(second).recipients == {"good1@rcpt.example"}


def test_rset_inside_a_group_resets_the_transaction(stage: Stage) -> None:
    """Only the second transaction's recipient gets the message."""
    message = brief()
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        group = (MAIL, GOOD[0], b"RSET", MAIL, GOOD[1], b"DATA")
        assert wire.ask(*group) == [250, 250, 250, 250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
    assert stage.backend.find(message).recipients == {"good1@rcpt.example"}


def test_a_group_of_120_recipients_is_answered_in_order(stage: Stage) -> None:
    """More than the 100 that RFC 5321 section 4.5.3.1.8 makes every server take."""
    message = brief()
    addresses = [b"r%d@rcpt.example" % number for number in range(120)]
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        rcpts = [b"RCPT TO:<%s>" % address for address in addresses]
        assert wire.ask(MAIL, *rcpts, b"DATA") == [250] * 121 + [354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
    delivery = stage.backend.find(message)
    assert delivery.recipients == {address.decode() for address in addresses}


@pytest.mark.parametrize("stage", ["exim-chunking", "postfix"], indirect=True)
def test_bdat_chunks_in_one_group_arrive_as_one_message(stage: Stage) -> None:
    """RFC 3030 section 4.2; the payload holds what would end a message or read as a command."""
    message = brief(b"first\r\n.\r\nQUIT")
    head, tail = message.octets[:150], message.octets[150:]
    chunks = b"BDAT %d\r\n%sBDAT %d LAST\r\n%s" % (len(head), head, len(tail), tail)
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        group = (MAIL, GOOD[0], chunks + b"QUIT")
        assert wire.ask(*group, replies=5) == [250, 250, 250, 250, 221]
    assert stage.backend.find(message).without_trace() == message.as_kept()


def test_a_client_that_resets_after_quit_has_sent_its_message(stage: Stage) -> None:
    """As Outlook does, without reading the reply to QUIT."""
    message = brief()
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        assert wire.ask(MAIL, GOOD[0], b"DATA") == [250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT", replies=1) == [250]
        wire.reset()
    assert stage.backend.find(message).without_trace() == message.as_kept()
