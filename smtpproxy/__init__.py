"""smtpproxy: a transparent SMTP proxy that adds PIPELINING to an MTA that lacks it (RFC 2920)."""

from importlib.util import find_spec

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Return whether the hot path is machine code, as built with SMTPPROXY_COMPILE=1."""
    spec = find_spec("smtpproxy.core.pipeline")
    return spec is not None and not str(spec.origin).endswith(".py")
