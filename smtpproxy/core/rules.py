"""The rules of a session: what its listener and its backend lay down for the pipeline."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from smtpproxy.core import commands, replies
from smtpproxy.core.capabilities import Filter
from smtpproxy.core.commands import Sync, Verb
from smtpproxy.core.content import BareNewlines

NO_CHANGES = Filter()
XCLIENT_OFFER = b"XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT"
"""What a trusted client is offered, by the proxy itself; LOGIN is not for others to tell."""


class ClientTls(Enum):
    """What becomes of the client's STARTTLS (RFC 3207)."""

    HIDDEN = "hidden"
    """It is not offered, and refused."""
    OFFERED = "offered"
    """It is offered, and ends here."""
    PASSED = "passed"
    """It is the backend's: from its 220 on the octets mean nothing to the proxy."""
    ACTIVE = "active"
    """The client's connection is inside TLS."""


class BackendTls(Enum):
    """When the backend's connection is secured."""

    OFF = "off"
    OPPORTUNISTIC = "opportunistic"
    """By STARTTLS, if the backend offers it."""
    REQUIRED = "required"
    """By STARTTLS, or the session fails."""
    IMPLICIT = "implicit"
    """From the start."""


class Auth(Enum):
    """When a client may authenticate itself."""

    ANY = "any"
    TLS_ONLY = "tls-only"
    HIDDEN = "hidden"


@dataclass(frozen=True)
class Rules:
    """Frozen, and shared by all sessions of a listener.

    hostname: named in the proxy's own 421 replies.
    use_pipelining: use the backend's own PIPELINING when it offers it.
    helo_fallback: send HELO to a backend that does not know EHLO.
    guard_data: DATA is not forwarded when every recipient of the transaction was refused.
    queue_commands, queue_octets: how much may wait before the client is no longer read.
    line, auth_line: octets of a command line and of an AUTH line, line end included.
    errors: how many 5xx replies in a row a client may collect.
    message_octets: how big a message may be.  recipients: how many may be accepted for one.
    Of both, 0 means as the backend likes.
    client_tls, require_tls, auth, backend_tls: what has to be inside TLS, and how it comes there.
    trusted: the client may name others by XCLIENT and XFORWARD.
    hello_first: nothing that matters may come before EHLO or HELO.
    xforward: the backend is told of the client by XFORWARD before each message.
    table, first_table, helo_table, greeting: rows of the verb table that follow from the rest;
    the first table is in force until a hello was accepted, the HELO table if HELO was.
    secured_capabilities: in place of `capabilities` when the backend's connection is inside TLS.
    inside_tls: the rules once the client's connection is, if it can come there; else None.
    """

    hostname: bytes = b"localhost"
    sync: Sync = Sync.SAFE
    bare_newlines: BareNewlines = BareNewlines.NORMALIZE
    capabilities: Filter = NO_CHANGES
    use_pipelining: bool = True
    helo_fallback: bool = True
    guard_data: bool = True
    queue_commands: int = 1000
    queue_octets: int = 256 * 1024
    line: int = 2048
    auth_line: int = 12288
    errors: int = 20
    message_octets: int = 0
    recipients: int = 0
    client_tls: ClientTls = ClientTls.HIDDEN
    require_tls: bool = False
    auth: Auth = Auth.ANY
    backend_tls: BackendTls = BackendTls.OFF
    trusted: bool = False
    hello_first: bool = False
    xforward: bool = False
    table: Mapping[bytes, Verb] = field(init=False)
    first_table: Mapping[bytes, Verb] = field(init=False)
    helo_table: Mapping[bytes, Verb] = field(init=False)
    greeting: Verb = field(init=False)
    secured_capabilities: Filter = field(init=False)
    inside_tls: "Rules | None" = field(init=False)

    def __post_init__(self) -> None:
        """Make the tables, once for all sessions."""
        asked = self.capabilities
        keep = self._filter()
        limited = {commands.MAIL: self.message_octets, commands.RCPT: self.recipients}
        weighed = frozenset(role for role, limit in limited.items() if limit)
        weighed |= {commands.MAIL} if self.xforward else set()
        table = commands.table_for(self.sync, keep.hide, weighed, self._rows())
        secured = replace(keep, allow=keep.allow | {b"REQUIRETLS"}) if self._active else keep
        first = commands.hello_first(table) if self.hello_first else table
        inside = self.client_tls is ClientTls.OFFERED
        for name, value in {
            "capabilities": keep,
            "secured_capabilities": secured,  # RFC 8689: with TLS on both sides
            "table": table,
            "first_table": first,
            "helo_table": commands.lock_step(table) if self.sync is Sync.STRICT else table,
            "greeting": commands.greeting_for(self.sync),
            "inside_tls": self._inside_tls(asked) if inside else None,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def _active(self) -> bool:
        return self.client_tls is ClientTls.ACTIVE

    def _inside_tls(self, asked: Filter) -> "Rules":
        """Return the rules that go for the same client once it is inside TLS.

        It must say EHLO again, so that the backend forgets what was said before, too.
        """
        return replace(self, capabilities=asked, client_tls=ClientTls.ACTIVE, hello_first=True)

    def _filter(self) -> Filter:
        keep = self.capabilities
        hide, allow, add = keep.hide, keep.allow, keep.add
        if self.auth is Auth.HIDDEN or (self.auth is Auth.TLS_ONLY and not self._active):
            hide |= {b"AUTH"}
        if self.client_tls is ClientTls.OFFERED:
            add += (b"STARTTLS",)
        elif self.client_tls is ClientTls.PASSED:
            allow |= {b"STARTTLS"}
        if self.trusted:
            allow |= {b"XFORWARD"}
            add += () if b"XCLIENT" in hide else (XCLIENT_OFFER,)
        return Filter(hide, allow, add)

    def _rows(self) -> dict[bytes, Verb]:
        """Return the rows of the verb table that these rules change."""
        rows = {}
        if self.client_tls is ClientTls.OFFERED:
            rows[b"STARTTLS"] = commands.STARTTLS_HERE
        elif self.client_tls is ClientTls.PASSED:
            rows[b"STARTTLS"] = commands.STARTTLS_PASSED
        elif self._active:
            rows[b"STARTTLS"] = commands.STARTTLS_AGAIN
        if self.trusted:
            rows |= commands.INTRODUCTIONS
        if self.require_tls and not self._active:
            rows = commands.refused(rows, replies.TLS_REQUIRED)
        elif self.auth is Auth.TLS_ONLY and not self._active:
            rows[b"AUTH"] = commands.AUTH_IN_PLAIN
        return rows
