"""The result for content does not depend on how it was cut: checked for every short content.

Every string over the octets that matter is taken in one piece, and once more for each place where
it can be cut in two.  If what comes out, and *all that is known of the octets that have come*, is
the same each time, it is the same for every way to cut, into however many pieces: each next piece
meets what it would have met without the cuts before it.

$SMTPPROXY_CONTENT_OCTETS says how long the strings are; 7 take five minutes.
"""

import os
import sys
from itertools import product
from operator import attrgetter

import pytest

from smtpproxy.core import content as content_module
from smtpproxy.core.content import SHOWN, BareNewlines, Content
from smtpproxy.core.violations import ClientViolation
from tests.core import reference
from tests.support.compiled import attributes_of, only_pure

LENGTH = int(os.environ.get("SMTPPROXY_CONTENT_OCTETS", "5")) if sys.gettrace() is None else 3
"""The length of the strings; shorter ones are enough for coverage."""
OCTETS = [b"\r", b"\n", b".", b"\0", b"a"]
NORMALIZE, REJECT, PASS = BareNewlines
STARTS = [
    *(b"\r", b"\r\n", b"\n", b"\0", b"\r\r", b"\r\0", b"\r\0\r", b"\r\n\0", b".", b".\r", b".\r\r"),
    *(b".\0", b"\n.", b"\n.\r", b"\n.\0", b"\r\n.", b"\r\n.\r", b"\r\n..", b"a\r\n.", b"a\n\0."),
]
"""Octets that lead to every state except the initial one and that in a line."""

_NAMES = [name for name in attributes_of(Content) if name not in ("rewritten", "violation")]
_known = attrgetter(*_NAMES)


class Taken:
    """The output for the octets of a content so far, and the filter that processed them."""

    def __init__(self, content: Content, out: bytes = b"", count: int = 0) -> None:
        self.content = content
        self.out = out
        self.count = count

    def after(self, octets: bytes) -> "Taken":
        """Return the state after these octets as well; this one is unchanged."""
        if self.content.ended:
            return self
        content = Content(NORMALIZE)
        for name, value in zip(_NAMES, _known(self.content), strict=True):
            setattr(content, name, value)
        content.rewritten = _copied(self.content.rewritten)
        content.violation = _copied(self.content.violation)
        out, count = content.receive(octets)
        return Taken(content, self.out + out, self.count + count)

    def all(self) -> tuple[object, ...]:
        """Return all output, and all state for later octets."""
        content = self.content
        noted = _noted(content.rewritten), _noted(content.violation)
        known = content.octets if content.ended else _known(content)
        return (self.out, self.count, *noted, known)


def _copied(violation: ClientViolation | None) -> ClientViolation | None:
    """Return a copy, to which octets may be added."""
    if violation is None:
        return None
    return ClientViolation(violation.kind, violation.reply, violation.octets, closes=True)


def _noted(violation: ClientViolation | None) -> tuple[str, bytes] | None:
    return None if violation is None else (violation.kind, violation.octets)


def _check_every_cut(start: bytes, length: int, policy: BareNewlines, limit: int = 0) -> None:
    """Check all strings up to this length after `start`."""
    begun = Taken(Content(policy, limit))
    taken = {b"": begun.after(start) if start else begun}
    for size in range(1, length + 1):
        for string in product(OCTETS, repeat=size):
            octets = b"".join(string)
            whole = begun.after(start + octets)
            if size < length:
                taken[octets] = whole
            expected = whole.all()
            for cut in range(size):
                again = taken[octets[:cut]].after(octets[cut:])
                assert again.all() == expected, (start, octets[:cut], octets[cut:])
            _check_by_reference(start + octets + reference.END, whole.after(reference.END), limit)


def _check_by_reference(stream: bytes, taken: Taken, limit: int) -> None:
    content, out, policy = taken.content, taken.out, taken.content._policy
    body = reference.body_of(stream)
    assert content.ended
    assert (taken.count, content.octets) == (len(body) + 3, len(body)), stream
    normal = reference.normalized(body) if policy is NORMALIZE else body
    allowed = body[:limit] if limit else body
    at = reference.first_bare(allowed)
    offence = None
    if at >= 0:
        kind = {b"\r": "bare_cr", b"\n": "bare_lf", b"\0": "bare_nul"}[body[at : at + 1]]
        offence = (kind, allowed[max(0, at - SHOWN) : at + SHOWN + 1])
    assert _noted(content.rewritten) == (offence if policy is NORMALIZE else None), stream
    if policy is REJECT and offence:
        assert _noted(content.violation) == offence, stream
        come = at + (body[at : at + 1] == b"\r")  # before it was known
        begin = max(body.rfind(b"\n", 0, at) + 1, come - content_module.LINE_KEPT)
        assert out == body[:begin], stream
    elif allowed != body:
        assert _noted(content.violation) == ("message_too_big", b""), stream
        assert normal.startswith(out), stream
    else:
        assert content.violation is None, stream
        assert out == normal + b".\r\n", stream
    # The backend sees an end of data only where the client ended its content.
    whole = content.violation is None
    assert (b"\r\n" + out).find(reference.END) == (len(out) - 3 if whole else -1), stream
    if policy is not PASS:
        assert reference.first_bare(out) == -1, stream


@pytest.mark.long
@pytest.mark.parametrize("policy", BareNewlines)
@pytest.mark.parametrize("start", [b"", b"a"])
def test_every_content_of_five_octets_in_every_cut(start: bytes, policy: BareNewlines) -> None:
    _check_every_cut(start, LENGTH, policy)


@pytest.mark.long
@pytest.mark.parametrize("policy", BareNewlines)
def test_every_content_of_four_octets_in_every_cut_in_every_state(policy: BareNewlines) -> None:
    for start in STARTS:
        _check_every_cut(start, LENGTH - 1, policy)


@pytest.mark.long
@pytest.mark.parametrize("policy", BareNewlines)
def test_every_content_of_four_octets_in_every_cut_where_it_may_be_too_big(
    policy: BareNewlines,
) -> None:
    for limit in range(1, 6):
        for start in (b"", b"\n"):
            _check_every_cut(start, LENGTH - 1, policy, limit)


@only_pure
def test_every_content_in_every_cut_where_a_line_is_too_long_to_be_kept_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(content_module, "LINE_KEPT", 2)
    for start in (b"", b"aaa"):
        _check_every_cut(start, LENGTH - 1, REJECT)
