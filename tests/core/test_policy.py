"""The policy of a session."""

import dataclasses

import pytest

from smtpproxy.core import replies
from smtpproxy.core.capabilities import CapabilityFilter
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import XCLIENT_OFFER, Auth, ClientTls, SessionPolicy
from smtpproxy.core.verbs import Sync


def test_defaults_are_those_of_the_design() -> None:
    policy = SessionPolicy()
    assert (policy.sync, policy.bare_newlines) == (Sync.SAFE, BareNewlines.NORMALIZE)
    assert policy.use_pipelining
    assert policy.helo_fallback
    assert policy.guard_data
    assert (policy.queue_commands, policy.queue_bytes) == (1000, 256 * 1024)
    assert (policy.command_line, policy.auth_line, policy.consecutive_errors) == (2048, 12288, 20)


def test_tables_follow_from_the_rest() -> None:
    policy = SessionPolicy(
        sync=Sync.STRICT, capabilities=CapabilityFilter(hide=frozenset([b"VRFY"]))
    )
    assert policy.greeting.guarded
    assert policy.table[b"NOOP"].guarded
    assert not policy.table[b"RCPT"].guarded
    assert policy.helo_table[b"RCPT"].guarded
    assert policy.table[b"VRFY"].refusal == replies.NOT_IMPLEMENTED


def refusals(policy: SessionPolicy) -> set[bytes]:
    """Return the verbs that this policy would forward."""
    return {verb.name for verb in policy.table.values() if not verb.refusal}


def test_everything_but_the_way_to_tls_is_refused_where_tls_is_required() -> None:
    """RFC 3207 section 4; verbs that are always refused keep their refusal."""
    policy = SessionPolicy(client_tls=ClientTls.OFFERED, require_tls=True)
    for word, verb in policy.table.items():
        free = verb.name in {b"EHLO", b"HELO", b"STARTTLS", b"NOOP", b"RSET", b"QUIT"}
        assert free == (not verb.refusal), word
    assert policy.table[b"MAIL"].refusal == replies.TLS_REQUIRED
    assert policy.table[b""].refusal == replies.TLS_REQUIRED
    assert policy.table[b"BDAT"].closes
    assert policy.table[b"TURN"].refusal == replies.NOT_IMPLEMENTED
    assert policy.inside_tls is not None
    assert refusals(policy.inside_tls) == refusals(SessionPolicy())


def test_auth_may_be_for_tls_only_or_hidden() -> None:
    policy = SessionPolicy(client_tls=ClientTls.OFFERED, auth=Auth.TLS_ONLY)
    assert policy.table[b"AUTH"].refusal == replies.TLS_FOR_AUTH
    assert not policy.capabilities.passes(b"AUTH")
    inside = policy.inside_tls
    assert inside is not None
    assert not inside.table[b"AUTH"].refusal
    assert inside.capabilities.passes(b"AUTH")
    for policy in (
        SessionPolicy(auth=Auth.HIDDEN),
        SessionPolicy(auth=Auth.HIDDEN, client_tls=ClientTls.ACTIVE),
    ):
        assert policy.table[b"AUTH"].refusal == replies.NOT_IMPLEMENTED
        assert policy.table[b"AUTH"].secret
        assert not policy.capabilities.passes(b"AUTH")


def test_starttls_is_offered_once() -> None:
    outside = SessionPolicy(client_tls=ClientTls.OFFERED)
    inside = outside.inside_tls
    assert inside is not None
    assert outside.capabilities.add == (b"STARTTLS",)
    assert inside.capabilities.add == ()
    assert inside.inside_tls is None
    assert not inside.capabilities.passes(b"STARTTLS")
    assert inside.table[b"STARTTLS"].refusal == replies.TLS_ACTIVE


def test_only_trusted_clients_may_introduce_others() -> None:
    stranger, trusted = SessionPolicy(), SessionPolicy(trusted=True)
    for word in (b"XCLIENT", b"XFORWARD"):
        assert stranger.table[word].refusal == replies.NOT_AUTHORIZED
        assert not trusted.table[word].refusal
        assert not stranger.capabilities.passes(word)
    assert trusted.capabilities.passes(b"XFORWARD")
    assert trusted.capabilities.add == (XCLIENT_OFFER,)
    hidden = SessionPolicy(
        trusted=True, capabilities=CapabilityFilter(hide=frozenset([b"XCLIENT"]))
    )
    assert not hidden.capabilities.add
    assert hidden.table[b"XCLIENT"].refusal == replies.NOT_IMPLEMENTED


def test_bdat_closes_wherever_it_is_refused() -> None:
    """Its payload follows even so."""
    assert (
        SessionPolicy(capabilities=CapabilityFilter(hide=frozenset([b"BDAT"])))
        .table[b"BDAT"]
        .closes
    )
    assert SessionPolicy(hello_first=True).first_table[b"BDAT"].closes
    assert not SessionPolicy().table[b"BDAT"].closes


def test_rules_are_shared_and_so_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SessionPolicy().errors = 3  # type: ignore[misc]  # that is the point
