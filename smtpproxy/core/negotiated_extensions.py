"""The extensions that a session uses, of those that the backend offers (RFC 5321 section 2.2)."""

from collections.abc import Callable, Sequence

from smtpproxy.core import capabilities, verbs
from smtpproxy.core.capabilities import CapabilityFilter, capability_lines
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.policy import BackendTls, SessionPolicy


class NegotiatedExtensions:
    """The extensions that the client and the proxy may use in one session."""

    __slots__ = (
        "_policy",
        "backend_secure",
        "chunking",
        "chunking_added",
        "offers",
        "pipelining",
    )

    pipelining: bool
    """Whether the backend itself offers PIPELINING and the policy allows its use."""
    chunking: bool
    """Whether the client was offered CHUNKING."""
    chunking_added: bool
    """Whether the backend does not offer it, so that it gets DATA instead of BDAT."""
    backend_secure: bool
    """Whether the backend connection is inside TLS."""
    offers: Callable[[bytes], Sequence[bytes]]
    """The callback that compares servers, for PIPECONNECT.

    It is called with the capability lines of the server's EHLO reply, and returns those of all
    servers that a client may reach; none if one of them is not known or has changed lately.
    """

    def __init__(self, policy: SessionPolicy) -> None:
        self._policy = policy
        self.backend_secure = policy.backend_tls is BackendTls.IMPLICIT
        self.clear()
        self.offers = _only_this_one

    def compare_servers(self, offers: Callable[[bytes], Sequence[bytes]]) -> None:
        """Set the callback `offers`."""
        self.offers = offers

    def secure_backend(self) -> None:
        """Note that the backend connection is inside TLS now."""
        self.backend_secure = True

    def accept_ehlo(self, reply: bytes) -> bytes:
        """Process the backend's positive reply to EHLO, and return the reply for the client."""
        policy = self._policy
        keep = policy.secured_capabilities if self.backend_secure else policy.capabilities
        offer = capabilities.offer(reply, keep, policy.message_bytes, policy.recipients)
        self.pipelining = offer.pipelining and policy.use_pipelining
        self.chunking = offer.chunking
        self.chunking_added = offer.chunking_added
        return self._with_early_pipelining(offer.reply, reply, keep)

    def offer_for_helo(self, reply: bytes) -> bytes:
        """Return the client's EHLO reply, given the backend's reply to HELO."""
        policy = self._policy
        keep = policy.capabilities
        reply = capabilities.offer_for_helo(reply, keep, policy.recipients)
        return self._with_early_pipelining(reply, b"", keep)

    def _with_early_pipelining(self, reply: bytes, ehlo: bytes, keep: CapabilityFilter) -> bytes:
        """Add PIPECONNECT to a reply if the client would get the same offer from each server.

        The client may keep the offer for days, and then send its first commands by it.

        Args:
            reply: The EHLO reply for the client.
            ehlo: The server's EHLO reply; empty if it knows only HELO.
            keep: Which capabilities pass.
        """
        policy = self._policy
        if not policy.early_pipelining or keep.hide & {b"PIPELINING", b"PIPECONNECT"}:
            return reply
        offers = self.offers(capability_lines(ehlo))
        passed = {
            capabilities.offer(
                b"250-\r\n" + each, keep, policy.message_bytes, policy.recipients
            ).reply
            for each in set(offers)
        }
        return capabilities.with_pipeconnect(reply) if len(passed) == 1 else reply

    def may_follow(self, in_flight: list[Exchange]) -> bool:
        """Return whether another command may be sent before those in flight are answered.

        The number in flight is bounded like the queue, so that a client cannot fill the memory.

        Args:
            in_flight: The exchanges in flight, at least one.
        """
        if not self.pipelining or len(in_flight) >= self._policy.queue_commands:
            return False
        # RFC 2920 section 3.1: other commands may only be last; end of data may be first.
        last = in_flight[-1]
        return last.verb.groupable or (
            last.verb.role in (verbs.END_OF_DATA, verbs.BDAT) and last.sent > 0
        )

    def restart(self, policy: SessionPolicy) -> None:
        """Use no extension until the next EHLO, and follow another policy from then on."""
        self._policy = policy
        self.clear()

    def clear(self) -> None:
        """Use no extension, as after HELO (RFC 5321 section 4.1.1.1)."""
        self.pipelining = self.chunking = self.chunking_added = False


def _only_this_one(offered: bytes) -> Sequence[bytes]:
    """Return the offer of the only server."""
    return (offered,)
