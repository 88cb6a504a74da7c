"""The check of dialogues itself: it accepts lock step and nothing else."""

import pytest

from tests.interop.dialogue import assert_lock_step, groups
from tests.interop.tap import Connection

OPENING = ["S: 220 mx", "C: EHLO c", "S: 250-mx", "S: 250 SIZE", "C: MAIL FROM:<a@b>", "S: 250 ok"]
INTO_CONTENT = [*OPENING, "C: RCPT TO:<c@d>", "S: 250 ok", "C: DATA", "S: 354 go"]


def recorded(lines: list[str]) -> Connection:
    """Return the record of a connection, one chunk for each line; `|` stands for CRLF."""
    connection = Connection()
    for line in lines:
        octets = line[3:].replace("|", "\r\n").encode() + b"\r\n"
        connection.record(line.startswith("C"), octets)
    return connection


@pytest.mark.parametrize(
    "lines",
    [
        [*OPENING, "C: QUIT", "S: 221 bye"],
        [*INTO_CONTENT, "C: text|.", "S: 250 ok", "C: QUIT", "S: 221 bye"],
        [*INTO_CONTENT, "C: QUIT", "C: ..|MAIL", "C: .", "S: 250 ok", "C: QUIT"],
        [*INTO_CONTENT, "C: .", "S: 250 an empty message", "C: RSET", "S: 250 ok"],
        [*OPENING, "C: BDAT 8|QUIT", "C: ", "S: 250 ok", "C: BDAT 0 LAST", "S: 250 ok"],
    ],
)
def test_lock_step_passes(lines: list[str]) -> None:
    """Content may hold what looks like commands, and be sent in pieces."""
    assert_lock_step(recorded(lines))


@pytest.mark.parametrize(
    "lines",
    [
        ["C: EHLO c", "S: 220 mx"],
        ["S: 220 mx", "C: EHLO c", "S: 250-mx", "C: MAIL FROM:<a@b>", "S: 250 SIZE"],
        [*OPENING, "C: RCPT TO:<c@d>|DATA", "S: 250 ok", "S: 354 go"],
        [*OPENING, "C: RCPT TO:<c@d>", "C: DATA", "S: 250 ok", "S: 354 go"],
        [*INTO_CONTENT, "C: text|.|QUIT", "S: 250 ok", "S: 221 bye"],
        [*INTO_CONTENT, "C: .", "C: QUIT", "S: 250 ok", "S: 221 bye"],
        [*OPENING, "C: BDAT 6|QUIT|BDAT 0 LAST", "S: 250 ok", "S: 250 ok"],
        [*OPENING, "S: 250 nobody asked"],
    ],
)
def test_anything_else_fails(lines: list[str]) -> None:
    """A command, or a reply, that is out of turn."""
    with pytest.raises(AssertionError, match=r"was sent before|was sent after|answers nothing"):
        assert_lock_step(recorded(lines))


def test_a_group_is_what_was_sent_between_two_replies() -> None:
    """However many segments it took."""
    lines = ["S: 220 mx", "C: EHLO c", "S: 250 mx", "C: MAIL|RCPT", "C: DATA", "S: 250 ok"]
    assert groups(recorded(lines)) == [b"EHLO c\r\n", b"MAIL\r\nRCPT\r\nDATA\r\n"]
