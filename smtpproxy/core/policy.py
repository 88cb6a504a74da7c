"""The policy of a session: the settings of its listener and backend that the pipeline follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from smtpproxy.core import replies, verbs
from smtpproxy.core.capabilities import CapabilityFilter
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.verbs import Sync, Verb

NO_CHANGES: Final = CapabilityFilter()
XCLIENT_OFFER: Final = b"XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT"
"""What the proxy offers a trusted client; LOGIN is left out, for it names who has authenticated."""


class ClientTls(Enum):
    """What becomes of the client's STARTTLS (RFC 3207)."""

    HIDDEN = "hidden"
    """It is not offered, and refused."""
    OFFERED = "offered"
    """The proxy offers it."""
    PASSED = "passed"
    """The backend offers it: after its 220 the proxy passes octets on unread."""
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
class SessionPolicy:
    """Frozen, and shared by all sessions of a listener."""

    hostname: bytes = b"localhost"
    """The proxy's name in its own 421 replies."""
    sync: Sync = Sync.SAFE
    """When a client is refused that sends before it has the reply."""
    bare_newlines: BareNewlines = BareNewlines.NORMALIZE
    """What becomes of a bare CR, bare LF or NUL in content."""
    capabilities: CapabilityFilter = NO_CHANGES
    """The listener's changes to what passes; once made, what passes."""
    use_pipelining: bool = True
    """Use the backend's own PIPELINING when it offers it."""
    helo_fallback: bool = True
    """Send HELO to a backend that does not know EHLO."""
    guard_data: bool = True
    """Do not forward DATA when every recipient of the transaction was rejected."""
    queue_commands: int = 1000
    """How many commands may wait before the client is no longer read."""
    queue_octets: int = 256 * 1024
    """How many octets of commands may."""
    line: int = 2048
    """Octets of a command line, line end included."""
    auth_line: int = 12288
    """Octets of an AUTH line, line end included (RFC 4954 section 4)."""
    errors: int = 20
    """How many 5xx replies in a row a client may get, those to RCPT aside; 0: any number."""
    reply_octets: int = replies.REPLY_LIMIT
    """Octets of one reply of the backend."""
    message_octets: int = 0
    """How large a message may be; 0: as the backend likes."""
    recipients: int = 0
    """How many recipients may be accepted for a message; 0: as the backend likes."""
    client_tls: ClientTls = ClientTls.HIDDEN
    require_tls: bool = False
    """Refuse all but a few commands before the client's TLS."""
    auth: Auth = Auth.ANY
    backend_tls: BackendTls = BackendTls.OFF
    backend_verified: bool = False
    """The certificate of the backend is verified, where it has one."""
    trusted: bool = False
    """The client may name other clients by XCLIENT and XFORWARD."""
    hello_first: bool = False
    """Refuse all but a few commands before EHLO or HELO."""
    xforward: bool = False
    """The backend gets XFORWARD before each message."""
    table: Mapping[bytes, Verb] = field(init=False)
    """The verb table after EHLO."""
    first_table: Mapping[bytes, Verb] = field(init=False)
    """The verb table until EHLO or HELO was accepted."""
    helo_table: Mapping[bytes, Verb] = field(init=False)
    """The verb table after HELO."""
    greeting: Verb = field(init=False)
    """The row of the greeting."""
    secured_capabilities: CapabilityFilter = field(init=False)
    """Which capabilities pass when the backend's connection is inside TLS."""
    inside_tls: "SessionPolicy | None" = field(init=False)
    """The rules once the client's connection is inside TLS; None if it can't come there."""

    def __post_init__(self) -> None:
        """Make the tables, once for all sessions."""
        asked = self.capabilities
        keep = self._filter()
        limited = {verbs.MAIL: self.message_octets, verbs.RCPT: self.recipients}
        checked = frozenset(role for role, limit in limited.items() if limit)
        checked |= {verbs.MAIL} if self.xforward else set()
        table = verbs.table_for(self.sync, keep.hide, checked, self._rows())
        requirable = self._active and self.backend_verified  # RFC 8689 section 4.2.1
        secured = replace(keep, allow=keep.allow | {b"REQUIRETLS"}) if requirable else keep
        first = verbs.hello_first(table) if self.hello_first else table
        inside = self.client_tls is ClientTls.OFFERED
        for name, value in {
            "capabilities": keep,
            "secured_capabilities": secured,
            "table": table,
            "first_table": first,
            "helo_table": verbs.lock_step(table) if self.sync is Sync.STRICT else table,
            "greeting": verbs.greeting_for(self.sync),
            "inside_tls": self._inside_tls(asked) if inside else None,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def _active(self) -> bool:
        return self.client_tls is ClientTls.ACTIVE

    def _inside_tls(self, asked: CapabilityFilter) -> "SessionPolicy":
        """Return the rules that go for the same client once it is inside TLS.

        It must send EHLO again, so that the backend also forgets what came before.
        """
        return replace(self, capabilities=asked, client_tls=ClientTls.ACTIVE, hello_first=True)

    def _filter(self) -> CapabilityFilter:
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
        ends_tls = self.backend_tls is not BackendTls.OFF or self.client_tls in (
            ClientTls.OFFERED,
            ClientTls.ACTIVE,
        )
        return CapabilityFilter(hide, allow, add, ends_tls=ends_tls)

    def _rows(self) -> dict[bytes, Verb]:
        """Return the rows of the verb table that these rules change."""
        rows = {}
        if self.client_tls is ClientTls.OFFERED:
            rows[b"STARTTLS"] = verbs.STARTTLS_OFFERED
        elif self.client_tls is ClientTls.PASSED:
            rows[b"STARTTLS"] = verbs.STARTTLS_PASSED
        elif self._active:
            rows[b"STARTTLS"] = verbs.STARTTLS_ACTIVE
        if self.trusted:
            rows |= verbs.TRUSTED_CLIENT_ROWS
        if self.require_tls and not self._active:
            rows = verbs.refused(rows, replies.TLS_REQUIRED)
        elif self.auth is Auth.TLS_ONLY and not self._active:
            rows[b"AUTH"] = verbs.AUTH_WITHOUT_TLS
        return rows
