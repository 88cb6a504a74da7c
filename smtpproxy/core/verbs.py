"""The verb table: how each command is queued, grouped and answered (RFC 2920 section 3).

The pipeline has no other list of verbs.  Rows are frozen and shared by all sessions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from smtpproxy.core import lines, replies
from smtpproxy.core.capabilities import NEVER_PASSED

# Roles: the special handling of a command in the pipeline.  Hot path (bench S2): plain integers, in
# this order: up to RSET, any reply except 3xx and 421 is valid.
PLAIN: Final = 0
MAIL: Final = 1
RCPT: Final = 2
RSET: Final = 3
EHLO: Final = 4
HELO: Final = 5
GREETING: Final = 6
END_OF_DATA: Final = 7
AUTH: Final = 8
UNSOLICITED: Final = 9
TUNNEL: Final = 10
"""STARTTLS that the backend handles."""
XCLIENT: Final = 11
DATA: Final = 12
BDAT: Final = 13
STARTTLS: Final = 14
"""STARTTLS that the proxy handles."""
XFORWARD: Final = 15
"""A trusted client's XFORWARD."""
OWN_XFORWARD: Final = 16
"""The proxy's own XFORWARD."""
OWN_DATA: Final = 17
"""The proxy's own DATA."""
AMID_CHUNKS: Final = 18
"""Any command but BDAT between chunks that the backend gets as content."""


class Sync(Enum):
    """Where a client is refused for sending before a reply."""

    SAFE = "safe"
    """After DATA and STARTTLS, whose replies decide how the next octets are read."""
    STRICT = "strict"
    """Also before the greeting, after EHLO HELO NOOP VRFY EXPN ETRN, and in groups after HELO."""
    OFF = "off"
    """Only after STARTTLS; elsewhere early octets wait for the reply."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the table."""

    name: bytes
    """The verb in upper case; empty for unknown verbs, and for rows that are not a command."""
    groupable: bool = False
    """Whether it may be anywhere in a group (RFC 2920 section 3.1), so its reply may be held."""
    gate: bool = False
    """Whether octets after it are framed only after its reply."""
    guarded: bool = False
    """Whether sending octets after it before its reply is refused, and ends the session."""
    secret: bool = False
    """Whether its parameters are redacted before any observer sees them."""
    refusal: bytes = b""
    """The proxy's own reply if it is never forwarded; else empty."""
    kind: str = "forbidden_command"
    """The kind of violation, if it is never forwarded and ends the session."""
    closes: bool = False
    """Whether the session ends after its reply is flushed."""
    limit: str = "command"
    """The name of the time limit for its reply."""
    role: int = PLAIN
    """Its special handling in the pipeline."""
    needs_check: bool = False
    """Whether `Transaction.refusal_for` decides if it may be forwarded, when it is next to send."""
    read: Callable[[bytes], bytes] = lines.command_line
    """Returns the line to send to the backend; raises `ClientViolation`."""


_NAMED_ROWS = (
    Verb(b"MAIL", groupable=True, role=MAIL),
    Verb(b"RCPT", groupable=True, role=RCPT),
    Verb(b"RSET", groupable=True, role=RSET),
    Verb(b"SEND", groupable=True, role=MAIL),
    Verb(b"SOML", groupable=True, role=MAIL),
    Verb(b"SAML", groupable=True, role=MAIL),
    Verb(b"EHLO", role=EHLO),
    Verb(b"HELO", role=HELO),
    Verb(b"DATA", gate=True, guarded=True, limit="data", role=DATA, needs_check=True),
    Verb(b"BDAT", gate=True, limit="end_of_data", role=BDAT, needs_check=True),
    Verb(b"AUTH", gate=True, secret=True, role=AUTH),
    Verb(b"STARTTLS", gate=True, guarded=True, refusal=replies.NOT_IMPLEMENTED),
    Verb(b"QUIT", gate=True, closes=True),
    Verb(b"NOOP"),
    Verb(b"VRFY"),
    Verb(b"EXPN"),
    Verb(b"HELP"),
    Verb(b"ETRN"),
    # They change the client's identity, so the backend gets none from an untrusted client.
    Verb(b"XCLIENT", gate=True, secret=True, refusal=replies.NOT_AUTHORIZED),
    Verb(b"XFORWARD", gate=True, refusal=replies.NOT_AUTHORIZED),
    # RFC 2033: in LMTP a message has one reply for each recipient.
    Verb(b"LHLO", refusal=replies.NOT_LMTP),
    Verb(b"X-EXPS", secret=True, refusal=replies.NOT_IMPLEMENTED),
    Verb(b"X-ANONYMOUSTLS", gate=True, guarded=True, refusal=replies.NOT_IMPLEMENTED),
    Verb(b"XEXCH50", gate=True, refusal=replies.NOT_IMPLEMENTED, closes=True),
    Verb(b"X-LINK2STATE", gate=True, refusal=replies.NOT_IMPLEMENTED, closes=True),
    # Other protocols: mostly a browser that was tricked into connecting to a mail server.
    *(
        Verb(word, gate=True, refusal=replies.NOT_SMTP, closes=True)
        for word in (b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI")
    ),
    # Any other verb: one line, one reply; octets after it are framed only after that reply.
    Verb(b"", gate=True),
)

ROWS = (
    *_NAMED_ROWS,
    *(
        Verb(word, refusal=replies.NOT_IMPLEMENTED)
        for word in sorted(NEVER_PASSED.keys() - {verb.name for verb in _NAMED_ROWS})
    ),
)

PROXY_HEADER = Verb(
    b"PROXY",
    gate=True,
    refusal=replies.PROXY_UNEXPECTED,
    kind="proxy_header_unexpected",
    closes=True,
)
"""A PROXY header of version 1 from a client that is not trusted to send one.

It is not in the table, where a key of five octets is the start of a line with a common verb.
"""

FORBIDDEN = {verb.name: verb for verb in (*ROWS, PROXY_HEADER) if verb.refusal and verb.closes}
"""The words that end the session whatever follows them."""

# Rows that replace others, depending on the policy of a listener.
STARTTLS_OFFERED = Verb(b"STARTTLS", gate=True, guarded=True, role=STARTTLS, needs_check=True)
STARTTLS_PASSED = Verb(b"STARTTLS", gate=True, guarded=True, role=TUNNEL)
STARTTLS_ACTIVE = Verb(b"STARTTLS", gate=True, guarded=True, refusal=replies.TLS_ACTIVE)
AUTH_WITHOUT_TLS = Verb(b"AUTH", gate=True, secret=True, refusal=replies.TLS_FOR_AUTH, role=AUTH)
TRUSTED_CLIENT_ROWS = {
    b"XCLIENT": Verb(
        b"XCLIENT", gate=True, guarded=True, secret=True, role=XCLIENT, needs_check=True
    ),
    b"XFORWARD": Verb(b"XFORWARD", gate=True, role=XFORWARD, read=lines.xforward_line),
}

ALWAYS_ACCEPTED = frozenset((b"EHLO", b"HELO", b"STARTTLS", b"NOOP", b"RSET", b"QUIT"))
"""The commands that are accepted even if TLS or EHLO is required first (RFC 3207 section 4)."""

COMMON_VERBS = (b"MAIL", b"RCPT", b"RSET", b"EHLO", b"HELO", b"DATA", b"QUIT", b"NOOP")
"""The verbs whose lines are recognised by their first five octets."""

GREETING_ROW = Verb(b"", gate=True, limit="greeting", role=GREETING)
"""The greeting, which is not a command."""

END_OF_DATA_ROW = Verb(b".", limit="end_of_data", role=END_OF_DATA)
"""Message content with its end of data; its reply acknowledges the message, so it is not held."""

OWN_XFORWARD_ROW = Verb(b"XFORWARD", role=OWN_XFORWARD)
"""The proxy's own XFORWARD before a message; the client gets no reply to it."""

OWN_DATA_ROW = Verb(b"DATA", limit="data", role=OWN_DATA)
"""The proxy's own DATA before BDAT payload, for a backend without CHUNKING."""

AUTH_LINE_ROW = Verb(b"", gate=True, secret=True, role=AUTH)
"""A client's line after a 334 (RFC 4954 section 4)."""

UNSOLICITED_ROW = Verb(b"", role=UNSOLICITED)
"""An unsolicited reply, such as 421 (RFC 5321 section 3.8), which is not a command."""

CONTENT_CHUNK_ROW = Verb(b"BDAT", limit="end_of_data", role=BDAT)
"""A BDAT whose payload the backend gets as content after DATA, since it has no CHUNKING."""

MALFORMED_ROW = Verb(b"")
"""An invalid command line, which the proxy answers."""


NAMES_OF_ROLES: Final = {
    GREETING: "greeting",
    AUTH: "auth_line",
    UNSOLICITED: "unsolicited",
}
"""What the rows without a verb are called in log, traces and metrics, by their role."""


def _strict(verb: Verb) -> Verb:
    guarded = verb.name in {b"EHLO", b"HELO", b"NOOP", b"VRFY", b"EXPN", b"ETRN"}
    return replace(verb, gate=True, guarded=True) if guarded else verb


def _loose(verb: Verb) -> Verb:
    return replace(verb, guarded=False) if verb.name == b"DATA" else verb


def lock_step(table: Mapping[bytes, Verb]) -> Mapping[bytes, Verb]:
    """Return the table for a client that must wait for each reply."""
    # Octets after QUIT are never read, and those after BDAT are its payload.
    return {
        word: verb if verb.name in {b"QUIT", b"BDAT"} else replace(verb, gate=True, guarded=True)
        for word, verb in table.items()
    }


def refused(changed: Mapping[bytes, Verb], refusal: bytes) -> dict[bytes, Verb]:
    """Return rows that refuse all commands except `ALWAYS_ACCEPTED`.

    Args:
        changed: The rows that first replace those of `ROWS`, by verb.
        refusal: The reply to refused commands.
    """
    rows = {verb.name: verb for verb in ROWS} | dict(changed)
    return {
        word: verb if word in ALWAYS_ACCEPTED else _refused(verb, refusal)
        for word, verb in rows.items()
    }


def _refused(verb: Verb, refusal: bytes) -> Verb:
    if verb.refusal:
        return verb
    # The payload follows a refused BDAT, too, and must not be read as commands.
    closes = verb.closes or verb.role == BDAT
    # Not held, since the caller starts to time held replies when the backend replies.
    return replace(verb, refusal=refusal, groupable=False, closes=closes)


def hello_first(table: Mapping[bytes, Verb]) -> Mapping[bytes, Verb]:
    """Return the table that applies until EHLO or HELO is accepted.

    Octets after these two are framed only after their reply.
    """
    return {word: _before_hello(verb) for word, verb in table.items()}


def _before_hello(verb: Verb) -> Verb:
    if verb.role in (EHLO, HELO):
        return replace(verb, gate=True)
    return verb if verb.name in ALWAYS_ACCEPTED else _refused(verb, replies.HELLO_FIRST)


def amid_chunks(table: Mapping[bytes, Verb]) -> Mapping[bytes, Verb]:
    """Return the table that applies between chunks that the backend gets as content."""
    return {
        word: verb if verb.role == BDAT else replace(verb, role=AMID_CHUNKS, needs_check=True)
        for word, verb in table.items()
    }


def table_for(
    sync: Sync,
    hidden: frozenset[bytes] = frozenset(),
    checked: frozenset[int] = frozenset(),
    changed: Mapping[bytes, Verb] = MappingProxyType({}),
    intercepted: frozenset[bytes] = frozenset(),
) -> Mapping[bytes, Verb]:
    """Return the rows by verb, in upper case.

    `COMMON_VERBS` also have keys that are the start of a line: the verb with a space or CR, in
    upper and in lower case.

    Args:
        sync: Where a client is refused for sending before a reply.
        hidden: The verbs that are refused and not forwarded.
        checked: The roles that also need a check, because of a limit.
        changed: The rows that replace those of `ROWS`, by verb.
        intercepted: The verbs that also need a check, because of `Pipeline.intercept`.
    """
    shape = {Sync.SAFE: lambda verb: verb, Sync.STRICT: _strict, Sync.OFF: _loose}[sync]
    rows = {verb.name: verb for verb in ROWS} | dict(changed)
    table = {word: shape(verb) for word, verb in rows.items()}
    for word in hidden:
        if word in table:
            table[word] = _refused(table[word], replies.NOT_IMPLEMENTED)
    for word, verb in table.items():
        if verb.role in checked or verb.name in intercepted:
            table[word] = replace(verb, needs_check=True)
    for word in COMMON_VERBS:
        for begin in (word + b" ", word + b"\r"):
            table[begin] = table[begin.lower()] = table[word]
    return table


def greeting_for(sync: Sync) -> Verb:
    """Return the row of the greeting, which `strict` also guards."""
    return replace(GREETING_ROW, guarded=sync is Sync.STRICT)
