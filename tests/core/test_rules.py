"""The rules of a session."""

import dataclasses

import pytest

from smtpproxy.core import replies
from smtpproxy.core.capabilities import Filter
from smtpproxy.core.commands import Sync
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.rules import Rules


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
    assert rules.lock_step_table[b"RCPT"].guarded
    assert rules.table[b"VRFY"].refusal == replies.NOT_IMPLEMENTED


def test_rules_are_shared_and_so_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rules().errors = 3  # type: ignore[misc]  # that is the point
