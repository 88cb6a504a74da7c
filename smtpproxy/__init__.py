"""smtpproxy: a transparent SMTP proxy that adds PIPELINING to an MTA that lacks it (RFC 2920)."""

__version__ = "0.1.0"
