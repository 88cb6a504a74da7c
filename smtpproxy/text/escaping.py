"""Escaping of text from peers, for terminals, the live page, the log and trace files.

`printable` is for people: it returns one line of text that cannot control a terminal, forge a line
or reorder the text next to it.  `text_of` is for trace files: it loses nothing, so that `octets_of`
can return the octets.

Peers choose the text, so no character may cost much more time than another.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from functools import lru_cache, partial

_ESCAPE = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")
# Every character that is not printable matches; runs are short, so that other threads can run.
_UNUSUAL = re.compile(r"[^\w -~]{1,4096}")
_UNUSUAL_IN_LINES = re.compile(r"[^\w\x00-~]{1,4096}")
_CUT_ESCAPE = re.compile(r"\\(x.?|u.{0,3}|U.{0,7})?$")
_ESCAPE_LENGTH = 9  # the longest match of _CUT_ESCAPE
COMPACT_OCTETS = 256
"""Shorter text is never base64, so that people can read it."""
SHORT_TEXT = 4096
"""Up to this length each character is looked up; in longer text only unusual ones are."""
_BASE64 = "\\="
BACKSLASH, DELETE = 0x5C, 0x7F
"""Octets to look for: a search for one as `bytes` takes ten times as long (bench S3)."""
_HIGH = bytes(range(0x80, 0x100))
_SHORT_IN_JSON = bytes(each for each in range(0x20, 0x7F) if each != 0x5C) + b"\r\n\t"
_CHARACTERS_KNOWN = 1024
"""The number of characters whose escapes are cached."""


def printable(value: str | bytes) -> str:
    """Return a value as one line of text, with unprintable characters as backslash escapes.

    `octets_of` returns the octets again, as for `text_of`.
    """
    if isinstance(value, str):
        text = value
    else:
        text = value.decode() if value.isascii() and BACKSLASH not in value else text_of(value)
    if text.isprintable():
        return text
    if text.isascii():
        return text.translate(_ASCII_SHOWN)
    if len(text) <= SHORT_TEXT:
        return "".join(map(_shown_character, text))
    return _UNUSUAL.sub(_shown, text)


def shortened(value: str | bytes, most: int) -> str:
    """Return `printable` of the first part of a value; it ends in `...` if there is more.

    The cost is that of `most` bytes, however long the value is.

    Args:
        value: The value.
        most: The most bytes of UTF-8 that the result may have.
    """
    # If each octet becomes an escape of four characters, a quarter of them is enough.
    begin = value[: most // 4 + 16]
    text = printable(begin)
    if len(begin) < len(value) and len(text) < most + 16:
        text = printable(value[:most])
    if len(value) <= most and len(text) * 4 <= most:
        return text
    if len(value) <= most and len(text.encode()) <= most:
        return text
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """Return the start of a result of `printable`, and `...`: at most `most` bytes of UTF-8."""
    begin = text[:most].encode()[: most - 3].decode(errors="ignore")
    # Only the end is searched for a cut escape, since a search of all text would take long.
    return begin[:-_ESCAPE_LENGTH] + _CUT_ESCAPE.sub("", begin[-_ESCAPE_LENGTH:]) + "..."


def text_of(octets: bytes) -> str:
    r"""Return octets as text that `octets_of` reads.

    UTF-8 (RFC 6531) is unchanged.  Any other octet, and any that could control a terminal and that
    JSON does not escape, becomes `\xNN`; so a peer's backslash is doubled.
    """
    if is_plain(octets):
        return octets.decode("ascii")
    escaped = octets.replace(b"\\", b"\\\\").replace(b"\x7f", b"\\x7f")
    text = escaped.decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    if len(text) <= SHORT_TEXT:
        return "".join(map(_octets_character, text))
    return _UNUSUAL_IN_LINES.sub(_octets_shown, text)


def compact_text_of(octets: bytes) -> str:
    r"""Return `text_of` of octets, or `\=` and base64 if that is shorter in JSON.

    So the text is never much longer than the octets, and no octet costs much more than another.
    """
    size = len(octets)
    if size < COMPACT_OCTETS:
        return text_of(octets)
    room = size * 2 // 5 - sum(map(octets.count, (b"\r", b"\n", b"\t", b'"')))
    if 5 * len(octets.translate(None, _SHORT_IN_JSON)) <= room:
        return text_of(octets)
    if 5 * len(octets.translate(None, _SHORT_IN_JSON + _HIGH)) <= room:
        text = _decoded(octets.replace(b"\\", b"\\\\"))
        if text is not None and re.sub("[\r\n\t]+", "", text).isprintable():
            return text
    return _BASE64 + b2a_base64(octets, newline=False).decode()


def _decoded(octets: bytes) -> str | None:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        return None


def expanded(text: str, most: int | None = None) -> str:
    """Return the result of `compact_text_of` as that of `text_of`.

    Args:
        text: The text.
        most: The most characters of it to use; if there are more, the result ends in `...`.

    Raises:
        ValueError: It is not a result of `compact_text_of`.
    """
    used = text if most is None else text[: most // 4 * 4 + len(_BASE64)]
    more = "..." if len(used) < len(text) else ""
    return (text_of(octets_of(used)) if used.startswith(_BASE64) else used) + more


def is_plain(octets: bytes) -> bool:
    """Return whether octets are ASCII text without anything to escape."""
    return octets.isascii() and BACKSLASH not in octets and DELETE not in octets


def in_capitals(text: str) -> str:
    """Return a text that `text_of` has returned in capitals, with its escapes as they are."""
    return text_of(octets_of(text).upper())


def octets_of(text: str) -> bytes:
    """Return the octets of a text that `text_of` or `compact_text_of` has returned.

    Raises:
        ValueError: The text is not such a result.
    """
    if text.startswith(_BASE64):
        return a2b_base64(text[len(_BASE64) :])
    if "\\" not in text:
        return text.encode()
    octets = bytearray()
    position = 0
    for found in _ESCAPE.finditer(text):
        octets += text[position : found.start()].encode()
        octets += bytes([int(found[1], 16)]) if found[1] else b"\\"
        position = found.end()
    return bytes(octets + text[position:].encode())


def _escape_run(character: Callable[[str], str], found: re.Match[str]) -> str:
    text = found[0]
    return text if text.isprintable() else "".join(map(character, text))


@lru_cache(_CHARACTERS_KNOWN)
def _shown_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


@lru_cache(_CHARACTERS_KNOWN)
def _octets_character(character: str) -> str:
    if character.isprintable() or character < " ":
        return character
    octets = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{octet:02x}" for octet in octets)


_shown = partial(_escape_run, _shown_character)
_octets_shown = partial(_escape_run, _octets_character)
_ASCII_SHOWN = {code: _shown_character(chr(code)) for code in range(0x80)}
