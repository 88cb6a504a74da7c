"""Messages over `limits.message_bytes`, in chunks, with a real MTA on both sides."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest

from tests.interop import mta_clients, peers
from tests.interop.clients import Mail, SmtpTarget
from tests.interop.messages import Message, brief, large
from tests.interop.peers import Backend
from tests.interop.stage import configured
from tests.interop.tap import Tap
from tests.interop.wire import Wire

MOST = 20_000
RECIPIENT = "good0@rcpt.example"
ENVELOPE = (b"MAIL FROM:<sender@sender.example>", f"RCPT TO:<{RECIPIENT}>".encode())


@dataclass(frozen=True)
class Bounded:
    """An MTA with CHUNKING, after a tap and a proxy that bounds messages."""

    mta: Backend
    tap: Tap
    port: int


@pytest.fixture(
    params=[partial(peers.exim, chunking=True), peers.postfix],
    ids=["exim", "postfix"],
    scope="module",
)
def bounded(request: pytest.FixtureRequest) -> Iterator[Bounded]:
    start: Callable[[], AbstractContextManager[Backend]] = request.param
    # Without SIZE a client finds out by its chunks alone.
    listener = 'capabilities = { hide = ["SIZE"] }'
    with start() as mta, Tap(mta.port) as tap:
        backend = f'servers = ["127.0.0.1:{tap.port}"]\n[limits]\nmessage_bytes = {MOST}'
        with configured(listener, backend) as (port, _):
            yield Bounded(mta, tap, port)


def chunks(message: Message, *ends: int) -> bytes:
    """Return the message in chunks that end at these octets, and the last."""
    octets = message.octets
    cuts = [0, *ends, len(octets)]
    parts = [octets[begin:end] for begin, end in pairwise(cuts)]
    last = len(parts) - 1
    return b"".join(
        b"BDAT %d%s\r\n%s" % (len(part), b" LAST" if index == last else b"", part)
        for index, part in enumerate(parts)
    )


def test_a_message_of_just_so_many_octets_is_delivered(bounded: Bounded) -> None:
    line = b"x" * 70 + b"\r\n"
    octets = len(brief(b"").octets)
    lines, rest = divmod(MOST - octets, len(line))
    message = brief(line * lines + b"y" * rest)
    assert len(message.octets) == MOST
    with Wire(bounded.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        wire.ask(*ENVELOPE)
        group = chunks(message, 100, 5000) + b"QUIT"
        assert wire.ask(group, replies=4) == [250, 250, 250, 221]
    assert bounded.mta.find(message).without_trace() == message.as_kept()


@pytest.mark.parametrize("ends", [(), (15_000,), (100, 15_000, 19_999)])
def test_the_chunk_that_makes_it_too_big_does_not_reach_the_mta(
    bounded: Bounded, ends: tuple[int, ...]
) -> None:
    message = large(40_000)
    since = len(bounded.tap.connections)
    with Wire(bounded.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        group = chunks(message, *ends) + b"QUIT"
        taken = [250] * (2 + len(ends))
        assert wire.ask(*ENVELOPE, group, replies=len(taken) + 1) == [*taken, 552]
        assert wire.rest() == b""  # what follows could not be attributed to a client
    (connection,) = bounded.tap.settled(since)
    assert b"LAST" not in connection.sent()
    assert not bounded.mta.has(message)


def test_exim_bounces_what_is_too_big(bounded: Bounded) -> None:
    message, small = large(60_000), brief()
    bounced, delivered = (
        mta_clients.exim(SmtpTarget(bounded.port), [Mail(each, (RECIPIENT,))])[0]
        for each in (message, small)
    )
    assert bounced.refused == {RECIPIENT}
    assert "552 5.3.4 Error: message too big" in bounced.output
    assert delivered.sent
    assert bounded.mta.find(small)  # it may take a while, and then the other would be there, too
    assert not bounded.mta.has(message)
