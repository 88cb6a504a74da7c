"""EHLO and HELO: what the proxy may send to the backend for one, and what the client gets."""

from smtpproxy.core.policy import BackendTls, SessionPolicy
from tests.fuzz import reading
from tests.fuzz.server import Said, verb_of

HELLO = (b"EHLO", b"HELO")


class Hellos:
    """Follows EHLO and HELO of a session.

    introduces: the proxy says XCLIENT where it is offered.
    offer: the backend's reply to the last EHLO that it accepted.  inside_tls: the client is.
    """

    def __init__(self, policy: SessionPolicy, *, introduces: bool) -> None:
        self._policy = policy
        self._introduces = introduces
        self.offer = self._offered_to = self._before_tls = b""
        self.inside_tls = False

    def start_tls(self) -> None:
        """The client is inside TLS; the backend still has the state from before."""
        self.inside_tls = True
        self._before_tls = self._offered_to

    def take(self, line: bytes, said: list[Said]) -> list[Said]:
        """Read what the backend got: EHLO or HELO, and what may follow from its reply."""
        reported: list[Said] = []
        while said and self._may_follow(line, reported[-1] if reported else None, said[0]):
            reported.append(said.pop(0))
        for each in reported:
            if each.verb == b"EHLO" and each.code < 300:
                self.offer, self._offered_to = each.reply, each.octets
        return reported

    def _may_follow(self, line: bytes, last: Said | None, following: Said) -> bool:
        """Return whether this may follow `last`, or start the commands that an EHLO causes."""
        verb = following.verb
        is_ehlo = verb == b"EHLO" and following.octets[4:] == line[4:]
        if last is None:
            return following.octets == line or (is_ehlo and bool(self._asks_for))
        if last.verb in HELLO and last.code in (500, 502):
            return last.verb == b"EHLO" and verb == b"HELO" and following.octets[4:] == line[4:]
        if last.verb == b"EHLO" and last.code == 503:
            again = self._before_tls[4:].lower() == last.octets[4:].lower()
            return verb == b"RSET" and again
        if last.code >= 300 and last.verb != b"STARTTLS":
            return False
        if last.verb == b"STARTTLS":
            return is_ehlo if last.code == 220 else verb == b"XCLIENT"
        if last.verb == b"XCLIENT":
            return is_ehlo or verb == b"XCLIENT"
        return last.verb in (b"EHLO", b"RSET") and verb in self._asks_for

    @property
    def _asks_for(self) -> tuple[bytes, ...]:
        """The proxy's own commands to the backend, if that offers them."""
        asks = self._policy.backend_tls in (BackendTls.OPPORTUNISTIC, BackendTls.REQUIRED)
        return (b"STARTTLS",) * asks + (b"XCLIENT",) * self._introduces

    def reply(self, line: bytes, reported: list[Said]) -> bytes:
        """Return what the client must get for its EHLO or HELO."""
        policy, inside, last = self._policy, self.inside_tls, reported[-1]
        said_ehlo = verb_of(line) == b"EHLO"
        refused = [said.reply for said in reported if said.code >= 300 and said.verb in HELLO]
        if last.code >= 300 and last.verb in (*HELLO, b"RSET"):
            return refused[0] if said_ehlo else last.reply
        if last.verb == b"HELO":
            helo_offer = reading.offered_for_helo(last.reply, policy, inside_tls=inside)
            return helo_offer if said_ehlo else last.reply
        if not said_ehlo:
            return b"250 " + self.offer.split(b"\r\n")[0][4:] + b"\r\n"
        return reading.offered(self.offer, policy, inside_tls=inside)
