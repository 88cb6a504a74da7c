"""Which commands get an injected fault."""

import re
from ipaddress import ip_network

import pytest

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.fault_rules import (
    CONNECT,
    END_OF_DATA,
    FAULT_VERBS,
    FaultAction,
    FaultRule,
    SessionFaults,
    intercepted,
)

ROWS = {row.name: row for row in verbs.ROWS}


def command(line: str) -> Exchange:
    octets = line.encode()
    return Exchange(ROWS[octets.split(b" ")[0]], octets + b"\r\n", 1.0)


def rule(verb: bytes, **values: object) -> FaultRule:
    for name in ("sender", "recipient"):
        if name in values:
            values[name] = re.compile(str(values[name]))
    return FaultRule(verb.decode(), verb, FaultAction.CLOSE, **values)  # type: ignore[arg-type]


def hits(rules: list[FaultRule], *lines: str, client: str = "192.0.2.1") -> list[str]:
    """Return the lines that get a fault."""
    faults = SessionFaults(rules, 1, 1, client)
    return [line for line in lines if faults.for_command(command(line))]


def test_a_rule_is_about_its_verb() -> None:
    assert hits([rule(b"NOOP")], "NOOP", "RSET", "NOOP") == ["NOOP", "NOOP"]


def test_the_first_rule_that_applies_counts() -> None:
    faults = SessionFaults([rule(b"RSET"), rule(b"NOOP"), rule(b"NOOP", rate=0.5)], 1, 1, "")
    found = faults.for_command(command("NOOP"))
    assert found is not None
    assert found.rate == 1


def test_the_greeting_has_rules_of_its_own() -> None:
    assert SessionFaults([rule(CONNECT)], 1, 1, "").for_connection()
    assert SessionFaults([rule(b"EHLO")], 1, 1, "").for_connection() is None


def test_the_end_of_a_message_is_content_or_the_last_chunk() -> None:
    faults = SessionFaults([rule(END_OF_DATA)], 1, 1, "")
    assert faults.for_command(Exchange(verbs.END_OF_DATA_ROW, b"", 1.0))
    assert faults.for_command(command("BDAT 3 LAST"))
    assert faults.for_command(command("BDAT 3")) is None
    assert faults.for_command(command("DATA")) is None
    assert hits([rule(b"BDAT")], "BDAT 3", "BDAT 3 LAST") == ["BDAT 3", "BDAT 3 LAST"]


@pytest.mark.parametrize(
    ("network", "client", "applies"),
    [
        ("192.0.2.0/24", "192.0.2.7", True),
        ("192.0.2.0/24", "198.51.100.7", False),
        ("192.0.2.0/24", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("0.0.0.0/0", "", False),
    ],
)
def test_a_rule_for_clients_of_a_network(network: str, client: str, applies: bool) -> None:
    rules = [rule(b"NOOP", client=ip_network(network))]
    assert bool(hits(rules, "NOOP", client=client)) == applies


def test_a_rule_for_a_sender_follows_the_last_mail() -> None:
    rules = [rule(b"RCPT", sender="a@")]
    lines = (
        "RCPT TO:<1@y>",
        "MAIL FROM:<a@x>",
        "RCPT TO:<2@y>",
        "MAIL FROM:<b@x>",
        "RCPT TO:<3@y>",
    )
    assert hits(rules, *lines) == ["RCPT TO:<2@y>"]
    assert hits([rule(b"MAIL", sender="$")], "MAIL FROM:<>", "MAIL FROM:<a@x>") == ["MAIL FROM:<>"]


def test_a_rule_for_a_recipient_is_about_that_one() -> None:
    rules = [rule(b"RCPT", recipient="b@")]
    lines = ("MAIL FROM:<b@x>", "RCPT TO:<a@y>", "RCPT TO: b@y NOTIFY=NEVER", "RCPT TO:<c@y>")
    assert hits(rules, *lines) == ["RCPT TO: b@y NOTIFY=NEVER"]


def test_the_message_has_the_recipients_of_its_transaction() -> None:
    rules = [rule(b"DATA", recipient="b@")]
    first = ("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "RCPT TO:<c@y>", "DATA")
    second = ("MAIL FROM:<a@x>", "RCPT TO:<c@y>", "DATA")
    assert hits(rules, *first) == ["DATA"]
    assert hits(rules, *first[:2], *second) == []


def test_a_line_without_an_address_has_an_empty_one() -> None:
    assert hits([rule(b"RCPT", recipient="$")], "RCPT", "RCPT TO") == ["RCPT", "RCPT TO"]


def decisions(seed: int, number: int, rate: float = 0.5) -> list[bool]:
    faults = SessionFaults([rule(b"NOOP", rate=rate)], seed, number, "")
    return [faults.for_command(command("NOOP")) is not None for _ in range(200)]


def test_decisions_follow_from_the_seed_and_the_number_of_the_session() -> None:
    assert decisions(1, 1) == decisions(1, 1)
    assert decisions(1, 1) != decisions(2, 1)
    assert decisions(1, 1) != decisions(1, 2)


def test_the_rate_is_the_share_of_the_commands() -> None:
    for rate in (0.05, 0.5, 1.0):
        found = [hit for number in range(50) for hit in decisions(7, number, rate)]
        assert abs(sum(found) / len(found) - rate) < 0.02


def test_only_what_rules_must_see_is_intercepted() -> None:
    envelope = {b"MAIL", b"SEND", b"SOML", b"SAML", b"RCPT"}
    assert intercepted([]) == intercepted([rule(CONNECT)]) == frozenset()
    assert intercepted([rule(b"EHLO"), rule(b"NOOP")]) == {b"EHLO", b"NOOP"}
    assert intercepted([rule(END_OF_DATA)]) == {b"DATA", b"BDAT"}
    assert intercepted([rule(b"DATA", sender="x")]) == {b"DATA", *envelope}
    assert intercepted([rule(b"DATA", recipient="x")]) == {b"DATA", *envelope}


def test_a_rule_can_be_about_each_command_that_the_mta_may_get() -> None:
    forwarded = {row.name for row in verbs.ROWS if row.name and not row.refusal}
    assert set(FAULT_VERBS) == forwarded | {CONNECT, END_OF_DATA, b"STARTTLS"}
    assert len(FAULT_VERBS) == len(set(FAULT_VERBS))
