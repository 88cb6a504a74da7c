"""The verb table: what the pipeline has to know of each command.

The table is the truth of how a command is queued, grouped and answered (RFC 2920 section 3); the
pipeline has no list of verbs of its own.  A row is frozen and shared by all sessions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

from smtpproxy.core import replies

# What else the pipeline does about a command.  Hot path (bench S2): plain integers, and in this
# order: up to RSET any reply will do.
PLAIN, MAIL, RCPT, RSET, EHLO, HELO, GREETING, END_OF_DATA, AUTH, UNASKED = range(10)
TUNNEL, XCLIENT, DATA, BDAT, STARTTLS, XFORWARD, FORWARDING = range(10, 17)


class Sync(Enum):
    """When a client that runs ahead of a reply is refused."""

    SAFE = "safe"
    """Where octets would mean something else by a reply not yet seen: behind DATA, STARTTLS."""
    STRICT = "strict"
    """Also before the greeting, behind EHLO HELO NOOP VRFY EXPN ETRN, and in groups after HELO."""
    OFF = "off"
    """Nowhere but behind STARTTLS: everything is serialised."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One row of the table.

    groupable: RFC 2920 section 3.1 lets it stand anywhere in a group, so its reply may be held.
    gate: octets behind it are not framed before its reply is known.
    guarded: a client that sends octets behind it before its reply is refused and closed.
    secret: its parameters are cut before any observer sees them.
    refusal: the reply if it is never forwarded, else empty.
    closes: the session ends when its reply has been flushed.
    limit: the name of the time limit for its reply.
    weighed: whether it is refused is decided when its turn comes.
    """

    name: bytes
    groupable: bool = False
    gate: bool = False
    guarded: bool = False
    secret: bool = False
    refusal: bytes = b""
    closes: bool = False
    limit: str = "command"
    role: int = PLAIN
    weighed: bool = False


ROWS = (
    Verb(b"MAIL", groupable=True, role=MAIL),
    Verb(b"RCPT", groupable=True, role=RCPT),
    Verb(b"RSET", groupable=True, role=RSET),
    Verb(b"SEND", groupable=True, role=MAIL),
    Verb(b"SOML", groupable=True, role=MAIL),
    Verb(b"SAML", groupable=True, role=MAIL),
    Verb(b"EHLO", role=EHLO),
    Verb(b"HELO", role=HELO),
    Verb(b"DATA", gate=True, guarded=True, limit="data", role=DATA, weighed=True),
    Verb(b"BDAT", gate=True, limit="end_of_data", role=BDAT, weighed=True),
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
    # They turn the connection round, or change what the octets behind them mean.
    Verb(b"TURN", refusal=replies.NOT_IMPLEMENTED),
    Verb(b"ATRN", refusal=replies.NOT_IMPLEMENTED),
    Verb(b"VERB", refusal=replies.NOT_IMPLEMENTED),
    Verb(b"BURL", refusal=replies.NOT_IMPLEMENTED),
    Verb(b"CHECKPOINT", refusal=replies.NOT_IMPLEMENTED),
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

FORBIDDEN = {verb.name: verb for verb in ROWS if verb.refusal and verb.closes}
"""Words that end the session, whatever stands behind them: other protocols, or a payload."""

# What takes the place of a row as a listener is set up.
STARTTLS_HERE = Verb(b"STARTTLS", gate=True, guarded=True, role=STARTTLS, weighed=True)
STARTTLS_PASSED = Verb(b"STARTTLS", gate=True, guarded=True, role=TUNNEL)
STARTTLS_AGAIN = Verb(b"STARTTLS", gate=True, guarded=True, refusal=replies.TLS_ACTIVE)
AUTH_IN_PLAIN = Verb(b"AUTH", gate=True, secret=True, refusal=replies.TLS_FOR_AUTH, role=AUTH)
INTRODUCTIONS = {
    b"XCLIENT": Verb(b"XCLIENT", gate=True, guarded=True, secret=True, role=XCLIENT, weighed=True),
    b"XFORWARD": Verb(b"XFORWARD", gate=True, role=XFORWARD),
}

ALWAYS_TAKEN = frozenset((b"EHLO", b"HELO", b"STARTTLS", b"NOOP", b"RSET", b"QUIT"))
"""What may come before TLS and before a hello, where either is demanded (RFC 3207 section 4)."""

COMMONPLACE = (b"MAIL", b"RCPT", b"RSET", b"EHLO", b"HELO", b"DATA", b"QUIT", b"NOOP")
"""Verbs of four letters whose lines need no look beyond the first five octets."""

GREETING_OWED = Verb(b"", gate=True, limit="greeting", role=GREETING)
"""Not a command: the reply that the backend owes from the start."""

DATA_ENDED = Verb(b".", limit="end_of_data", role=END_OF_DATA)
"""Message content with its end of data; the reply hands over responsibility: never held."""

FORWARDED = Verb(b"XFORWARD", role=FORWARDING)
"""The proxy's own XFORWARD ahead of a message; the client gets no reply to it."""

AUTH_LINE = Verb(b"", gate=True, secret=True, role=AUTH)
"""A client's line behind a 334 (RFC 4954 section 4)."""

NOT_ASKED = Verb(b"", role=UNASKED)
"""Not a command: a reply that nobody asked for, as 421 may be (RFC 5321 section 3.8)."""

MISFRAMED = Verb(b"")
"""Something that is no command line, so that it is answered here."""


def _strict(verb: Verb) -> Verb:
    behind = verb.name in {b"EHLO", b"HELO", b"NOOP", b"VRFY", b"EXPN", b"ETRN"}
    return replace(verb, gate=True, guarded=True) if behind else verb


def _loose(verb: Verb) -> Verb:
    return replace(verb, guarded=False) if verb.name == b"DATA" else verb


def lock_step(table: Mapping[bytes, Verb]) -> Mapping[bytes, Verb]:
    """Return the table for a client that may send nothing ahead of a reply."""
    # QUIT and BDAT: nothing behind the one is ever read, the other's payload is part of it.
    return {
        word: verb if verb.name in {b"QUIT", b"BDAT"} else replace(verb, gate=True, guarded=True)
        for word, verb in table.items()
    }


def refused(changed: Mapping[bytes, Verb], refusal: bytes) -> dict[bytes, Verb]:
    """Return rows that refuse all but what is always taken; the others as they were `changed`."""
    rows = {verb.name: verb for verb in ROWS} | dict(changed)
    return {
        word: verb if word in ALWAYS_TAKEN else _refused(verb, refusal)
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
    """Return the table that is in force until EHLO or HELO was accepted.

    What stands behind these two is framed when that is known.
    """
    return {word: _before_hello(verb) for word, verb in table.items()}


def _before_hello(verb: Verb) -> Verb:
    if verb.role in (EHLO, HELO):
        return replace(verb, gate=True)
    return verb if verb.name in ALWAYS_TAKEN else _refused(verb, replies.HELLO_FIRST)


def table_for(
    sync: Sync,
    hidden: frozenset[bytes] = frozenset(),
    weighed: frozenset[int] = frozenset(),
    changed: Mapping[bytes, Verb] = MappingProxyType({}),
) -> Mapping[bytes, Verb]:
    """Return the table: word in capitals -> row; `hidden` words are refused, not forwarded.

    weighed: roles of commands that may be over a limit, so that their turn must come to tell.
    changed: rows that take the place of those of ROWS.

    Commonplace verbs stand in it as a line begins with them, too: with a space or CR behind, and in
    small letters as well.
    """
    shape = {Sync.SAFE: lambda verb: verb, Sync.STRICT: _strict, Sync.OFF: _loose}[sync]
    rows = {verb.name: verb for verb in ROWS} | dict(changed)
    table = {word: shape(verb) for word, verb in rows.items()}
    for word in hidden & table.keys():
        table[word] = _refused(table[word], replies.NOT_IMPLEMENTED)
    for word, verb in table.items():
        if verb.role in weighed:
            table[word] = replace(verb, weighed=True)
    for word in COMMONPLACE:
        for begin in (word + b" ", word + b"\r"):
            table[begin] = table[begin.lower()] = table[word]
    return table


def greeting_for(sync: Sync) -> Verb:
    """Return the row of the greeting: `strict` guards it as well."""
    return replace(GREETING_OWED, guarded=sync is Sync.STRICT)
