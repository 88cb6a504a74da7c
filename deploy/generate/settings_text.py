"""Every setting with its type, bounds, default and meaning, read from smtpproxy/config/schema.py.

Texts are Markdown: the reference takes them as they are, the manual page sets code in bold.
"""

import ast
import inspect
import re
import socket
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo, fields

from smtpproxy.config.decoding import ParsedBy, WrittenLike
from smtpproxy.config.schema import (
    ContentSize,
    NetworkSetting,
    ServedName,
    Settings,
    Size,
    host_instance,
)


@dataclass(frozen=True)
class Setting:
    """One setting."""

    key: str
    """Its full name, such as `listeners.NAME.tls`."""
    value: str
    """How it is written, with its unit and bounds."""
    default: str
    """As it is written in the file; empty if it cannot be written."""
    is_required: bool
    meaning: str


@dataclass(frozen=True)
class Table:
    """A table of settings."""

    header: str
    """As it is written in the file: `[listeners.NAME]`; empty for the top level."""
    meaning: str
    settings: list[Setting]


def tables() -> Iterator[Table]:
    """Yield all tables, each before its subtables."""
    return _tables(Settings, [])


def _tables(kind: type[msgspec.Struct], path: list[str]) -> Iterator[Table]:
    inner: list[tuple[type[msgspec.Struct], list[str]]] = []
    settings = []
    meanings = _docstrings(kind)
    for field in fields(kind):
        table, steps = _table_in(field.type)
        if table:
            inner.append((table, [*path, field.encode_name, *steps]))
        else:
            meaning = meanings.get(field.encode_name, "")
            assert meaning, f"{kind.__name__}.{field.encode_name} has no docstring"
            key = ".".join([*path, field.encode_name])
            value = _value(field.type)
            settings.append(Setting(key, value, _default(field), field.required, meaning))
    header = ".".join(path).replace("HOST", '"HOST"')
    yield Table(f"[{header}]" if header else "", " ".join((kind.__doc__ or "").split()), settings)
    for table, steps in inner:
        yield from _tables(table, steps)


def _table_in(wanted: object) -> tuple[type[msgspec.Struct] | None, list[str]]:
    """Return the table that a setting contains, and its placeholder: NAME, HOST or empty."""
    kind, marks = _unwrap(wanted)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        # An address, for example, is written as text.
        return (None, []) if marks else (kind, [])
    if get_origin(kind) is dict:
        name, inner = get_args(kind)
        return _table_in(inner)[0], ["HOST" if name is ServedName else "NAME"]
    return None, []


def _value(wanted: object) -> str:
    kind, marks = _unwrap(wanted)
    for mark in marks:
        if isinstance(mark, ParsedBy):
            return _with_code(mark.expected)
        if isinstance(mark, WrittenLike):
            return _with_code(mark.example)
        if isinstance(mark, msgspec.Meta) and mark.description:
            return _with_code(mark.description)
    if get_origin(kind) is Literal:
        *rest, last = [f'`"{choice}"`' for choice in get_args(kind)]
        return f"{', '.join(rest)} or {last}"
    return "`true` or `false`" if kind is bool else "a text in quotes"


def _with_code(text: str) -> str:
    """Return the text with quoted parts as code."""
    return re.sub(r'\[?"[^"]*"\]?', lambda found: f"`{found[0]}`", text)


def _default(field: FieldInfo) -> str:
    if field.default_factory in (socket.gethostname, host_instance):
        return "this machine's name"
    if field.default_factory is not msgspec.NODEFAULT:
        return _toml(field.default_factory())
    if field.type in (Size, ContentSize):
        return f'"{field.default >> 20}MiB"'
    return _toml(field.default)


def _toml(value: object) -> str:
    """Return a default as it is written in the file; empty if it cannot be written."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, NetworkSetting):
        value = value.text
    return f'"{value}"' if isinstance(value, str) and value else ""


def _docstrings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the docstring of each attribute, read from the source."""
    (table,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(table, ast.ClassDef)
    return {
        node.target.id: " ".join(str(text.value.value).split())
        for node, text in pairwise(table.body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _unwrap(wanted: object) -> tuple[object, tuple[object, ...]]:
    if get_origin(wanted) is Annotated:
        kind, *marks = get_args(wanted)
        return kind, tuple(marks)
    return wanted, ()
