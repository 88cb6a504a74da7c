"""Extensions: what of the backend's offer is in force in a session (RFC 5321 section 2.2)."""

from smtpproxy.core import capabilities, commands
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.rules import BackendTls, Rules


class Extensions:
    """What the client and the proxy may use.

    pipelining: the backend itself offers PIPELINING, and it is to be used.
    chunking: the client was offered CHUNKING.
    backend_secure: the backend's connection is inside TLS.
    """

    __slots__ = ("backend_secure", "chunking", "pipelining", "rules")

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.backend_secure = rules.backend_tls is BackendTls.IMPLICIT
        self.pipelining = self.chunking = False

    def take_offer(self, reply: bytes) -> bytes:
        """Return what the client gets for the backend's positive reply to EHLO."""
        rules = self.rules
        keep = rules.secured_capabilities if self.backend_secure else rules.capabilities
        offer = capabilities.offer(reply, keep, rules.message_octets)
        self.pipelining = offer.pipelining and rules.use_pipelining
        self.chunking = offer.chunking
        return offer.reply

    def offer_for_helo(self, reply: bytes) -> bytes:
        """Return what the client gets for the reply to the HELO that was said for its EHLO."""
        return capabilities.offer_for_helo(reply, self.rules.capabilities)

    def may_follow(self, in_flight: list[Exchange]) -> bool:
        """Tell whether a command may be sent behind those in flight, of which there are some.

        There are never more of them than may wait: a client must not fill the memory.
        """
        if not self.pipelining or len(in_flight) >= self.rules.queue_commands:
            return False
        # RFC 2920 section 3.1: others stand last in a group; the end of data may stand first.
        last = in_flight[-1]
        return last.verb.groupable or (
            last.verb.role in (commands.END_OF_DATA, commands.BDAT) and last.sent > 0
        )

    def restart(self, rules: Rules) -> None:
        """Begin anew by other rules: nothing was offered yet."""
        self.rules = rules
        self.leave()

    def leave(self) -> None:
        """Follow a client that said HELO: none is in force (RFC 5321 section 4.1.1.1)."""
        self.pipelining = self.chunking = False
