"""The mail transaction: what a session's exchanges come to (RFC 5321 section 3.3)."""

import re

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.text.escaping import printable

_PATH = re.compile(rb"[^:\n]*:?[ \t]*<?([^>\r\n]*)[^\n]*\n")
"""A command line, and in it the path; all lines at once, since there can be hundreds."""
KEPT_EXCHANGES = 1000
"""How many exchanges of a transaction are kept; those beyond it are only counted."""


class TransactionSummary:
    """One transaction, from MAIL to the reply to its end of data or to what cut it short.

    reply: the one that decides: of the end of data, or the last refusal; empty if there is none.
    """

    __slots__ = ("_kept", "_mail", "_more", "_octets", "reply")

    def __init__(self, mail: Exchange) -> None:
        self._mail = mail
        self._kept: list[Exchange] = []
        self._more = self._octets = 0
        self.reply = mail.reply if mail.code >= 300 else b""

    def add(self, exchange: Exchange) -> None:
        """Take in the next exchange of the transaction."""
        self._octets += exchange.octets
        if len(self._kept) < KEPT_EXCHANGES:
            self._kept.append(exchange)
        else:
            self._more += 1

    def end(self, exchange: Exchange) -> None:
        """Take in the exchange that decides."""
        self._octets += exchange.octets
        self._kept.append(exchange)
        self.reply = exchange.reply

    @property
    def outcome(self) -> str:
        """Return what became of it, as the log's event."""
        if self.reply[:1] == b"2":
            return "message_relayed"
        return "message_refused" if self.reply else "message_abandoned"

    def fields(self) -> dict[str, object]:
        """Return what the log says of it; sizes in octets."""
        kept = self._kept
        rcpts = [exchange for exchange in kept if exchange.verb.role == verbs.RCPT]
        refused = [exchange for exchange in rcpts if exchange.code >= 300]
        if refused:
            rcpts = [exchange for exchange in rcpts if exchange.code < 300]
        sender, *recipients = paths([self._mail.line] + [exchange.line for exchange in rcpts])
        # A group is begun by what was not pipelined; MAIL begins the first in any case.
        begun = bytes([exchange.pipelined for exchange in kept]).split(b"\0")
        last = kept[-1] if kept else self._mail
        fields: dict[str, object] = {
            "sender": sender,
            "recipients": recipients,
            "refused": _refusals(refused) if refused else [],
            "size": self._octets,
            "reply": self.reply.rstrip(),
            "seconds": round(last.replied - self._mail.framed, 4),
            "groups": [len(pipelined) + 1 for pipelined in begun],
        }
        if self._more:
            fields["commands_not_shown"] = self._more
        return fields


def _refusals(exchanges: list[Exchange]) -> list[str]:
    found = paths([exchange.line for exchange in exchanges])
    return [f"{path} {each.code}" for path, each in zip(found, exchanges, strict=True)]


def paths(lines: list[bytes]) -> list[str]:
    """Return the address of each MAIL or RCPT line, without its angle brackets and parameters."""
    found = _PATH.findall(b"".join(lines))
    assert len(found) == len(lines)
    joined = b"\n".join(found)
    if (
        joined.isascii()
        and b"\\" not in joined
        and (text := joined.decode()).replace("\n", "").isprintable()
    ):
        return text.split("\n") if found else []
    return [printable(path) for path in found]
