"""Writes generated parts into handwritten documents, between two comments."""

import re
from collections.abc import Sequence
from pathlib import Path


class NoPlaceError(Exception):
    """A document lacks the two comments; the text says which."""


def markers(name: str) -> tuple[str, str]:
    """Return the comments before and after a generated part."""
    return f"<!-- {name}: generated, see tests/bench/README.md -->", f"<!-- /{name} -->"


def require_place(file: Path, name: str) -> None:
    """Check that a document has a place for a generated part.

    Raises:
        NoPlaceError: It has none.
    """
    if not _place(name).search(file.read_text()):
        begin, end = markers(name)
        raise NoPlaceError(f"{file} has no place for it, two lines:\n{begin}\n{end}")


def replace_part(file: Path, name: str, text: str) -> None:
    """Replace the generated part of a document, which must have a place for it."""
    document = file.read_text()
    written = _place(name).sub(lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}", document)
    file.write_text(written)


def _place(name: str) -> re.Pattern[str]:
    begin, end = map(re.escape, markers(name))
    return re.compile(f"({begin}\n).*?({end})", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; all columns but the first are aligned to the right, for figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
