"""The reason for which a connection could not be had, or secured, as an operator reads it."""

import ssl


def error_text(error: Exception) -> str:
    """Return what can be made use of; never empty."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    otherwise = "time limit" if isinstance(error, TimeoutError) else "closed"
    return getattr(error, "strerror", None) or str(error) or otherwise
