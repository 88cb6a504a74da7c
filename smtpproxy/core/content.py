"""Message content: where it ends, and what a backend may see of bare CR, bare LF and NUL.

Only CRLF . CRLF ends it (RFC 5321 section 4.1.1.4), the CRLF of the DATA line counted, so that the
content may be empty.  Everything that some MTA takes for that end and another does not (SMTP
smuggling) is settled here.  Content is streamed: of what has come, only the few octets whose
meaning the next ones decide are kept back.
"""

import re
from enum import Enum

from smtpproxy.core.replies import BARE_NEWLINE
from smtpproxy.core.violations import ClientViolation

END_OF_DATA = b"\r\n.\r\n"
BULK = 4096
"""From this many octets on it pays to look whether all lines are equally long, as base64 is."""
SHORT = 16
"""Shorter lines are looked at one by one: there are too many in a chunk."""
SHOWN = 4
"""So many octets before and behind a bare CR, LF or NUL are shown to observers: it is content."""
LINE_KEPT = 2048
"""How much of an unfinished line `reject` keeps back to see whether it ends well."""

_SCRATCH = bytearray(256 * 1024)
_NEWLINE = re.compile(rb"\r?\r\n|\r|\n")
_LONE_DOT = re.compile(rb"(?<=\r\n)\.(?=\r\n)")
_IS_ODD = bytes(octet != ord("\n") for octet in range(256))
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)|\0")
_BARE_KIND = {b"\n": "bare_lf", b"\r": "bare_cr", b"\0": "bare_nul"}


class BareNewlines(Enum):
    """What becomes of a CR or LF that is not part of CRLF, and of NUL."""

    NORMALIZE = "normalize"
    """CRLF takes their place, NUL is dropped; a lone dot that comes of it is doubled."""
    REJECT = "reject"
    """The message is refused; nothing of the offending line or after it goes on."""
    PASS = "pass"  # noqa: S105  not a password
    """Nothing."""


class Content:
    """The content of one message on its way through.

    octets: how many have come, the end of data not counted.
    ended: the true end of data has come.
    violation: why it is refused (`reject` only); nothing more is given out then.
    mended: what `normalize` has changed first, and `reject` would have refused.
    """

    # Hot path (bench S4): whole chunks, no loop over lines.
    __slots__ = (
        "_kept",
        "_line_start",
        "_policy",
        "_tail",
        "ended",
        "mended",
        "octets",
        "violation",
    )

    def __init__(self, bare_newlines: BareNewlines) -> None:
        self._policy = bare_newlines
        self._tail = b"\r\n"  # the last octets as they came, to find an end that two chunks share
        self._kept = b""  # not yet given out: its meaning depends on what comes
        self._line_start = True  # what was given out ends in CRLF
        self.octets = 0
        self.ended = False
        self.violation: ClientViolation | None = None
        self.mended: ClientViolation | None = None

    def receive(self, octets: bytes) -> tuple[bytes, int]:
        """Return what goes to the backend, and how many of `octets` belong to the content."""
        end = self._find_end(octets)
        if end:
            self.ended = True
            octets = octets[:end]
            self.octets += end - 3
        else:
            self._tail = octets[-4:] if len(octets) >= 4 else (self._tail + octets)[-4:]
            self.octets += len(octets)
        taken = len(octets)
        if self.violation is not None:
            return b"", taken
        if self._policy is BareNewlines.PASS:
            return octets, taken
        if self._kept:
            octets, self._kept = self._kept + octets, b""
        if self._policy is BareNewlines.REJECT:
            return self._reject(octets), taken
        return self._normalize(octets), taken

    def _find_end(self, octets: bytes) -> int:
        """Return the index behind the true end of data, or 0."""
        tail = self._tail
        at = (tail + octets[:4]).find(END_OF_DATA)
        if at >= 0:
            return at + 5 - len(tail)
        dot = octets.find(b".")  # memchr: base64 has none, so a bulk chunk is passed over at once
        if dot < 0:
            return 0
        at = octets.find(END_OF_DATA, max(0, dot - 2))
        return at + 5 if at >= 0 else 0

    def _normalize(self, octets: bytes) -> bytes:
        """Give out lines that end in CRLF only, and a lone dot only as the true end of data."""
        changed = b"\0" in octets
        if changed:
            self._note(b"\0", octets.find(b"\0"), octets)
            octets = octets.replace(b"\0", b"")
        undecided = b""
        if not self.ended and octets.endswith(b"\r"):  # CR CR LF is one line end, CR CR is two
            undecided = b"\r\r" if octets.endswith(b"\r\r") else b"\r"
            octets = octets[: -len(undecided)]
        if not has_crlf_only(octets):
            bare = _BARE.search(octets)
            assert bare is not None
            self._note(bare[0], bare.start(), octets)
            octets = _NEWLINE.sub(b"\r\n", octets)
            changed = True
        if not self.ended and (octets.endswith(b"\r\n.") or (self._line_start and octets == b".")):
            undecided = b"." + undecided
            octets = octets[:-1]
        self._kept = undecided
        if changed and b"." in octets:
            octets = self._double_lone_dots(octets)
        if self._line_start and octets.startswith(b".\r\n") and len(octets) > 3 * self.ended:
            octets = b"." + octets
        if octets:
            self._line_start = octets.endswith(b"\r\n")
        return octets

    def _note(self, bare: bytes, at: int, octets: bytes) -> None:
        """Note the first thing that is mended, so that one can tell whom `reject` would refuse."""
        if self.mended is None:
            self.mended = _violation(bare, at, octets)

    def _double_lone_dots(self, octets: bytes) -> bytes:
        """Double the dots that have become a line of their own, but for the true end of data."""
        if self.ended:
            return _LONE_DOT.sub(b"..", octets[:-3]) + octets[-3:]
        return _LONE_DOT.sub(b"..", octets)

    def _reject(self, octets: bytes) -> bytes:
        """Give out whole lines up to the first that has a bare CR, bare LF or NUL in it."""
        cut = octets.rfind(b"\n") + 1
        if len(octets) - cut > LINE_KEPT:  # too long a line to wait for its end
            cut = len(octets) - octets.endswith(b"\r")
        octets, self._kept = octets[:cut], octets[cut:]
        if b"\0" not in octets and has_crlf_only(octets):
            return octets
        bare = _BARE.search(octets)
        assert bare is not None
        self._kept = b""
        self.violation = _violation(bare[0], bare.start(), octets)
        line = octets.rfind(b"\r\n", 0, bare.start())
        return octets[: line + 2] if line >= 0 else b""


def _violation(bare: bytes, at: int, octets: bytes) -> ClientViolation:
    kind = _BARE_KIND[bare]
    around = octets[max(0, at - SHOWN) : at + SHOWN + 1]
    return ClientViolation(kind, BARE_NEWLINE[kind], around, closes=True)


def has_crlf_only(octets: bytes) -> bool:
    """Tell whether each CR is followed by LF and each LF preceded by CR.

    Passes of memchr only: CR taken out and put before each LF again gives the same octets.  What
    is regular is looked at in a faster way.
    """
    # Hot path (bench S4).
    begin, end = _find_run(octets) if BULK <= len(octets) <= len(_SCRATCH) else (0, 0)
    if begin == end:
        return octets.replace(b"\r", b"").replace(b"\n", b"\r\n") == octets
    return has_crlf_only(octets[:begin]) and has_crlf_only(octets[end:])


def _find_run(octets: bytes) -> tuple[int, int]:
    """Return begin and end of the lines around the middle that are all well and equally long.

    0, 0 if they are too few.  Five times as fast as the general way, and bulk is mostly base64.
    The columns of the line ends are compared as a whole; with them overwritten no other CR or LF
    may be left.
    """
    middle = octets.find(b"\n", len(octets) // 2)
    width = octets.find(b"\n", middle + 1) - middle
    if middle < 0 or width < SHORT:
        return 0, 0
    odd = octets[middle % width :: width].translate(_IS_ODD)
    first = odd.rfind(1, 0, middle // width) + 1
    beyond = odd.find(1, middle // width)
    lines = (beyond if beyond >= 0 else len(odd)) - first - 1
    size = lines * width
    begin = middle % width + first * width + 1
    end = begin + size
    if size < len(octets) // 2 or octets[begin + width - 2 : end : width] != b"\r" * lines:
        return 0, 0
    # One buffer for all: to allocate so much each time costs page faults.
    memoryview(_SCRATCH)[:size] = memoryview(octets)[begin:end]
    blank = bytes(lines)
    _SCRATCH[width - 1 : size : width] = _SCRATCH[width - 2 : size : width] = blank
    if _SCRATCH.find(b"\n", 0, size) >= 0 or _SCRATCH.find(b"\r", 0, size) >= 0:
        return 0, 0
    return begin, end
