"""A table that fits the terminal: a narrow one shows fewer columns, and no broken words."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from rich.table import Table
from rich.text import Text

from smtpproxy.text.console import PIPED_WIDTH, Terminal
from smtpproxy.text.styled_lines import width_of


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    """Its head."""
    importance: int
    """Of the columns that do not fit, those with the least are left out first."""
    _: KW_ONLY
    is_number: bool = False
    """It is aligned at the right."""
    folds: bool = False
    """Its text may go on in further lines, without a break in a word if that fits."""


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table of as many columns as fit, at least one, and without columns of no text.

    Args:
        columns: The columns, from left to right.
        rows: A text for each column.
    """
    console = Terminal(whole_lines=True)
    console.widen_in_a_pipe()
    wide = console.options.update(width=PIPED_WIDTH)
    shown = {number for row in rows for number, text in enumerate(row) if text}
    table = _table(columns, rows, shown)
    while len(shown) > 1 and console.measure(table, options=wide).minimum > console.width:
        shown.remove(min(shown, key=lambda each: columns[each].importance))
        table = _table(columns, rows, shown)
    console.print(table)


def _table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], shown: set[int]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number in sorted(shown):
        column = columns[number]
        whole = max(width_of(str(text)) for text in (column.name, *(row[number] for row in rows)))
        table.add_column(
            column.name,
            no_wrap=not column.folds,
            min_width=None if column.folds else whole,  # else the minimum is the longest word
            overflow="fold",
            justify="right" if column.is_number else "left",
        )
    for row in rows:
        texts = [row[number] for number in sorted(shown)]
        if any(texts):  # not only in columns that are left out
            table.add_row(*texts)
    return table
