"""The verb table: its rows, and how the policy changes them."""

import pytest

from smtpproxy.core import replies, verbs
from smtpproxy.core.capabilities import NEVER_PASSED
from smtpproxy.core.verbs import Sync, table_for

HELD = {b"MAIL", b"RCPT", b"RSET", b"SEND", b"SOML", b"SAML"}
GATES = {b"DATA", b"BDAT", b"AUTH", b"STARTTLS", b"QUIT", b"XCLIENT", b"XFORWARD", b""}
OTHER_PROTOCOLS = {b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI"}
REFUSED = NEVER_PASSED.keys() - {b"XCLIENT", b"XFORWARD"}


def _names(sync: Sync, quality: str) -> set[bytes]:
    return {verb.name for verb in table_for(sync).values() if getattr(verb, quality)}


def test_replies_that_may_be_held_are_those_of_rfc_2920() -> None:
    assert _names(Sync.SAFE, "groupable") == HELD


def test_gates() -> None:
    payload = {b"X-ANONYMOUSTLS", b"XEXCH50", b"X-LINK2STATE"}
    assert _names(Sync.SAFE, "gate") == GATES | payload | OTHER_PROTOCOLS


def test_secrets() -> None:
    assert _names(Sync.SAFE, "secret") == {b"AUTH", b"XCLIENT", b"X-EXPS"}
    assert verbs.AUTH_LINE_ROW.secret


def test_what_is_never_forwarded() -> None:
    table = table_for(Sync.SAFE)
    others = OTHER_PROTOCOLS | {b"XCLIENT", b"XFORWARD", b"LHLO"}
    assert _names(Sync.SAFE, "refusal") == REFUSED | others
    assert {table[word].refusal for word in REFUSED} == {replies.NOT_IMPLEMENTED}
    assert {table[word].refusal for word in OTHER_PROTOCOLS} == {replies.NOT_SMTP}
    assert table[b"LHLO"].refusal == replies.NOT_LMTP
    assert table[b"XCLIENT"].refusal == table[b"XFORWARD"].refusal == replies.NOT_AUTHORIZED


def test_what_closes() -> None:
    expected = OTHER_PROTOCOLS | {b"QUIT", b"XEXCH50", b"X-LINK2STATE"}
    assert _names(Sync.SAFE, "closes") == expected


def test_guarded_in_each_mode() -> None:
    safe = {b"DATA", b"STARTTLS", b"X-ANONYMOUSTLS"}
    assert _names(Sync.SAFE, "guarded") == safe
    assert _names(Sync.OFF, "guarded") == safe - {b"DATA"}
    more = {b"EHLO", b"HELO", b"NOOP", b"VRFY", b"EXPN", b"ETRN"}
    assert _names(Sync.STRICT, "guarded") == safe | more
    assert _names(Sync.STRICT, "gate") == _names(Sync.SAFE, "gate") | more


@pytest.mark.parametrize("sync", Sync)
def test_greeting_is_guarded_in_strict_only(sync: Sync) -> None:
    greeting = verbs.greeting_for(sync)
    assert greeting.guarded == (sync is Sync.STRICT)
    assert (greeting.gate, greeting.limit, greeting.role) == (True, "greeting", verbs.GREETING)


def test_lock_step_guards_all_but_quit_and_bdat() -> None:
    table = table_for(Sync.STRICT)
    shaped = verbs.lock_step(table)
    assert shaped.keys() == table.keys()
    loose = {verb.name for verb in shaped.values() if not verb.guarded}
    assert loose == {b"QUIT", b"BDAT"}
    assert all(verb.gate for verb in shaped.values())
    assert shaped[b"MAIL"].groupable


def test_time_limits() -> None:
    table = table_for(Sync.SAFE)
    assert table[b"DATA"].limit == "data"
    assert table[b"BDAT"].limit == verbs.END_OF_DATA_ROW.limit == "end_of_data"
    others = {verb.limit for verb in table.values() if verb.name not in (b"DATA", b"BDAT")}
    assert others == {"command"}


def test_hidden_words_are_refused_and_keep_what_else_they_are() -> None:
    table = table_for(Sync.SAFE, frozenset((b"AUTH", b"NOOP", b"XCLIENT", b"SIZE")))
    assert table[b"AUTH"].refusal == table[b"NOOP\r"].refusal == replies.NOT_IMPLEMENTED
    assert table[b"AUTH"].secret
    assert table[b"AUTH"].gate
    assert table[b"XCLIENT"].refusal == replies.NOT_AUTHORIZED
    assert b"SIZE" not in table


@pytest.mark.parametrize("sync", Sync)
def test_commonplace_verbs_are_found_by_how_a_line_begins(sync: Sync) -> None:
    table = table_for(sync)
    for word in verbs.COMMON_VERBS:
        for begin in (word + b" ", word + b"\r"):
            assert table[begin] is table[begin.lower()] is table[word]
        assert not table[word].refusal
        assert not table[word].secret
        assert len(word) == 4
    assert not [
        word for word in table if len(word) == 5 and word[:4].upper() not in verbs.COMMON_VERBS
    ]


def test_roles_stand_in_the_order_that_the_pipeline_counts_on() -> None:
    any_reply = {verbs.PLAIN, verbs.MAIL, verbs.RCPT, verbs.RSET}
    assert (
        max(any_reply)
        == verbs.RSET
        < min(verbs.EHLO, verbs.HELO, verbs.GREETING, verbs.END_OF_DATA, verbs.AUTH)
    )
    in_turn = {verb.role for verb in verbs.ROWS if verb.role >= verbs.DATA}
    assert in_turn == {verbs.DATA, verbs.BDAT}
