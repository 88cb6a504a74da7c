"""The dialogues of RFC 2920 section 4, and an early one, as data: groups and expected replies.

A dialogue has two versions, for the MTA itself and for the proxy, which may differ in the replies.
"""

from dataclasses import dataclass, replace

from smtpproxy.demo.legacy_session import ReceivedMessage

HOST = b"dbc.mtview.ca.us"
SENDER = b"mrose@dbc.mtview.ca.us"

CONTENT = (
    b"From: Marshall T. Rose <mrose@dbc.mtview.ca.us>\r\n"
    b"Subject: command pipelining\r\n"
    b"\r\n"
    b"..a line that begins with a dot\r\n"
    b"and one of 8 bits: caf\xc3\xa9\r\n"
    b".\r\n"
)
"""A message as sent, with dot-stuffing and end of data."""
DELIVERED = CONTENT.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n.")
"""The same message as the MTA must deliver it."""


@dataclass(frozen=True, slots=True)
class ScriptedExchange:
    """A command and its expected reply."""

    command: bytes
    """The command line with its CRLF, or the content including the end of data."""
    code: int
    """The expected reply code."""
    names: bytes = b""
    """Text that the reply must contain, such as the recipient, to detect a misplaced reply."""


Groups = tuple[tuple[ScriptedExchange, ...], ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One dialogue, and how the MTA of the demo must behave in it."""

    letter: str
    """The dialogue's name, "a" to "g"."""
    title: str
    straight: Groups
    """The groups with the MTA's expected replies; without PIPELINING, commands go one at a time."""
    proxied: Groups
    """The groups with the expected replies through the proxy."""
    refused: dict[bytes, bytes]
    """The recipients that the MTA refuses, each with the whole reply."""
    delivered: tuple[ReceivedMessage, ...]
    """The messages that the MTA must accept, in order."""
    failing: str = "none"
    """The MTA's fault, a key of `FAILINGS`."""
    reads_like: str = ""
    """The letter of the dialogue whose replies through the proxy must be identical; or empty."""

    @property
    def early(self) -> bool:
        """Whether the first group is sent before the greeting, since EHLO is not alone in it."""
        return is_early(self.proxied)


def golden(recipients: int = 3, failing: str = "none") -> tuple[Dialogue, ...]:
    """Return dialogues (a) to (f) of RFC 2920, and (g) with early pipelining.

    Args:
        recipients: The number of recipients in (b) and (g).
        failing: The MTA's fault, a key of `FAILINGS`.
    """
    refused_title = "2 recipients, both refused"
    return (
        _lock_step(failing),
        _accepted(recipients, failing),
        _refused("c", refused_title, failing),
        _refused("d", "the same, but DATA gets 354", "data-accepted", "c"),
        _mixed(failing),
        _two_transactions(failing),
        _early(recipients, failing),
    )


def _lock_step(failing: str) -> Dialogue:
    """Return (a): a client that sends HELO and does not pipeline."""
    addresses = _addresses(3)
    exchanges = [
        _hello(b"HELO"),
        _mail(),
        *(_rcpt(a) for a in addresses),
        _DATA,
        _CONTENT,
        _QUIT,
    ]
    groups = tuple((exchange,) for exchange in exchanges)
    delivered = (ReceivedMessage(SENDER, addresses, DELIVERED),)
    return Dialogue("a", "a client that never pipelines", groups, groups, {}, delivered, failing)


def _accepted(recipients: int, failing: str) -> Dialogue:
    """Return (b): pipelined, all recipients accepted."""
    addresses = _addresses(recipients)
    groups = ((_mail(), *(_rcpt(a) for a in addresses), _DATA), (_CONTENT, _QUIT))
    return Dialogue(
        "b",
        f"{recipients} recipient{'s' * (recipients != 1)}, all accepted",
        _straight_ehlo(failing) + groups,
        (_PROXIED_EHLO, *groups),
        {},
        (ReceivedMessage(SENDER, addresses, DELIVERED),),
        failing,
    )


def _refused(letter: str, title: str, failing: str, reads_like: str = "") -> Dialogue:
    """Return (c) or (d): all recipients refused, and DATA refused or accepted by the MTA."""
    addresses = (b"nsb@thumper.bellcore.com", b"galvin@tis.com")
    envelope = (_mail(), *(_rcpt(a, 550) for a in addresses))
    judged = ((*envelope, ScriptedExchange(b"DATA\r\n", 554)), (_QUIT,))
    # RFC 2920 section 3.1: after a 354 despite that, the client must send an empty message.
    misjudged = ((*envelope, _DATA), (ScriptedExchange(b".\r\n", 554), _QUIT))
    return Dialogue(
        letter,
        title,
        _straight_ehlo(failing) + (misjudged if failing == "data-accepted" else judged),
        (_PROXIED_EHLO, *judged),
        {a: b"550 <" + a + b">... User unknown" for a in addresses},
        (),
        failing,
        reads_like,
    )


def _mixed(failing: str) -> Dialogue:
    """Return (e): one recipient accepted, one refused, and the last one refused temporarily."""
    good, bad, later = b"ned@innosoft.com", b"nsb@thumper.bellcore.com", b"galvin@tis.com"
    envelope = (_mail(), _rcpt(good), _rcpt(bad, 550), _rcpt(later, 452))
    groups: Groups = ((*envelope, _DATA), (_CONTENT, _QUIT))
    delivered: tuple[ReceivedMessage, ...] = (ReceivedMessage(SENDER, (good,), DELIVERED),)
    if failing == "last-recipient":
        # The proxy cannot help here: the MTA refuses the message.
        groups, delivered = ((*envelope, ScriptedExchange(b"DATA\r\n", 554)), (_QUIT,)), ()
    return Dialogue(
        "e",
        "recipients get 250, 550, 452",
        _straight_ehlo(failing) + groups,
        (_PROXIED_EHLO, *groups),
        {
            bad: b"550 <" + bad + b">... User unknown",
            later: b"452 <" + later + b">... Mailbox full, try later",
        },
        delivered,
        failing,
    )


def _two_transactions(failing: str) -> Dialogue:
    """Return (f): two messages in one session, a multi-line refusal, RSET after end of data."""
    ned, dan, old = b"ned@innosoft.com", b"dan@innosoft.com", b"moved@innosoft.com"
    groups = (
        (_mail(), _rcpt(old, 551), _rcpt(ned), _DATA),
        (_CONTENT, ScriptedExchange(b"RSET\r\n", 250), _mail(), _rcpt(dan), _DATA),
        (_CONTENT, _QUIT),
    )
    moved = b"551-<" + old + b">... User has moved\r\n551 please try <ned@innosoft.com>"
    return Dialogue(
        "f",
        "2 messages, RSET in a group",
        _straight_ehlo(failing) + groups,
        (_PROXIED_EHLO, *groups),
        {old: moved},
        (ReceivedMessage(SENDER, (ned,), DELIVERED), ReceivedMessage(SENDER, (dan,), DELIVERED)),
        failing,
    )


def _early(recipients: int, failing: str) -> Dialogue:
    """Return (g): as (b), by a client that knows the proxy's offer from an earlier session."""
    accepted = _accepted(recipients, failing)
    _, envelope, end = accepted.proxied
    return replace(
        accepted,
        letter="g",
        title="as (b), before the greeting",
        proxied=((_hello(b"EHLO", names=b"PIPECONNECT"), *envelope), end),
    )


def is_early(groups: Groups) -> bool:
    """Return whether the first group is more than EHLO, which it may be before the greeting."""
    return len(groups[0]) > 1


def lock_step(groups: Groups) -> Groups:
    """Return each exchange as its own group, for a client that is not offered PIPELINING."""
    return tuple((exchange,) for group in groups for exchange in group)


def _addresses(count: int) -> tuple[bytes, ...]:
    known = [b"ned@innosoft.com", b"dan@innosoft.com", b"kvc@innosoft.com"]
    return tuple(known[:count] + [b"user%d@innosoft.com" % n for n in range(4, count + 1)])


def _hello(verb: bytes, code: int = 250, names: bytes = b"") -> ScriptedExchange:
    return ScriptedExchange(verb + b" " + HOST + b"\r\n", code, names)


def _mail() -> ScriptedExchange:
    return ScriptedExchange(b"MAIL FROM:<" + SENDER + b">\r\n", 250, SENDER)


def _rcpt(address: bytes, code: int = 250) -> ScriptedExchange:
    return ScriptedExchange(b"RCPT TO:<" + address + b">\r\n", code, b"<" + address + b">")


def _straight_ehlo(failing: str) -> Groups:
    if failing == "helo-only":
        return ((_hello(b"EHLO", 500),), (_hello(b"HELO"),))
    return ((_hello(b"EHLO"),),)


_PROXIED_EHLO = (_hello(b"EHLO", names=b"PIPELINING"),)
_DATA = ScriptedExchange(b"DATA\r\n", 354)
_CONTENT = ScriptedExchange(CONTENT, 250)
_QUIT = ScriptedExchange(b"QUIT\r\n", 221)
