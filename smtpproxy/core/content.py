"""Message content: where it ends, and what a backend may see of bare CR, bare LF and NUL.

Only CRLF . CRLF ends it (RFC 5321 section 4.1.1.4), the CRLF of the DATA line counted, so that the
content may be empty.  Everything that some MTA takes for that end and another does not (SMTP
smuggling) is settled here.  Content is streamed.

What content becomes does not depend on how it was cut.  What goes on, the end, the verdict and the
octets that observers are shown follow from the octets in their order, and from nothing else.  So
what is known of earlier octets is a state with a name, and a whole chunk goes a faster way only
where the states would change nothing in it.

Where content ends: so much of CRLF . CRLF has come last.  A dot there, and a CR after it, wait, for
they may be no content.

    has come last   then CR         then LF      then dot   then another
    nothing         CR              nothing      nothing    nothing
    CR              CR              CR LF        nothing    nothing
    CR LF           CR              nothing      CR LF .    nothing         at the start
    CR LF .         CR LF . CR      nothing      nothing    nothing
    CR LF . CR      CR              the end      nothing    nothing

What becomes of the octets before the end: with `normalize` see STEPS; with `reject` they are given
out by whole lines, up to the first line that has an offence in it; with `pass` as they come.
"""

import re
from enum import Enum
from typing import Final

from smtpproxy.core.replies import BARE_NEWLINE, MESSAGE_TOO_BIG
from smtpproxy.core.violations import ClientViolation

END_OF_DATA: Final = b"\r\n.\r\n"
BULK: Final = 4096
"""From this many octets on it pays to look whether all lines are equally long, as base64 is."""
SHORT: Final = 16
"""Shorter lines are looked at one by one: there are too many in a chunk."""
SHOWN: Final = 4
"""So many octets before and after a bare CR, LF or NUL are shown to observers: it is content."""
LINE_KEPT: Final = 2048
"""The octets of an unfinished line that `reject` keeps back until it is whole; the last ones."""

# The states of `normalize`: what has come last.  Hot path (bench S4): plain integers.
LINE: Final = 0
START: Final = 1
CR: Final = 2
CR_CR: Final = 3
NUL: Final = 4
DOT: Final = 5
_Step = tuple[bytes, int]
_CRLF, _DOTS = b"\r\n", b".."
# fmt: off
STEPS: Final[tuple[tuple[_Step, _Step, _Step, _Step, bytes], ...]] = (
    # The columns: what is given out and the next state for CR, for LF, for NUL and for a dot; at
    # last what is given out before any other octets, after which the state is LINE.
    #
    # LINE: in a line.
    ((b"", CR),      (_CRLF, START),         (b"", LINE),  (b".", LINE),               b""),
    # START: after an LF, or nothing has come.  The dot of the end of data does not come here.
    ((b"", CR),      (_CRLF, START),         (b"", NUL),   (b"", DOT),                 b""),
    # CR: it is one line end, with an LF and without.  A dot is doubled: it began no line.
    ((b"", CR_CR),   (_CRLF, START),         (b"", CR),    (_CRLF + _DOTS, LINE),      _CRLF),
    # CR_CR: with an LF they are one line end, without it two.
    ((_CRLF, CR_CR), (_CRLF, START),         (b"", CR_CR), (_CRLF * 2 + _DOTS, LINE),  _CRLF * 2),
    # NUL: of a line only NUL has come, which is dropped.  A dot is doubled: it began no line.
    ((b"", CR),      (_CRLF, START),         (b"", NUL),   (_DOTS, LINE),              b""),
    # DOT: it begins a line.  Alone in it, it is doubled; else it goes on as it came.
    ((_DOTS, CR),    (_DOTS + _CRLF, START), (b"", DOT),   (_DOTS, LINE),              b"."),
)
# fmt: on
_OF_PIECE: Final = tuple(
    dict(zip((b"\r", b"\n", b"\0", b"."), row[:4], strict=True)) for row in STEPS
)
_BEFORE_OTHERS: Final = tuple(row[4] for row in STEPS)
_PIECE: Final = re.compile(rb"[\r\n\0.]|[^\r\n\0]+")
"""What makes one step: CR, LF, NUL or dot, or others with the dots that follow them."""
_AGREED: Final = {LINE: b"", START: b"\r\n", CR: b"\r"}
"""What has come of the end of data, if no NUL and no bare CR or LF is among what came last."""

_BEGUN: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")
"""How much of the end of data may have come last; the most counts."""
_SCRATCH: Final = bytearray(256 * 1024)
_IS_ODD: Final = bytes(octet != ord("\n") for octet in range(256))
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\0", re.DOTALL)
# A dot first, which memchr finds, and what follows before what it follows: few end a line.
_DOT_ALONE: Final = re.compile(rb"\.[\r\n\0](?<=[\r\n\0]..)", re.DOTALL)
_DOT_LAST: Final = re.compile(rb"[\r\n\0]\.(?:\r|\r?\n)\Z")
_BARE_KIND: Final = {b"\n": "bare_lf", b"\r": "bare_cr", b"\0": "bare_nul"}


class BareNewlines(Enum):
    """What becomes of a CR or LF that is not part of CRLF, and of NUL."""

    NORMALIZE = "normalize"
    """CRLF takes their place, NUL is dropped; a dot that must not be read as another is doubled."""
    REJECT = "reject"
    """The message is refused; nothing of the offending line or after it goes on."""
    PASS = "pass"  # noqa: S105  not a password
    """Nothing."""


class Content:
    """The content of one message on its way through.

    octets: how many have come that are content for certain; never the end of data.
    ended: the true end of data has come.
    violation: why it is refused, by the first offence in the stream: a bare CR, LF or NUL (`reject`
    only), or the first octet over the size; nothing more is given out then.
    rewritten: the first bare CR, LF or NUL that `normalize` rewrote, and `reject` would refuse.
    dot_alone: a dot is alone in its line to some, and not the end of data.  With `pass`: it
        has gone on, so that the backend may think that it ends the message.  Else: it has come
        last, so that the client may think so.
    """

    # Hot path (bench S4): whole chunks, no loop over lines.
    __slots__ = (
        "_begun",
        "_line",
        "_most",
        "_policy",
        "_recent",
        "_state",
        "_tail",
        "_unshown",
        "dot_alone",
        "ended",
        "octets",
        "rewritten",
        "violation",
    )

    def __init__(self, policy: BareNewlines, most: int = 0) -> None:
        """Begin a message of at most `most` octets; 0: of any size."""
        self._policy = policy
        self._most = most
        self._begun = b"\r\n"  # of the end of data
        self._state = START
        self._line = b""  # of `reject`: what has come of a line and is not given out
        self._recent = b""  # the last octets, to be shown before an offence
        self._tail = b"\n"  # the last octets, before a dot
        self._unshown = 0  # how many are yet to be shown after it
        self.octets = 0
        self.ended = self.dot_alone = False
        self.violation: ClientViolation | None = None
        self.rewritten: ClientViolation | None = None

    def receive(self, octets: bytes) -> tuple[bytes, int]:
        """Return what goes to the backend, and how many of `octets` belong to the content."""
        begun = self._begun
        body, taken = self._find_body(octets)
        self.octets += len(body)
        if body:
            self._look_for_dot(body)
        too_big = 0 < self._most < self.octets
        if too_big:
            body = body[: max(0, len(body) + self._most - self.octets)]
        if self._unshown:
            self._show(body)
        # mypyc takes a None that was seen for lasting; but what is called below sets it.
        is_refused = self.violation is not None
        if is_refused:
            return b"", taken
        out = body
        if body and self._policy is not BareNewlines.PASS:
            if self._policy is BareNewlines.REJECT:
                out = self._reject(body)
            else:
                # Where both tables say the same of what came last, a dot alone in its line is
                # the end of data and nothing else.
                agreed = _AGREED.get(self._state) == begun[:2]
                out = self._normalize(body, at_once=agreed and not too_big)
            if self.rewritten is None and self.violation is None:
                recent = body if len(body) > SHOWN else self._recent + body
                self._recent = recent[-SHOWN - 1 :]
        if too_big and self.violation is None:
            self.violation = ClientViolation("message_too_big", MESSAGE_TOO_BIG, closes=True)
        if self.ended and self.violation is None:
            out += END_OF_DATA[2:]
        return out, taken

    # --- where it ends ------------------------------------------------------------------------

    def _find_body(self, octets: bytes) -> tuple[bytes, int]:
        """Return what is content for certain now, and how many of `octets` belong to it all."""
        waits = self._begun[2:]
        end = self._find_end(octets)
        if end:
            self.ended = True
            return (waits + octets[:end])[:-3], end
        size = len(octets)
        last = octets if size >= 4 else self._begun + octets
        self._begun = b""
        if last[-1] in b"\r\n.":
            for begun in _BEGUN:
                if last.endswith(begun):
                    self._begun = begun
                    break
        octets = waits + octets
        return octets[: len(octets) - len(self._begun[2:])], size

    def _find_end(self, octets: bytes) -> int:
        """Return the index after the true end of data, or 0."""
        begun = self._begun
        at = (begun + octets[:4]).find(END_OF_DATA)
        if at >= 0:
            return at + 5 - len(begun)
        dot = octets.find(b".")  # memchr: base64 has none, so a bulk chunk is passed over at once
        if dot < 0:
            return 0
        at = octets.find(END_OF_DATA, max(0, dot - 2))
        return at + 5 if at >= 0 else 0

    def _look_for_dot(self, body: bytes) -> None:
        if self._policy is not BareNewlines.PASS:
            self._tail = (body if len(body) > 3 else self._tail + body)[-4:]
            self.dot_alone = _DOT_LAST.search(self._tail) is not None
        elif not self.dot_alone:
            begin = self._tail + body[:2]
            self.dot_alone = bool(_DOT_ALONE.search(begin) or _DOT_ALONE.search(body))
            self._tail = b"" if self.dot_alone else (body if len(body) > 1 else begin)[-2:]

    # --- normalize ----------------------------------------------------------------------------

    def _normalize(self, body: bytes, *, at_once: bool) -> bytes:
        """Take the steps for these octets; at once where they change nothing."""
        state = self._state
        if at_once:
            whole = b"\r" + body if state == CR else body
            waits = whole.endswith(b"\r")
            plain = whole[:-1] if waits else whole
            if is_clean(plain):
                self._state = CR if waits else START if plain.endswith(b"\n") else LINE
                return plain
        self._note(body)
        given = []
        for piece in _PIECE.findall(body):
            out, state = _OF_PIECE[state].get(piece) or (_BEFORE_OTHERS[state] + piece, LINE)
            given.append(out)
        self._state = state
        return b"".join(given)

    # --- reject -------------------------------------------------------------------------------

    def _reject(self, body: bytes) -> bytes:
        """Give out whole lines up to the first offence, and what of a line is too long to keep."""
        line = self._line + body
        if is_clean(line.removesuffix(b"\r")):
            end = max(line.rfind(b"\n") + 1, len(line) - LINE_KEPT)
            self._line = line[end:]
            return line[:end]
        at = self._note(body) + len(self._line)
        self._line = b""
        come = at + line.startswith(b"\r", at)  # how many had come when it was not yet known
        return line[: max(line.rfind(b"\n", 0, at) + 1, come - LINE_KEPT)]

    # --- the first offence --------------------------------------------------------------------

    def _note(self, body: bytes) -> int:
        """Note the first offence; return where in `body` it is; -1: a CR before that."""
        before = len(self._recent)
        seen = self._recent + body
        bare = None if self.rewritten else _BARE.search(seen, before - self._recent.endswith(b"\r"))
        if bare is None:
            return 0
        at = bare.start()
        kind = _BARE_KIND[bare[0]]
        shown = seen[max(0, at - SHOWN) : at + SHOWN + 1]
        offence = ClientViolation(kind, BARE_NEWLINE[kind], shown, closes=True)
        self._unshown = max(0, at + SHOWN + 1 - len(seen))
        if self._policy is BareNewlines.REJECT:
            self.violation = offence
        else:
            self.rewritten = offence
        self._recent = b""
        return at - before

    def _show(self, body: bytes) -> None:
        """Add to the octets shown of the first offence what comes after it."""
        offence = self.rewritten or self.violation
        assert offence is not None
        # Not +=, on which mypyc 2.4.1 fails.
        offence.octets = offence.octets + body[: self._unshown]
        self._unshown -= len(body[: self._unshown])


def is_clean(octets: bytes) -> bool:
    """Tell whether there is no CR, LF or NUL but in CRLF."""
    return b"\0" not in octets and has_crlf_only(octets)


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
