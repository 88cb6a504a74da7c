"""STARTTLS: plaintext ends on a connection (RFC 3207).

TLS begins on it, or both connections are joined so that TLS passes between client and backend.
"""

from enum import Enum
from typing import Final

from smtpproxy.core import replies, verbs


class Upgrade(Enum):
    """What the pipeline asks its caller for; nothing more is read in plaintext then."""

    CLIENT_TLS = "client"
    """Begin TLS on the client's connection."""
    BACKEND_TLS = "backend"
    """Begin TLS on the backend's connection."""
    TUNNEL = "tunnel"
    """Join both connections: what passes from now on is TLS between client and backend."""


UPGRADES: Final = {
    verbs.STARTTLS: Upgrade.CLIENT_TLS,
    verbs.TUNNEL: Upgrade.TUNNEL,
}
"""Role of a client's STARTTLS -> what its 220 leads to."""


def reply_to_starttls(line: bytes, *, authenticated: bool) -> bytes:
    """Return the proxy's own reply to a client's STARTTLS (RFC 3207 section 4).

    Args:
        line: The command line.
        authenticated: The client has been; the backend could not be made to forget that.
    """
    if line[8:].strip():
        return replies.STARTTLS_ARGUMENT
    return replies.AUTH_BEFORE_TLS if authenticated else replies.READY_FOR_TLS
