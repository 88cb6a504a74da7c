"""Extensions: what of the backend's offer is in force in a session (RFC 5321 section 2.2)."""

from smtpproxy.core import capabilities
from smtpproxy.core.rules import Rules


class Extensions:
    """Follows EHLO and HELO, the client's and those sent in their place.

    pipelining: the backend itself offers PIPELINING, and it is to be used.
    chunking: the client was offered CHUNKING.
    """

    __slots__ = ("_refusal", "_rules", "chunking", "pipelining")

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._refusal = b""  # of an EHLO in whose place HELO was sent
        self.pipelining = self.chunking = False

    def falls_back(self, code: int, reply: bytes) -> bool:
        """Tell whether HELO is to be sent because EHLO is unknown (RFC 5321 section 3.2), once."""
        if code not in (500, 502) or self._refusal or not self._rules.helo_fallback:
            return False
        self._refusal = reply
        return True

    def take_reply(self, code: int, reply: bytes) -> tuple[int, bytes]:
        """Return what the client gets for the reply to EHLO, or to the HELO in its place."""
        refusal, self._refusal = self._refusal, b""
        if code >= 300:
            return (int(refusal[:3]), refusal) if refusal else (code, reply)
        keep = self._rules.capabilities
        if refusal:
            self.leave()
            return code, capabilities.offer_for_helo(reply, keep)
        offer = capabilities.offer(reply, keep, self._rules.message_octets)
        self.pipelining = offer.pipelining and self._rules.use_pipelining
        self.chunking = offer.chunking
        return code, offer.reply

    def leave(self) -> None:
        """Follow a client that said HELO: none is in force (RFC 5321 section 4.1.1.1)."""
        self.pipelining = self.chunking = False
