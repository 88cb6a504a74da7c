"""The policy of a session: the settings of its listener and backend that the core needs."""

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
"""The XCLIENT offer to a trusted client, without LOGIN, which names an authenticated user."""


class ClientTls(Enum):
    """How the client's STARTTLS is handled (RFC 3207)."""

    HIDDEN = "hidden"
    """It is not offered, and refused."""
    OFFERED = "offered"
    """The proxy offers it."""
    PASSED = "passed"
    """The backend offers it; after its 220 reply the proxy relays TLS unread."""
    ACTIVE = "active"
    """The client connection is inside TLS already."""


class BackendTls(Enum):
    """When the backend connection uses TLS."""

    OFF = "off"
    OPPORTUNISTIC = "opportunistic"
    """After STARTTLS, if the backend offers it."""
    REQUIRED = "required"
    """After STARTTLS; the session fails without it."""
    IMPLICIT = "implicit"
    """From the start."""


class Auth(Enum):
    """When AUTH is offered to the client."""

    ANY = "any"
    TLS_ONLY = "tls-only"
    HIDDEN = "hidden"


@dataclass(frozen=True)
class SessionPolicy:
    """The policy of all sessions of a listener."""

    hostname: bytes = b"localhost"
    """The proxy's name in its own 421 replies."""
    sync: Sync = Sync.SAFE
    """Which clients are refused for sending before a reply."""
    bare_newlines: BareNewlines = BareNewlines.NORMALIZE
    """How a bare CR, bare LF or NUL in content is handled."""
    capabilities: CapabilityFilter = NO_CHANGES
    """The listener's changes to the capability filter; after `__post_init__`, the filter."""
    use_pipelining: bool = True
    """Whether to use the backend's own PIPELINING if it offers it."""
    helo_fallback: bool = True
    """Whether to send HELO to a backend that does not know EHLO."""
    guard_data: bool = True
    """Whether to answer DATA without the backend if every recipient was rejected."""
    queue_commands: int = 1000
    """The number of queued commands at which reading from the client pauses."""
    queue_bytes: int = 256 * 1024
    """The size of queued commands at which reading from the client pauses."""
    command_line: int = 2048
    """The limit of a command line, in bytes including the line end."""
    auth_line: int = 12288
    """The limit of an AUTH line, in bytes including the line end (RFC 4954 section 4)."""
    consecutive_errors: int = 20
    """The limit of consecutive 5xx replies, not counting those to RCPT; 0 for none."""
    reply_bytes: int = replies.REPLY_LIMIT
    """The limit of one reply of the backend, in bytes."""
    message_bytes: int = 0
    """The limit of a message, in bytes; 0 for none but the backend's."""
    recipients: int = 0
    """The limit of accepted recipients of a message; 0 for none but the backend's."""
    client_tls: ClientTls = ClientTls.HIDDEN
    require_tls: bool = False
    """Whether to refuse all but a few commands before the client uses TLS."""
    auth: Auth = Auth.ANY
    backend_tls: BackendTls = BackendTls.OFF
    backend_verified: bool = False
    """Whether the backend's certificate is verified."""
    trusted: bool = False
    """Whether the client may name other clients by XCLIENT and XFORWARD."""
    early_pipelining: bool = False
    """Whether to offer PIPECONNECT: the client may send commands before the greeting."""
    hello_first: bool = False
    """Whether to refuse all but a few commands before EHLO or HELO."""
    xforward: bool = False
    """Whether to send XFORWARD to the backend before each message."""
    intercepted: frozenset[bytes] = frozenset()
    """The verbs of the commands that `Pipeline.intercept` gets."""
    add_chunking: bool = False
    """Whether to offer CHUNKING if the backend does not: then it gets DATA instead of BDAT."""
    xclient_login: bool = False
    """Whether a trusted client may name an authenticated user, since XCLIENT passes it on."""
    table: Mapping[bytes, Verb] = field(init=False)
    """The verb table after EHLO."""
    first_table: Mapping[bytes, Verb] = field(init=False)
    """The verb table before EHLO or HELO is accepted."""
    helo_table: Mapping[bytes, Verb] = field(init=False)
    """The verb table after HELO."""
    chunk_table: Mapping[bytes, Verb] = field(init=False)
    """The verb table between BDAT chunks that the backend gets as content."""
    greeting: Verb = field(init=False)
    """The verb row of the greeting."""
    secured_capabilities: CapabilityFilter = field(init=False)
    """The capability filter when the backend connection is inside TLS."""
    inside_tls: "SessionPolicy | None" = field(init=False)
    """The policy once the client connection is inside TLS; None if the proxy offers no TLS."""

    def __post_init__(self) -> None:
        """Compute the tables and filters, once for all sessions."""
        asked = self.capabilities
        keep = self._filter()
        limited = {verbs.MAIL: self.message_bytes, verbs.RCPT: self.recipients}
        checked = frozenset(role for role, limit in limited.items() if limit)
        checked |= {verbs.MAIL} if self.xforward else set()
        table = verbs.table_for(self.sync, keep.hide, checked, self._rows(), self.intercepted)
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
            "chunk_table": verbs.amid_chunks(table) if self.add_chunking else table,
            "greeting": verbs.greeting_for(self.sync),
            "inside_tls": self._inside_tls(asked) if inside else None,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def _active(self) -> bool:
        return self.client_tls is ClientTls.ACTIVE

    def _inside_tls(self, asked: CapabilityFilter) -> "SessionPolicy":
        """Return the policy for the same client inside TLS.

        The client must send EHLO again, so that the backend discards the state from before TLS.
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
            offer = XCLIENT_OFFER + b" LOGIN" * self.xclient_login
            add += () if b"XCLIENT" in hide else (offer,)
        ends_tls = self.backend_tls is not BackendTls.OFF or self.client_tls in (
            ClientTls.OFFERED,
            ClientTls.ACTIVE,
        )
        return CapabilityFilter(hide, allow, add, ends_tls, self.add_chunking)

    def _rows(self) -> dict[bytes, Verb]:
        """Return the rows of the verb table that this policy changes."""
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
