"""Extensions: what of the backend's offer is in force."""

import pytest

from smtpproxy.core.capabilities import Filter
from smtpproxy.core.extensions import Extensions
from smtpproxy.core.rules import Rules

OFFER = b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
TO_CLIENT = b"250-mx\r\n250-CHUNKING\r\n250 PIPELINING\r\n"


def test_nothing_is_in_force_before_ehlo() -> None:
    extensions = Extensions(Rules())
    assert not extensions.pipelining
    assert not extensions.chunking


def test_offer_is_in_force_until_helo() -> None:
    extensions = Extensions(Rules())
    assert extensions.take_reply(250, OFFER) == (250, TO_CLIENT)
    assert extensions.pipelining
    assert extensions.chunking
    extensions.leave()
    assert not extensions.pipelining
    assert not extensions.chunking


def test_next_offer_counts() -> None:
    extensions = Extensions(Rules())
    extensions.take_reply(250, OFFER)
    extensions.take_reply(250, b"250 mx\r\n")
    assert not extensions.pipelining
    assert not extensions.chunking


def test_refused_ehlo_changes_nothing() -> None:
    extensions = Extensions(Rules())
    extensions.take_reply(250, OFFER)
    assert extensions.take_reply(503, b"503 again\r\n") == (503, b"503 again\r\n")
    assert extensions.pipelining
    assert extensions.chunking


def test_rules_may_leave_an_offer_unused() -> None:
    extensions = Extensions(
        Rules(use_pipelining=False, capabilities=Filter(hide=frozenset([b"CHUNKING"])))
    )
    extensions.take_reply(250, OFFER)
    assert not extensions.pipelining
    assert not extensions.chunking


@pytest.mark.parametrize("code", [500, 502])
def test_unknown_ehlo_falls_back_once(code: int) -> None:
    extensions = Extensions(Rules())
    extensions.take_reply(250, OFFER)
    refusal = b"%d what\r\n" % code
    assert extensions.falls_back(code, refusal)
    assert not extensions.falls_back(500, b"500 nor HELO\r\n")
    assert extensions.take_reply(500, b"500 nor HELO\r\n") == (code, refusal)
    assert extensions.falls_back(code, refusal)  # the next EHLO
    reply = b"250-mx\r\n250 PIPELINING\r\n"
    assert extensions.take_reply(250, b"250 mx\r\n") == (250, reply)
    assert not extensions.pipelining
    assert not extensions.chunking


@pytest.mark.parametrize("code", [250, 421, 450, 501, 503, 504, 550])
def test_other_replies_do_not_fall_back(code: int) -> None:
    assert not Extensions(Rules()).falls_back(code, b"%d x\r\n" % code)


def test_rules_may_forbid_to_fall_back() -> None:
    assert not Extensions(Rules(helo_fallback=False)).falls_back(500, b"500 x\r\n")
