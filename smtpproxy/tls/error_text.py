"""The reason for which a connection could not be had, or secured: as an operator reads it, and
whom it is about.

A server that knows the client may refuse this client alone.  So what happens to a client says
something of the server only if the server could not know who it is.
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
"""Errors that say nothing of the server: this machine is short of something."""


class NotForThisClient(OSError):
    """A server could not be had for one client; for others it may be there."""


def error_text(error: Exception) -> str:
    """Return what can be made use of; never empty."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    otherwise = "time limit" if isinstance(error, TimeoutError) else "closed"
    return getattr(error, "strerror", None) or str(error) or otherwise
