"""The two kinds of plot: bars of many contenders in many scenarios, and lines over growing work."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.svg import Picture
from tests.bench.tables import written

Point = tuple[float, float]

MARGIN = 16.0
LINE_HEIGHT = 16.0


@dataclass(frozen=True)
class Row:
    """A contender's bars, one in each column; None where there is no figure."""

    label: str
    values: Sequence[float | None]
    ours: bool = False


BAR_LABEL, BAR_COLUMN, BAR_ROW, BAR_GAP = 170.0, 128.0, 26.0, 16.0
BAR_MOST = 6.0
"""Longer bars are cut, with the figure inside."""


def bars(
    title: str, notes: Sequence[str], headings: Sequence[Sequence[str]], rows: Sequence[Row]
) -> str:
    """Return a picture of ratios, with a line where they are 1.

    Args:
        title: The title of the picture.
        notes: Texts below the title; each begins a line.
        headings: The lines of the heading of each column.
        rows: The contenders, with values in the order of the headings.
    """
    head = max(map(len, headings)) * LINE_HEIGHT + 6
    width = 2 * MARGIN + BAR_LABEL + len(headings) * (BAR_COLUMN + BAR_GAP) - BAR_GAP
    notes = _wrapped(notes, width)
    top = MARGIN + 14 + len(notes) * LINE_HEIGHT + 12
    height = top + head + len(rows) * BAR_ROW + MARGIN
    description = "; ".join(_described(row, headings) for row in rows)
    picture = Picture(width, height, title, description)
    _write_head(picture, title, notes)
    for number, row in enumerate(rows):
        y = top + head + number * BAR_ROW
        if row.ours:
            picture.rectangle(MARGIN / 2, y, width - MARGIN, BAR_ROW, "band")
        picture.text(MARGIN, y + 17, row.label, "strong" if row.ours else "")
    for column, heading in enumerate(headings):
        x = MARGIN + BAR_LABEL + column * (BAR_COLUMN + BAR_GAP)
        for number, line in enumerate(heading):
            picture.text(x, top + 10 + number * LINE_HEIGHT, line, "dim")
        one = x + BAR_COLUMN / BAR_MOST
        for number, row in enumerate(rows):
            _draw_bar(picture, x, top + head + number * BAR_ROW, row.values[column], row.ours)
        picture.line([(one, top + head), (one, height - MARGIN)], "guide")
    return picture.render()


def _draw_bar(picture: Picture, x: float, y: float, value: float | None, ours: bool) -> None:
    if value is None:
        picture.text(x, y + 17, "-", "dim")
        return
    length = BAR_COLUMN * min(value, BAR_MOST) / BAR_MOST
    style = "ours" if ours else "other"
    top, bottom = y + 5, y + BAR_ROW - 5
    if value <= BAR_MOST:
        picture.rectangle(x, top, length, bottom - top, style)
    else:  # it goes on: two pieces with a slanted gap
        cut = x + length - 18
        picture.shape([(x, top), (cut + 5, top), (cut, bottom), (x, bottom)], style)
        end = x + length
        picture.shape([(cut + 9, top), (end, top), (end, bottom), (cut + 4, bottom)], style)
    inside = length > BAR_COLUMN - 40
    if inside:
        picture.text(
            x + length - (24 if value > BAR_MOST else 6), y + 17, written(value), "on", "end"
        )
    else:
        right = x + max(length, BAR_COLUMN / BAR_MOST)  # of the line at 1
        picture.text(right + 5, y + 17, written(value), "strong" if ours else "")


def _described(row: Row, headings: Sequence[Sequence[str]]) -> str:
    cells = zip(headings, row.values, strict=True)
    return f"{row.label}: " + ", ".join(
        f"{' '.join(head)} {written(value)}" for head, value in cells
    )


@dataclass(frozen=True)
class Series:
    """A line: points in the order of x; `style` is one of svg.STYLE: ours, second, other."""

    label: str
    points: Sequence[Point]
    style: str


@dataclass(frozen=True)
class Panel:
    """A plot with two axes."""

    title: str
    x_label: str
    series: Sequence[Series]
    logarithmic_x: bool = False
    logarithmic_y: bool = False
    write_x: Callable[[float], str] = "{:,g}".format
    """Formats a figure at the x axis."""
    write_y: Callable[[float], str] = "{:,g}".format
    """Formats a figure at the y axis."""
    write_end: Callable[[float], str] = written
    """Formats the last figure of a line."""


PANEL_WIDTH, PANEL_HEIGHT = 330.0, 220.0
AXIS_LEFT, AXIS_BOTTOM, CHARACTER = 66.0, 40.0, 6.9


def lines(
    title: str, notes: Sequence[str], panels: Sequence[Panel], panel_width: float = PANEL_WIDTH
) -> str:
    """Return a picture of panels, side by side."""
    longest = max(len(_end_label(panel, each)) for panel in panels for each in panel.series)
    whole = AXIS_LEFT + panel_width + longest * CHARACTER + MARGIN
    width = 2 * MARGIN + len(panels) * whole
    notes = _wrapped(notes, width)
    top = MARGIN + 14 + len(notes) * LINE_HEIGHT + 40
    height = top + PANEL_HEIGHT + AXIS_BOTTOM + MARGIN
    picture = Picture(width, height, title, "; ".join(map(_described_panel, panels)))
    _write_head(picture, title, notes)
    for number, panel in enumerate(panels):
        left = MARGIN + number * whole + AXIS_LEFT
        _Field(picture, panel, left, top, panel_width).draw()
    return picture.render()


def _end_label(panel: Panel, series: Series) -> str:
    """Return the label at the end of a line."""
    return f"{series.label}: {panel.write_end(series.points[-1][1])}" if series.points else ""


def _described_panel(panel: Panel) -> str:
    texts = (
        f"{series.label}: "
        + ", ".join(f"{panel.write_x(x)} {panel.write_end(y)}" for x, y in series.points)
        for series in panel.series
    )
    return f"{panel.title}, {panel.x_label}: " + "; ".join(texts)


class _Field:
    """Where a panel is drawn, and the scales of its axes."""

    def __init__(
        self, picture: Picture, panel: Panel, left: float, top: float, width: float
    ) -> None:
        self._picture, self._panel = picture, panel
        self._left, self._top, self._width = left, top, width
        xs = [x for series in panel.series for x, _ in series.points]
        ys = [y for series in panel.series for _, y in series.points]
        self._x = _Scale(xs, panel.logarithmic_x, left, left + width, tight=True)
        self._y = _Scale(ys, panel.logarithmic_y, top + PANEL_HEIGHT, top)

    def draw(self) -> None:
        self._picture.text(self._left, self._top - 12, self._panel.title, "strong")
        self._draw_axes()
        for series in self._panel.series:
            points = [(self._x.place(x), self._y.place(y)) for x, y in series.points]
            self._picture.line(points, f"line {series.style}")
            for x, y in points:
                self._picture.dot(x, y, series.style)
        if self._panel.logarithmic_x and self._panel.logarithmic_y:
            self._draw_proportion()
        self._label_lines()

    def _draw_axes(self) -> None:
        right, bottom = self._left + self._width, self._top + PANEL_HEIGHT
        for y in self._y.ticks():
            at = self._y.place(y)
            self._picture.line([(self._left, at), (right, at)], "grid")
            self._picture.text(self._left - 8, at + 4, self._panel.write_y(y), "dim", "end")
        for x in self._x.ticks():
            at = self._x.place(x)
            self._picture.line([(at, bottom), (at, bottom + 4)], "grid")
            self._picture.text(at, bottom + 18, self._panel.write_x(x), "dim", "middle")
        self._picture.text(
            self._left + self._width / 2, bottom + 36, self._panel.x_label, "dim", "middle"
        )

    def _draw_proportion(self) -> None:
        """Draw the first line as if y grew in proportion to x."""
        points = self._panel.series[0].points
        if not points:
            return
        x, y = points[-1]
        begin = max(points[0][0], x * self._y.lowest / y)
        from_x, from_y = self._x.place(begin), self._y.place(y * begin / x)
        self._picture.line([(from_x, from_y), (self._x.place(x), self._y.place(y))], "guide")
        self._picture.text(from_x + 16, from_y - 2, "in proportion", "dim")

    def _label_lines(self) -> None:
        """Write the label of each line at its end, without overlap."""
        ends = sorted(
            (self._y.place(series.points[-1][1]), number)
            for number, series in enumerate(self._panel.series)
            if series.points
        )
        lowest = -math.inf
        for y, number in ends:
            series = self._panel.series[number]
            at = max(y + 4, lowest + LINE_HEIGHT)
            lowest = at
            label = _end_label(self._panel, series)
            self._picture.text(self._left + self._width + 10, at, label, series.style)


class _Scale:
    """Maps figures to positions, linear from 0 or logarithmic by decades."""

    def __init__(
        self,
        values: Sequence[float],
        logarithmic: bool,
        start: float,
        end: float,
        *,
        tight: bool = False,
    ) -> None:
        self._logarithmic = logarithmic
        self._start, self._end = start, end
        low, high = (min(values), max(values)) if values else (1.0, 1.0)
        if logarithmic:
            floor, ceiling = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
            self._low = math.log10(low) if tight else floor
            self._high = max(math.log10(high) if tight else ceiling, self._low + 1e-9)
            self._ticks = [10.0**each for each in range(floor, ceiling + 1)]
        else:
            step = _step(high)
            self._low, self._high = 0.0, high if tight else math.ceil(high / step) * step
            self._ticks = [step * each for each in range(round(self._high / step) + 1)]

    @property
    def lowest(self) -> float:
        """The figure where the axis begins."""
        return 10.0**self._low if self._logarithmic else self._low

    def place(self, value: float) -> float:
        """Return the position of a figure."""
        at = math.log10(value) if self._logarithmic else value
        share = (at - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> Iterator[float]:
        """Yield the round figures within the axis."""
        for tick in self._ticks:
            at = math.log10(tick) if self._logarithmic else tick
            if self._low - 1e-6 <= at <= self._high * (1 + 1e-9) + 1e-6:
                yield tick


def _step(high: float) -> float:
    """Return a round step that divides a range into four to eight."""
    if high <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(high / 4))
    return max(step for factor in (1, 2, 5) if (step := factor * power) <= high / 4 + 1e-12)


def _wrapped(notes: Sequence[str], width: float) -> list[str]:
    """Return notes in lines that fit into a picture."""
    most = int((width - 2 * MARGIN) / CHARACTER)
    return [line for note in notes for line in textwrap.wrap(note, most, break_on_hyphens=False)]


def _write_head(picture: Picture, title: str, notes: Sequence[str]) -> None:
    picture.text(MARGIN, MARGIN + 12, title, "title")
    for number, note in enumerate(notes):
        picture.text(MARGIN, MARGIN + 14 + (number + 1) * LINE_HEIGHT, note, "dim")
