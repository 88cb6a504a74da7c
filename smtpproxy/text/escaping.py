"""Text of peers: escaped wherever it leaves for a terminal, a page or a file.

`printable` is for people: one line of text in which nothing drives a terminal, forges a line or
reorders what stands beside it.  `text_of` is for trace files: it loses nothing, so that `octets_of`
can bring the octets back.

Each is one pass: a stranger chooses the text, so no character may cost much more than another.
"""

import re
from collections.abc import Callable
from functools import lru_cache

_ESCAPE = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")
# All that is not printable is among these, in runs that are short enough for other threads.
_UNUSUAL = re.compile(r"[^\w -~]{1,4096}")
_UNUSUAL_IN_LINES = re.compile(r"[^\w\x00-~]{1,4096}")
_CUT_ESCAPE = re.compile(r"\\(x.?|u.{0,3}|U.{0,7})?$")
_CHARACTERS_KNOWN = 1024
"""Of so many characters it is kept in mind how they are shown."""


def printable(value: str | bytes) -> str:
    """Return `value` as one line of text, what is not printable escaped by a backslash.

    Octets can be told from the result, as from that of `text_of`.
    """
    if isinstance(value, str):
        text = value
    else:
        text = value.decode() if value.isascii() and b"\\" not in value else text_of(value)
    return text if text.isprintable() else _UNUSUAL.sub(_shown, text)


def shortened(value: str | bytes, most: int) -> str:
    """Return `printable` of the begin of a value: `most` bytes of UTF-8 at most.

    What is cut ends in `...`.  The cost is that of `most` bytes, however long the value is.
    """
    text = printable(value[:most])
    if len(value) <= most and len(text) * 4 <= most:
        return text
    octets = text.encode()
    if len(value) <= most and len(octets) <= most:
        return text
    return _CUT_ESCAPE.sub("", octets[: most - 3].decode(errors="ignore")) + "..."


def text_of(octets: bytes) -> str:
    """Return octets as text that `octets_of` reads.

    UTF-8 (RFC 6531) stands as it is.  Any other octet, and each that JSON would not escape although
    it could drive a terminal, becomes `\\xNN`; so a backslash of the peer's is doubled.
    """
    if is_plain(octets):
        return octets.decode("ascii")
    text = octets.replace(b"\\", b"\\\\").decode("utf-8", "surrogateescape")
    return _UNUSUAL_IN_LINES.sub(_octets_shown, text).replace("\x7f", "\\x7f")


def is_plain(octets: bytes) -> bool:
    """Tell whether octets are just the text that they read as."""
    return octets.isascii() and b"\\" not in octets and b"\x7f" not in octets


def octets_of(text: str) -> bytes:
    """Return the octets that `text_of` made this text of."""
    if "\\" not in text:
        return text.encode()
    octets = bytearray()
    position = 0
    for found in _ESCAPE.finditer(text):
        octets += text[position : found.start()].encode()
        octets += bytes([int(found[1], 16)]) if found[1] else b"\\"
        position = found.end()
    return bytes(octets + text[position:].encode())


def _escape_runs(escape: Callable[[str], str]) -> Callable[[re.Match[str]], str]:
    """Return what escapes a run of characters, those of it that are not printable."""
    character = lru_cache(_CHARACTERS_KNOWN)(lambda c: c if c.isprintable() else escape(c))

    def run(found: re.Match[str]) -> str:
        text = found[0]
        return text if text.isprintable() else "".join(map(character, text))

    return run


def _octets_of_character(character: str) -> str:
    octets = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{octet:02x}" for octet in octets)


_shown = _escape_runs(lambda character: character.encode("unicode_escape").decode())
_octets_shown = _escape_runs(_octets_of_character)
