"""The fuzzer reads lines in its own way, and must find in them what the core does."""

from itertools import product

from smtpproxy.core import lines, verbs
from tests.fuzz import reading

PIECES = (b" ", b"<", b">", b'"', b"\\", b":", b"a", b" SIZE=8", b" size=9")


def test_a_declared_size_is_the_same_whatever_the_path() -> None:
    found = set()
    for pieces in range(6):
        for chosen in product(PIECES, repeat=pieces):
            line = b"MAIL FROM:" + b"".join(chosen) + b"\r\n"
            size = lines.declared_size(line)
            assert reading.declared_size(line) == size, line
            found.add(size)
    assert found == {0, 8, 9}


def test_the_commands_that_are_never_forwarded_are_the_same() -> None:
    rows = {row.name: row for row in verbs.ROWS if row.name != b"STARTTLS"}
    read = {name: reading.never_forwarded(name) for name in rows}
    assert read == {
        name: (row.refusal, bool(row.refusal) and row.closes) for name, row in rows.items()
    }
