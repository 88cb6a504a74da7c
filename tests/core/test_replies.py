"""Replies: the grammar, and which deviations of old servers are accepted."""

import pytest

from smtpproxy.core import replies
from smtpproxy.core.replies import REPLY_LIMIT, ReplyReader, read_line, whole_reply_code
from smtpproxy.core.violations import BackendViolation


def _read(octets: bytes, limit: int = REPLY_LIMIT) -> list[tuple[int, bytes]]:
    reader = ReplyReader(limit)
    reader.receive(octets)
    found = []
    while (reply := reader.next_reply()) is not None:
        found.append(reply)
    return found


def _kind(octets: bytes, limit: int = REPLY_LIMIT) -> str:
    with pytest.raises(BackendViolation) as caught:
        _read(octets, limit)
    return caught.value.kind


@pytest.mark.parametrize(
    ("line", "code", "last"),
    [
        (b"250 ok\r\n", 250, True),
        (b"250-ok\r\n", 250, False),
        (b"250\r\n", 250, True),
        (b"250 \n", 250, True),
        (b"599-\n", 599, False),
        (b"200 \xff\xe4\t\r\n", 200, True),
    ],
)
def test_lines_that_are_met_half_way(line: bytes, code: int, last: bool) -> None:
    assert read_line(line) == (code, last)


@pytest.mark.parametrize(
    "line",
    [
        *(b"25\n", b"2500 x\n", b"099 x\n", b"100 x\n", b"199\n", b"600 x\n", b"abc\n", b"250_x\n"),
        *(b"\n", b"\r\n", b" 250 x\n", b"250 a\rb\r\n", b"250 a\r\r\n", b"250 a\0\r\n", b"-50 x\n"),
        *(b"+50 x\n", b"2 0 x\n", "\uff12\uff15\uff10 x\n".encode(), b"250\tx\n"),
    ],
)
def test_lines_that_are_no_reply(line: bytes) -> None:
    assert _kind(line) == "malformed_reply"
    assert whole_reply_code(line) == 0


def test_multi_line_reply_is_one_and_the_last_code_counts() -> None:
    assert _read(b"250-a\r\n550-b\r\n251 c\r\n550 d\r\n") == [
        (251, b"250-a\r\n550-b\r\n251 c\r\n"),
        (550, b"550 d\r\n"),
    ]


def test_the_short_way_is_not_for_codes_that_differ() -> None:
    assert whole_reply_code(b"250-a\r\n250-b\r\n250 c\r\n") == 250
    assert whole_reply_code(b"354-a\r\n250 b\r\n") == 0
    assert whole_reply_code(b"250-a\r\n354-b\r\n250 c\r\n") == 0


def test_bare_lf_becomes_crlf_and_nothing_else_changes() -> None:
    assert _read(b"250-a\n250-b\r\n250 c\n") == [(250, b"250-a\r\n250-b\r\n250 c\r\n")]


def test_reply_in_parts() -> None:
    reader = ReplyReader()
    for octets in (b"2", b"50-a\r", b"\n250", b" b\r"):
        reader.receive(octets)
        assert reader.next_reply() is None
    reader.receive(b"\n421")
    assert reader.next_reply() == (250, b"250-a\r\n250 b\r\n")
    assert reader.next_reply() is None
    assert reader.unread == b"421"
    reader.receive(b"\n")
    assert reader.next_reply() == (421, b"421\r\n")
    assert reader.unread == b""


@pytest.mark.parametrize("limit", [4096, REPLY_LIMIT])
def test_a_reply_may_be_as_long_as_the_limit_in_one_line_or_many(limit: int) -> None:
    one = b"334 " + b"x" * (limit - 6) + b"\r\n"
    line = b"250-" + b"x" * 1018 + b"\r\n"
    many = line * (limit // len(line) - 1)
    whole = many + line.replace(b"-", b" ")
    assert len(whole) == limit
    assert _read(one + b"250", limit) == [(334, one)]
    assert _read(whole + b"250 b\r\n", limit) == [(250, whole), (250, b"250 b\r\n")]
    assert _read(one[:-1], limit) == []
    for too_long in (one[:-2] + b"x\r\n", whole[:-2] + b"x\r\n", many + line, b"x" * limit):
        assert _kind(too_long, limit) == "reply_too_long"


def test_each_octet_of_a_long_reply_is_looked_at_once() -> None:
    class Counting(bytearray):
        looked_at = 0

        def find(self, sub: bytes, start: int, end: int) -> int:  # type: ignore[override]
            Counting.looked_at += min(len(self), end) - start
            return super().find(sub, start, end)

    reader = ReplyReader()
    reader.unread = Counting()
    for _ in range(10_000):
        reader.receive(b"x")
        assert reader.next_reply() is None
    assert Counting.looked_at == 10_000


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"250 ok\r\n", 250),
        (b"250-a\r\n250 b\r\n", 250),
        (b"550-a\r\n550-\r\n550 b\r\n", 550),
        (b"599 \r\n", 599),
    ],
)
def test_whole_reply_is_seen_at_a_glance(octets: bytes, code: int) -> None:
    assert whole_reply_code(octets) == code
    assert _read(octets) == [(code, octets)]


@pytest.mark.parametrize(
    "octets",
    [
        *(b"250 ok\n", b"250\r\n", b"250-a\r\n250\r\n", b"250-a\n250 b\r\n", b"250 a\r\n250 b\r\n"),
        *(b"250-a\r\n250 b\r\n250 c\r\n", b"250 a\r\n250", b"250-a\r\n", b"", b"250 a\0\r\n"),
        *(b"250-a\0\r\n250 b\r\n", b"250 " + b"x" * 4096 + b"\r\n", b"150 x\r\n", b"600 x\r\n"),
    ],
)
def test_everything_else_takes_the_long_way(octets: bytes) -> None:
    assert whole_reply_code(octets) == 0


def test_own_replies_are_replies() -> None:
    texts = [text for name, text in vars(replies).items() if name.isupper() and type(text) is bytes]
    texts += replies.BARE_NEWLINE.values()
    assert len(texts) > 15
    positive = (replies.CHUNK_RECEIVED, replies.NOTHING_DONE)  # neither acknowledges a message
    for text in texts:
        reply = text % b"mx.example.org" if b"%b" in text else text
        (found,) = _read(reply)
        assert found[1] == reply
        assert found[0] in (220, 221) or found[0] >= 400 or text in positive
        assert len(reply) <= 512  # RFC 5321 section 4.5.3.1.5
        assert (b"%b" in text) == (found[0] == 421)
