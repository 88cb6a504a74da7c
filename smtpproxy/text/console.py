"""The terminal: the one place where the commands print.

Nothing in a reply, a trace file, a certificate or a settings file can control the terminal, forge
a line or reorder one.
"""

import os
import sys
from collections.abc import Iterable
from shutil import get_terminal_size
from typing import Final, NoReturn

import click
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from smtpproxy.text.escaping import printable

PIPED_WIDTH: Final = 1000
"""The width in a pipe, so that `grep` gets whole lines."""


class Terminal(Console):
    """A console that prints each text as one line of printable characters, and never as markup.

    Args:
        stderr: Print to standard error.
        width: The width in cells; None for that of the terminal.
        whole_lines: Never break a line.
    """

    def __init__(
        self, *, stderr: bool = False, width: int | None = None, whole_lines: bool = False
    ) -> None:
        super().__init__(
            stderr=stderr,
            width=width,
            soft_wrap=whole_lines,
            highlight=False,
            markup=False,
            emoji=False,
        )
        if self.is_dumb_terminal:  # Console assumes 80 columns there, whatever it has
            self.size = ConsoleDimensions(width or get_terminal_size().columns, self.height)

    def widen_in_a_pipe(self) -> None:
        """Take the width `PIPED_WIDTH` in a pipe or file, unless the user has set COLUMNS."""
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = PIPED_WIDTH

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Return the segments of a renderable; every text that is printed passes through here."""
        if isinstance(renderable, str):
            renderable = Text(printable(renderable))
        elif isinstance(renderable, Text):
            renderable = _safe(renderable)
        return super().render(renderable, options)


def say(text: str, *, err: bool = False) -> None:
    """Print one line of text without any style."""
    click.echo(printable(text), err=err)


def fail(text: str) -> NoReturn:
    """Print why the command failed, and end it with exit code 1."""
    say(f"smtpproxy: {text}", err=True)
    sys.exit(1)


def _safe(text: Text) -> Text:
    """Return a text with unprintable characters escaped, and its styles unchanged."""
    if text.plain.isprintable():
        return text
    safe = text.blank_copy()
    for character in text.divide(range(1, len(text))):
        styles = [span.style for span in character.spans]
        shown = Text(printable(character.plain), character.style)
        for style in styles:
            shown.stylize(style)
        safe.append_text(shown)
    return safe
