"""Early pipelining: when PIPECONNECT is offered, and what an early client cannot smuggle."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.core.capabilities import CapabilityFilter
from smtpproxy.core.negotiated_extensions import NegotiatedExtensions
from smtpproxy.core.policy import Auth, SessionPolicy
from smtpproxy.core.replies import BDAT_NOT_OFFERED_NOW
from tests.support.effort import QUICK
from tests.support.model_mta import Mta, MtaStage, replies_in
from tests.support.pipeline_stage import check_observed

EARLY = SessionPolicy(early_pipelining=True, consecutive_errors=10**6)
OFFER = b"250-SIZE 10\r\n250 AUTH PLAIN\r\n"
REPLY = b"250-mx\r\n" + OFFER

# --- the offer ------------------------------------------------------------------------------------


def offered(*offers: bytes, policy: SessionPolicy = EARLY, reply: bytes = REPLY) -> bool:
    """Return whether PIPECONNECT is offered in front of servers with these offers."""
    extensions = NegotiatedExtensions(policy)
    asked: list[bytes] = []

    def offers_of(offer: bytes) -> tuple[bytes, ...]:
        asked.append(offer)
        return offers

    extensions.compare_servers(offers_of)
    found = extensions.accept_ehlo(reply)
    assert asked in ([], [reply.partition(b"\r\n")[2]])
    assert found.endswith(b"250-PIPELINING\r\n250 PIPECONNECT\r\n") == (b"PIPECONNECT" in found)
    return b"PIPECONNECT" in found


def test_it_is_offered_if_all_servers_offer_the_same() -> None:
    assert offered(OFFER)
    assert offered(OFFER, OFFER, OFFER)


def test_it_is_not_offered_if_one_server_offers_something_else() -> None:
    assert not offered(OFFER, b"250 SIZE 10\r\n")
    assert not offered(OFFER, b"250-SIZE 11\r\n250 AUTH PLAIN\r\n")
    assert not offered(OFFER, b"")


def test_it_is_not_offered_if_a_server_is_not_known() -> None:
    assert not offered()


def test_what_the_client_does_not_see_makes_no_difference() -> None:
    assert offered(OFFER, b"250-XCLIENT ADDR\r\n250-PIPECONNECT\r\n" + OFFER)
    hides = SessionPolicy(early_pipelining=True, auth=Auth.HIDDEN)
    assert offered(OFFER, b"250 SIZE 10\r\n", policy=hides)
    limited = SessionPolicy(early_pipelining=True, message_bytes=5)
    assert offered(OFFER, b"250-SIZE 11\r\n250 AUTH PLAIN\r\n", policy=limited)


def test_the_position_of_the_last_line_makes_no_difference() -> None:
    """The last line of a reply has a space where the others have a hyphen."""
    assert offered(b"250-SIZE 10\r\n250 XCLIENT\r\n", b"250 SIZE 10\r\n")


@pytest.mark.parametrize("word", [b"PIPELINING", b"PIPECONNECT"])
def test_it_is_not_offered_where_it_or_pipelining_is_hidden(word: bytes) -> None:
    hides = CapabilityFilter(hide=frozenset([word]))
    assert not offered(OFFER, policy=SessionPolicy(early_pipelining=True, capabilities=hides))


def test_servers_are_not_compared_unless_it_is_set() -> None:
    extensions = NegotiatedExtensions(SessionPolicy())
    extensions.compare_servers(lambda _: pytest.fail("compared"))
    assert b"PIPECONNECT" not in extensions.accept_ehlo(REPLY)
    assert b"PIPECONNECT" not in extensions.offer_for_helo(b"250 mx\r\n")


# --- a BDAT that the MTA does not know ------------------------------------------------------------

FIRST = b"EHLO client\r\n"
LINES = [b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n", b"RSET\r\n", b"NOOP\r\n", b"VRFY joe\r\n"]
PAYLOADS = st.one_of(
    st.binary(max_size=20),
    st.lists(
        st.sampled_from(
            [
                *LINES,
                b"DATA\r\n",
                b".\r\n",
                b"BDAT 5 LAST\r\n",
                b"BDAT x\r\n",
                b"QUIT\r\n",
                b"STARTTLS\r\n",
                b"\r\n",
                b"GET / HTTP/1.1\r\n",
                b"\x16\x03\x01",
            ]
        ),
        max_size=4,
    ).map(b"".join),
)


class OldMta(Mta):
    """An MTA without CHUNKING: it would read the payload of a BDAT as commands."""

    def answer(self) -> bytes:
        reply = super().answer()
        return reply.replace(b"250-XUNKNOWN\r\n250 CHUNKING\r\n", b"250 XUNKNOWN\r\n")


def chunk(payload: bytes, last: bool) -> bytes:
    return b"BDAT %d%b\r\n%b" % (len(payload), b" LAST" * last, payload)


def check(pieces: list[bytes], parts: list[bytes], policy: SessionPolicy = EARLY) -> MtaStage:
    """Check that the MTA gets the commands and nothing of a chunk, and the client every reply.

    Args:
        pieces: The octets of the client; where one is empty, the MTA answers.
        parts: The same as commands.
        policy: The policy.
    """
    stage = MtaStage(policy, OldMta())
    for piece in pieces:
        if piece:
            stage.client(piece)
        elif stage.mta.owed:
            stage.answer()
    stage.settle()
    commands = [part for part in parts if part[:4] != b"BDAT"]
    assert stage.mta.octets == b"".join(commands)
    assert stage.mta.messages == []
    replies = replies_in(stage.sent_to_client)
    assert len(replies) == 1 + len(parts)
    for part, reply in zip(parts, replies[1:], strict=True):
        if part[:4] == b"BDAT":
            assert reply == BDAT_NOT_OFFERED_NOW
        elif part != FIRST:
            assert part.strip() in reply
    assert not stage.pipeline.ended
    check_observed(stage)
    return stage


@pytest.mark.long
@QUICK
@given(
    st.lists(
        st.one_of(st.sampled_from(LINES), st.builds(chunk, PAYLOADS, st.booleans())), max_size=8
    ),
    st.sampled_from([1, 2, 1000]),
    st.sampled_from([1, 64, 10**6]),
    st.data(),
)
def test_the_mta_gets_nothing_of_a_chunk_that_it_does_not_know(
    parts: list[bytes], queue_commands: int, queue_bytes: int, draw: st.DataObject
) -> None:
    """Sent from before the greeting on, in any segments, and answered at any moment."""
    parts = [FIRST, *parts]
    octets, pieces = b"".join(parts), []
    while octets:
        size = draw.draw(st.sampled_from([0, 1, 2, 3, 7, 30, 1000]))
        pieces.append(octets[:size])
        octets = octets[size:]
    policy = SessionPolicy(
        early_pipelining=True,
        consecutive_errors=10**6,
        queue_commands=queue_commands,
        queue_bytes=queue_bytes,
    )
    check(pieces, parts, policy)


def test_exactly_the_announced_octets_are_skipped_in_every_cut() -> None:
    parts = [FIRST, chunk(b"QUIT\r\n", True), b"RSET\r\n"]
    octets = b"".join(parts)
    for cut in combinations(range(len(octets) + 1), 2):
        begin, middle, end = octets[: cut[0]], octets[cut[0] : cut[1]], octets[cut[1] :]
        for answers in (0, 2):
            check([begin, *[b""] * answers, middle, b"", end], parts)


def test_inside_tls_too() -> None:
    parts = [FIRST, chunk(b"DATA\r\nQUIT\r\n", True), b"RSET\r\n"]
    inside = SessionPolicy(early_pipelining=True, hello_first=True)
    for size in (1, 2, 3, 100):
        octets = b"".join(parts)
        check([octets[at : at + size] for at in range(0, len(octets), size)], parts, inside)
