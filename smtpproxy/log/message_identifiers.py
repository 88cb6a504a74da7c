"""The identifiers of a message: its Message-ID, and its queue id in the MTA's log."""

import re

MESSAGE_ID_BYTES = 500
"""The longest Message-ID that is found; RFC 5322 section 2.1.1 allows lines of 998."""
HEADER_BYTES = 64 * 1024
"""How much of a header is scanned for the Message-ID."""
_TAIL_BYTES = 1024
"""How much of a chunk is kept, since the field may continue in the next chunk."""

_NAME = b"".join(b"[%c%c]" % (each, each ^ 0x20) for each in b"message") + b"-[iI][dD]"
# Both are as fast as a search for their first bytes, which is why case is written out.
_FIELD = re.compile(
    rb"\r\n%s:(?:[ \t]|\r\n[ \t]){0,80}(<[^<>\s]{1,%d}>|[^<>\s]{1,%d}(?=\s))"
    % (_NAME, MESSAGE_ID_BYTES, MESSAGE_ID_BYTES)
)
_QUEUE_IDS = (
    (b"queued as ", re.compile(rb"queued as ([0-9A-Za-z]{4,32})\b")),  # Postfix
    (
        b" Message accepted",  # Sendmail and OpenSMTPD
        re.compile(rb"(?m)^250 (?:2\.0\.0 )?([0-9A-Za-z]{6,32}) Message accepted for delivery\b"),
    ),
    (b" id=", re.compile(rb" id=([0-9A-Za-z]{6,12}-[0-9A-Za-z]{6,12}-[0-9A-Za-z]{2,4})\b")),  # Exim
    (b"InternalId=", re.compile(rb"\bInternalId=([0-9]{1,20})\b")),  # Exchange
    (b" qp ", re.compile(rb" qp ([0-9]{1,20})\b")),  # qmail
)


def queue_id_of(reply: bytes) -> str:
    """Return the queue id in an MTA's reply to the end of data; empty if there is none.

    Args:
        reply: The reply of Postfix, Exim, Sendmail, OpenSMTPD, Exchange or qmail.
    """
    for words, pattern in _QUEUE_IDS:
        if reply.find(words) >= 0 and (found := pattern.search(reply)):
            return found[1].decode("ascii")
    return ""


class MessageIdScanner:
    """Finds the Message-ID of a message that arrives in chunks, in bounded memory."""

    __slots__ = ("_scanned", "_tail", "ended", "message_id")

    ended: bool
    """Whether the header is complete or the Message-ID is found; the rest is not scanned."""
    message_id: bytes
    """Including its angle brackets (RFC 5322 section 3.6.4); empty if there is none."""

    def __init__(self) -> None:
        self._tail = b"\r\n"  # the field may be the first one
        self._scanned = 0
        self.ended = False
        self.message_id = b""

    def add(self, octets: bytes) -> None:
        """Scan the next chunk of the message."""
        if self.ended:
            return
        end = octets.find(b"\r\n\r\n", 0, HEADER_BYTES)
        text = self._tail + octets[: end + 2 if end >= 0 else HEADER_BYTES]
        # The empty line may begin in the chunk before, and the first line be the empty one.
        begin = text.find(b"\r\n\r\n", 0, len(self._tail) + 3)
        if begin >= 0:
            end, text = 0, text[: begin + 2]
        self._scanned += len(octets)
        found = _FIELD.search(text)
        if found is not None:
            self.message_id = found[1]
        if found is not None or end >= 0 or self._scanned > HEADER_BYTES:
            self.ended = True
            self._tail = b""
        else:
            self._tail = text[-_TAIL_BYTES:]
