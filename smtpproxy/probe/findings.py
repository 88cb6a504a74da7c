"""Findings: what an examination has learned of a server, without a word on what to do about it.

All octets in here are the server's own: hostile until they have been escaped.
"""

from dataclasses import dataclass, field

from smtpproxy.config.address import Address
from smtpproxy.probe.behaviour_checks import DataWithoutRecipients, NewlineResult, RelayResult
from smtpproxy.probe.pipelining_checks import GroupEnd, GroupResult
from smtpproxy.probe.smtp_connection import ProbeReply
from smtpproxy.probe.tls_checks import TlsFindings


@dataclass(slots=True)
class Findings:
    """Everything about one server.

    name: what it was told in EHLO.  ip: where it was reached.
    refusal: why nothing more could be examined, a sentence; else empty.
    ehlo_refused: the reply to EHLO where only HELO is known; `hello` is the reply to that.
    is_implicit: TLS comes first.  insists_on_tls: it takes no mail without STARTTLS.
    tls, data, lf, cr, relay: None where it could not be told, or was not asked.
    seconds: verb -> of each reply to a command that travelled alone.
    undetermined: test -> why it told nothing.
    """

    address: Address
    greeting: ProbeReply
    ip: str = ""
    name: str = ""
    refusal: str = ""
    hello: ProbeReply | None = None
    ehlo_refused: ProbeReply | None = None
    is_implicit: bool = False
    insists_on_tls: bool = False
    groups: list[GroupResult] = field(default_factory=list)
    data: DataWithoutRecipients | None = None
    lf: NewlineResult | None = None
    cr: NewlineResult | None = None
    tls: TlsFindings | None = None
    relay: RelayResult | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    undetermined: dict[str, str] = field(default_factory=dict)
    connections: int = 0
    took_s: float = 0.0

    @property
    def capabilities(self) -> list[bytes]:
        """The lines of the reply to EHLO behind the first, without their code."""
        return [] if self.hello is None or self.ehlo_refused else _lines(self.hello)

    @property
    def inside(self) -> list[bytes]:
        """The capabilities that are offered inside TLS only."""
        if self.tls is None or self.tls.inside is None or not self.tls.inside.is_accepting:
            return []
        return [line for line in _lines(self.tls.inside) if line not in self.capabilities]

    @property
    def words(self) -> set[bytes]:
        """The keywords of the capabilities, in capitals."""
        return {word_of(line) for line in self.capabilities}

    @property
    def offers_pipelining(self) -> bool:
        """Whether the server itself promises what the proxy adds."""
        return b"PIPELINING" in self.words or b"PIPELINING" in map(word_of, self.inside)

    @property
    def offers_xclient(self) -> bool:
        """Whether this machine may tell it the addresses of clients."""
        parameters = [line.upper().split() for line in self.capabilities]
        return any(words[:1] == [b"XCLIENT"] and b"ADDR" in words for words in parameters)

    @property
    def loses_groups(self) -> bool:
        """Whether a group was not answered as a server with PIPELINING must."""
        return any(group.end is not GroupEnd.ANSWERED for group in self.groups)


def word_of(line: bytes) -> bytes:
    """Return the keyword of a capability; `AUTH=LOGIN` is AUTH as old clients want it."""
    words = line.split(None, 1)
    return words[0].split(b"=", 1)[0].upper() if words else b""


def _lines(reply: ProbeReply) -> list[bytes]:
    return [line[4:] for line in reply.octets.split(b"\r\n")[1:-1]]
