"""Message-ID and queue id: what connects a message in the log with one elsewhere."""

import timeit
from collections.abc import Sequence
from time import thread_time

import pytest

from smtpproxy.log.message_identifiers import HEADER_BYTES, MessageIdScanner, queue_id_of

HEADER = b"From: a@x\r\nMessage-ID: <17.4@x.example>\r\nSubject: hi\r\n\r\nMessage-ID: <body@x>\r\n"


def found_in(*chunks: bytes) -> bytes:
    scanner = MessageIdScanner()
    for chunk in chunks:
        scanner.add(chunk)
    return scanner.message_id


@pytest.mark.parametrize(
    ("header", "message_id"),
    [
        (HEADER, b"<17.4@x.example>"),
        (b"message-id:<1@x>\r\n\r\n", b"<1@x>"),
        (b"Message-Id:\r\n\t <1@x>\r\n\r\n", b"<1@x>"),
        (b"MESSAGE-ID: 1@x\r\n\r\n", b"1@x"),
        (b"Message-ID: <" + b"1" * 600 + b"@x>\r\n\r\n", b""),
        (b"Message-ID: <1 2@x>\r\n\r\n", b""),
        (b"Message-ID: \r\n\r\n<1@x>", b""),
        (b"X-Message-ID: <1@x>\r\nOriginal-Message-ID: <2@x>\r\n\r\n", b""),
        (b"Subject: x\r\n\r\nMessage-ID: <body@x>\r\n", b""),
        (b"\r\nMessage-ID: <body@x>\r\n", b""),
        (b"", b""),
    ],
)
def test_a_message_id_is_the_first_of_the_header_however_it_is_cut(
    header: bytes, message_id: bytes
) -> None:
    assert found_in(header) == message_id
    for cut in range(len(header)):
        assert found_in(header[:cut], header[cut:]) == message_id, header[:cut]
    assert found_in(*(header[n : n + 1] for n in range(len(header)))) == message_id


def test_a_header_without_end_is_given_up() -> None:
    scanner = MessageIdScanner()
    for _ in range(HEADER_BYTES // 1024 + 1):
        scanner.add(b"x" * 1024)
    assert scanner.ended
    scanner.add(b"\r\nMessage-ID: <1@x>\r\n\r\n")
    assert scanner.message_id == b""


@pytest.mark.parametrize(
    "chunk", [b"\r\nmessage-id:" * 5000, b"\r\n " * 20000, b"\r\nmessage-id:" + b"\r\n " * 20000]
)
def test_scanning_any_header_takes_little_time(chunk: bytes) -> None:
    assert min(timeit.repeat(lambda: found_in(chunk, chunk), number=1, timer=thread_time)) < 0.2


REPLIES: Sequence[tuple[bytes, str]] = [
    (b"250 2.0.0 Ok: queued as 4XqZ3k0VbSz9v\r\n", "4XqZ3k0VbSz9v"),
    (
        b"250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 1A2B3C4D\r\n",
        "1A2B3C4D",
    ),
    (b"250 OK id=1tGxyz-000000004Rq-0abc\r\n", "1tGxyz-000000004Rq-0abc"),
    (b"250 OK id=1abCDe-0001Xy-Zz\r\n", "1abCDe-0001Xy-Zz"),
    (b"250 2.0.0 4AT9xQ1k012345 Message accepted for delivery\r\n", "4AT9xQ1k012345"),
    (b"250 AA00001 Message accepted for delivery\r\n", "AA00001"),
    (b"250 2.0.0 2f1c9d3e Message accepted for delivery\r\n", "2f1c9d3e"),
    (b"250 2.6.0 <17@x> [InternalId=17236, Hostname=EX1.x] Queued mail for delivery\r\n", "17236"),
    (b"250 ok 1732874400 qp 4711\r\n", "4711"),
    (b"250-first\r\n250 2.0.0 Ok: queued as 4XqZ3k0VbS\r\n", "4XqZ3k0VbS"),
    (b"250 Message accepted for delivery\r\n", ""),
    (b"250 Queued (0.5 seconds)\r\n", ""),
    (b"250 OK\r\n", ""),
    (b"", ""),
]


@pytest.mark.parametrize(("reply", "queue_id"), REPLIES)
def test_the_queue_id_is_the_one_in_the_reply(reply: bytes, queue_id: str) -> None:
    assert queue_id_of(reply) == queue_id
