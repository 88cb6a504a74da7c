r"""Records: what trace files hold and what the live page gets, one JSON object for each.

A session is `opened`, `connected`, any number of `exchange`, and `closed`, all with its id; `noted`
records come where it happened.  Moments (`at`, `opened`, `framed`, `sent`, `replied`, `flushed`)
are seconds since 1970, of one clock that never goes back within a worker; 0 or left out: it has not
happened.  A field with its default is left out.  Text of peers is that of
`smtpproxy.text.escaping`, without the CRLF at its end; in a file, long text that would grow is
`\=` and base64, which `decode` turns back, but for content.

The first line of each file is a `trace_file` record with the version of this schema.  The bounds in
the types are those of what is read: no record that this file makes is beyond them.

hot path: measure before changing (python -m tests.bench trace).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from smtpproxy.core.lines import bdat_size
from smtpproxy.core.violations import ClientViolation
from smtpproxy.text.escaping import (
    expanded,
    octets_of,
    text_of,
)

VERSION: Final = 1
"""The version of the schema: another one is another meaning of a field, or another name."""

Moment = Annotated[float, Meta(ge=0, le=32_503_680_000)]
"""Seconds since 1970, before the year 3000."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
"""A duration."""
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
"""A number of things, or of bytes."""
Code = Annotated[int, Meta(ge=0, le=999)]
"""A reply code."""
Port = Annotated[int, Meta(ge=0, le=65535)]
"""A TCP port."""
Name = Annotated[str, Meta(max_length=4096)]
"""A short text: a name, an id, an address."""
Text = Annotated[str, Meta(max_length=1 << 20)]
"""A text of a peer: a command line, or a reply of any number of lines."""
LINES: Final = 1000
"""How many entries a list in a session's last record has at most."""


class FileHeader(Struct, tag_field="what", tag="trace_file"):
    """The first record of each file."""

    version: int
    """The version of the schema of all records after it."""


class Opened(Struct, tag_field="what", tag="opened", omit_defaults=True, gc=False):
    """A client has connected."""

    session: Name
    """The session's id, as in the log."""
    at: Moment
    """When it connected."""
    listener: Name
    """The listener's name in the settings."""
    client_ip: Name | None = None
    """The client's IP address; left out on a Unix socket."""
    client_port: Port | None = None
    """The client's port; left out on a Unix socket."""
    backend: Name = ""
    """The backend's name in the settings."""


class ServerGivenUp(Struct, tag_field="what", tag="server_given_up", omit_defaults=True, gc=False):
    """A server was not reached; the next one is tried, if there is one."""

    session: Name
    """The session's id."""
    at: Moment
    """When it was given up."""
    server: Name
    """The address of the server."""
    reason: Annotated[str, Meta(max_length=8192)]
    """The cause."""


class Connected(Struct, tag_field="what", tag="connected", omit_defaults=True, gc=False):
    """The session is connected to a server."""

    session: Name
    """The session's id."""
    at: Moment
    """When the connection was made."""
    server: Name
    """The address of the server, as the settings have it."""
    client_address: Name
    """The client's end of its connection to the proxy, with its port; `unix` for a socket file."""
    listener_address: Name
    """The proxy's end of it."""
    proxy_address: Name
    """The proxy's end of its connection to the server."""
    server_address: Name
    """The server's end of it."""


class Noted(Struct, tag_field="what", tag="noted", omit_defaults=True, gc=False):
    """An event outside the dialogue."""

    session: Name
    """The session's id."""
    at: Moment
    """When it happened."""
    event: Name
    """The name of the log's event: proxy_header_read, tls_started, tls_failed, client_turned_away,
    loop_detected, content_not_ended, fault_injected, or internal_error."""
    side: Name = ""
    """Whose TLS it is: client or backend."""
    version: Name = ""
    """The version of TLS."""
    cipher: Name = ""
    """The cipher suite of TLS."""
    kind: Name = ""
    """Why a client was turned away, or what was rewritten first, as one of a few names."""
    reason: Annotated[str, Meta(max_length=65536)] = ""
    """The cause, in words."""
    fault: Name = ""
    """The fault of `--fault` that was injected."""
    forwarded_authority: Name = ""
    """The host name that the client asked the proxy in front for (SNI), by its PROXY header."""
    forwarded_unique_id: Name = ""
    """The id of the connection in the log of the proxy in front, by the same header."""
    forwarded_tls: Name = ""
    """Version and cipher suite of the client's TLS with the proxy in front, by the same header."""
    forwarded_cn: Name = ""
    """The common name of the client's certificate, which the proxy in front has verified, by the
    same header."""


KEPT_NOTED = 10
"""How many such events of a session are recorded: TLS of each side, or of each server tried."""


class Violation(Struct, omit_defaults=True, gc=False):
    """What broke the protocol."""

    side: Name
    """The peer that did: client or backend."""
    kind: Name
    """The kind of the violation, as in the log."""
    bytes: Annotated[str, Meta(max_length=65536)]
    """What the peer sent, cut and escaped."""
    rewritten: bool = False
    """The proxy rewrote it and went on; else it was refused."""


class Step(Struct, omit_defaults=True, gc=False):
    """A command of the proxy to the backend, and its reply."""

    command: Text
    """The command line, without secrets."""
    reply: Text
    """The reply; empty if there was none."""
    sent: Moment
    """When the command was sent to the backend."""
    replied: Moment = 0.0
    """When the reply came."""


class Exchanged(Struct, tag_field="what", tag="exchange", omit_defaults=True, gc=False):
    """A command with its reply.

    The log's `queued_s` is `sent - framed`, its `backend_s` is `replied - sent`, its `held_s` is
    `flushed - replied`.
    """

    session: Name
    """The session's id."""
    verb: Name
    """The verb in capitals; end_of_data for message content, and greeting, auth_line, unsolicited
    or malformed for what is no command."""
    command: Text = ""
    """The command line, without secrets; empty for content."""
    code: Code = 0
    """The code of the reply; 0: there was none."""
    reply: Text = ""
    """The reply as the client got it; lines end in CRLF, but for the last one."""
    framed: Moment = 0.0
    """When the command was received whole."""
    sent: Moment = 0.0
    """When it was sent to the backend; of content, when its end of data was. 0 for a BDAT chunk
    that the MTA got as content of DATA, but for the last one."""
    replied: Moment = 0.0
    """When the backend's reply came, or the proxy gave its own."""
    flushed: Moment = 0.0
    """When the reply was sent to the client."""
    pipelined: bool = False
    """The command came before the reply to the one before: a round trip was saved."""
    content_bytes: Count = 0
    """Bytes of message content or BDAT payload received before the reply."""
    sha256: Name = ""
    """The SHA-256 of the first bytes of the content, in hexadecimal."""
    digested_bytes: Count = 0
    """Of how many bytes of content `sha256` is."""
    content: str = ""
    """The content as it was sent to the backend, as far as the settings ask for it."""
    content_cut: bool = False
    """There was more content than is recorded."""
    violation: Violation | None = None
    """How it broke the protocol, if it did."""
    content_received: str = ""
    """The content as the client sent it, where that is not what was sent to the backend."""
    steps: Sequence[Step] = ()
    """What was sent to the backend for it, if that is not just the command: the lines, `.` for the
    end of data, but not the content."""
    bare_lf: bool = False
    """The client ended the line in a bare LF."""


def is_content_chunk(exchange: Exchanged) -> bool:
    """Return whether it is a BDAT chunk, but not the last, that the MTA got as content of DATA.

    An empty one is none: the MTA got nothing.
    """
    if exchange.verb != "BDAT" or exchange.sent or not exchange.content_bytes:
        return False
    return 200 <= exchange.code < 300


def announced_bytes(exchange: Exchanged) -> int:
    """Return the size of content, or the one that a BDAT announces: less may have come."""
    try:
        return bdat_size(octets_of(exchange.command) + b"\r\n")
    except ClientViolation:
        return exchange.content_bytes


class Gap(Struct, tag_field="what", tag="gap", omit_defaults=True):
    """Exchanges are missing here: there were more than is kept of a session."""

    session: Name
    """The session's id."""
    exchanges: Count
    """How many."""


class Transaction(Struct, omit_defaults=True, gc=False):
    """The outcome of a message."""

    outcome: Name
    """relayed, refused or abandoned."""
    sender: Name
    """The address of MAIL."""
    recipients: Annotated[list[Name], Meta(max_length=LINES)]
    """The addresses of RCPT that the backend accepted."""
    refused: Annotated[list[Name], Meta(max_length=LINES)]
    """The refused addresses of RCPT, each with its reply."""
    size_bytes: Count
    """Bytes of message content, dots unstuffed."""
    reply: Text
    """The reply that decided, as the client got it."""
    duration_s: Seconds
    """Seconds from MAIL to that reply."""
    groups: Annotated[list[Count], Meta(max_length=100 * LINES)]
    """Commands in each pipelined group of it."""
    more_recipients: Count = 0
    """Accepted recipients that are not in the list."""
    more_refused: Count = 0
    """Refused recipients that are not in the list."""
    message_id: Name = ""
    """The Message-ID of its header."""
    queue_id: Name = ""
    """The id that the MTA's reply gives it."""


class Closed(Struct, tag_field="what", tag="closed", omit_defaults=True, gc=False):
    """The session is over; this record alone is enough to list it."""

    session: Name
    """The session's id."""
    at: Moment
    """When it was over."""
    opened: Moment
    """When the client connected."""
    listener: Name
    """The listener's name in the settings."""
    client_ip: Name | None
    """The client's IP address; null on a Unix socket."""
    client_port: Port | None
    """The client's port; null on a Unix socket."""
    server: Name
    """The address of the backend's server; empty if none was reached."""
    reason: Name
    """Why it ended, as in the log's session_closed."""
    duration_s: Seconds
    """Seconds from its start to its end."""
    commands: Count
    """Commands from the client."""
    round_trips_saved: Count
    """Round trips that the client did not wait for."""
    messages: Count
    """Messages that the backend accepted."""
    bytes_from_client: Count
    """Bytes from the client, inside TLS."""
    bytes_from_backend: Count
    """Bytes from the backend, inside TLS."""
    codes: Annotated[list[Code], Meta(max_length=LINES)]
    """The different reply codes of 400 and above."""
    violations: Annotated[list[Name], Meta(max_length=LINES)]
    """The kind of each violation."""
    transactions: Annotated[list[Transaction], Meta(max_length=LINES)]
    """The outcome of each message."""
    more_transactions: Count = 0
    """Transactions that are not in the list."""
    backend: Name = ""
    """The backend's name in the settings."""
    client_rtt_s: Seconds | None = None
    """The round-trip time to the client, or to a load balancer in front, as TCP has measured it
    until the server is connected; left out if it was not measured, and on a Unix socket."""


Record = Opened | ServerGivenUp | Connected | Noted | Exchanged | Gap | Closed

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode = _encoder.encode
_decode = msgspec.json.Decoder(Record | FileHeader).decode
_COMPACT = b'"\\\\='
HEADER: Final = encode(FileHeader(VERSION)) + b"\n"
"""The first line of a file."""


def decode(line: bytes) -> Record | FileHeader:
    """Return the record that a line is.

    Raises:
        msgspec.DecodeError: It is none, or has a value beyond its bounds.
    """
    try:
        record: Record | FileHeader = _decode(line)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    if _COMPACT in line and isinstance(record, Exchanged):
        try:
            record = _expanded(record)
            for content in (record.content, record.content_received):
                octets_of(content)  # it stays as it is
        except ValueError as error:
            raise msgspec.DecodeError(str(error)) from None
    return record


def _expanded(record: Exchanged) -> Exchanged:
    return replace(
        record,
        command=expanded(record.command),
        reply=expanded(record.reply),
        steps=[
            replace(each, command=expanded(each.command), reply=expanded(each.reply))
            for each in record.steps
        ],
    )


def octets_of_transaction(transaction: Transaction) -> int:
    """Return the approximate octets of a transaction, besides the record itself."""
    texts = (
        transaction.sender,
        transaction.reply,
        transaction.message_id,
        transaction.queue_id,
        *transaction.recipients,
        *transaction.refused,
    )
    return sum(map(len, texts)) + 60 * len(texts) + 8 * len(transaction.groups)


def transaction_of(outcome: str, fields: dict[str, Any]) -> Transaction:
    """Return the record of a transaction.

    Args:
        outcome: The name of the log's event.
        fields: The fields of that event.
    """
    return Transaction(
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
        text_of(fields.get("message_id", b"")),
        fields.get("queue_id", ""),
    )


def client_of(record: Opened | Closed) -> str:
    """Return a client's address and port as one text; `unix` for a client of a Unix socket."""
    if record.client_ip is None:
        return "unix"
    host = f"[{record.client_ip}]" if ":" in record.client_ip else record.client_ip
    return f"{host}:{record.client_port or 0}"
