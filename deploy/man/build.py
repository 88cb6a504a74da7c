#!/usr/bin/env python3
"""Write the manual pages smtpproxy(8) and smtpproxy.toml(5).

    python deploy/man/build.py [DIRECTORY]

The first page comes from the commands and their options, the second from the settings: their types,
defaults and docstrings.  DIRECTORY is where this file is, unless it is given.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import click
import msgspec
from msgspec.structs import FieldInfo, fields

from smtpproxy import cli
from smtpproxy.config.schema import Settings

_EXIT = [
    ("0", "Success; for run: drained and stopped by a signal."),
    ("1", "Failure: a problem in the settings, an address that cannot be opened, a failed check."),
    ("2", "Wrong usage of the command line."),
]
_FILES = [
    ("/etc/smtpproxy/smtpproxy.toml", "The settings that the systemd unit uses."),
    (
        "/etc/systemd/system/smtpproxy.service.d/local.conf",
        "What a setting needs of systemd, such as access to TLS keys; the unit has a list.",
    ),
]


def commands_page() -> str:
    """Return smtpproxy(8)."""
    main = cli.main
    page = [
        _title("SMTPPROXY", 8),
        _section("NAME"),
        r"smtpproxy \- transparent SMTP proxy that adds PIPELINING to an MTA",
        _section("SYNOPSIS"),
        *(f"{_bold(name)} {_escaped(usage)}\n.br" for name, command, usage in _commands(main, "")),
        _section("DESCRIPTION"),
        _text(main.help or ""),
        _text(
            "It stands between clients and an MTA that lacks PIPELINING (RFC 2920), takes whole "
            "groups of commands from clients, sends them to the MTA one at a time, and returns "
            "the replies in order."
        ),
        _section("COMMANDS"),
    ]
    for name, command, usage in _commands(main, ""):
        page += [f'.SS "{_escaped(name)} {_escaped(usage)}"', _text(command.help or "")]
        page += [_item(*record) for record in _options(command, name)]
        if command.epilog:
            page.append(_text(command.epilog))
    page += [_section("ENVIRONMENT"), *(_item(*each) for each in _variables(main))]
    page += [_section("EXIT STATUS"), *(_item(*each) for each in _EXIT)]
    page += [_section("FILES"), *(_item(*each) for each in _FILES)]
    page += [_section("SEE ALSO"), r"\fBsmtpproxy.toml\fR(5)"]
    return "\n".join(page) + "\n"


def settings_page() -> str:
    """Return smtpproxy.toml(5)."""
    page = [
        _title("SMTPPROXY.TOML", 5),
        _section("NAME"),
        r"smtpproxy.toml \- settings of smtpproxy",
        _section("DESCRIPTION"),
        _text(
            "A TOML file, read by smtpproxy run -c FILE at the start and at SIGHUP.  An unknown "
            "key, a wrong type and an impossible value are errors; smtpproxy check -c FILE reports "
            "all of them, each with its line.  smtpproxy example config prints a first file."
        ),
        *_tables(Settings, ""),
        _section("SEE ALSO"),
        r"\fBsmtpproxy\fR(8)",
    ]
    return "\n".join(page) + "\n"


def _commands(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command, str]]:
    """Yield each command of the group: its words, itself, and what follows them in its usage."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        words = f"{prefix or 'smtpproxy'} {name}"
        if isinstance(command, click.Group):
            yield from _commands(command, words)
        else:
            usage = " ".join(command.collect_usage_pieces(click.Context(command)))
            yield words, command, usage


def _options(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=name)
    for option in command.params:
        record = option.get_help_record(context)
        if record and record[1]:
            yield record


def _variables(group: click.Group) -> list[tuple[str, str]]:
    """Return each environment variable with the options that it stands for."""
    found: dict[str, list[str]] = {}
    for name, command, _ in _commands(group, ""):
        for option in command.params:
            if option.envvar:
                found.setdefault(str(option.envvar), []).append(f"{name} {option.opts[-1]}")
    return [(variable, ", ".join(options)) for variable, options in found.items()]


def _tables(kind: type[msgspec.Struct], name: str) -> Iterator[str]:
    """Yield the section of a table, then those of the tables in it."""
    within: list[tuple[type[msgspec.Struct], str]] = []
    meanings = _meanings(kind)
    yield _section(f"[{name}]" if name else "TOP LEVEL")
    yield _text((kind.__doc__ or "").replace("`", ""))
    for field in fields(kind):
        inner, step = _table_in(field.type)
        if inner:
            path = f"{name}.{field.encode_name}{step}".removeprefix(".")
            within.append((inner, path))
        else:
            yield _item(field.encode_name, _written(field))
            yield ".br\n" + _line(meanings[field.encode_name])
    for inner, path in within:
        yield from _tables(inner, path)


def _table_in(wanted: object) -> tuple[type[msgspec.Struct] | None, str]:
    """Return the table that a setting is, and how its name goes on: one for each NAME, or none."""
    kind = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        # An address, for example, is written as text.
        return (None, "") if _marks(wanted) else (kind, "")
    if get_origin(kind) in {dict, list}:
        inner = _table_in(get_args(kind)[-1])[0]
        return inner, ".NAME" if get_origin(kind) is dict else ""
    return None, ""


def _written(field: FieldInfo) -> str:
    """Return how a setting is written, and its default."""
    expected = _expected(field.type)
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return f"{expected}; required"
    default = _toml(field.default)
    return f"{expected}; default {default}" if default else expected


def _toml(value: object) -> str:
    """Return a default as it is written in the file; nothing for one that has no spelling."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f'"{value}"' if isinstance(value, str) and value else ""


def _marks(wanted: object) -> list[str]:
    """Return how the annotations of a type say that it is written."""
    named = ("expected", "example", "description")
    marks = get_args(wanted)[1:] if get_origin(wanted) is Annotated else ()
    found = [getattr(mark, name, None) for mark in marks for name in named]
    return [text for text in found if text]


def _expected(wanted: object) -> str:
    if found := _marks(wanted):
        return found[0]
    kind = get_args(wanted)[0] if get_origin(wanted) is Annotated else wanted
    if get_origin(kind) is Literal:
        return " | ".join(f'"{choice}"' for choice in get_args(kind))
    return "true | false" if kind is bool else "a text in quotes"


def _meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return what the source says of each attribute: the docstring after it or a comment before."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    (table,) = ast.parse(source).body
    assert isinstance(table, ast.ClassDef)
    found: dict[str, str] = {}
    for previous, node in pairwise([*table.body, ast.Pass()]):
        if isinstance(previous, ast.AnnAssign) and isinstance(previous.target, ast.Name):
            told = _docstring(node) or _comment(lines[: previous.lineno - 1])
            found[previous.target.id] = told
    return found


def _docstring(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return inspect.cleandoc(str(node.value.value))
    return ""


def _comment(lines: list[str]) -> str:
    """Return the text of the comment that these lines end with."""
    found: list[str] = []
    while lines and lines[-1].lstrip().startswith("#"):
        found.insert(0, lines.pop().strip().removeprefix("#").strip())
    return " ".join(found)


def _title(name: str, section: int) -> str:
    return f'.TH {_escaped(name)} {section} "" smtpproxy\n.nh\n.ad l'


def _section(name: str) -> str:
    return f'.SH "{_escaped(name)}"'


def _item(name: str, text: str) -> str:
    return f".TP\n{_bold(name)}\n{_line(' '.join(text.split()))}"


def _text(text: str) -> str:
    """Set paragraphs; one that click must not wrap keeps its lines."""
    page = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            kept = "\n".join(map(_line, paragraph.removeprefix("\b\n").splitlines()))
            page.append(f".PP\n.nf\n{kept}\n.fi")
        else:
            page.append(f".PP\n{_line(' '.join(paragraph.split()))}")
    return "\n".join(page)


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _line(text: str) -> str:
    """Escape a line of text: one that begins with a dot or an apostrophe would be a request."""
    escaped = _escaped(text)
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    return text.translate(_ROFF)


_ROFF = str.maketrans(
    {
        "\\": r"\e",
        "-": r"\-",
        '"': r"\(dq",
        "`": r"\(ga",
        "'": r"\(aq",
        "~": r"\(ti",
        "^": r"\(ha",
    }
)


def main() -> None:
    """Write both pages."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (directory / "smtpproxy.8").write_text(commands_page())
    (directory / "smtpproxy.toml.5").write_text(settings_page())


if __name__ == "__main__":
    main()
