"""The findings of a probe run: facts about a server, without advice.

All bytes in the findings come from the server and must be escaped before they are shown.
"""

from dataclasses import dataclass, field

from smtpproxy.config.address import Address
from smtpproxy.probe.behaviour_checks import DataWithoutRecipients, NewlineResult, RelayResult
from smtpproxy.probe.pipelining_checks import GroupEnd, GroupResult
from smtpproxy.probe.smtp_connection import ProbeReply
from smtpproxy.probe.tls_checks import TlsFindings


@dataclass(slots=True)
class Findings:
    """The findings about one server.

    `data`, `lf`, `cr`, `tls` and `relay` are None if the check was not run or had no result.
    """

    address: Address
    greeting: ProbeReply
    ip: str = ""
    """The IP address that the connections went to."""
    name: str = ""
    """The name that the probe sent in EHLO."""
    refusal: str = ""
    """Why the run ended early, as a sentence; empty if it did not."""
    hello: ProbeReply | None = None
    """The reply to EHLO, or to HELO if EHLO was refused."""
    ehlo_refused: ProbeReply | None = None
    """The reply to EHLO of a server that knows only HELO."""
    is_implicit: bool = False
    """Whether the server expects implicit TLS."""
    insists_on_tls: bool = False
    """Whether the server takes no mail before STARTTLS."""
    groups: list[GroupResult] = field(default_factory=list)
    data: DataWithoutRecipients | None = None
    lf: NewlineResult | None = None
    cr: NewlineResult | None = None
    tls: TlsFindings | None = None
    relay: RelayResult | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """The reply times by verb, of commands that were sent alone."""
    undetermined: dict[str, str] = field(default_factory=dict)
    """Why a check had no result, by the name of the check."""
    connections: int = 0
    """How many connections the run opened."""
    took_s: float = 0.0
    """How long the run took."""

    @property
    def capabilities(self) -> list[bytes]:
        """The lines of the EHLO reply after the first, without their reply code."""
        return [] if self.hello is None or self.ehlo_refused else _lines(self.hello)

    @property
    def inside(self) -> list[bytes]:
        """The capabilities that are offered only inside TLS."""
        if self.tls is None or self.tls.inside is None or not self.tls.inside.is_accepting:
            return []
        return [line for line in _lines(self.tls.inside) if line not in self.capabilities]

    @property
    def words(self) -> set[bytes]:
        """The keywords of the capabilities, in upper case."""
        return {word_of(line) for line in self.capabilities}

    @property
    def offers_pipelining(self) -> bool:
        """Whether the server itself offers PIPELINING."""
        return b"PIPELINING" in self.words or b"PIPELINING" in map(word_of, self.inside)

    @property
    def offers_xclient(self) -> bool:
        """Whether the server accepts client addresses from this machine by XCLIENT."""
        parameters = [line.upper().split() for line in self.capabilities]
        return any(words[:1] == [b"XCLIENT"] and b"ADDR" in words for words in parameters)

    @property
    def loses_groups(self) -> bool:
        """Whether a group was not answered as a server with PIPELINING must."""
        return any(group.end is not GroupEnd.ANSWERED for group in self.groups)


def word_of(line: bytes) -> bytes:
    """Return the keyword of a capability line; for `AUTH=LOGIN`, an old form, it is AUTH."""
    words = line.split(None, 1)
    return words[0].split(b"=", 1)[0].upper() if words else b""


def _lines(reply: ProbeReply) -> list[bytes]:
    return [line[4:] for line in reply.octets.split(b"\r\n")[1:-1]]
