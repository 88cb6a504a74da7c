"""Properties of any message content: its end, what is forwarded, and that cuts do not matter."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.core.content import BareNewlines, Content, has_crlf_only
from tests.core import reference
from tests.support.effort import QUICK, THOROUGH

WORDS = [
    *(b"\r", b"\n", b".", b"\0", b"a", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"x" * 40),
    *(b"\r\0", b"\0\n", b"\n.\r\n"),
]
TRICKY = st.lists(st.sampled_from(WORDS), max_size=14).map(b"".join)
BULK = st.sampled_from([b"", b"x" * 76 + b"\r\n", b".x\r\n", b"\r\n", b"x" * 999]).flatmap(
    lambda line: st.integers(1, 5000 // (len(line) + 1)).map(lambda lines: line * lines)
)
CLEAN = st.lists(st.sampled_from([b"", b"..", b".x", b"abc", b"\xff"]), max_size=8).map(
    lambda rows: b"".join(row + b"\r\n" for row in rows)
)


def _filtered(
    policy: BareNewlines, octets: bytes, cuts: list[int], limit: int = 0
) -> tuple[bytes, int, Content]:
    """Return the output for octets cut in this way, how many were consumed, and the filter."""
    content, out, taken = Content(policy, limit), b"", 0
    borders = [0, *sorted({cut % (len(octets) + 1) for cut in cuts}), len(octets)]
    for start, end in pairwise(borders):
        if start < end and not content.ended:
            given_out, took = content.receive(octets[start:end])
            out += given_out
            taken += took
    return out, taken, content


CUTS = st.lists(st.integers(0, 400), max_size=6)


def _check(policy: BareNewlines, octets: bytes, cuts: list[int], limit: int) -> None:
    """Check that cuts make no difference, and that the result is that of the reference."""
    octets += reference.END
    out, taken, content = _filtered(policy, octets, [], limit)
    body = reference.body_of(octets)
    assert (taken, content.octets, content.ended) == (len(body) + 3, len(body), True)
    if content.violation is None:
        normalizes = policy is BareNewlines.NORMALIZE
        assert out == (reference.normalized(body) if normalizes else body) + b".\r\n"
        assert (b"\r\n" + out).find(reference.END) == len(out) - 3
    else:
        assert reference.END not in b"\r\n" + out
    again = _filtered(policy, octets, cuts, limit)
    assert again[:2] == (out, taken)
    assert again[2].octets == content.octets
    assert _noted(again[2]) == _noted(content)


def _noted(content: Content) -> list[tuple[str, bytes] | None]:
    offences = (content.violation, content.rewritten)
    return [each and (each.kind, each.octets) for each in offences]


@THOROUGH
@given(st.sampled_from(BareNewlines), TRICKY, CUTS, st.sampled_from([0, 0, 1, 5, 30, 100]))
def test_content_does_not_depend_on_how_it_is_cut(
    policy: BareNewlines, octets: bytes, cuts: list[int], limit: int
) -> None:
    _check(policy, octets, cuts, limit)
    _check(policy, octets, list(range(len(octets) + 5)), limit)


@THOROUGH
@given(
    st.sampled_from(BareNewlines), BULK, TRICKY, BULK, TRICKY, st.data(), st.sampled_from([0, 5000])
)
def test_bulk_does_not_depend_on_how_it_is_cut(
    policy: BareNewlines,
    first: bytes,
    tricky: bytes,
    second: bytes,
    more: bytes,
    draw: st.DataObject,
    limit: int,
) -> None:
    octets = first + tricky + second + more
    near = len(first), len(first + tricky + second)
    cuts = [at + draw.draw(st.integers(-6, 20)) for at in near for _ in range(2)]
    _check(policy, octets, cuts, limit)


@THOROUGH
@given(TRICKY, CUTS)
def test_normalize_gives_crlf_lines_no_nul_and_one_lone_dot_at_the_end(
    octets: bytes, cuts: list[int]
) -> None:
    out, _, _ = _filtered(BareNewlines.NORMALIZE, octets + b"\r\n.\r\n", cuts)
    lines = out.split(b"\r\n")
    assert lines.pop() == b""
    assert lines.index(b".") == len(lines) - 1
    assert not re.search(rb"[\r\n\0]", b"".join(lines))


@QUICK
@given(st.sampled_from(BareNewlines), CLEAN, CUTS)
def test_clean_content_is_unchanged(policy: BareNewlines, octets: bytes, cuts: list[int]) -> None:
    octets += b".\r\n"
    out, taken, content = _filtered(policy, octets, cuts)
    assert (out, taken) == (octets, len(octets))
    assert content.violation is None


@QUICK
@given(TRICKY, CUTS)
def test_reject_lets_through_what_is_clean_and_nothing_else(octets: bytes, cuts: list[int]) -> None:
    octets += b"\r\n.\r\n"
    out, taken, content = _filtered(BareNewlines.REJECT, octets, cuts)
    clean = not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", octets[:taken])
    assert (content.violation is None) == clean
    assert octets.startswith(out)
    if not clean:
        assert out == b"" or out.endswith(b"\r\n")
        assert b"\r\n.\r\n" not in b"\r\n" + out


@QUICK
@given(st.sampled_from([76, 998, 1]), st.integers(3, 70), TRICKY, st.integers(0, 6000))
def test_regular_bulk_is_looked_at_as_carefully(
    width: int, rows: int, tricky: bytes, at: int
) -> None:
    bulk = (b"x" * width + b"\r\n") * rows * (1 + 5000 // (width * rows))
    for octets in (bulk, bulk[:at] + tricky + bulk[at:], bulk + tricky, bulk[:-at] + tricky):
        bare = re.search(rb"(?<!\r)\n|\r(?!\n)", octets)
        assert has_crlf_only(octets) == (bare is None)
