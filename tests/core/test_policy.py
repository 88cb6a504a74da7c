"""The rules of a session."""

import dataclasses

import pytest

from smtpproxy.core import replies
from smtpproxy.core.capabilities import Filter
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import XCLIENT_OFFER, Auth, ClientTls, Rules
from smtpproxy.core.verbs import Sync


def test_defaults_are_those_of_the_design() -> None:
    rules = Rules()
    assert (rules.sync, rules.bare_newlines) == (Sync.SAFE, BareNewlines.NORMALIZE)
    assert rules.use_pipelining
    assert rules.helo_fallback
    assert rules.guard_data
    assert (rules.queue_commands, rules.queue_octets) == (1000, 256 * 1024)
    assert (rules.line, rules.auth_line, rules.errors) == (2048, 12288, 20)


def test_tables_follow_from_the_rest() -> None:
    rules = Rules(sync=Sync.STRICT, capabilities=Filter(hide=frozenset([b"VRFY"])))
    assert rules.greeting.guarded
    assert rules.table[b"NOOP"].guarded
    assert not rules.table[b"RCPT"].guarded
    assert rules.helo_table[b"RCPT"].guarded
    assert rules.table[b"VRFY"].refusal == replies.NOT_IMPLEMENTED


def refusals(rules: Rules) -> set[bytes]:
    """Return the verbs that these rules would forward."""
    return {verb.name for verb in rules.table.values() if not verb.refusal}


def test_everything_but_the_way_to_tls_is_refused_where_tls_is_required() -> None:
    """RFC 3207 section 4; and what is refused in any case is refused as it always is."""
    rules = Rules(client_tls=ClientTls.OFFERED, require_tls=True)
    for word, verb in rules.table.items():
        free = verb.name in {b"EHLO", b"HELO", b"STARTTLS", b"NOOP", b"RSET", b"QUIT"}
        assert free == (not verb.refusal), word
    assert rules.table[b"MAIL"].refusal == replies.TLS_REQUIRED
    assert rules.table[b""].refusal == replies.TLS_REQUIRED
    assert rules.table[b"BDAT"].closes
    assert rules.table[b"TURN"].refusal == replies.NOT_IMPLEMENTED
    assert rules.inside_tls is not None
    assert refusals(rules.inside_tls) == refusals(Rules())


def test_auth_may_be_for_tls_only_or_for_nobody() -> None:
    rules = Rules(client_tls=ClientTls.OFFERED, auth=Auth.TLS_ONLY)
    assert rules.table[b"AUTH"].refusal == replies.TLS_FOR_AUTH
    assert not rules.capabilities.passes(b"AUTH")
    inside = rules.inside_tls
    assert inside is not None
    assert not inside.table[b"AUTH"].refusal
    assert inside.capabilities.passes(b"AUTH")
    for rules in (Rules(auth=Auth.HIDDEN), Rules(auth=Auth.HIDDEN, client_tls=ClientTls.ACTIVE)):
        assert rules.table[b"AUTH"].refusal == replies.NOT_IMPLEMENTED
        assert rules.table[b"AUTH"].secret
        assert not rules.capabilities.passes(b"AUTH")


def test_starttls_is_offered_once() -> None:
    outside = Rules(client_tls=ClientTls.OFFERED)
    inside = outside.inside_tls
    assert inside is not None
    assert outside.capabilities.add == (b"STARTTLS",)
    assert inside.capabilities.add == ()
    assert inside.inside_tls is None
    assert not inside.capabilities.passes(b"STARTTLS")
    assert inside.table[b"STARTTLS"].refusal == replies.TLS_ACTIVE


def test_only_trusted_clients_may_introduce_others() -> None:
    stranger, trusted = Rules(), Rules(trusted=True)
    for word in (b"XCLIENT", b"XFORWARD"):
        assert stranger.table[word].refusal == replies.NOT_AUTHORIZED
        assert not trusted.table[word].refusal
        assert not stranger.capabilities.passes(word)
    assert trusted.capabilities.passes(b"XFORWARD")
    assert trusted.capabilities.add == (XCLIENT_OFFER,)
    hidden = Rules(trusted=True, capabilities=Filter(hide=frozenset([b"XCLIENT"])))
    assert not hidden.capabilities.add
    assert hidden.table[b"XCLIENT"].refusal == replies.NOT_IMPLEMENTED


def test_bdat_closes_wherever_it_is_refused() -> None:
    """Its payload follows all the same."""
    assert Rules(capabilities=Filter(hide=frozenset([b"BDAT"]))).table[b"BDAT"].closes
    assert Rules(hello_first=True).first_table[b"BDAT"].closes
    assert not Rules().table[b"BDAT"].closes


def test_rules_are_shared_and_so_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rules().errors = 3  # type: ignore[misc]  # that is the point
