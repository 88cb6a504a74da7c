"""Scenarios: how many sessions, messages, recipients and bytes, and how far away the client is."""

from enum import StrEnum

from msgspec import Struct


class Kind(StrEnum):
    """The kind of sessions in a scenario, which decides what is measured."""

    PASSING = "passing"  # sessions open and close: CPU per message
    HELD = "held"  # all stay open, and each sends message after message: CPU per message, memory
    IDLE = "idle"  # all stay open and send nothing: memory of a session
    DISTANT = "distant"  # one session over a long link: its duration


class Scenario(Struct, frozen=True, kw_only=True):
    """One kind of load."""

    short: str
    """The name used in comments in the code."""
    name: str
    sentence: str
    kind: Kind = Kind.PASSING
    at_once: int = 1
    """How many sessions are open at a time."""
    messages: int = 1
    """How many messages each session sends."""
    recipients: int = 1
    """How many recipients each message has."""
    message_bytes: int = 2048


ROUND_TRIP_MS = 100
"""The round-trip time of the link in a distant scenario."""

SCENARIOS = (
    Scenario(
        short="S1",
        name="small",
        sentence="one small message (2 KB to one recipient), 50 sessions at once",
        at_once=50,
    ),
    Scenario(
        short="S2",
        name="recipients",
        sentence="one message to 50 recipients, 20 sessions at once",
        at_once=20,
        recipients=50,
    ),
    Scenario(
        short="S3",
        name="many",
        sentence="20 messages in a session (4 KB to 2 recipients each), 20 at once",
        at_once=20,
        messages=20,
        recipients=2,
        message_bytes=4096,
    ),
    Scenario(
        short="S4",
        name="large",
        sentence="one message of 10 MB, 4 sessions at once",
        at_once=4,
        message_bytes=10_000_000,
    ),
    Scenario(
        short="S5",
        name="idle",
        sentence="2,000 sessions that stay open after EHLO and send nothing",
        kind=Kind.IDLE,
        at_once=2000,
    ),
    Scenario(
        short="S6a",
        name="distant-10",
        sentence=f"a client {ROUND_TRIP_MS} ms away, one message to 10 recipients",
        kind=Kind.DISTANT,
        recipients=10,
    ),
    Scenario(
        short="S6b",
        name="distant-100",
        sentence=f"a client {ROUND_TRIP_MS} ms away, one message to 100 recipients",
        kind=Kind.DISTANT,
        recipients=100,
    ),
    Scenario(
        short="S7",
        name="alone",
        sentence="one session at a time, a message of 2 KB to 10 recipients",
        recipients=10,
    ),
)


def named(name: str) -> Scenario:
    """Return the scenario whose `short` or `name` this is.

    Raises:
        KeyError: there is none.
    """
    for scenario in SCENARIOS:
        if name.lower() in (scenario.short.lower(), scenario.name):
            return scenario
    raise KeyError(name)
