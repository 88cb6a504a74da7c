"""Lines of styled text: what long output is drawn with, at a tenth of the cost of rich's Text.

A line is made of pieces, each with one style.  Text of peers is `printable` before it becomes a
piece, since the width of a line depends on it; what is not is escaped where it is drawn.
"""

from collections.abc import Iterable, Iterator

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

from smtpproxy.text.escaping import printable

Piece = tuple[str, str]
"""A text, and its style by rich's name; an empty name for none."""

_ASCII = str.maketrans("│├┤─╌▶◀╭╰⋮…■█▉▊▋▌▍▎▏µ", "|++--></\\:~#########u")


def width_of(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return len(text) if text.isascii() else cell_len(text)


class StyledLine:
    """One line.

    Args:
        pieces: Its pieces.
    """

    __slots__ = ("pieces", "width")

    pieces: list[Piece]
    """Its pieces."""
    width: int
    """How many cells it takes."""

    def __init__(self, *pieces: Piece) -> None:
        self.pieces = list(pieces)
        self.width = 0
        for text, _ in pieces:
            self.width += width_of(text)

    def add(self, text: str, style: str = "") -> None:
        """Append a piece."""
        self.pieces.append((text, style))
        self.width += width_of(text)

    def extend(self, line: "StyledLine") -> None:
        """Append a line to it."""
        self.pieces += line.pieces
        self.width += line.width

    def truncated(self, width: int, end: str = "…") -> "StyledLine":
        """Return it in at most so many cells; what was cut ends in `end`."""
        if self.width <= width:
            return self
        room = max(width - width_of(end), 0)
        line = StyledLine()
        for text, style in self.pieces:
            size = width_of(text)
            line.add(text if size <= room else set_cell_size(text, room), style)
            room -= size
            if room <= 0:
                break
        if line.pieces and width > 0:
            line.add(end, line.pieces[-1][1])
        return line

    def text(self) -> Text:
        """Return it as rich's Text."""
        return Text.assemble(*self.pieces)


class StyledLines:
    """A rich renderable of lines, each cut at the width of the console.

    Args:
        lines: The lines; they are used once.
    """

    def __init__(self, lines: Iterable[StyledLine]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = as_ascii if options.ascii_only else printable
        newline, is_terminal = Segment.line(), console.is_terminal
        for line in self._lines:
            pieces = line.truncated(options.max_width, "").pieces
            if is_terminal:
                for text, style in _joined(pieces):
                    yield Segment(shown(text), console.get_style(style) if style else None)
            else:
                yield Segment(shown("".join([text for text, _ in pieces])))
            yield newline


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield pieces, of which neighbours of the same style are one."""
    joined, joined_style = "", ""
    for text, style in pieces:
        if style == joined_style or not text.strip(" "):
            joined += text  # blanks need no style of their own
            continue
        if joined:
            yield joined, joined_style
        joined, joined_style = text, style
    if joined:
        yield joined, joined_style


def as_ascii(text: str) -> str:
    """Return a text with its box characters, and what is left beyond them, in ASCII."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()
