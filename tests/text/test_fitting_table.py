"""A table in a terminal of any width: fewer columns, and whole words."""

import pytest

from smtpproxy.text.fitting_table import Column, print_table

COLUMNS = (
    Column("instance", 9, folds=True),
    Column("version", 2),
    Column("state", 5, folds=True),
    Column("age", 1, is_number=True),
    Column("sessions", 8, is_number=True),
    Column("backend", 7, folds=True),
    Column("servers up", 4, is_number=True),
)
ROW = ("mx1", "0.1.0", "serving", "5 min", "0", "old", "1/1")


@pytest.mark.parametrize("width", range(8, 80))
def test_no_word_is_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, [ROW])
    head, row = capsys.readouterr().out.splitlines()
    assert len(head) <= width
    shown = [each.name for each in COLUMNS if each.name in head]
    assert head.split() == " ".join(shown).split()
    values = [value for each, value in zip(COLUMNS, ROW, strict=True) if each.name in shown]
    assert row.split() == " ".join(values).split()
