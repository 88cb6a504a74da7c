"""The requirements table: what it names exists, and each section that the code cites is in it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "deploy" / "requirements.md").read_text()
TABLES, INFORMATIVE = PAGE.split("\n## Cited for information\n")

Row = tuple[int, str, str, str, str]


def _rows() -> list[Row]:
    """Return RFC, section, requirement, code and what holds it, of each row.

    The RFC is 0 for the PROXY protocol, which has none.
    """
    rows: list[Row] = []
    for part in TABLES.split("\n## ")[1:]:
        title = part.split(":", 1)[0]
        rfc = int(title.removeprefix("RFC ")) if title != "The PROXY protocol" else 0
        lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
        for line in lines:
            section, requirement, code, held_by = (
                each.strip() for each in re.split(r"(?<= )\|(?= )", line[1:-1])
            )
            rows.append((rfc, section, requirement, code, held_by))
    return rows


ROWS = _rows()


@cache
def _tests_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)
    }


@cache
def _dialogues_in(path: Path) -> list[str]:
    return re.findall("^== (.*)$", path.read_text(), re.MULTILINE)


def _missing(row: Row) -> list[str]:
    """Return what a row names and is not there."""
    *_, code, held_by = row
    missing = [name for name in re.findall("`([^`]+)`", code) if not (ROOT / name).is_file()]
    for name in re.findall("`(tests/[^`]+)`", held_by):
        file, _, test = name.partition("::")
        if not (ROOT / file).is_file() or (test and test not in _tests_in(ROOT / file)):
            missing.append(name)
    for file, rest in re.findall(r"`(tests/core/transcripts/[^`]+)`: ([^`]+)", held_by):
        if (ROOT / file).is_file() and not rest.startswith(tuple(_dialogues_in(ROOT / file))):
            missing.append(f"{file}: {rest}")
    return missing


def test_the_page_has_a_row_for_each_item_of_rfc_2920_section_3_2() -> None:
    items = [row[2].split(".")[0] for row in ROWS if row[:2] == (2920, "3.2")]
    assert items == [str(number) for number in range(1, 11)]
    assert {row[0] for row in ROWS} == {2920, 5321, 3207, 3030, 4954, 9422, 0}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"RFC {row[0]} {row[1]} {row[2][:40]}")
def test_what_a_row_names_exists(row: Row) -> None:
    assert _missing(row) == []
    assert row[4], "neither a test nor a reason"


def test_a_name_that_does_not_exist_is_noticed() -> None:
    held_by = (
        "`tests/core/test_nothing.py::test_x`; `tests/core/test_replies.py::test_x`; "
        "`tests/core/transcripts/flush.txt`: no such dialogue"
    )
    assert len(_missing((2920, "3.2", "", "`smtpproxy/nothing.py`", held_by))) == 4


def _cited() -> dict[tuple[int, str], str]:
    """Return each RFC and section that the code cites, and one place of each."""
    cited = {}
    for path in sorted((ROOT / "smtpproxy").rglob("*.py")):
        text = re.sub(r"\s*\n\s*(#\s*)?", " ", path.read_text())
        for rfc, sections in re.findall(
            r"RFC (\d+)((?:,? (?:section )?\d+(?:\.\d+)+|,? section \d+)?(?: and \d+(?:\.\d+)+)*)",
            text,
        ):
            for section in re.findall(r"\d+(?:\.\d+)*", sections):
                cited[int(rfc), section] = str(path.relative_to(ROOT))
    return cited


def _is_listed(rfc: int, section: str) -> bool:
    if f"- RFC {rfc} section {section}\n" in INFORMATIVE:
        return True
    sections = [row[1] for row in ROWS if row[0] == rfc]
    return any(f"{each}.".startswith(f"{section}.") for each in sections)


def test_each_section_that_the_code_cites_is_listed() -> None:
    """If this fails: give the section a row, or a line under "Cited for information"."""
    cited = _cited()
    assert {(2920, "3.2"), (5321, "4.1.1.4"), (5321, "2.3.8")} <= set(cited)
    assert {key: where for key, where in cited.items() if not _is_listed(*key)} == {}


def test_a_section_that_is_not_listed_is_noticed() -> None:
    assert not _is_listed(5321, "4.9.9")
    assert not _is_listed(9999, "1")


def test_nothing_is_listed_for_information_that_the_code_does_not_cite() -> None:
    cited = {f"RFC {rfc} section {section}" for rfc, section in _cited()}
    listed = set(re.findall("^- (RFC .*)$", INFORMATIVE, re.MULTILINE))
    assert listed - cited == set()
