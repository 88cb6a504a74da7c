"""Octets as text: nothing is lost, and nothing of it drives a terminal."""

import timeit
from collections.abc import Callable
from time import thread_time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.text.escaping import (
    compact_text_of,
    expanded,
    octets_of,
    printable,
    shortened,
    text_of,
)


@given(st.binary())
def test_octets_come_back_as_they_were(octets: bytes) -> None:
    assert octets_of(text_of(octets)) == octets


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"MAIL FROM:<a@x>", "MAIL FROM:<a@x>"),
        (b"a\\b", "a\\\\b"),
        (b"\xff\x9b", "\\xff\\x9b"),
        ("jörg\x9b\u202e".encode(), "jörg\\xc2\\x9b\\xe2\\x80\\xae"),
        (b"\x7f\r\n", "\\x7f\r\n"),
    ],
)
def test_what_the_text_is(octets: bytes, text: str) -> None:
    assert text_of(octets) == text


def test_octets_can_be_recovered_from_their_escapes() -> None:
    assert printable(b"\r\n") == "\\r\\n"
    assert printable(b"\\r\\n") == "\\\\r\\\\n"
    assert printable(b"\xff\\") == "\\xff\\\\"
    assert printable("jörg".encode()) == "jörg"
    assert printable("\udc80") == "\\udc80"


@given(st.text() | st.binary())
def test_printable_text_is_one_line_without_escapes(value: str | bytes) -> None:
    assert printable(value).isprintable()


@given(st.text() | st.binary(), st.integers(3, 40))
def test_what_is_shortened_has_its_bound_and_says_so(value: str | bytes, most: int) -> None:
    text = shortened(value, most)
    assert text.isprintable()
    assert len(text.encode()) <= most
    assert text == printable(value) or (
        text.endswith("...") and printable(value).startswith(text[:-3])
    )


@given(st.binary() | st.binary(min_size=200, max_size=400))
def test_compact_text_comes_back_too(octets: bytes) -> None:
    assert octets_of(expanded(compact_text_of(octets))) == octets


@pytest.mark.parametrize(
    "octets",
    [b"\x7f", b"\x00", b"\r\n", b'"', b"\\", b"\x80", b"\xc2\x80", b"\xe2\x80\xae", b"ab\x01"],
)
def test_compact_text_takes_little_more_than_its_octets(octets: bytes) -> None:
    octets *= 65536 // len(octets)
    assert len(msgspec.json.encode(compact_text_of(octets))) < 1.41 * len(octets)


@pytest.mark.parametrize(
    "octets",
    [
        b"Subject: x\r\n\r\n" + b"text \xff of\r\n" * 9,
        "\u65e5\u672c\r\n".encode() * 99,
        b"\x7f" * 255,
    ],
)
def test_compact_text_of_what_people_write_is_text(octets: bytes) -> None:
    assert compact_text_of(octets) == text_of(octets)


def test_no_half_of_an_escape_is_left() -> None:
    assert [shortened(b"ab\x7f\x7f", most) for most in range(8, 11)] == [
        "ab...",
        "ab\\x7f...",
        "ab\\x7f\\x7f",
    ]


@pytest.mark.parametrize(
    "octets", [b"\x7f", b"\x80", b"\x7fa", b"\xc2\x80", b"\xe2\x80\xae.", b"\x01"]
)
@pytest.mark.parametrize("escape", [printable, text_of, compact_text_of])
def test_each_octet_costs_about_as_much(escape: Callable[[bytes], str], octets: bytes) -> None:
    """As 64 KiB are less than 50 ms, on a machine that is busy; it is about 15 ms."""
    octets *= 65536 // len(octets)
    assert min(timeit.repeat(lambda: escape(octets), number=1, repeat=3, timer=thread_time)) < 0.15
