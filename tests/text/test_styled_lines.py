"""Lines of styled text: their width, where they are cut, and what a console prints of them."""

import io

import pytest
from rich.console import Console

from smtpproxy.text.styled_lines import StyledLine, StyledLines


def printed(line: StyledLine, width: int = 80, **kinds: object) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=bool(kinds), color_system=None)
    console.print(StyledLines([line]))
    return file.getvalue()


@pytest.mark.parametrize(
    ("width", "shown"),
    [(20, "MAIL | Grüße 日本"), (13, "MAIL | Grüße…"), (8, "MAIL | …"), (1, "…"), (0, "")],
)
def test_a_line_is_cut_with_an_ellipsis(width: int, shown: str) -> None:
    line = StyledLine(("MAIL", "cyan"), (" | ", "bold"), ("Grüße 日本", ""))
    assert line.width == 17
    cut = line.truncated(width)
    assert "".join(text for text, _ in cut.pieces) == shown
    assert cut.width <= width


def test_a_wide_character_is_never_cut_in_half() -> None:
    cut = StyledLine(("日本日本", "")).truncated(6)
    assert cut.width == 6
    assert cut.text().plain == "日本 …"


def test_a_line_is_cut_at_the_width_of_the_console() -> None:
    assert printed(StyledLine(("a" * 9, "red"), ("b" * 9, ""))) == "a" * 9 + "b" * 9 + "\n"
    assert printed(StyledLine(("a" * 9, "red"), ("b" * 9, "")), 10) == "a" * 9 + "b\n"


@pytest.mark.parametrize("terminal", [{}, {"terminal": True}])
def test_what_is_not_printable_is_escaped(terminal: dict[str, object]) -> None:
    line = StyledLine(("\x1b]0;x\x07", "red"), ("\u202e\n", ""))
    assert printed(line, **terminal) == "\\x1b]0;x\\x07\\u202e\\n\n"


def test_a_console_of_ascii_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    Console(file=file).print(StyledLines([StyledLine(("│─▶ ü █▏ 5 µs", "dim"))]))
    file.seek(0)
    assert file.read() == "|-> ? ## 5 us\n"
