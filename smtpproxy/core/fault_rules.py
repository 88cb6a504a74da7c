"""Fault rules: which commands of a session get an injected fault (`smtpproxy run --fault`).

The rules only decide; `smtpproxy.net.fault_injection` does what they say.  No rule lets the proxy
acknowledge anything: a reply of a rule is a 4xx or a 5xx.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange

CONNECT: Final = b"CONNECT"
"""The greeting of the MTA, before the client gets it."""
END_OF_DATA: Final = b"END_OF_DATA"
"""The end of data, and the last BDAT chunk."""
FAULT_VERBS: Final = (
    CONNECT,
    *(row.name for row in verbs.ROWS if row.name and not row.refusal),
    b"STARTTLS",
    END_OF_DATA,
)
"""The verbs of rules: each command that the MTA may get, STARTTLS, and the two above."""
WITH_SENDER: Final = frozenset((b"MAIL", b"RCPT", b"DATA", b"BDAT", END_OF_DATA))
"""The verbs of rules that may have a pattern for the sender."""
WITH_RECIPIENT: Final = WITH_SENDER - {b"MAIL"}
"""The verbs of rules that may have a pattern for the recipient."""

_ENDS_MESSAGE: Final = frozenset((b"DATA", b"BDAT"))
_ENVELOPE: Final = frozenset((b"MAIL", b"SEND", b"SOML", b"SAML", b"RCPT"))
_PATH: Final = re.compile(rb"[^:]*:[ \t]*(?:<([^>]*)|([^ \t\r\n]*))")


class FaultAction(Enum):
    """What a fault does."""

    REPLY = "reply"
    """The client gets the reply of the rule; the MTA does not get the command."""
    DELAY = "delay"
    """The MTA gets the command later."""
    STALL = "stall"
    """Neither the MTA gets the command nor the client a reply, until a time limit."""
    CLOSE = "close"
    """The client's connection is closed; the MTA does not get the command."""
    RESET = "reset"
    """The same with a reset."""
    CLOSE_AFTER = "close-after"
    """The client's connection is closed once the MTA has replied; the client gets no reply."""
    RESET_AFTER = "reset-after"
    """The same with a reset."""


@dataclass(frozen=True)
class FaultRule:
    """One fault, as a flag describes it."""

    text: str
    """The value of the flag, for log and trace."""
    verb: bytes
    """One of FAULT_VERBS."""
    action: FaultAction
    reply: bytes = b""
    """The reply of `FaultAction.REPLY`, with %b for the proxy's name."""
    seconds: float = 0.0
    """The delay of `FaultAction.DELAY`."""
    rate: float = 1.0
    """The share of the commands that get the fault."""
    client: IPv4Network | IPv6Network | None = None
    """The network of the clients; None for all."""
    sender: re.Pattern[str] | None = None
    """A pattern for the address of MAIL; None for all."""
    recipient: re.Pattern[str] | None = None
    """A pattern for the address of RCPT, or of one RCPT of the transaction; None for all."""


def intercepted(rules: Iterable[FaultRule]) -> frozenset[bytes]:
    """Return the verbs of the commands that rules must see, for `SessionPolicy.intercepted`."""
    found: set[bytes] = set()
    for rule in rules:
        found |= _ENDS_MESSAGE if rule.verb == END_OF_DATA else {rule.verb} - {CONNECT}
        if rule.sender or rule.recipient:
            found |= _ENVELOPE
    return frozenset(found)


class SessionFaults:
    """The decisions of one session, each of which follows from the seed and the session's number.

    So they do not depend on what other sessions do meanwhile.

    Args:
        rules: The rules, of which the first one that applies counts.
        seed: The seed of all decisions.
        number: The number of the session.
        client: The IP address of the client; another text if it has none.
    """

    def __init__(self, rules: Sequence[FaultRule], seed: int, number: int, client: str) -> None:
        self._rules = {
            index: rule for index, rule in enumerate(rules) if _is_in(client, rule.client)
        }
        self._stem = f"{seed}/{number}"
        self._drawn = dict.fromkeys(self._rules, 0)
        self._sender: str | None = None
        self._recipients: set[int] = set()  # the rules that match one of the transaction

    def for_connection(self) -> FaultRule | None:
        """Return the rule that applies to the greeting; call it once."""
        return self._first((CONNECT,), self._recipients)

    def for_command(self, exchange: Exchange) -> FaultRule | None:
        """Return the rule that applies to a command, or to message content at its end.

        Call it once with each command of `intercepted`, in order, and with content.
        """
        role, matched = exchange.verb.role, self._recipients
        if role == verbs.MAIL:
            self._sender = _address(exchange.line)
            matched.clear()
        elif role == verbs.RCPT:
            address = _address(exchange.line)
            matched = {
                index
                for index, rule in self._rules.items()
                if rule.recipient and rule.recipient.match(address)
            }
            self._recipients |= matched
        name = b"" if role == verbs.END_OF_DATA else exchange.verb.name
        return self._first((name, END_OF_DATA) if exchange.ends_message else (name,), matched)

    def _first(self, names: tuple[bytes, ...], matched: set[int]) -> FaultRule | None:
        for index, rule in self._rules.items():
            if (
                rule.verb in names
                and (rule.recipient is None or index in matched)
                and (rule.sender is None or self._matches_sender(rule.sender))
                and self._draw(index, rule.rate)
            ):
                return rule
        return None

    def _matches_sender(self, pattern: re.Pattern[str]) -> bool:
        return self._sender is not None and pattern.match(self._sender) is not None

    def _draw(self, index: int, rate: float) -> bool:
        self._drawn[index] += 1
        text = f"{self._stem}/{index}/{self._drawn[index]}"
        number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
        return number < rate * 2**64


def _is_in(client: str, network: IPv4Network | IPv6Network | None) -> bool:
    if network is None:
        return True
    try:
        return ip_address(client) in network
    except ValueError:  # a Unix socket
        return False


def _address(line: bytes) -> str:
    """Return the address of a MAIL or RCPT line."""
    found = _PATH.match(line)
    path = found[1] or found[2] or b"" if found else b""
    return path.decode("utf-8", "surrogateescape")
