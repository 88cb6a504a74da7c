"""Hostile text that controls a terminal, reorders a line, forges one, or is markup."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Struct
from msgspec.structs import fields

C0 = "".join(map(chr, range(0x20))) + "\x7f"
C1 = "".join(map(chr, range(0x80, 0xA0)))
ORDER = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
LINES = "\u2028\u2029\ufeff\U000e0041"
MARKUP = "[bold red]x[/bold red] [link=https://x.example]y[/link] :smile: <b>z</b></script>"
FORGED = "FORGED"
TEXT = (
    f"\x1b]0;title\x07\x1b[2J\x9b2J{MARKUP}{C0}{C1}{ORDER}{LINES}\r\n{FORGED}\n{FORGED}\r{FORGED}"
)
OCTETS = TEXT.encode()
LINE = OCTETS.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
"""What a peer can get into one line."""

_OURS = re.compile(r"\x1b\[([0-9;]*m|2K|1A|\?25[hl])|\r")
"""What rich writes to a terminal: styles, and the progress line."""


def check_shown(shown: str, *, terminal: bool = False) -> None:
    """Fail if printed text controls a terminal, or if a line of it was forged.

    terminal: the commands themselves have coloured it.
    """
    shown = _OURS.sub("", shown) if terminal else shown
    for line in shown.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith(FORGED), repr(line)


def hostile(kind: Any, **chosen: Any) -> Any:
    """Return a struct whose texts are all hostile, except for the given ones."""
    hints = get_type_hints(kind)
    values = {field.name: _value(hints[field.name]) for field in fields(kind)}
    return kind(**(values | chosen))


def _value(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return hostile(kind)
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    if get_args(kind):
        return [_value(get_args(kind)[0])]
    return {str: TEXT, bool: True, int: 550, float: 1.0}[kind]


def sources(package: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file of a package."""
    for file in sorted(package.rglob("*.py")):
        yield str(file.relative_to(package)), file.read_text()
