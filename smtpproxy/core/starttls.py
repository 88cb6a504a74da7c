"""STARTTLS (RFC 3207): how a connection changes from plaintext to TLS.

The proxy makes the TLS handshake, or relays TLS between client and backend unread.
"""

from enum import Enum
from typing import Final

from smtpproxy.core import replies, verbs


class Upgrade(Enum):
    """What the pipeline asks its caller to do; nothing more is read in plaintext after it."""

    CLIENT_TLS = "client"
    """Make the TLS handshake on the client connection."""
    BACKEND_TLS = "backend"
    """Make the TLS handshake on the backend connection."""
    TUNNEL = "tunnel"
    """Relay both connections unread: client and backend use TLS with each other."""


UPGRADES: Final = {
    verbs.STARTTLS: Upgrade.CLIENT_TLS,
    verbs.TUNNEL: Upgrade.TUNNEL,
}
"""What follows a 220 reply to the client's STARTTLS, by the verb's role."""


def reply_to_starttls(line: bytes, *, authenticated: bool) -> bytes:
    """Return the proxy's own reply to a client's STARTTLS (RFC 3207 section 4).

    Args:
        line: The command line.
        authenticated: Whether the client has authenticated; the backend cannot undo that, so
            STARTTLS is refused.
    """
    if line[8:].strip():
        return replies.STARTTLS_ARGUMENT
    return replies.AUTH_BEFORE_TLS if authenticated else replies.READY_FOR_TLS
