"""Properties of any octets of a backend: the same replies, however they are cut and read."""

from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.core.replies import MOST_AT_ONCE, ReplyReader, whole_reply_code
from smtpproxy.core.violations import BackendViolation
from tests.support.effort import THOROUGH


def _read(octets: bytes, size: int) -> tuple[list[tuple[int, bytes]], str]:
    reader, found = ReplyReader(), []
    try:
        for at in range(0, len(octets), size):
            reader.receive(octets[at : at + size])
            while (reply := reader.next_reply()) is not None:
                found.append(reply)
    except BackendViolation as violation:
        return found, violation.kind
    return found, ""


@THOROUGH
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    b"250 ok\r\n",
                    b"250-a\r\n",
                    b"550 b\n",
                    b"250\r\n",
                    b"354 \xff\r\n",
                    b"x\r",
                    b"\0",
                ]
            ),
            st.from_regex(rb"[0-9]{2,4}[ -_]?[a-z\r]{0,3}\r?\n", fullmatch=True),
            st.binary(max_size=5),
            st.just(b"250-" + b"x" * 4090 + b"\r\n"),
            st.just(b"250 " + b"x" * 4091 + b"\r\n"),
        ),
        max_size=20,
    ),
    st.integers(1, 50),
)
def test_replies_do_not_depend_on_how_they_are_cut(parts: list[bytes], size: int) -> None:
    octets = b"".join(parts)
    whole = _read(octets, max(1, len(octets)))
    assert _read(octets, size) == whole
    for code, reply in whole[0]:
        assert reply.endswith(b"\r\n")
        assert reply.count(b"\r") == reply.count(b"\n") == reply.count(b"\r\n")
        assert int(reply.split(b"\r\n")[-2][:3]) == code
        assert 200 <= code <= 599


@THOROUGH
@given(
    st.one_of(
        st.from_regex(rb"[1-6][0-9]{2}[ -]?[a-z\r\0\n]{0,4}\r?\n?", fullmatch=True),
        st.binary(max_size=12),
        st.integers(4085, 4100).map(lambda size: b"250 " + b"x" * (size - 6) + b"\r\n"),
    )
)
def test_the_short_way_to_a_reply_sees_the_same(octets: bytes) -> None:
    if code := whole_reply_code(octets):
        assert _read(octets, len(octets)) == ([(code, octets)], "")
    elif len(octets) <= MOST_AT_ONCE:
        whole = _read(octets, max(1, len(octets)))
        assert whole != ([(250, octets)], "") or octets[:4] != b"250 " or b"\n" not in octets
