"""Finds the line of each key in a TOML text.

tomllib returns values without their lines. A statement parses as soon as its lines are complete,
and not before, so adding lines until it parses finds where each statement begins and ends, without
a second TOML grammar. Used only when there is a problem to report.
"""

import tomllib
from collections.abc import Iterator

KeyPath = tuple[str | int, ...]
"""The path of a value: keys, and positions in arrays, counted from 0."""

# What may still be open at the end of a line: nothing, an array, an array in an inline table.
_CLOSINGS = ("", "]", "]}")


def find_lines(text: str) -> dict[KeyPath, int]:
    """Return the first line (from 1) of every key path in `text`, which must be valid TOML."""
    lines_of_keys: dict[KeyPath, int] = {}
    arrays: dict[KeyPath, int] = {}
    table: KeyPath = ()
    begin, lines = 0, text.split("\n")
    for end in range(1, len(lines) + 1):
        statement = _parse(lines[begin:end])
        if statement is None:
            continue
        if lines[begin].lstrip().startswith("["):
            table = _open_table(statement, arrays)
            for depth in range(1, len(table) + 1):
                lines_of_keys.setdefault(table[:depth], begin + 1)
        else:
            for path, line in _lines_in_statement(lines[begin:end], begin + 1):
                lines_of_keys.setdefault(table + path, line)
        begin = end
    return lines_of_keys


def line_of(path: KeyPath, lines_of_keys: dict[KeyPath, int]) -> int | None:
    """Return the line of `path`, or of the innermost table around it that has a line."""
    for depth in range(len(path), 0, -1):
        if path[:depth] in lines_of_keys:
            return lines_of_keys[path[:depth]]
    return None


def _open_table(header: object, arrays: dict[KeyPath, int]) -> KeyPath:
    """Return the path of the table that `header` opens; count it if it is an array of tables."""
    path: KeyPath = ()
    while isinstance(header, dict) and header:
        key, header = next(iter(header.items()))
        path = (*path, key)
        if isinstance(header, list):
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _lines_in_statement(lines: list[str], first: int) -> Iterator[tuple[KeyPath, int]]:
    """Yield the paths in one `key = value` whose first line is `first`; the earliest line is right.

    An array over several lines is closed early, so that each of its items is found in its own line.
    """
    begin = 0
    for end in range(1, len(lines) + 1):
        for closing in _CLOSINGS:
            parsed = _parse([*lines[:end], closing])
            if parsed is not None:
                for path in _paths_in(parsed):
                    yield path, first + begin
                begin = end
                break


def _paths_in(value: object) -> Iterator[KeyPath]:
    items: Iterator[tuple[str | int, object]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    for key, inside in items:
        yield (key,)
        for path in _paths_in(inside):
            yield (key, *path)


def _parse(lines: list[str]) -> dict[str, object] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except ValueError:
        return None
