"""The verb table: how each command is queued, grouped and answered (RFC 2920 section 3).

The pipeline has no list of verbs of its own.  A row is frozen and shared by all sessions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from smtpproxy.core import lines, replies
from smtpproxy.core.capabilities import NEVER_PASSED

# Roles: what else the pipeline does about a command.  Hot path (bench S2): plain integers, and in
# this order: any reply of the backend but a 3xx or 421 may answer those up to RSET.
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
"""STARTTLS that is the backend's."""
XCLIENT: Final = 11
DATA: Final = 12
BDAT: Final = 13
STARTTLS: Final = 14
"""STARTTLS that is the proxy's."""
XFORWARD: Final = 15
"""A trusted client's XFORWARD."""
OWN_XFORWARD: Final = 16
"""The proxy's own XFORWARD."""


class Sync(Enum):
    """When a client is refused that sends before it has the reply."""

    SAFE = "safe"
    """After DATA and STARTTLS, whose replies decide what the next octets mean."""
    STRICT = "strict"
    """Also before the greeting, after EHLO HELO NOOP VRFY EXPN ETRN, and in groups after HELO."""
    OFF = "off"
    """Only after STARTTLS; everything else is serialised."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the table."""

    name: bytes
    """The verb in capitals; empty for the row of unknown ones and for what is no command."""
    groupable: bool = False
    """It may stand anywhere in a group (RFC 2920 section 3.1), so its reply may be held."""
    gate: bool = False
    """Octets after it are not framed before its reply is known."""
    guarded: bool = False
    """A client that sends octets after it before its reply is refused, and the session closed."""
    secret: bool = False
    """Its parameters are redacted before any observer sees them."""
    refusal: bytes = b""
    """The proxy's own reply if it is never forwarded; else empty."""
    kind: str = "forbidden_command"
    """The kind of violation that it is, if it is never forwarded and closes."""
    closes: bool = False
    """The session ends when its reply has been flushed."""
    limit: str = "command"
    """The name of the time limit for its reply."""
    role: int = PLAIN
    """What else the pipeline does about it."""
    needs_check: bool = False
    """Whether it may be forwarded is decided when its turn comes; see `Transaction.refusal_for`."""
    read: Callable[[bytes], bytes] = lines.command_line
    """Returns what goes to the backend for a line; raises ClientViolation."""


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
    # They change who is trusted, so a stranger's never reach the backend.
    Verb(b"XCLIENT", gate=True, secret=True, refusal=replies.NOT_AUTHORIZED),
    Verb(b"XFORWARD", gate=True, refusal=replies.NOT_AUTHORIZED),
    # RFC 2033: with LMTP a message has a reply for each recipient.
    Verb(b"LHLO", refusal=replies.NOT_LMTP),
    Verb(b"X-EXPS", secret=True, refusal=replies.NOT_IMPLEMENTED),
    Verb(b"X-ANONYMOUSTLS", gate=True, guarded=True, refusal=replies.NOT_IMPLEMENTED),
    Verb(b"XEXCH50", gate=True, refusal=replies.NOT_IMPLEMENTED, closes=True),
    Verb(b"X-LINK2STATE", gate=True, refusal=replies.NOT_IMPLEMENTED, closes=True),
    # Other protocols: mostly a browser that was made to speak to a mail server.
    *(
        Verb(word, gate=True, refusal=replies.NOT_SMTP, closes=True)
        for word in (b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"PRI")
    ),
    # Any other word: one line, one reply; what follows it is framed when that reply has come.
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
"""A PROXY header of version 1 from a client that is not believed.

No row of the table: there a word of five octets would be how a line of another verb begins.
"""

FORBIDDEN = {verb.name: verb for verb in (*ROWS, PROXY_HEADER) if verb.refusal and verb.closes}
"""Words that end the session, whatever stands after them: another protocol, a payload, an address.
"""

# Rows that replace others by the rules of a listener.
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
"""Commands that are accepted before TLS and before EHLO, where either is required first.

RFC 3207 section 4.
"""

COMMON_VERBS = (b"MAIL", b"RCPT", b"RSET", b"EHLO", b"HELO", b"DATA", b"QUIT", b"NOOP")
"""Verbs whose plain lines are recognised by their first five octets."""

GREETING_ROW = Verb(b"", gate=True, limit="greeting", role=GREETING)
"""Not a command: the greeting that the backend owes from the start."""

END_OF_DATA_ROW = Verb(b".", limit="end_of_data", role=END_OF_DATA)
"""Message content with its end of data; the reply hands over responsibility: never held."""

OWN_XFORWARD_ROW = Verb(b"XFORWARD", role=OWN_XFORWARD)
"""The proxy's own XFORWARD before a message; the client gets no reply to it."""

AUTH_LINE_ROW = Verb(b"", gate=True, secret=True, role=AUTH)
"""A client's line after a 334 (RFC 4954 section 4)."""

UNSOLICITED_ROW = Verb(b"", role=UNSOLICITED)
"""Not a command: an unsolicited reply, as 421 may be (RFC 5321 section 3.8)."""

MALFORMED_ROW = Verb(b"")
"""Something that is no command line; the proxy answers it."""


def _strict(verb: Verb) -> Verb:
    guarded = verb.name in {b"EHLO", b"HELO", b"NOOP", b"VRFY", b"EXPN", b"ETRN"}
    return replace(verb, gate=True, guarded=True) if guarded else verb


def _loose(verb: Verb) -> Verb:
    return replace(verb, guarded=False) if verb.name == b"DATA" else verb


def lock_step(table: Mapping[bytes, Verb]) -> Mapping[bytes, Verb]:
    """Return the table for a client that must wait for each reply."""
    # QUIT and BDAT: nothing after the one is ever read, the other's payload is part of it.
    return {
        word: verb if verb.name in {b"QUIT", b"BDAT"} else replace(verb, gate=True, guarded=True)
        for word, verb in table.items()
    }


def refused(changed: Mapping[bytes, Verb], refusal: bytes) -> dict[bytes, Verb]:
    """Return rows that refuse all but ALWAYS_ACCEPTED.

    Args:
        changed: Rows that replace those of ROWS first.
        refusal: The reply to what is refused.
    """
    rows = {verb.name: verb for verb in ROWS} | dict(changed)
    return {
        word: verb if word in ALWAYS_ACCEPTED else _refused(verb, refusal)
        for word, verb in rows.items()
    }


def _refused(verb: Verb, refusal: bytes) -> Verb:
    if verb.refusal:
        return verb
    # The payload of a BDAT that is refused follows all the same: it must not be read as commands.
    closes = verb.closes or verb.role == BDAT
    # Not held: the edge begins to time held replies when the backend answers.
    return replace(verb, refusal=refusal, groupable=False, closes=closes)


def hello_first(table: Mapping[bytes, Verb]) -> Mapping[bytes, Verb]:
    """Return the table that applies until EHLO or HELO was accepted.

    What follows these two is framed when that is known.
    """
    return {word: _before_hello(verb) for word, verb in table.items()}


def _before_hello(verb: Verb) -> Verb:
    if verb.role in (EHLO, HELO):
        return replace(verb, gate=True)
    return verb if verb.name in ALWAYS_ACCEPTED else _refused(verb, replies.HELLO_FIRST)


def table_for(
    sync: Sync,
    hidden: frozenset[bytes] = frozenset(),
    checked: frozenset[int] = frozenset(),
    changed: Mapping[bytes, Verb] = MappingProxyType({}),
) -> Mapping[bytes, Verb]:
    """Return the table: word in capitals -> row.

    COMMON_VERBS are in it as a line begins with them, too: followed by a space or CR, in capitals
    and in small letters.

    Args:
        sync: When a client is refused that sends before it has the reply.
        hidden: Words that are refused, not forwarded.
        checked: Roles that need a check beside those that always do, as they may be over a limit.
        changed: Rows that replace those of ROWS.
    """
    shape = {Sync.SAFE: lambda verb: verb, Sync.STRICT: _strict, Sync.OFF: _loose}[sync]
    rows = {verb.name: verb for verb in ROWS} | dict(changed)
    table = {word: shape(verb) for word, verb in rows.items()}
    for word in hidden:
        if word in table:
            table[word] = _refused(table[word], replies.NOT_IMPLEMENTED)
    for word, verb in table.items():
        if verb.role in checked:
            table[word] = replace(verb, needs_check=True)
    for word in COMMON_VERBS:
        for begin in (word + b" ", word + b"\r"):
            table[begin] = table[begin.lower()] = table[word]
    return table


def greeting_for(sync: Sync) -> Verb:
    """Return the row of the greeting: `strict` guards it as well."""
    return replace(GREETING_ROW, guarded=sync is Sync.STRICT)
