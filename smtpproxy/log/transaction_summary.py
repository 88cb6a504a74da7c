"""The summary of a mail transaction for the log (RFC 5321 section 3.3)."""

import re
from typing import Any, Literal

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.log.log import ADDRESS_BYTES
from smtpproxy.log.message_identifiers import queue_id_of
from smtpproxy.text.escaping import BACKSLASH, printable, shortened

_PATH = re.compile(rb"[^:\n]*:?[ \t]*<?([^>\r\n]*)[^\n]*\n")
"""A command line, and in it the path; all lines at once, since there can be hundreds."""
KEPT_BYTES = 10 * 1024
"""The most that is kept of the command lines; beyond it recipients are only counted."""
LINE_BYTES = 8
"""The least memory that a line takes besides its text, so that many short lines are bounded."""
KEPT_LINE = ADDRESS_BYTES + 32
"""The most that is kept of one line: the verb and an address."""
KEPT_REPLY = 512
"""The most bytes that are kept of the reply that decides."""
REFUSAL_BYTES = 200
"""The most that is kept of the reply to a refused recipient."""
KEPT_COMMANDS = 1000
"""The number of commands for which the groups are kept."""


Outcome = Literal["message_relayed", "message_refused", "message_abandoned"]
"""The outcome of a transaction: the name of its log event."""


class TransactionSummary:
    """One transaction, from MAIL to the reply to its end of data, or to its abandonment.

    Only what the log shows is kept, so that an open transaction takes little memory.
    """

    __slots__ = (
        "_accepted",
        "_began",
        "_fields",
        "_mail",
        "_more_accepted",
        "_more_refused",
        "_octets",
        "_pipelined",
        "_refusals",
        "_refused",
        "_replied",
        "_room",
        "header_ended",
        "message_id",
        "reply",
    )

    reply: bytes
    """The reply to the end of data, or the last refusal; empty if there is none."""
    message_id: bytes
    """The Message-ID of the header; empty if there is none."""
    header_ended: bool
    """Whether the header is complete, so that no Message-ID is searched any more."""

    def __init__(self, mail: Exchange) -> None:
        self._mail = _kept(mail.line)
        self._began = mail.framed
        self._replied = mail.replied or mail.framed
        self._accepted: list[bytes] = []
        self._refused: list[bytes] = []
        self._refusals: list[bytes] = []  # the replies to them
        self.message_id = b""
        self.header_ended = False
        self._pipelined = bytearray()
        self._room = KEPT_BYTES
        self._more_accepted = self._more_refused = self._octets = 0
        self.reply = mail.reply[:KEPT_REPLY] if mail.code >= 300 else b""
        self._fields: dict[str, Any] = {}

    def add(self, exchange: Exchange) -> None:
        """Add the next exchange of the transaction."""
        self._octets += exchange.octets
        self._replied = exchange.replied or self._replied
        if len(self._pipelined) < KEPT_COMMANDS:
            self._pipelined.append(exchange.pipelined)
        if exchange.verb.role == verbs.RCPT:
            self._add_recipient(exchange)

    def add_header(self, message_id: bytes, *, ended: bool) -> None:
        """Add what was found in the next part of the header.

        Args:
            message_id: The Message-ID; empty if it was not found.
            ended: Whether the header is complete.
        """
        self.message_id = message_id
        self.header_ended = ended

    def _add_recipient(self, exchange: Exchange) -> None:
        line = exchange.line
        if len(line) > KEPT_LINE:
            line = _kept(line)
        self._room -= len(line) + LINE_BYTES
        if exchange.code < 300:
            if self._room >= 0:
                self._accepted.append(line)
            else:
                self._more_accepted += 1
            return
        reply = exchange.reply[:REFUSAL_BYTES]
        self._room -= len(reply)
        if self._room >= 0:
            self._refused.append(line)
            self._refusals.append(reply)
        else:
            self._more_refused += 1

    def end(self, exchange: Exchange) -> None:
        """Add the last exchange, whose reply decides.

        Of chunks that the backend did not get after it had refused an earlier one, none does.
        """
        self.add(exchange)
        if exchange.sent or exchange.verb.role != verbs.BDAT or not self.reply:
            self.reply = exchange.reply[:KEPT_REPLY]

    @property
    def outcome(self) -> Outcome:
        """Return the name of the log event."""
        if self.reply[:1] == b"2":
            return "message_relayed"
        return "message_refused" if self.reply else "message_abandoned"

    def fields(self) -> dict[str, Any]:
        """Return the fields of the log event, after the last exchange."""
        if not self._fields:
            self._fields = self._make_fields()
            self._accepted = self._refused = self._refusals = []
        return self._fields

    def _make_fields(self) -> dict[str, object]:
        sender, *recipients = paths([self._mail, *self._accepted])
        shown, room = _fitting(recipients, KEPT_BYTES)
        refused: list[str] = []
        shown_refused = refused
        if self._refused:
            refused = self._refused_with_replies()
            shown_refused, _ = _fitting(refused, room)
        # A group is begun by what was not pipelined; MAIL begins the first in any case.
        begun = bytes(self._pipelined).split(b"\0")
        fields: dict[str, object] = {
            "sender": sender,
            "recipients": shown,
            "refused": shown_refused,
            "size_bytes": self._octets,
            "reply": self.reply.rstrip(),
            "duration_s": round(self._replied - self._began, 4),
            "groups": [len(pipelined) + 1 for pipelined in begun],
        }
        if self.message_id:
            fields["message_id"] = self.message_id
        if self.outcome == "message_relayed" and (queue_id := queue_id_of(self.reply)):
            fields["queue_id"] = queue_id
        if more := self._more_accepted + len(recipients) - len(shown):
            fields["more_recipients"] = more
        if more := self._more_refused + len(refused) - len(shown_refused):
            fields["more_refused"] = more
        return fields

    def _refused_with_replies(self) -> list[str]:
        pairs = zip(paths(self._refused), self._refusals, strict=True)
        return [f"{path} {text_of_reply(reply)}" for path, reply in pairs]


def text_of_reply(reply: bytes) -> str:
    """Return a reply as one line of text: its code once, then the text of each of its lines."""
    texts = [line[4:].strip() for line in reply.splitlines()]
    return printable(b" ".join([reply[:3], *filter(None, texts)]))


def _kept(line: bytes) -> bytes:
    return line if len(line) <= KEPT_LINE else line[:KEPT_LINE] + b"\n"


def _fitting(texts: list[str], room: int) -> tuple[list[str], int]:
    """Return the first texts, as many as there is room for in a JSON line, and the room left.

    What is escaped takes more room than its command line did.
    """
    joined = "".join(texts)
    if joined.isascii() and "\\" not in joined and '"' not in joined:
        return texts, room - len(joined) - 3 * len(texts)
    for number, text in enumerate(texts):
        room -= len(text.encode()) + text.count("\\") + text.count('"') + 3
        if room < 0:
            return texts[:number], 0
    return texts, room


def paths(lines: list[bytes]) -> list[str]:
    """Return the address of each MAIL or RCPT line, without its angle brackets and parameters.

    Each is one line of at most ADDRESS_BYTES.
    """
    if not lines:
        return []
    found = _PATH.findall(b"".join(lines))
    assert len(found) == len(lines)
    joined = b"\n".join(found)
    if (
        joined.isascii()
        and BACKSLASH not in joined
        and (text := joined.decode()).replace("\n", "").isprintable()
        and len(max(found, key=len)) <= ADDRESS_BYTES
    ):
        return text.split("\n")
    return [shortened(path, ADDRESS_BYTES) for path in found]
