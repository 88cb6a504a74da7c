"""Upgrades: plaintext ends on a connection, as TLS begins on it or both are joined for good.

The pipeline asks its caller for them, with nothing in plaintext behind (RFC 3207).
"""

from typing import TYPE_CHECKING

from smtpproxy.core import commands
from smtpproxy.core.exchange import Exchange

if TYPE_CHECKING:
    from smtpproxy.core.pipeline import Pipeline

SECURE_CLIENT, SECURE_BACKEND, TUNNEL = range(3)
"""What `Pipeline.upgrade` is called with: begin TLS on a connection, or join both for good."""

OF_ROLES = {commands.STARTTLS: SECURE_CLIENT, commands.TUNNEL: TUNNEL}
"""Roles whose 220 ends plaintext, and what is asked for then."""


def ask(pipeline: "Pipeline", role: int, now: float) -> None:
    """Ask for the upgrade that a command of this role has got 220 for."""
    # A gate stays closed: nothing may follow in plaintext.
    pipeline.framer.gate = Exchange(pipeline.framer.gate.verb, b"", now)
    pipeline.upgrade(OF_ROLES[role])


def begin_anew(pipeline: "Pipeline", now: float) -> None:
    """Forget all that was said before the client came inside TLS (RFC 3207 section 4.2)."""
    inside = pipeline.rules.inside_tls
    assert inside is not None
    pipeline.rules = pipeline.extensions.rules = inside
    pipeline.hello.begin_anew(inside)
    pipeline.extensions.leave()
    pipeline.transaction.end()
    pipeline.errors = 0
    pipeline.active = now
    pipeline.framer.begin_anew(inside)
