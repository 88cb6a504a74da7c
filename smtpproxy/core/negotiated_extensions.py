"""Extensions: which of those that the backend offers a session uses (RFC 5321 section 2.2)."""

from smtpproxy.core import capabilities, verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.policy import BackendTls, SessionPolicy


class NegotiatedExtensions:
    """What the client and the proxy may use in one session."""

    __slots__ = ("_policy", "backend_secure", "chunking", "pipelining")

    pipelining: bool
    """The backend itself offers PIPELINING, and the rules let it be used."""
    chunking: bool
    """The client was offered CHUNKING."""
    backend_secure: bool
    """The backend's connection is inside TLS."""

    def __init__(self, policy: SessionPolicy) -> None:
        self._policy = policy
        self.backend_secure = policy.backend_tls is BackendTls.IMPLICIT
        self.pipelining = self.chunking = False

    def accept_ehlo(self, reply: bytes) -> bytes:
        """Take the backend's positive reply to EHLO; return the client's."""
        policy = self._policy
        keep = policy.secured_capabilities if self.backend_secure else policy.capabilities
        offer = capabilities.offer(reply, keep, policy.message_octets)
        self.pipelining = offer.pipelining and policy.use_pipelining
        self.chunking = offer.chunking
        return offer.reply

    def offer_for_helo(self, reply: bytes) -> bytes:
        """Return the client's reply to EHLO, for that to the HELO that was sent instead."""
        return capabilities.offer_for_helo(reply, self._policy.capabilities)

    def may_follow(self, in_flight: list[Exchange]) -> bool:
        """Tell whether another command may be sent before those in flight are answered.

        There are never more of them than may wait: a client must not fill the memory.

        Args:
            in_flight: At least one exchange.
        """
        if not self.pipelining or len(in_flight) >= self._policy.queue_commands:
            return False
        # RFC 2920 section 3.1: others stand last in a group; the end of data may stand first.
        last = in_flight[-1]
        return last.verb.groupable or (
            last.verb.role in (verbs.END_OF_DATA, verbs.BDAT) and last.sent > 0
        )

    def restart(self, policy: SessionPolicy) -> None:
        """Use none until the next EHLO, and follow other rules."""
        self._policy = policy
        self.clear()

    def clear(self) -> None:
        """Use none, as after HELO (RFC 5321 section 4.1.1.1)."""
        self.pipelining = self.chunking = False
