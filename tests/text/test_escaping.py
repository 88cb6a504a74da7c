"""Octets as text: nothing is lost, and nothing of it drives a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.text.escaping import octets_of, printable, text_of


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


def test_octets_can_be_told_from_their_escapes() -> None:
    assert printable(b"\r\n") == "\\r\\n"
    assert printable(b"\\r\\n") == "\\\\r\\\\n"
    assert printable(b"\xff\\") == "\\xff\\\\"
    assert printable("jörg".encode()) == "jörg"
    assert printable("\udc80") == "\\udc80"


@given(st.text() | st.binary())
def test_what_is_printable_is_one_line_that_drives_nothing(value: str | bytes) -> None:
    assert printable(value).isprintable()
