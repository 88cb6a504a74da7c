"""Why a connection or a TLS handshake failed, as text for the operator.

Errors that do not mean that the server is down are distinguished: shortages of this machine, and
refusals of one client by a server that knows the client's address.
"""

import errno
import ssl

OUR_OWN = frozenset(
    (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
    )
)
"""The errors of this machine, such as a lack of descriptors, which say nothing about the server."""


class NotForThisClient(OSError):
    """A server could not be reached for one client, but may be reachable for others."""


def error_text(error: Exception) -> str:
    """Return the reason of an error, in words; never empty."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    otherwise = "time limit" if isinstance(error, TimeoutError) else "closed"
    return getattr(error, "strerror", None) or str(error) or otherwise
