"""Text of peers: escaped wherever it leaves for a terminal, a page or a file.

`printable` is for people: one line of text in which nothing drives a terminal, forges a line or
reorders what stands beside it.  `text_of` is for trace files: it loses nothing, so that `octets_of`
can bring the octets back.
"""

import re

_ESCAPE = re.compile(r"\\(?:\\|x([0-9a-f]{2}))")


def printable(value: str | bytes) -> str:
    """Return `value` as one line of text, what is not printable escaped by a backslash.

    Octets can be told from the result, as from that of `text_of`.
    """
    if isinstance(value, str):
        text = value
    else:
        text = value.decode() if value.isascii() and b"\\" not in value else text_of(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def text_of(octets: bytes) -> str:
    """Return octets as text that `octets_of` reads.

    UTF-8 (RFC 6531) stands as it is.  Any other octet, and each that JSON would not escape although
    it could drive a terminal, becomes `\\xNN`; so a backslash of the peer's is doubled.
    """
    if is_plain(octets):
        return octets.decode("ascii")
    text = octets.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c < " " else _escaped(c) for c in text)


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


def _escaped(character: str) -> str:
    return "".join(f"\\x{octet:02x}" for octet in character.encode())
