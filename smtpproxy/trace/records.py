"""Records: what trace files hold and what the page is sent, one JSON object for each.

A session is `opened`, `connected`, any number of `exchange` and `closed`, all with its id; what is
`noted` stands where it happened.  Times are seconds since 1970, of one clock that never goes back
within a worker; 0 or left out is what has not happened.  Text of peers is that of
`smtpproxy.text.escaping`, without the CRLF at its end; in a file, long text that would grow is
`\\=` and base64, which `decode` turns back.

hot path: measure before changing (bench trace: python -m tests.bench.trace).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.violations import BackendViolation
from smtpproxy.log.verb_name import VERB_NAMES, verb_of
from smtpproxy.text.escaping import compact_text_of, expanded, text_of
from smtpproxy.trace.content_capture import CapturedContent


class Opened(Struct, tag_field="what", tag="opened", omit_defaults=True, gc=False):
    """A client has connected."""

    session: str
    at: float
    listener: str
    client: str
    backend: str = ""


class GaveUp(Struct, tag_field="what", tag="gave_up", omit_defaults=True, gc=False):
    """A server could not be had; the next one is tried, if there is one."""

    session: str
    at: float
    server: str
    reason: str


class Connected(Struct, tag_field="what", tag="connected", omit_defaults=True, gc=False):
    """The session got its connection to a server; both ends of both connections by address."""

    session: str
    at: float
    server: str
    client_end: str
    listener_end: str
    proxy_end: str
    server_end: str


class Noted(Struct, tag_field="what", tag="noted", omit_defaults=True, gc=False):
    """What happened besides the dialogue, by the name of the log's event.

    tls_started: the `side`, client or backend, went inside TLS of this version, with this cipher.
    tls_failed: that side did not, for `reason`.  client_turned_away: there was no dialogue at
    all, by `kind` and `reason`.  loop_detected: the client is the service's own connection to a
    server, `reason`.  internal_error: the proxy itself failed.
    """

    session: str
    at: float
    event: str
    side: str = ""
    version: str = ""
    cipher: str = ""
    kind: str = ""
    reason: str = ""


KEPT_NOTED = 10
"""So much is noted of a session: TLS of each side once, or of each server that was given up."""


class Violation(Struct, omit_defaults=True, gc=False):
    """What broke the protocol: by whom, how, with which octets; rewritten instead of refused?"""

    by: str
    kind: str
    octets: str
    rewritten: bool = False


class Said(Struct, omit_defaults=True, gc=False):
    """One thing that was said to the backend, and its reply; `replied` is 0 if there was none."""

    line: str
    reply: str
    sent: float
    replied: float = 0.0


class Exchanged(Struct, tag_field="what", tag="exchange", omit_defaults=True, gc=False):
    """A command with its reply.

    verb: in capitals; `.` for message content, and greeting, auth-line, unasked or misframed for
    what is no command.
    line: of the command, secrets cut.
    pipelined: one round trip saved.
    octets: of content or payload.  sha256: of its first octets, as many as `digested`.
    content: as it went to the backend, as far as it was asked for; `cut` if there was more.
    came: the content as the client sent it, where that was not the same.
    steps: what was said to the backend for it, where that is not just the line and the reply.
    bare_lf: the client ended the line with a bare LF.
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
    came: str = ""
    steps: Sequence[Said] = ()
    bare_lf: bool = False


class Gap(Struct, tag_field="what", tag="gap", omit_defaults=True):
    """Here so many exchanges are missing: more than a session may keep."""

    session: str
    exchanges: int


class Message(Struct, omit_defaults=True, gc=False):
    """What a transaction came to; outcome as the log's event names it, without `message_`.

    more_recipients, more_refused: how many are not in the lists.
    """

    outcome: str
    sender: str
    recipients: list[str]
    refused: list[str]
    size: int
    reply: str
    seconds: float
    groups: list[int]
    more_recipients: int = 0
    more_refused: int = 0


class Closed(Struct, tag_field="what", tag="closed", omit_defaults=True, gc=False):
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
    backend: str = ""


Record = Opened | GaveUp | Connected | Noted | Exchanged | Gap | Closed

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode = _encoder.encode
_decode = msgspec.json.Decoder(Record).decode
_COMPACT = b'"\\\\='


def decode(line: bytes) -> Record:
    """Return the record that a line is; raises msgspec.DecodeError for what is none."""
    record: Record = _decode(line)
    if _COMPACT in line and isinstance(record, Exchanged):
        try:
            record = _expanded(record)
        except ValueError as error:
            raise msgspec.DecodeError(str(error)) from None
    return record


def _expanded(record: Exchanged) -> Exchanged:
    return replace(
        record,
        line=expanded(record.line),
        reply=expanded(record.reply),
        content=expanded(record.content),
        came=expanded(record.came),
        steps=[
            replace(each, line=expanded(each.line), reply=expanded(each.reply))
            for each in record.steps
        ],
    )


def encoded(
    session: str,
    exchanges: Sequence[Exchange],
    contents: Mapping[Exchange, CapturedContent],
    offset: float,
) -> bytes:
    """Return the lines of exchanges of a session.

    At once, and the short way where nothing is odd: a group must not wait in memory for others, as
    what is made of it is still in the processor's cache now.
    """
    found = []
    try:
        for exchange in exchanges:
            if exchange.problem is not None or exchange.steps or exchange.bare_lf:
                break
            name, sent, replied = exchange.verb.name, exchange.sent, exchange.replied
            record = Exchanged(
                session,
                VERB_NAMES[name] if name else verb_of(exchange),
                exchange.line[:-2].decode("ascii"),
                exchange.code,
                exchange.reply[:-2].decode("ascii"),
                exchange.framed + offset,
                sent and sent + offset,
                replied and replied + offset,
                exchange.flushed and exchange.flushed + offset,
                exchange.pipelined,
                exchange.octets,
            )
            if contents and exchange in contents:
                content = contents[exchange]
                if content.text:
                    break
                record.sha256, record.digested = content.sha256, content.digested
                record.cut = content.cut
            found.append(record)
        else:
            lines = encode_lines(found)
            if b"\\" not in lines and b"\x7f" not in lines:
                return lines
    except UnicodeDecodeError:
        pass
    return encode_lines([_exchanged(session, each, contents, offset) for each in exchanges])


def exchanged(session: str, exchanges: Sequence[Exchange], offset: float) -> list[Exchanged]:
    """Return the records of exchanges; `offset` makes their times those of the wall clock."""
    return [_exchanged(session, each, {}, offset) for each in exchanges]


def _exchanged(
    session: str, exchange: Exchange, contents: Mapping[Exchange, CapturedContent], offset: float
) -> Exchanged:
    record = Exchanged(
        session=session,
        verb=verb_of(exchange),
        line=_line_of(exchange.line),
        code=exchange.code,
        reply=_line_of(exchange.reply),
        framed=exchange.framed + offset,
        sent=exchange.sent and exchange.sent + offset,
        replied=exchange.replied and exchange.replied + offset,
        flushed=exchange.flushed and exchange.flushed + offset,
        pipelined=exchange.pipelined,
        octets=exchange.octets,
        steps=_steps_of(exchange, offset),
        bare_lf=exchange.bare_lf,
    )
    if exchange.problem is not None:
        record.violation = violation_of(exchange)
    if exchange in contents:
        content = contents[exchange]
        record.sha256, record.digested = content.sha256, content.digested
        record.content, record.cut = compact_text_of(content.text), content.cut
        record.came = compact_text_of(content.came)
    return record


def _steps_of(exchange: Exchange, offset: float) -> Sequence[Said]:
    steps = exchange.all_steps
    if not steps or (len(steps) == 1 and steps[0][:2] == (exchange.line, exchange.reply)):
        return ()  # nothing, or a hello that went through as it was
    return [
        Said(
            _line_of(step.line),
            _line_of(step.reply),
            step.sent + offset,
            step.replied and step.replied + offset,
        )
        for step in steps
    ]


def _line_of(octets: bytes) -> str:
    return compact_text_of(octets.removesuffix(b"\r\n"))


def violation_of(exchange: Exchange) -> Violation:
    """Return what an exchange with a problem met."""
    problem = exchange.problem
    assert problem is not None
    by = "backend" if isinstance(problem, BackendViolation) else "client"
    return Violation(by, problem.kind, text_of(problem.octets), exchange.rewritten)


def octets_of_message(message: Message) -> int:
    """Return about how many octets a transaction takes beside the record itself."""
    texts = (message.sender, message.reply, *message.recipients, *message.refused)
    return sum(map(len, texts)) + 60 * len(texts) + 8 * len(message.groups)


def message_of(outcome: str, fields: dict[str, Any]) -> Message:
    """Return the record of a transaction from the fields that the log gives it."""
    return Message(
        outcome.removeprefix("message_"),
        fields["sender"],
        fields["recipients"],
        fields["refused"],
        fields["size_bytes"],
        text_of(fields["reply"]),
        fields["duration_s"],
        fields["groups"],
        fields.get("more_recipients", 0),
        fields.get("more_refused", 0),
    )
