"""Records: what trace files hold and what the page is sent, one JSON object for each.

A session is `opened`, `connected`, any number of `exchange` and `closed`, all with its id.  Times
are seconds since 1970, of one clock that never goes back within a worker; 0 or left out is what has
not happened.  Text is that of `smtpproxy.observe.text`, without the CRLF at its end.

hot path: measure before changing (bench trace: python -m tests.bench.trace).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from smtpproxy.core import commands
from smtpproxy.core.errors import BackendViolation
from smtpproxy.core.exchange import Exchange
from smtpproxy.observe.text import is_plain, text_of


class Opened(Struct, tag_field="what", tag="opened", omit_defaults=True, gc=False):
    """A client has connected."""

    session: str
    at: float
    listener: str
    client: str


class GaveUp(Struct, tag_field="what", tag="gave_up", omit_defaults=True, gc=False):
    """A server could not be had; the next one is tried, if there is one."""

    session: str
    at: float
    server: str
    why: str


class Connected(Struct, tag_field="what", tag="connected", omit_defaults=True, gc=False):
    """The session got its connection to a server; both ends of both connections by address."""

    session: str
    at: float
    server: str
    client_end: str
    listener_end: str
    proxy_end: str
    server_end: str


class Violation(Struct, omit_defaults=True):
    """What broke the protocol: by whom, how, with which octets; mended instead of refused?"""

    by: str
    kind: str
    octets: str
    mended: bool = False


class Exchanged(Struct, tag_field="what", tag="exchange", omit_defaults=True, gc=False):
    """A command with its reply.

    verb: in capitals; `.` for message content, and greeting, auth-line, unasked or misframed for
    what is no command.
    line: of the command, secrets cut.
    pipelined: one round trip saved.
    octets: of content or payload.  sha256: of its first octets, as many as `digested`.
    content: as it went to the backend, as far as it was asked for; `cut` if there was more.
    """

    session: str
    verb: str
    line: str = ""
    code: int = 0
    reply: str = ""
    framed: float = 0.0
    sent: float = 0.0
    replied: float = 0.0
    flushed: float = 0.0
    pipelined: bool = False
    octets: int = 0
    sha256: str = ""
    digested: int = 0
    content: str = ""
    cut: bool = False
    violation: Violation | None = None


class Gap(Struct, tag_field="what", tag="gap", omit_defaults=True):
    """Here so many exchanges are missing: more than a session may keep."""

    session: str
    exchanges: int


class Message(Struct, omit_defaults=True):
    """What a transaction came to; outcome as the log's event names it, without `message_`."""

    outcome: str
    sender: str
    recipients: list[str]
    refused: list[str]
    size: int
    reply: str
    seconds: float
    groups: list[int]


class Closed(Struct, tag_field="what", tag="closed", omit_defaults=True):
    """The session is over: all that a list of sessions tells, in one record."""

    session: str
    at: float
    opened: float
    listener: str
    client: str
    server: str
    reason: str
    seconds: float
    commands: int
    saved: int
    messages: int
    octets_from_client: int
    octets_from_backend: int
    codes: list[int]
    violations: list[str]
    transactions: list[Message]
    more_transactions: int = 0


Record = Opened | GaveUp | Connected | Exchanged | Gap | Closed

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode = _encoder.encode
decode = msgspec.json.Decoder(Record).decode
"""Raises msgspec.DecodeError for what is no record."""

_NAMES = {verb.name: verb.name.decode() for verb in (*commands.ROWS, commands.DATA_ENDED)}
_ROLES = {
    commands.GREETING: "greeting",
    commands.AUTH: "auth-line",
    commands.UNASKED: "unasked",
}


def exchanged(
    sessions: Sequence[str], exchanges: Sequence[Exchange], offset: float
) -> list[Exchanged]:
    """Return the records of exchanges, each of the session at its place.

    `offset` makes their times those of the wall clock.
    """
    lines = texts_of([exchange.line for exchange in exchanges])
    replies = texts_of([exchange.reply for exchange in exchanges])
    found = []
    for session, exchange, line, reply in zip(sessions, exchanges, lines, replies, strict=True):
        name = exchange.verb.name
        record = Exchanged(
            session,
            _NAMES[name] if name else verb_of(exchange),
            line,
            exchange.code,
            reply,
            exchange.framed + offset,
            exchange.sent and exchange.sent + offset,
            exchange.replied and exchange.replied + offset,
            exchange.flushed and exchange.flushed + offset,
            exchange.pipelined,
            exchange.octets,
        )
        if exchange.problem is not None:
            record.violation = violation_of(exchange)
        found.append(record)
    return found


def texts_of(lines: list[bytes]) -> list[str]:
    """Return the text of each, without its CRLF; all at once, as there can be hundreds."""
    joined = b"\0".join(lines)
    if is_plain(joined) and joined.count(b"\0") == len(lines) - 1:
        return joined.decode("ascii").replace("\r\n\0", "\0").removesuffix("\r\n").split("\0")
    return [text_of(line.removesuffix(b"\r\n")) for line in lines]


def verb_of(exchange: Exchange) -> str:
    """Return what an exchange is called; an unknown verb by its first word."""
    name = exchange.verb.name
    if name:
        return _NAMES[name]
    role = _ROLES.get(exchange.verb.role)
    if role:
        return role
    words = exchange.line.split(None, 1)
    return text_of(words[0][:32]).upper() if words else "misframed"


def violation_of(exchange: Exchange) -> Violation:
    """Return what an exchange with a problem met."""
    problem = exchange.problem
    assert problem is not None
    by = "backend" if isinstance(problem, BackendViolation) else "client"
    return Violation(by, problem.kind, text_of(problem.octets), exchange.mended)


def message_of(outcome: str, fields: dict[str, Any]) -> Message:
    """Return the record of a transaction from the fields that the log gives it."""
    return Message(
        outcome.removeprefix("message_"),
        fields["sender"],
        fields["recipients"],
        fields["refused"],
        fields["size"],
        text_of(fields["reply"]),
        fields["seconds"],
        fields["groups"],
    )
