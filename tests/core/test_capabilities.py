"""Capabilities: the EHLO reply that the client gets."""

import pytest

from smtpproxy.core.capabilities import (
    NEVER_PASSED,
    PASSED,
    CapabilityFilter,
    offer,
    offer_for_helo,
)
from tests.support.memory import Allocated

EVERYTHING = CapabilityFilter()
LINE = b"250-X\r\n"
FIRST = b"250-mx.example.org Hello [10.0.0.1]\r\n"


def test_first_line_and_order_are_kept_and_pipelining_is_last() -> None:
    found = offer(FIRST + b"250-SIZE 10\r\n250-PIPELINING\r\n250 DSN\r\n", EVERYTHING)
    assert found.reply == FIRST + b"250-SIZE 10\r\n250-DSN\r\n250 PIPELINING\r\n"
    assert found.pipelining
    assert not found.chunking


def test_single_line_becomes_a_multi_line_reply() -> None:
    assert offer(b"250 mx\r\n", EVERYTHING).reply == b"250-mx\r\n250 PIPELINING\r\n"
    assert offer(b"250\r\n", EVERYTHING).reply == b"250-\r\n250 PIPELINING\r\n"


def test_the_last_line_decides_the_code() -> None:
    assert offer(b"220-mx\r\n250 SIZE\r\n", EVERYTHING).reply == (
        b"250-mx\r\n250-SIZE\r\n250 PIPELINING\r\n"
    )


def test_nothing_is_left_but_the_first_line() -> None:
    hides = CapabilityFilter(hide=frozenset((b"PIPELINING", b"SIZE")))
    found = offer(FIRST + b"250-PIPELINING\r\n250 SIZE\r\n", hides)
    assert found.reply == b"250 " + FIRST[4:]
    assert found.pipelining


def test_words_pass_in_any_case_and_with_parameters() -> None:
    found = offer(b"250-mx\r\n250-aUtH=LOGIN\r\n250 size=10 20\r\n", EVERYTHING)
    assert found.reply == b"250-mx\r\n250-aUtH=LOGIN\r\n250-size=10 20\r\n250 PIPELINING\r\n"


def test_unknown_masked_and_empty_words_are_dropped() -> None:
    found = offer(b"250-mx\r\n250-XXXX\r\n250-***\r\n250-\r\n250- \r\n250\r\n", EVERYTHING)
    assert found.reply == b"250-mx\r\n250 PIPELINING\r\n"


def test_each_allowed_word_passes_and_each_forbidden_one_does_not() -> None:
    for word in PASSED:
        assert b"250-" + word in offer(b"250-mx\r\n250 %b x\r\n" % word, EVERYTHING).reply
    for word in NEVER_PASSED:
        assert word not in offer(b"250-mx\r\n250 %b x\r\n" % word, EVERYTHING).reply
    assert not PASSED.keys() & NEVER_PASSED.keys()


def test_listener_allows_and_hides() -> None:
    keep = CapabilityFilter(hide=frozenset([b"DSN"]), allow=frozenset([b"XFOO", b"DSN"]))
    assert keep.passes(b"XFOO")
    assert not keep.passes(b"DSN")
    assert not keep.passes(b"XBAR")


def test_binarymime_is_hidden_with_chunking() -> None:
    keep = CapabilityFilter(hide=frozenset([b"CHUNKING"]))
    reply = b"250-mx\r\n250-CHUNKING\r\n250 BINARYMIME\r\n"
    assert offer(reply, keep).reply == b"250-mx\r\n250 PIPELINING\r\n"


def test_chunking_counts_only_if_the_client_sees_it() -> None:
    reply = b"250-mx\r\n250 CHUNKING\r\n"
    assert offer(reply, EVERYTHING).chunking
    assert not offer(reply, CapabilityFilter(hide=frozenset([b"CHUNKING"]))).chunking
    assert not offer(b"250 CHUNKING\r\n", EVERYTHING).chunking  # it is the server's name


def test_what_was_found_for_one_filter_is_not_used_for_another() -> None:
    reply = b"250-mx\r\n250 CHUNKING\r\n"
    for keep in (EVERYTHING, CapabilityFilter(hide=frozenset([b"CHUNKING"])), EVERYTHING):
        assert offer(reply, keep).chunking == keep.passes(b"CHUNKING")


def test_helo_gives_its_first_line_and_pipelining() -> None:
    assert offer_for_helo(b"250-mx\r\n250 old\r\n", EVERYTHING) == b"250-mx\r\n250 PIPELINING\r\n"
    hides = CapabilityFilter(hide=frozenset([b"PIPELINING"]))
    assert offer_for_helo(b"250 mx\r\n", hides) == b"250 mx\r\n"


def test_many_long_replies_of_a_backend_take_no_memory() -> None:
    """All lines of a reply would be kept, and a reply may have 256 KiB."""
    with Allocated() as allocated:
        for number in range(5):
            found = offer(FIRST + LINE * 5000 + b"250 SIZE %d\r\n" % number, EVERYTHING)
        assert found.reply == FIRST + b"250-SIZE 4\r\n250 PIPELINING\r\n"
        size = allocated.octets()
    assert size < 64 * 1024


@pytest.mark.parametrize(
    ("offered", "shown"),
    [
        (b"", b"LIMITS RCPTMAX=50"),
        (b"LIMITS RCPTMAX=1000", b"LIMITS RCPTMAX=50"),
        (b"LIMITS RCPTMAX=20", b"LIMITS RCPTMAX=20"),
        (b"limits rcptmax=1000 MAILMAX=5", b"limits RCPTMAX=50 MAILMAX=5"),
        (b"LIMITS RCPTDOMAINMAX=1 RCPTMAX=51", b"LIMITS RCPTMAX=50 RCPTDOMAINMAX=1"),
        (b"LIMITS MAILMAX=5", b"LIMITS RCPTMAX=50 MAILMAX=5"),
        (b"LIMITS", b"LIMITS RCPTMAX=50"),
        (b"LIMITS RCPTMAX=many RCPTMAX= RCPTMAX=0", b"LIMITS RCPTMAX=50"),
        (b"LIMITS RCPTMAX=" + b"9" * 30, b"LIMITS RCPTMAX=50"),
    ],
)
def test_rcptmax_is_at_most_the_limit_of_recipients(offered: bytes, shown: bytes) -> None:
    """RFC 9422 section 4.2."""
    lines = b"250-" + offered + b"\r\n" if offered else b""
    found = offer(FIRST + lines + b"250 DSN\r\n", EVERYTHING, recipients=50)
    assert b"\r\n250-" + shown + b"\r\n" in found.reply
    assert found.reply.upper().count(b"LIMITS") == 1
    unlimited = offer(FIRST + lines + b"250 DSN\r\n", EVERYTHING).reply
    assert (offered in unlimited) if offered else (b"LIMITS" not in unlimited)


def test_limits_that_are_hidden_are_not_announced() -> None:
    hides = CapabilityFilter(hide=frozenset([b"LIMITS"]))
    assert b"LIMITS" not in offer(FIRST + b"250 LIMITS RCPTMAX=9\r\n", hides, recipients=5).reply
    assert b"LIMITS" not in offer_for_helo(b"250 mx\r\n", hides, 5)


def test_a_backend_that_knows_only_helo_gets_the_limit_announced() -> None:
    assert offer_for_helo(b"250 mx\r\n", EVERYTHING, 5) == (
        b"250-mx\r\n250-LIMITS RCPTMAX=5\r\n250 PIPELINING\r\n"
    )
