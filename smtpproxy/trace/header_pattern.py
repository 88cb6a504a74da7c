"""Header fields of recorded messages: which messages have one, and a text in it."""

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header

from smtpproxy.text.escaping import octets_of

DECODED_CHARACTERS = 2000
"""How much of a value is decoded as in RFC 2047; of a longer one only the rest is as it is."""
_NAME = re.compile(r"[!-9;-~]+")
_FOLD = re.compile(r"\n(?=[ \t])")


@dataclass(frozen=True, slots=True)
class HeaderPattern:
    """A header field that a message must have."""

    name: str
    """Its name, in lower case."""
    text: str = ""
    """A part of its value, in lower case; empty: it may have any value."""

    @classmethod
    def of(cls, text: str) -> "HeaderPattern":
        """Return the pattern that `NAME` or `NAME=TEXT` is.

        Raises:
            ValueError: It has no name of a header field.
        """
        name, _, wanted = text.partition("=")
        name = name.strip().removesuffix(":")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{text!r} is no header field; write, for example, Subject=invoice")
        return cls(name.lower(), wanted.lower())

    def is_in(self, content: str) -> bool:
        """Return whether recorded content, which begins with a header, has the field.

        Args:
            content: The content as it is in the record.

        Raises:
            ValueError: It is not such a text.
        """
        octets = b"\n" + octets_of(content).replace(b"\r\n", b"\n")
        header = octets.partition(b"\n\n")[0].decode(errors="replace")
        if f"\n{self.name}:" not in header.lower():
            return False
        for line in _FOLD.sub("", header).split("\n"):
            name, _, value = line.partition(":")
            if name.lower() == self.name and self._matches(value):
                return True
        return False

    def _matches(self, value: str) -> bool:
        return self.text in value.lower() or self.text in _decoded(value).lower()


def _decoded(value: str) -> str:
    """Return a value with its encoded words decoded (RFC 2047)."""
    try:
        return str(make_header(decode_header(value[:DECODED_CHARACTERS])))
    except (HeaderParseError, LookupError, ValueError):
        return ""
