"""Message content: finds its end, and handles bare CR, bare LF and NUL.  Content is streamed.

Only CRLF . CRLF ends content (RFC 5321 section 4.1.1.4).  The CRLF of the DATA line counts, so
content may be empty.  SMTP smuggling, where MTAs disagree on the end of data, is prevented here.

The result does not depend on how the content was cut into chunks: the octets for the backend, the
end, the violation and the octets shown to observers follow only from the sequence of octets.  So
all knowledge of earlier octets is a named state, and a whole chunk takes a faster path only if the
states would not change anything in it.

The end of data: the state is how much of CRLF . CRLF was received last.  A dot in it, and a CR
after that dot, are held back, since they may not be content.

    received last   CR              LF           dot        any other
    nothing         CR              nothing      nothing    nothing
    CR              CR              CR LF        nothing    nothing
    CR LF           CR              nothing      CR LF .    nothing         the initial state
    CR LF .         CR LF . CR      nothing      nothing    nothing
    CR LF . CR      CR              the end      nothing    nothing

The octets before the end: for `normalize` see STEPS; with `reject` whole lines are forwarded, up to
the first line with a violation; with `pass` they are forwarded as received.
"""

import io
import re
from enum import Enum
from typing import Final

from smtpproxy.core.replies import BARE_NEWLINE, MESSAGE_TOO_BIG
from smtpproxy.core.violations import ClientViolation

END_OF_DATA: Final = b"\r\n.\r\n"
BULK: Final = 12 * 1024
"""The size from which checking for lines of equal length, as in base64, is faster."""
SHORT: Final = 16
"""The line length below which that check does not pay."""
SHOWN: Final = 4
"""How many octets around a bare CR, LF or NUL observers see; few, since they are content."""
LINE_KEPT: Final = 2048
"""How many octets of an incomplete line, the last ones, `reject` holds back."""

# The states of `normalize`: what was received last.  Hot path (bench S4): plain integers.
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
    # The columns: the output and the next state for CR, LF, NUL and a dot; then the output before
    # any other octets, after which the state is LINE.
    #
    # LINE: in a line.
    ((b"", CR),      (_CRLF, START),         (b"", LINE),  (b".", LINE),               b""),
    # START: after an LF, or at the start.  The dot of the end of data is held back before this.
    ((b"", CR),      (_CRLF, START),         (b"", NUL),   (b"", DOT),                 b""),
    # CR: one line end, with or without LF.  A dot after it is doubled: it did not start a line.
    ((b"", CR_CR),   (_CRLF, START),         (b"", CR),    (_CRLF + _DOTS, LINE),      _CRLF),
    # CR_CR: one line end with LF, two without.
    ((_CRLF, CR_CR), (_CRLF, START),         (b"", CR_CR), (_CRLF * 2 + _DOTS, LINE),  _CRLF * 2),
    # NUL: a line of only NUL so far, which is dropped.  A dot is doubled: it did not start a line.
    ((b"", CR),      (_CRLF, START),         (b"", NUL),   (_DOTS, LINE),              b""),
    # DOT: a dot that starts a line.  If it is alone in it, it is doubled; else it is unchanged.
    ((_DOTS, CR),    (_DOTS + _CRLF, START), (b"", DOT),   (_DOTS, LINE),              b"."),
)
# fmt: on
_Steps = tuple[dict[bytes, _Step], ...]
_OF_PIECE: Final[_Steps] = tuple(
    dict(zip((b"\r", b"\n", b"\0", b"."), row[:4], strict=True)) for row in STEPS
)
_OF_PAYLOAD_PIECE: Final[_Steps] = tuple(
    {octet: step for octet, step in steps.items() if octet != b"."} for steps in _OF_PIECE
)
"""The same for BDAT payload, in which a dot is as any other octet."""
_BEFORE_OTHERS: Final = tuple(row[4] for row in STEPS)
_PIECE: Final = re.compile(rb"[\r\n\0.]|[^\r\n\0]+")
"""The unit of one step: CR, LF, NUL or dot, or others with the dots after them."""
_AGREED: Final = {LINE: b"", START: b"\r\n", CR: b"\r"}
"""The part of the end of data received last, by state, if no NUL, bare CR or bare LF is in it."""

_BEGUN: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")
"""The parts of the end of data that may be received last, longest first."""
_SCRATCH: Final = bytearray(256 * 1024)
_IS_ODD: Final = bytes(octet != ord("\n") for octet in range(256))
_BARE: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\0", re.DOTALL)
# The dot is searched first, with memchr; then the octet after it, which is rarely a line end.
_DOT_ALONE: Final = re.compile(rb"\.[\r\n\0](?<=[\r\n\0]..)", re.DOTALL)
_DOT_LAST: Final = re.compile(rb"[\r\n\0]\.(?:\r|\r?\n)\Z")
_NUL_OCTET: Final = 0  # as `lines.NUL`
_CRLF_ONLY: Final = (None, "\r\n")
_LF_ENDS: Final = (b"\n",)
_ANY_ENDS: Final = (b"\r", b"\n", b"\0")
_BARE_KIND: Final = {b"\n": "bare_lf", b"\r": "bare_cr", b"\0": "bare_nul"}


class BareNewlines(Enum):
    """How a CR or LF that is not part of CRLF, and NUL, are handled."""

    NORMALIZE = "normalize"
    """Replace them by CRLF, drop NUL, and double a dot that could become an end of data."""
    REJECT = "reject"
    """Refuse the message, and forward nothing from the offending line on."""
    PASS = "pass"  # noqa: S105  not a password
    """Forward them unchanged."""


class Content:
    """The content of one message.

    Args:
        policy: How bare CR, bare LF and NUL are handled.
        most: The limit of the content in octets; 0 for none.
    """

    octets: int
    """The number of octets that are certainly content, without the end of data."""
    ended: bool
    """Whether the end of data was received."""
    dot_alone: bool
    """Whether some implementations would read a line with a dot as the end of data.

    With `pass`, such a line was forwarded, so the backend may consider the message complete.  With
    the other policies, it was received last, so the client may consider it complete.
    """
    violation: ClientViolation | None
    """Why the message is refused: the first bare CR, LF or NUL (`reject` only), or its size.

    Nothing more is forwarded after it.
    """
    rewritten: ClientViolation | None
    """The first bare CR, LF or NUL that `normalize` rewrote, and `reject` would refuse."""

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
        self._policy = policy
        self._most = most
        # The part of the end of data received last; of BDAT payload, the last octets received.
        self._begun = b"\r\n"
        self._state = START
        self._line = b""  # with `reject`: the part of a line that is held back
        self._recent = b""  # the last octets, to be shown before a violation
        # The last octets, to search for a dot alone in its line; of BDAT payload, the last sent.
        self._tail = b"\n"
        self._unshown = 0  # how many octets after the violation are still to be shown
        self.octets = 0
        self.ended = self.dot_alone = False
        self.violation = None
        self.rewritten = None

    def receive(self, octets: bytes) -> tuple[bytes, int]:
        """Process octets from the client.

        Returns:
            The octets for the backend, and how many of `octets` belong to the content, including
            the end of data; the others are the next commands.
        """
        begun = self._begun
        body, taken = self._find_body(octets)
        self.octets += len(body)
        if body:
            self._look_for_dot(body)
        too_big = 0 < self._most < self.octets
        if too_big:
            body = body[: max(0, len(body) + self._most - self.octets)]
        # If both tables agree on the octets received last, a dot alone in its line is the end of
        # data and nothing else.
        agreed = _AGREED.get(self._state) == begun[:2]
        out = self._filter(body, _OF_PIECE, at_once=agreed and not too_big)
        if too_big and self.violation is None:
            self.violation = ClientViolation("message_too_big", MESSAGE_TOO_BIG, closes=True)
        if self.ended and self.violation is None:
            out += END_OF_DATA[2:]
        return out, taken

    # --- BDAT payload, which has no dot-stuffing and no end of data ---------------------------

    def receive_payload(self, payload: bytes) -> bytes:
        """Process BDAT payload (RFC 3030 section 2).

        A dot is doubled after each LF.  With `pass` it is doubled after each CR and NUL, too, since
        an MTA may take any of them for a line end, and a dot alone after it for the end of data.

        Returns:
            The octets for the backend.
        """
        self._begun = (self._begun + payload[-2:])[-2:]
        out = self._filter(payload, _OF_PAYLOAD_PIECE, at_once=self._state in _AGREED)
        if not out:
            return b""
        ends = _ANY_ENDS if self._policy is BareNewlines.PASS else _LF_ENDS
        stuffed = b"." + out if out.startswith(b".") and self._tail.endswith(ends) else out
        for end in ends:
            stuffed = stuffed.replace(end + b".", end + b"..")
        self._tail = out[-1:]
        return stuffed

    def end_payload(self) -> tuple[bytes, bytes]:
        """Process the end of the payload.

        Returns:
            What was held back, with a CRLF if it is missing; and the end of data, or empty if the
            content is refused.
        """
        if self._policy is BareNewlines.NORMALIZE:
            line_ended = self._state in (START, NUL)
        else:
            line_ended = self._begun == _CRLF
        out = b"" if line_ended else self.receive_payload(_CRLF)
        return out, b"" if self.violation is not None else END_OF_DATA[2:]

    # --- where it ends ------------------------------------------------------------------------

    def _find_body(self, octets: bytes) -> tuple[bytes, int]:
        """Return the octets that are certainly content, and how many of `octets` belong to it."""
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
        """Return the index in `octets` after the end of data, or 0."""
        begun = self._begun
        at = (begun + octets[:4]).find(END_OF_DATA)
        if at >= 0:
            return at + 5 - len(begun)
        dot = octets.find(b".")  # memchr: base64 has none, so most chunks need only this
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

    # --- what the policy makes of it ----------------------------------------------------------

    def _filter(self, body: bytes, steps: _Steps, *, at_once: bool) -> bytes:
        """Return the octets after the policy was applied, none once the content is refused."""
        if self._unshown:
            self._show(body)
        # mypyc would assume that the attribute stays None, but the calls below may set it.
        is_refused = self.violation is not None
        if is_refused:
            return b""
        if not body or self._policy is BareNewlines.PASS:
            return body
        if self._policy is BareNewlines.REJECT:
            out = self._reject(body)
        else:
            out = self._normalize(body, steps, at_once=at_once)
        if self.rewritten is None and self.violation is None:
            recent = body if len(body) > SHOWN else self._recent + body
            self._recent = recent[-SHOWN - 1 :]
        return out

    def _normalize(self, body: bytes, steps: _Steps, *, at_once: bool) -> bytes:
        """Return the octets after the steps; with `at_once`, clean ones skip the steps."""
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
            out, state = steps[state].get(piece) or (_BEFORE_OTHERS[state] + piece, LINE)
            given.append(out)
        self._state = state
        return b"".join(given)

    def _reject(self, body: bytes) -> bytes:
        """Return the complete lines before the first violation, and what exceeds `LINE_KEPT`."""
        line = self._line + body
        if is_clean(line.removesuffix(b"\r")):
            end = max(line.rfind(b"\n") + 1, len(line) - LINE_KEPT)
            self._line = line[end:]
            return line[:end]
        at = self._note(body) + len(self._line)
        self._line = b""
        come = at + line.startswith(b"\r", at)  # the octets received before it was detected
        return line[: max(line.rfind(b"\n", 0, at) + 1, come - LINE_KEPT)]

    # --- the first violation ------------------------------------------------------------------

    def _note(self, body: bytes) -> int:
        """Record the first violation; return its index in `body`, -1 for a CR before it."""
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
        """Add octets after the first violation to those that observers see."""
        offence = self.rewritten or self.violation
        assert offence is not None
        # Not +=, on which mypyc 2.4.1 fails.
        offence.octets = offence.octets + body[: self._unshown]
        self._unshown -= len(body[: self._unshown])


def is_clean(octets: bytes) -> bool:
    """Return whether there is no NUL, and no CR or LF except in CRLF."""
    return _NUL_OCTET not in octets and has_crlf_only(octets)


def has_crlf_only(octets: bytes) -> bool:
    """Return whether each CR is followed by LF, and each LF preceded by CR.

    Read as text, they must have no other kind of newline.  Lines of equal length are checked in a
    faster way.
    """
    # Hot path (bench S4).
    begin, end = _find_run(octets) if BULK <= len(octets) <= len(_SCRATCH) else (0, 0)
    if begin != end:
        return has_crlf_only(octets[:begin] + octets[end:])  # the run begins after LF and ends so
    newlines = io.IncrementalNewlineDecoder(None, translate=False)
    newlines.decode(octets.decode("latin-1"), final=True)
    return newlines.newlines in _CRLF_ONLY


def _find_run(octets: bytes) -> tuple[int, int]:
    """Return start and end of the valid lines of equal length around the middle.

    The result is 0, 0 if they are less than half of the octets.  It is five times as fast as the
    general check, and large content is mostly base64.  The columns of line ends are compared as a
    whole; after they are overwritten, no other CR or LF may be left.
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
    # One buffer for all calls, since allocating it each time costs page faults.
    memoryview(_SCRATCH)[:size] = memoryview(octets)[begin:end]
    blank = bytes(lines)
    _SCRATCH[width - 1 : size : width] = _SCRATCH[width - 2 : size : width] = blank
    if _SCRATCH.find(b"\n", 0, size) >= 0 or _SCRATCH.find(b"\r", 0, size) >= 0:
        return 0, 0
    return begin, end
