"""CHUNKING for an MTA without it: BDAT payload becomes the same content that DATA would have sent.

The borders of chunks and of segments change nothing of it, and no payload ends a message early.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, product
from operator import attrgetter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.core.content import SHOWN, BareNewlines, Content
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.violations import ClientViolation
from tests.core import reference
from tests.core.test_content_exhaustive import LENGTH, OCTETS, STARTS
from tests.core.test_smuggling import SECOND, WOULD_BE_ENDS
from tests.support.compiled import attributes_of
from tests.support.effort import QUICK
from tests.support.model_mta import LineEnds, Mta, MtaStage, replies_in
from tests.support.pipeline_stage import check_observed

NORMALIZE, REJECT, PASS = BareNewlines
IN_TRANSACTION = b"EHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n"
_ANY_NEWLINE = re.compile(rb"\r\r?\n|\r|\n")
_DOT_AFTER_CRLF = re.compile(rb"(?:\A|(?<=\r\n))\.")
_DOT_AFTER_ANY = re.compile(rb"(?:\A|(?<=[\r\n\0]))\.")

# --- the content ----------------------------------------------------------------------------------

_NAMES = [name for name in attributes_of(Content) if name not in ("rewritten", "violation")]
_known = attrgetter(*_NAMES)
_END_OF_DATA = {
    LineEnds.STRICT: re.compile(rb"(?:\A|(?<=\r\n))\.\r\n"),
    LineEnds.BARE_LF: re.compile(rb"(?:\A|(?<=\n))\.\r*\n"),
    LineEnds.ANY: re.compile(rb"(?:\A|(?<=[\r\n]))\.[\r\n]+"),
    LineEnds.C_STRINGS: re.compile(rb"(?:\A|(?<=\n))\.(?:\0[^\n]*)?\r?\n"),
}
"""What MTAs of each kind take for the end of data."""


@pytest.mark.long
@pytest.mark.parametrize("policy", BareNewlines)
@pytest.mark.parametrize("start", [b"", *STARTS], ids=repr)
def test_every_payload_in_every_cut(start: bytes, policy: BareNewlines) -> None:
    """What is known after a cut in two is the same as without: so it is for any number of cuts."""
    for size in range(LENGTH - 1 if start else LENGTH + 1):
        for string in product(OCTETS, repeat=size):
            payload = start + b"".join(string)
            whole = _taken(policy, [payload])
            for cut in range(len(start), len(payload)):
                assert _taken(policy, [payload[:cut], payload[cut:]]) == whole, (payload, cut)
            _check(payload, policy)


def _taken(policy: BareNewlines, chunks: Sequence[bytes]) -> tuple[object, ...]:
    """Return the output for some chunks, and all that is known then."""
    content = Content(policy)
    out = b"".join(content.receive_payload(chunk) for chunk in chunks)
    return out, _known(content), _noted(content.violation), _noted(content.rewritten)


def _noted(violation: ClientViolation | None) -> tuple[str, bytes] | None:
    return violation and (violation.kind, violation.octets)


def _check(payload: bytes, policy: BareNewlines) -> None:
    content = Content(policy)
    out = content.receive_payload(payload) + b"".join(content.end_payload())
    text = payload if not payload or payload.endswith(b"\r\n") else payload + b"\r\n"
    at = reference.first_bare(text)
    if policy is not PASS and at >= 0:
        offence = content.violation or content.rewritten
        assert offence is not None
        shown = slice(max(0, at - SHOWN), at + SHOWN + 1)
        assert offence.octets in (payload[shown], text[shown])  # as the client sent it
    if policy is REJECT and reference.first_bare(text) >= 0:
        assert content.violation is not None
        assert _DOT_AFTER_CRLF.sub(b"..", text).startswith(out)
        assert not out or out.endswith(b"\r\n")
        assert reference.END not in b"\r\n" + out
        return
    assert content.violation is None
    if policy is NORMALIZE:
        text = _ANY_NEWLINE.sub(b"\r\n", payload.replace(b"\0", b""))
        text += b"" if not text or text.endswith(b"\r\n") else b"\r\n"
    dots = _DOT_AFTER_ANY if policy is PASS else _DOT_AFTER_CRLF
    assert out == dots.sub(b"..", text) + b".\r\n", payload
    for line_ends, end in _END_OF_DATA.items():
        assert [found.end() for found in end.finditer(out)] == [len(out)], (payload, line_ends)


# --- the dialogue ---------------------------------------------------------------------------------


class OldMta(Mta):
    """An MTA without CHUNKING."""

    def answer(self) -> bytes:
        reply = super().answer()
        return reply.replace(b"250-XUNKNOWN\r\n250 CHUNKING\r\n", b"250 XUNKNOWN\r\n")


POLICIES = {
    bare_newlines: SessionPolicy(add_chunking=True, bare_newlines=bare_newlines)
    for bare_newlines in BareNewlines
}


def in_chunks(payload: bytes, cuts: Sequence[int]) -> bytes:
    """Return the BDAT commands for a message that is cut at these places."""
    *chunks, last = [payload[a:b] for a, b in pairwise((0, *cuts, len(payload)))]
    octets = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in chunks)
    return octets + b"BDAT %d LAST\r\n%b" % (len(last), last)


def deliver(octets: bytes, policy: SessionPolicy, mta: Mta, segments: Sequence[int]) -> MtaStage:
    """Send what follows RCPT, cut at these places."""
    stage = MtaStage(policy, mta)
    stage.settle()
    stage.client(IN_TRANSACTION)
    stage.settle()
    for begin, end in pairwise((0, *segments, len(octets))):
        stage.client(octets[begin:end])
        stage.settle()
    check_observed(stage)
    return stage


def by_data(payload: bytes) -> bytes:
    """Return the octets of DATA and content with which a client sends the same message."""
    text = payload if not payload or payload.endswith(b"\r\n") else payload + b"\r\n"
    return _DOT_AFTER_CRLF.sub(b"..", text) + b".\r\n"


MESSAGES = [
    b"",
    b"a",
    b".",
    b"\r\n",
    b"..\r\n.\r\n.a\r\n",
    b"a\r\n.\r\nRSET\r\n",
    b"\r\n.\r\n.\r\n",
    b"a: b\r\n\r\nBDAT 3\r\n",
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("payload", "policy"),
    [*product(MESSAGES, [NORMALIZE]), *product(MESSAGES[:5], [REJECT, PASS])],
    ids=repr,
)
def test_the_mta_gets_the_octets_of_data_in_every_cut(payload: bytes, policy: BareNewlines) -> None:
    data = MtaStage(POLICIES[policy], OldMta())
    data.ready()
    data.client(by_data(payload))
    data.settle()
    places = range(len(payload) + 1)
    for cuts in [cuts for count in range(3) for cuts in combinations(places, count)]:
        octets = in_chunks(payload, cuts) + b"RSET\r\n"
        whole: list[Sequence[int]] = [(at,) for at in range(len(octets))]
        for segments in [*(whole if len(cuts) < 2 else ()), range(1, len(octets))]:
            stage = deliver(octets, POLICIES[policy], OldMta(), segments)
            assert stage.mta.octets == data.mta.octets + b"RSET\r\n"
            assert stage.mta.messages == data.mta.messages
            *chunks, queued, reset = replies_in(stage.sent_to_client)[4:]
            assert all(b" bytes received\r\n" in reply for reply in chunks)
            assert (len(chunks), queued) == (len(cuts), b"250 queued 1\r\n")
            assert reset == b"250 RSET\r\n"


@QUICK
@given(
    st.lists(st.sampled_from([b"a", b".", b"\r\n", b"\n", b"\r", b"\0", b"x" * 70]), max_size=30),
    st.sampled_from([NORMALIZE, PASS]),
    st.randoms(use_true_random=True),
)
def test_random_messages_in_random_cuts(
    pieces: list[bytes], bare_newlines: BareNewlines, random: Random
) -> None:
    """Sent from before the greeting on, and answered at any moment."""
    payload = b"".join(pieces)
    cuts = sorted(random.choices(range(len(payload) + 1), k=random.randrange(5)))
    octets = IN_TRANSACTION + in_chunks(payload, cuts)
    policy = SessionPolicy(
        add_chunking=True,
        bare_newlines=bare_newlines,
        queue_commands=random.choice([1, 1000]),
        queue_bytes=random.choice([1, 64, 10**6]),
    )
    stage = MtaStage(policy, OldMta())
    while octets:
        size = random.choice([0, 1, 2, 7, 30, 1000])
        if size and not stage.pipeline.full:
            stage.client(octets[:size])
            octets = octets[size:]
        elif stage.mta.owed:
            stage.answer()
    stage.settle()
    content = Content(bare_newlines)
    out = content.receive_payload(payload) + b"".join(content.end_payload())
    assert stage.mta.octets == IN_TRANSACTION + b"DATA\r\n" + out
    assert len(stage.mta.messages) == stage.pipeline.transaction.messages == 1
    assert len(replies_in(stage.sent_to_client)) == 5 + len(cuts)
    check_observed(stage)


# --- smuggling ------------------------------------------------------------------------------------


def near(sequence: bytes) -> Iterator[tuple[int, ...]]:
    """Yield the places for chunk borders in and around a sequence, up to two, and all at once."""
    places = range(4, len(b"first" + sequence) + 2)
    yield from combinations(places, 1)
    yield from combinations(places[2:-1], 2)
    yield tuple(places)


@pytest.mark.long
@pytest.mark.parametrize("bare_newlines", BareNewlines)
@pytest.mark.parametrize("sequence", [*WOULD_BE_ENDS, reference.END], ids=lambda it: it.hex(" "))
def test_no_chunk_border_smuggles(sequence: bytes, bare_newlines: BareNewlines) -> None:
    payload = b"first" + sequence + SECOND + b"\r\n.\r\nMAIL FROM:<evil>\r\n"
    refused = bare_newlines is REJECT and reference.first_bare(payload) >= 0
    for cuts in [(), *near(sequence)]:
        octets = in_chunks(payload, cuts)
        for line_ends in LineEnds:
            stage = deliver(octets, POLICIES[bare_newlines], OldMta(line_ends), ())
            assert stage.mta.commands == [b"EHLO c", b"MAIL FROM:<a>", b"RCPT TO:<b>", b"DATA"]
            assert len(stage.mta.messages) == (0 if refused else 1)
            assert stage.pipeline.transaction.messages == len(stage.mta.messages)
            assert bool(stage.pipeline.ended) == refused
            queued = [reply for reply in replies_in(stage.sent_to_client) if b"queued" in reply]
            assert len(queued) == len(stage.mta.messages)


@pytest.mark.parametrize("end", [b"C: EOF", b"RSET\r\n", b"MAIL FROM:<c>\r\n", b"QUIT\r\n", b""])
def test_a_message_without_a_last_chunk_is_none(end: bytes) -> None:
    """Whatever the chunks are, and whatever ends the session."""
    for payload in (b"a\r\n.\r\n", b"a\r\n.", b"a\r\n", b".\r\n", b"\r\n.\r\n.\r\n"):
        for cut in range(len(payload)):
            chunks = payload[:cut], payload[cut:]
            octets = b"".join(b"BDAT %d\r\n%b" % (len(chunk), chunk) for chunk in chunks)
            stage = deliver(octets, POLICIES[NORMALIZE], OldMta(), ())
            if end == b"C: EOF":
                stage.happen("C: EOF")
            elif end:
                stage.client(end)
            else:
                stage.happen("expire")
            assert stage.pipeline.ended
            assert not stage.pipeline.backend_idle
            assert stage.mta.messages == []
            assert stage.mta.commands[-1] == b"DATA"
            assert reference.END not in stage.mta.octets
