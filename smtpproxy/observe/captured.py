"""Captured content: the first octets of each message that goes to the backend."""

from enum import Enum
from hashlib import sha256

from smtpproxy.core import commands
from smtpproxy.core.exchange import Exchange
from smtpproxy.observe.records import Exchanged
from smtpproxy.observe.text import text_of

DIGESTED_OCTETS = 16 * 1024
"""So much of a message goes into its digest: of all of it, it would cost as much as relaying it."""
HEADER_OCTETS = 64 * 1024
"""A header is kept up to this size."""


class Kept(Enum):
    """How much of message content is recorded."""

    NONE = "none"
    """Its size and its digest."""
    HEADERS = "headers"
    """Also its header."""
    FULL = "full"
    """Also all of it, up to a bound."""


class Captured:
    """Keeps the beginning of the message that is on its way, never more than `bound` octets.

    Chunks of one BDAT after another may be under way at once, so each is taken by its size.

    size: how many octets have come that were not taken.
    """

    __slots__ = ("_bound", "_chunks", "_kept", "size")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._chunks: list[bytes] = []
        self._kept = self.size = 0

    def add(self, octets: bytes) -> None:
        """Take in what goes to the backend now."""
        room = self._bound - self._kept
        if room > 0:
            chunk = octets[:room]
            self._chunks.append(chunk)
            self._kept += len(chunk)
        self.size += len(octets)

    def take(self, exchange: Exchange) -> tuple[bytes, int]:
        """Return what is kept of the content of an exchange, and how much there was."""
        kept, size = b"".join(self._chunks), self.size
        self._chunks.clear()
        self._kept = self.size = 0
        if exchange.verb.role == commands.BDAT and size > exchange.octets:
            rest = kept[exchange.octets :]
            kept = kept[: exchange.octets]
            size, more = exchange.octets, size - exchange.octets
            self._chunks = [rest]
            self._kept, self.size = len(rest), more
        return kept, size


def bound_of(kept: Kept, most: int) -> int:
    """Return how many octets of a message have to be captured."""
    return {
        Kept.NONE: DIGESTED_OCTETS,
        Kept.HEADERS: max(HEADER_OCTETS, DIGESTED_OCTETS),
        Kept.FULL: max(most, DIGESTED_OCTETS),
    }[kept]


def describe(record: Exchanged, octets: bytes, size: int, kept: Kept, most: int) -> None:
    """Put into the record of a message what is to be known of its content."""
    digested = octets[:DIGESTED_OCTETS]
    record.sha256 = sha256(digested).hexdigest()
    record.digested = len(digested)
    if kept is Kept.NONE:
        return
    if kept is Kept.HEADERS:
        end = octets.find(b"\r\n\r\n") + 4
        part = octets[:end] if end >= 4 else octets[:HEADER_OCTETS]
        if octets.startswith((b"\r\n", b".\r\n")):
            part = b""
    else:
        part = octets[:most]
    record.content = text_of(part)
    record.cut = len(part) < size
