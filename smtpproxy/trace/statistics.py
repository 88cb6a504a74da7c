"""The statistics of recorded sessions: what `trace stats` reports, and prints as JSON.

Every text of a peer is `printable`.
"""

from typing import Final

from msgspec import Struct

VERSION: Final = 1
"""The version of these fields; it changes when a field gets another name or meaning."""


class MessageCount(Struct):
    """Messages of one outcome."""

    outcome: str
    """relayed, refused or abandoned."""
    code: str
    """The code of the reply that decided; empty if there was none."""
    count: int
    """How many messages."""
    size_bytes: int
    """Bytes of their content."""


class SlowReply(Struct):
    """One of the slowest replies to a verb."""

    session: str
    """The session's id."""
    at: float
    """When the command was sent to the MTA, in seconds since 1970."""
    seconds: float
    """How long the MTA took."""


class VerbTimes(Struct):
    """How long the MTA took to reply to a verb: from the command to its reply.

    Percentiles are exact to one percent.  The greeting, which no command asks for, does not count.
    """

    verb: str
    """The verb, as in the records; other_verbs for all beyond the first 100."""
    count: int
    """How many commands."""
    seconds: float
    """The sum."""
    p50_s: float
    """Half of the replies came in this time."""
    p95_s: float
    """95 of 100 replies came in this time."""
    p99_s: float
    """99 of 100 replies came in this time."""
    max_s: float
    """The longest time."""
    slowest: list[SlowReply]
    """The slowest five replies, the slowest one first."""


class SavedTime(Struct):
    """What pipelining has saved the clients."""

    commands: int
    """Commands from the clients."""
    round_trips: int
    """Round trips that the clients did not wait for."""
    seconds: float
    """The time of these round trips in sessions whose client was measured, each at that client's
    round-trip time."""
    measured_round_trips: int
    """How many of the round trips these are."""
    measured_sessions: int
    """Sessions whose client's round-trip time was measured."""
    client_rtt_p50_s: float
    """Half of these sessions had this round-trip time or a shorter one."""
    client_rtt_p95_s: float
    """95 of 100 of them had this one or a shorter one."""


class TextCount(Struct):
    """Replies of the same text."""

    text: str
    """The first line after the code; each word with a digit, `@` or `<` is `*`, but for the
    enhanced code."""
    count: int
    """How many replies."""


class ReplyCount(Struct):
    """Replies of one code to one verb."""

    verb: str
    """The verb."""
    code: str
    """The code; empty if there was no reply."""
    count: int
    """How many replies."""
    texts: list[TextCount]
    """The commonest texts, the commonest one first."""


class ClientCount(Struct):
    """Sessions of one client."""

    client: str
    """The client's IP address; unix for all clients of Unix sockets."""
    sessions: int
    """How many sessions."""
    messages: int
    """Messages that the MTA accepted."""
    bytes: int
    """Bytes from the client."""
    errors: int
    """Replies of 400 and above to it."""
    violations: int
    """How often it broke the protocol."""


class Clients(Struct):
    """The clients with the most of each."""

    by_bytes: list[ClientCount]
    """Those that sent the most bytes."""
    by_errors: list[ClientCount]
    """Those with the most errors, if there are any."""
    by_violations: list[ClientCount]
    """Those with the most violations, if there are any."""
    all: ClientCount
    """All clients together, also those that no list has."""


class TlsCount(Struct):
    """Connections with one version of TLS."""

    side: str
    """client or backend."""
    version: str
    """The version, or failed. A connection without TLS does not count."""
    count: int
    """How many connections."""


class GroupCount(Struct):
    """Groups of one size, or of a few."""

    least: int
    """The fewest commands of such a group."""
    most: int | None
    """The most commands of it; null: any number."""
    count: int
    """How many groups."""


class Statistics(Struct):
    """The statistics, one JSON object."""

    version: int
    """The version of these fields."""
    sessions: int
    """Sessions that have ended."""
    exchanges: int
    """Commands with their replies; also of sessions that have not ended, unless options choose."""
    began: float
    """When the first session began, in seconds since 1970; 0: there is none."""
    ended: float
    """When the last session ended, in seconds since 1970; 0: there is none."""
    approximate: bool
    """There were more clients, texts, verbs or open sessions with errors than are counted one by
    one, so that the numbers of rare ones are too low."""
    messages: list[MessageCount]
    """Messages by outcome."""
    verbs: list[VerbTimes]
    """The MTA's times by verb, the one that took most first."""
    saved: SavedTime
    """What pipelining has saved the clients."""
    replies: list[ReplyCount]
    """Reply codes by verb."""
    clients: Clients
    """The clients with the most bytes, errors and violations."""
    tls: list[TlsCount]
    """Versions of TLS."""
    groups: list[GroupCount]
    """Sizes of pipelined groups."""
