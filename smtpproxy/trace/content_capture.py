"""Captured content: the first octets of each message, as received and as sent to the backend."""

from enum import Enum
from hashlib import sha256

from msgspec import Struct

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange

DIGESTED_OCTETS = 16 * 1024
"""How much of a message is digested: to digest it all would cost as much as to relay it."""
SMALL_OCTETS = 4096
"""Shorter chunks are joined: each alone would take more memory than its octets."""
CAME_OCTETS = 64 * 1024
"""How much content is recorded as received, where it is not what was sent to the backend."""
HEADER_OCTETS = 64 * 1024
"""How much of a header is kept."""


class CaptureMode(Enum):
    """How much of message content is recorded."""

    NONE = "none"
    """Its size and its digest."""
    HEADERS = "headers"
    """Also its header."""
    FULL = "full"
    """Also all of it, up to a bound."""


_NOTHING_DIGESTED = sha256()


class CapturedContent(Struct, gc=False):
    """What is recorded of the content of one exchange."""

    sha256: str = ""
    """The SHA-256 of its first octets as sent to the backend, in hexadecimal."""
    digested: int = 0
    """Of how many octets that is."""
    text: bytes = b""
    """The content as sent to the backend, as far as the settings ask for it."""
    cut: bool = False
    """There was more content."""
    came: bytes = b""
    """The content as received, where that is not the same."""

    @property
    def octets(self) -> int:
        """How many octets are recorded."""
        return len(self.text) + len(self.came)


class ContentCapture:
    """Keeps the beginning of a message while it is relayed, up to a bound.

    Several BDAT chunks may be under way at once, so each is taken by its size.

    Args:
        kept: How much is recorded.
        most: How many octets of it, for CaptureMode.FULL.
        under_way: How many octets are kept of a message while it is relayed; None: as many as are
            recorded.
    """

    __slots__ = ("_came", "_kept", "_most", "_sent", "any")

    any: bool
    """Whether there is captured content that `take` has not returned yet."""

    def __init__(self, kept: CaptureMode, most: int, under_way: int | None = None) -> None:
        self._kept = kept
        self._most = most
        bound = max(_BOUNDS[kept] or most, DIGESTED_OCTETS)
        if under_way is not None:
            bound = min(bound, under_way)
        self._sent = _Chunks(bound)
        self._came = _Chunks(min(bound, CAME_OCTETS)) if kept is CaptureMode.FULL else None
        self.any = False

    @property
    def octets(self) -> int:
        """How many octets are kept now."""
        return self._sent.kept + (self._came.kept if self._came is not None else 0)

    @property
    def full(self) -> bool:
        """Whether nothing more is kept until some is taken."""
        return not self._sent.room and (self._came is None or not self._came.room)

    def add(self, sent: bytes, came: bytes) -> int:
        """Take in what is sent to the backend, and what was received for it.

        Returns:
            How many octets of it are kept.
        """
        self.any = True
        if self._came is None:
            return self._sent.add(sent)
        return self._sent.add(sent) + self._came.add(came)

    def leave_out(self, sent: bytes, came: bytes) -> int:
        """Count what is sent to the backend, and keep no more of this message."""
        self._sent.close()
        if self._came is not None:
            self._came.close()
        return self.add(sent, came)

    def take(self, exchange: Exchange, *, digested: bool) -> CapturedContent | None:
        """Return what is to be recorded of the content of an exchange; None for nothing."""
        # Payload that becomes content has another size then, and only one chunk is under way.
        is_payload = exchange.verb.role == verbs.BDAT and not exchange.is_content_chunk
        most = exchange.octets if is_payload else None
        octets, size = self._sent.take(most)
        self.any = self._sent.size > 0
        if not digested and self._kept is CaptureMode.NONE:
            return None
        content = _digest_of(octets[:DIGESTED_OCTETS]) if digested else CapturedContent()
        if self._kept is CaptureMode.NONE:
            return content
        content.text = text = self._part_of(octets)
        content.cut = len(text) < size
        if self._came is not None:
            came, came_size = self._came.take(most)
            came = came[: self._most]
            if came_size != size or not octets.startswith(came):
                content.came = came
                content.cut = content.cut or len(came) < came_size
        return content

    def _part_of(self, octets: bytes) -> bytes:
        if self._kept is CaptureMode.FULL:
            return octets[: self._most]
        if octets.startswith((b"\r\n", b".\r\n")):
            return b""
        end = octets.find(b"\r\n\r\n") + 4
        return octets[:end] if end >= 4 else octets[:HEADER_OCTETS]


def _digest_of(octets: bytes) -> CapturedContent:
    digest = _NOTHING_DIGESTED.copy()  # to look up the algorithm costs as much as to use it
    digest.update(octets)
    return CapturedContent(digest.hexdigest(), len(octets))


class _Chunks:
    """The first octets of what comes in chunks."""

    __slots__ = ("_bound", "_chunks", "kept", "room", "size")

    size: int
    """How many octets came."""
    kept: int
    """How many of them are kept."""
    room: int
    """How many more may be kept."""

    def __init__(self, bound: int) -> None:
        self._bound = self.room = bound
        self._chunks: list[bytes | bytearray] = []
        self.size = self.kept = 0

    def close(self) -> None:
        """Keep no more until all is taken."""
        self.room = 0

    def add(self, octets: bytes) -> int:
        size = len(octets)
        self.size += size
        if not self.room:
            return 0
        if size > self.room:
            octets = octets[: self.room]
            size = self.room
        self.room -= size
        self.kept += size
        if size >= SMALL_OCTETS:
            self._chunks.append(octets)
        elif self._chunks and isinstance(self._chunks[-1], bytearray):
            self._chunks[-1] += octets
        else:
            self._chunks.append(bytearray(octets))
        return size

    def take(self, most: int | None) -> tuple[bytes, int]:
        """Return what is kept, and how much came; of that, `most` octets, if given."""
        size = self.size
        octets = b"".join(self._chunks)
        self._chunks.clear()
        if most is None:
            self.size = self.kept = 0
            self.room = self._bound
            return octets, size
        rest = octets[most:]
        if rest:
            self._chunks.append(rest)
        self.kept = len(rest)
        self.size = max(0, size - most)
        self.room = self._bound - self.kept
        return octets[:most], size - self.size


_BOUNDS = {
    CaptureMode.NONE: DIGESTED_OCTETS,
    CaptureMode.HEADERS: HEADER_OCTETS,
    CaptureMode.FULL: 0,
}
"""How many octets of a message have to be captured; 0: as many as may be recorded."""
