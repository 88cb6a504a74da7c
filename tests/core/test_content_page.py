"""The table in deploy/content.md is correct."""

import re
from pathlib import Path

import pytest

from smtpproxy.core.content import BareNewlines, Content

PAGE = Path(__file__).parents[2] / "deploy" / "content.md"
OCTETS = {"CR": b"\r", "LF": b"\n", "CRLF": b"\r\n", "NUL": b"\0"}
END = "CRLF . CRLF"


def _rows() -> list[tuple[str, str, str]]:
    """Return what is sent, what is forwarded with `normalize`, and the violation with `reject`."""
    table = re.findall(
        r"^\| `(.+?)` \| (.+?) \| (.+?) \| the same \|$", PAGE.read_text(), re.MULTILINE
    )
    return [(sent, normal.strip("`"), kind.strip("`")) for sent, normal, kind in table]


def _octets(words: str) -> bytes:
    return b"".join(OCTETS.get(word, word.encode()) for word in words.split(" "))


def _taken(policy: BareNewlines, octets: bytes) -> tuple[bytes, str]:
    content = Content(policy)
    out = content.receive(b"text" + octets + b"\r\n.\r\n")[0]
    assert content.ended
    return out.removeprefix(b"text").removesuffix(b"\r\n.\r\n"), (
        content.violation.kind if content.violation else ""
    )


@pytest.mark.parametrize(("sent", "normal", "kind"), _rows())
def test_a_row_of_the_page_is_right(sent: str, normal: str, kind: str) -> None:
    octets = _octets(sent)
    normal = sent if normal == "the same" else normal
    assert _taken(BareNewlines.NORMALIZE, octets) == (_octets(normal), "")
    assert _taken(BareNewlines.PASS, octets) == (octets, "")
    assert _taken(BareNewlines.REJECT, octets)[1] == ("" if kind == "forwarded unchanged" else kind)


def test_the_page_has_all_that_matters() -> None:
    sent = [row[0] for row in _rows()]
    assert len(sent) == 16
    assert sum("NUL" in words for words in sent) >= 5
    assert f"| `{END}` | the end of the message |" in PAGE.read_text()
