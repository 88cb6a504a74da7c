"""The time line of one session: what each side sent and when, and how long the client waited.

It owns the drawing: a row for each arrow, in the order of time, between the lifelines of client,
proxy and MTA; a bracket for each wait.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from smtpproxy.text.styled_lines import StyledLine, StyledLines, as_ascii
from smtpproxy.timeline.labels import QUIET, Label, join

MIN_WIDTH, MAX_WIDTH = 60, 100
GUTTER, CLOCK = 11, 7
"""The widths in cells of the bracket of waits and of the clock."""
LONG_RUN = 6
"""The longest run of alike rows that is drawn whole."""
LINE, WAIT = "dim", "magenta"


@dataclass(frozen=True, slots=True)
class Row:
    """What was sent at one moment on one side."""

    at: float
    """Seconds since the client connected."""
    mta_side: bool = False
    """Whether it is between proxy and MTA; such a row has a command and its reply."""
    to_mta: tuple[Label, ...] = ()
    """The group that was sent towards the MTA."""
    to_client: tuple[Label, ...] = ()
    """The group that was sent towards the client."""
    wait: int = 0
    """The number of its wait; 0 if it belongs to none."""
    wait_begins: bool = False
    """Whether the wait begins here."""
    wait_s: float | None = None
    """The duration of the wait in seconds, in its last row."""
    took_s: float | None = None
    """How many seconds the MTA took to reply; None to not show it."""
    skipped: int = 0
    """The number of rows that are left out here."""
    note: Label | None = None
    """An event without data, such as a lost connection."""

    @property
    def alike(self) -> object:
        """A key that is equal for rows that differ only in addresses and times."""
        shorts = [[label.short for label in labels] for labels in (self.to_mta, self.to_client)]
        return self.mta_side, shorts, self.note


class Timeline:
    """A rich renderable of one session.

    Args:
        rows: The rows, in any order.
        proxied: Whether there is a proxy, whose other side is drawn, too.
    """

    waits: int
    """How often the client waited."""
    seconds: float
    """When its last wait ended, in seconds since it connected."""

    def __init__(self, rows: Iterable[Row], *, proxied: bool = True) -> None:
        self.proxied = proxied
        self.rows = _with_waits(sorted(rows, key=lambda row: row.at))
        ends = [row for row in self.rows if row.wait_s is not None]
        self.waits = len(ends)
        self.seconds = ends[-1].at if ends else 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(MIN_WIDTH, min(options.max_width, MAX_WIDTH))
        lanes = _Lanes.of(width - GUTTER - CLOCK, proxied=self.proxied)
        yield StyledLines([lanes.header(), *map(lanes.draw, self._shown())])

    def _shown(self) -> list[Row]:
        return _elided(_elided(self.rows, 1), 2)


def fit(line: Text, options: ConsoleOptions) -> Text:
    """Return the line for the terminal: wrapped, and in ASCII if it supports no more."""
    line.overflow = "fold"
    if options.ascii_only:
        line.plain = as_ascii(line.plain)
    return line


def _with_waits(rows: list[Row]) -> list[Row]:
    """Number the waits: each begins with what the client sends, and ends with its last reply."""
    numbered: list[Row] = []
    wait, begun, end = 0, 0.0, -1

    def finish() -> None:
        if end >= 0:
            numbered[end] = replace(numbered[end], wait_s=numbered[end].at - begun)

    for row in rows:
        if not row.mta_side and row.to_mta and (end >= 0 or not wait):
            finish()
            for at in range(end + 1, len(numbered)):
                numbered[at] = replace(numbered[at], wait=0)
            wait, begun, end = wait + 1, row.at, -1
            row = replace(row, wait_begins=True)
        elif not row.mta_side and row.to_client:
            end = len(numbered)
        numbered.append(replace(row, wait=wait))
    finish()
    return numbered


def _elided(rows: list[Row], period: int) -> list[Row]:
    """Leave out the middle of each long run of alike rows, or of alike pairs of rows."""
    shown: list[Row] = []
    at = end = 0
    while at < len(rows):
        end = max(at, end)  # the run may have begun before
        while end + period < len(rows) and rows[end].alike == rows[end + period].alike:
            end += 1
        times = (end - at) // period + 1
        # A run of pairs is one of waits: it must not begin in the middle of one.
        if times <= LONG_RUN or (period > 1 and not rows[at].wait_begins):
            shown.append(rows[at])
            at += 1
            continue
        last = at + (times - 1) * period
        shown += rows[at : at + 2 * period]
        shown.append(replace(rows[at + 2 * period], skipped=times - 3, wait_s=None))
        at = last
        shown += rows[at : at + period]
        at += period
    return shown


# From rows to lines


@dataclass(frozen=True, slots=True)
class _Lanes:
    """The widths between the lifelines; mta is 0 without a proxy."""

    client: int
    mta: int

    @classmethod
    def of(cls, width: int, *, proxied: bool) -> "_Lanes":
        if not proxied:
            return cls(width - 2, 0)
        mta = 20 + max(0, width - 69) * 7 // 13
        return cls(width - 3 - mta, mta)

    def header(self) -> StyledLine:
        blank = " " * (GUTTER + CLOCK)
        if not self.mta:
            return StyledLine((blank + "client" + "legacy MTA".rjust(self.client - 4), "bold"))
        proxy, mta = "smtpproxy".rjust(self.client - 1), "legacy MTA".rjust(self.mta - 3)
        return StyledLine((blank + "client" + proxy + mta, "bold"))

    def draw(self, row: Row) -> StyledLine:
        line = _gutter(row)
        if row.skipped:
            lanes = "│" + " " * self.client + "│" if row.mta_side else "│"
            line.add(f"{lanes}  ⋮ {row.skipped} more", LINE)
            return line
        line.add("│", LINE)
        if row.mta_side:
            line.add(" " * self.client)
        else:
            line.extend(_arrow(row, self.client))
        line.add("│", LINE)
        if self.mta:
            if row.mta_side:
                line.extend(_both_ways(row, self.mta))
            else:
                line.add(" " * self.mta)
            line.add("│", LINE)
        return line


def _gutter(row: Row) -> StyledLine:
    """Return the bracket of the wait, and the clock, which only rows of the client's side have."""
    width = GUTTER - 1
    if row.skipped:
        dots = ("⋮" if not row.mta_side else "│").rjust(width)
        return StyledLine((dots + " " * (CLOCK + 1), WAIT))
    line = StyledLine()
    if row.wait_begins:
        line.add(f"wait {row.wait} ╭".rjust(width), WAIT)
    elif row.wait_s is not None:
        line.add(f"{row.wait_s:.3f} s".rjust(width - 2), "bold " + WAIT)
        line.add(" ╰", WAIT)
    else:
        line.add(("│" if row.wait else "").rjust(width), WAIT)
    line.add(" " * (CLOCK + 1) if row.mta_side else f" {row.at:6.3f} ", LINE)
    return line


def _arrow(row: Row, width: int) -> StyledLine:
    """Return the arrow of one group between client and proxy."""
    if row.note:
        return _noted(row.note, width)
    labels = row.to_mta or row.to_client
    text = join(labels, width - 5)
    dash = "╌" if not labels[0].short else "─"
    rest = dash * (width - text.width - 4)
    if row.to_mta:
        line = StyledLine((dash + " ", LINE), *text.pieces)
        line.add(f" {rest}", LINE)
        line.add("▶", "bold")
        return line
    line = StyledLine(("◀", "bold"), (rest + " ", LINE), *text.pieces)
    line.add(f" {dash}", LINE)
    return line


def _both_ways(row: Row, width: int) -> StyledLine:
    """Return the arrow of a command to the MTA, with its reply."""
    if row.note:
        return _noted(row.note, width)
    reply = _short(row.to_client)
    if row.took_s is not None:
        reply.add(f" {duration_text(row.took_s)}", QUIET)
    command = _short(row.to_mta).truncated(width - reply.width - 6)
    rest = "─" * (width - command.width - reply.width - 6)
    line = StyledLine(("─ ", LINE), *command.pieces)
    line.add(f" {rest}", LINE)
    line.add("▶ ", "bold")
    line.extend(reply)
    line.add(" ")
    return line


def _noted(note: Label, width: int) -> StyledLine:
    line = StyledLine((f"  {note.short}", note.style)).truncated(width)
    line.add(" " * (width - line.width))
    return line


def duration_text(seconds: float) -> str:
    """Return a duration in at most seven characters."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _short(labels: tuple[Label, ...]) -> StyledLine:
    if not labels:
        return StyledLine()
    return StyledLine((labels[0].short or labels[0].long, labels[0].style))
