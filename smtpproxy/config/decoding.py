"""Decoding: plain values become typed settings, and every problem in them is found.

msgspec stops at the first error, so this walks the tree and lets msgspec check one leaf at a time.
A value is decoded or reported, never silently changed.
"""

import json
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Annotated, Final, Literal, cast, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo, fields

from smtpproxy.config.toml_lines import KeyPath
from smtpproxy.text.escaping import printable

BAD: Final = object()
"""Replaces a value that has a problem; settings with it never leave `load`."""

RESPELT: Final[dict[KeyPath, str]] = {
    ("listener",): "; write each listener as a table with a name, [listeners.NAME]",
}
"""Hints for keys that do not exist and are likely to be tried."""

KeyProblem = tuple[KeyPath, str]
"""The key path of a setting, and what is wrong with it."""
Marks = tuple[object, ...]
"""The metadata of an Annotated type."""

_SHOWN_CHARACTERS = 60


class Problem(Struct, frozen=True):
    """One problem, with its place and what to do about it."""

    file: str
    """Empty for a flag."""
    line: int | None
    key: str
    """The dotted name of the setting, or the flag; empty for the whole file."""
    text: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.key, self.text) if part)


class ConfigError(Exception):
    """All problems of a configuration, ordered by line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(map(str, self.problems)))


class ParsedBy(Struct, frozen=True):
    """In Annotated: the setting is written as text and parsed."""

    parse: Callable[[str], object]
    """Raises ValueError with the problem, worded to follow the text itself."""
    expected: str
    """What must be written, to follow "must be"."""
    secret: bool = False
    """Never show the text in a message."""


class WrittenLike(Struct, frozen=True):
    """In Annotated: how the setting is written, to follow "must be"."""

    example: str


class SettingsDecoder:
    """Decodes values into the types of the settings and collects the problems."""

    def __init__(self) -> None:
        self.found: list[KeyProblem] = []

    def add(self, path: KeyPath, text: str) -> None:
        """Add a problem of the value at `path`."""
        self.found.append((path, text))

    def read(self, value: object, wanted: object, path: KeyPath = ()) -> object:
        """Decode `value` as `wanted`; any part with a problem is BAD, and the problem is added."""
        kind, marks = _unwrap(wanted)
        for mark in marks:
            if isinstance(mark, ParsedBy):
                return self._read_parsed(value, mark, path)
        if isinstance(kind, type) and issubclass(kind, Struct):
            return self._read_table(value, kind, path)
        if get_origin(kind) is dict:
            return self._read_names(value, kind, marks, path)
        if get_origin(kind) is list:
            return self._read_list(value, kind, marks, path)
        return self._read_leaf(value, wanted, path)

    def _read_table(self, value: object, kind: type[Struct], path: KeyPath) -> object:
        if not isinstance(value, dict):
            return self._reject(value, "a table", path)
        known = {field.encode_name: field for field in fields(kind)}
        for key in value:
            if key not in known:
                hint = RESPELT.get((*path, key)) or instead(key, known, "known here")
                self.add((*path, key), f"is not a known setting{hint}")
        settings = {key: self._read_field(value, field, path) for key, field in known.items()}
        return kind(**settings)

    def _read_field(self, table: dict[str, object], field: FieldInfo, path: KeyPath) -> object:
        if field.encode_name in table:
            return self.read(table[field.encode_name], field.type, (*path, field.encode_name))
        if field.default is not msgspec.NODEFAULT:
            return field.default
        if field.default_factory is not msgspec.NODEFAULT:
            return field.default_factory()
        self.add((*path, field.encode_name), f"is missing; it is {_expected(field.type)}")
        return BAD

    def _read_names(self, value: object, kind: object, marks: Marks, path: KeyPath) -> object:
        name_type, inner = get_args(kind)
        expected = _expected_marks(marks, "a table")
        if not isinstance(value, dict):
            return self._reject(value, expected, path)
        found = {}
        for name, inside in value.items():
            place = (*path, name)
            if isinstance(inside, dict):
                self.read(name, name_type, place)
                found[name] = self.read(inside, inner, place)
            else:
                found[name] = self._reject(inside, expected, place)
        return found

    def _read_list(self, value: object, kind: object, marks: Marks, path: KeyPath) -> object:
        if not isinstance(value, list):
            return self._reject(value, _expected_marks(marks, "a list"), path)
        (inner,) = get_args(kind)
        return [self.read(item, inner, (*path, index)) for index, item in enumerate(value)]

    def _read_parsed(self, value: object, mark: ParsedBy, path: KeyPath) -> object:
        if not isinstance(value, str):
            if mark.secret:
                self.add(path, f"must be {mark.expected}")
                return BAD
            return self._reject(value, mark.expected, path)
        try:
            return mark.parse(value)
        except ValueError as error:
            self.add(path, str(error) if mark.secret else f"{show(value)} {error}")
            return BAD

    def _read_leaf(self, value: object, wanted: object, path: KeyPath) -> object:
        try:
            return cast("object", msgspec.convert(value, wanted))
        except msgspec.ValidationError:
            return self._reject(value, _expected(wanted), path, _choices(wanted))

    def _reject(
        self, value: object, expected: str, path: KeyPath, choices: tuple[str, ...] = ()
    ) -> object:
        close = _closest(value, choices) if isinstance(value, str) else None
        meant = f"; did you mean {show(close)}?" if close else ""
        self.add(path, f"must be {expected}, not {show(value)}{meant}")
        return BAD


def show(value: object) -> str:
    """Return `value` as it is written in the file, escaped and cut to one short line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "..."
    text = printable(text)
    return f'"{text}"' if isinstance(value, str) else text


def shown(names: Iterable[str]) -> str:
    """Return `names` for a message, separated by commas."""
    return ", ".join(map(show, names))


def dotted(path: KeyPath) -> str:
    """Return `path` as text: `backends.old.servers[1]`, positions counted from 0."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", step, re.ASCII)
            text += f".{step if bare else json.dumps(step)}"
    return text.removeprefix(".")


def instead(word: str, known: Iterable[str], title: str) -> str:
    """Return a hint, to follow a problem with `word`: the closest known word, or all of them."""
    close = _closest(word, known)
    return f"; did you mean {show(close)}?" if close else f"; {title}: {shown(known)}"


def _unwrap(wanted: object) -> tuple[object, Marks]:
    if get_origin(wanted) is Annotated:
        kind, *marks = get_args(wanted)
        return kind, tuple(marks)
    return wanted, ()


def _expected(wanted: object) -> str:
    kind, marks = _unwrap(wanted)
    if kind is bool:
        return "true or false"
    if choices := _choices(wanted):
        return ", ".join(map(show, choices[:-1])) + f" or {show(choices[-1])}"
    if kind is str:
        return "a text in quotes"
    return _expected_marks(marks, "a table")


def _expected_marks(marks: Marks, otherwise: str) -> str:
    for mark in marks:
        if isinstance(mark, ParsedBy):
            return mark.expected
        if isinstance(mark, WrittenLike):
            return mark.example
        if isinstance(mark, Meta) and mark.description:
            return mark.description
    return otherwise


def _choices(wanted: object) -> tuple[str, ...]:
    return get_args(wanted) if get_origin(wanted) is Literal else ()


def _closest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(word.lower(), list(known), n=1)), None)
