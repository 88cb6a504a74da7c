"""The report of statistics for people: sections of rows with bars, for a terminal and for HTML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from smtpproxy.text.styled_lines import StyledLine, StyledLines, width_of
from smtpproxy.timeline.drawing import duration_text
from smtpproxy.timeline.labels import BAD, GOOD, QUIET
from smtpproxy.trace.statistics import (
    ClientCount,
    ReplyCount,
    Statistics,
    TlsCount,
    VerbTimes,
)
from smtpproxy.trace.terminal import clock, counted

MAX_WIDTH = 120
"""A wider terminal does not make the report wider."""
BAR_WIDTH, LEAST_BAR = 40, 4
"""The longest bar in cells, and the shortest one that is drawn."""
VERBS, REPLIES, TEXTS, CLIENTS = 12, 24, 3, 10
"""How many rows of each are shown."""
INDENT = "  "
"""Before what belongs to a section or row."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row: a label, its values, and a bar."""

    label: str
    """What the values are of."""
    values: Sequence[str]
    """A text for each column."""
    share: float
    """The length of its bar, from 0 to 1."""
    style: str = ""
    """The colour of its label, by rich's name."""
    details: Sequence[Sequence[str]] = ()
    """Lines below it, each of parts that are not broken."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report."""

    title: str
    """Its title."""
    columns: Sequence[str]
    """The names of the columns of its rows."""
    rows: Sequence[Row]
    """Its rows."""
    notes: Sequence[str] = ()
    """Sentences below them."""


def heading(found: Statistics) -> str:
    """Return what the statistics are of."""
    what = f"{counted(found.sessions, 'session')}, {counted(found.exchanges, 'exchange')}"
    if not found.sessions:
        return what
    return f"{what}, {clock(found.began)} to {clock(found.ended)} UTC"


def sections(found: Statistics) -> Iterator[Section]:
    """Yield the sections that have something to show."""
    for section in (
        _messages(found),
        _verbs(found.verbs),
        _saved(found),
        _replies(found.replies),
        *_clients(found),
        _tls(found),
        _groups(found),
    ):
        if section.rows or section.notes:
            yield section


def _messages(found: Statistics) -> Section:
    total = sum(each.count for each in found.messages)
    rows = [
        Row(
            f"{each.outcome} {each.code}".rstrip(),
            (f"{each.count:,}", _percent(each.count, total), _bytes(each.size_bytes)),
            each.count / total,
            GOOD if each.outcome == "relayed" else BAD,
        )
        for each in found.messages
    ]
    return Section("Messages by outcome", ("messages", "", "content"), rows)


def _verbs(verbs: Sequence[VerbTimes]) -> Section:
    most = max((each.seconds for each in verbs), default=0) or 1
    rows = []
    for each in verbs[:VERBS]:
        times = each.p50_s, each.p95_s, each.p99_s, each.max_s
        values = [f"{each.count:,}", _long(each.seconds), *map(_short, times)]
        slowest = [f"{_short(slow.seconds)} in {slow.session}" for slow in each.slowest]
        rows.append(Row(each.verb, values, each.seconds / most, "", [("slowest:", *slowest)]))
    notes = _more(len(verbs) - VERBS, "verb")
    columns = "replies", "in all", "p50", "p95", "p99", "longest"
    return Section("The MTA's time by verb", columns, rows, notes)


def _saved(found: Statistics) -> Section:
    saved = found.saved
    if not saved.commands:
        return Section("Waits saved by pipelining", (), ())
    waits = f"{saved.round_trips:,} of {counted(saved.commands, 'command')}"
    percent = _percent(saved.round_trips, saved.commands)
    notes = [f"{waits} ({percent}) did not wait for a round trip"]
    if saved.measured_sessions:
        notes.append(
            f"that saved {_long(saved.seconds)} at the clients' own round-trip times: "
            f"p50 {_short(saved.client_rtt_p50_s)}, p95 {_short(saved.client_rtt_p95_s)}"
        )
    unmeasured = saved.round_trips - saved.measured_round_trips
    if unmeasured:
        sessions = counted(found.sessions - saved.measured_sessions, "session")
        notes.append(
            f"{counted(unmeasured, 'round trip')} of them in {sessions} "
            "whose round-trip time was not measured"
        )
    return Section("Waits saved by pipelining", (), (), notes)


def _replies(replies: Sequence[ReplyCount]) -> Section:
    shown = replies[:REPLIES]
    most = max((each.count for each in shown), default=0) or 1
    totals: dict[str, int] = {}
    for each in replies:
        totals[each.verb] = totals.get(each.verb, 0) + each.count
    ordered = sorted(shown, key=lambda each: (-totals[each.verb], each.verb, -each.count))
    rows = [
        Row(
            f"{each.verb} {each.code or 'no reply'}",
            (f"{each.count:,}", _percent(each.count, totals[each.verb])),
            each.count / most,
            BAD if each.code >= "4" or not each.code else GOOD,
            [(f"{text.count:>9,}  {text.text}",) for text in each.texts[:TEXTS] if text.text],
        )
        for _, group in groupby(ordered, lambda each: each.verb)
        for each in group
    ]
    return Section(
        "Replies by verb", ("replies", "of verb"), rows, _more(len(replies) - REPLIES, "code")
    )


def _clients(found: Statistics) -> Iterator[Section]:
    clients = found.clients
    for name, shown in (
        ("bytes", clients.by_bytes),
        ("errors", clients.by_errors),
        ("violations", clients.by_violations),
    ):
        of = [getattr(each, name) for each in shown[:CLIENTS]]
        rows = [
            Row(each.client, _client_values(each), number / of[0])
            for each, number in zip(shown, of, strict=False)
        ]
        if rows:
            rows.append(Row("all clients", _client_values(clients.all), 0, QUIET))
        columns = "sessions", "messages", "bytes", "errors", "violations"
        yield Section(f"Clients by {name}", columns, rows)


def _client_values(each: ClientCount) -> Sequence[str]:
    numbers = (f"{number:,}" for number in (each.errors, each.violations))
    return (f"{each.sessions:,}", f"{each.messages:,}", _bytes(each.bytes), *numbers)


def _tls(found: Statistics) -> Section:
    sides: dict[str, int] = {}
    for each in found.tls:
        sides[each.side] = sides.get(each.side, 0) + each.count
    rows = [
        Row(
            f"{each.side} {each.version.replace('TLSv', 'TLS ')}".strip(),
            (f"{each.count:,}", _percent(each.count, sides[each.side])),
            each.count / sides[each.side],
            BAD if _failed(each) else "",
        )
        for each in found.tls
    ]
    inside = sum(each.count for each in found.tls if each.side == "client" and not _failed(each))
    sessions = counted(found.sessions, "session")
    notes = [f"{min(inside, found.sessions):,} of {sessions} were inside TLS with the client"]
    return Section("TLS versions", ("handshakes", "of side"), rows, notes if rows else ())


def _failed(handshakes: TlsCount) -> bool:
    return handshakes.version == "failed"


def _groups(found: Statistics) -> Section:
    total = sum(each.count for each in found.groups)
    rows = []
    for each in found.groups:
        size = f"{each.least}" if each.most == each.least else f"{each.least} to {each.most}"
        size = size if each.most is not None else f"{each.least} and more"
        label = f"{size} {'command' if each.most == 1 else 'commands'}"
        values = f"{each.count:,}", _percent(each.count, total)
        rows.append(Row(label, values, each.count / total))
    return Section("Sizes of groups", ("groups", ""), rows)


def _more(number: int, noun: str) -> Sequence[str]:
    return (f"and {counted(number, noun)} more: see --json",) if number > 0 else ()


def _percent(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else 0
    return f"{percent:.2g} %" if 0 < percent < 1 else f"{percent:.0f} %"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return (
                f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"
            )
        number /= 1000
    return f"{number:,.1f} TB"


def _short(seconds: float) -> str:
    """Return a duration that may be a few microseconds."""
    return duration_text(seconds) if seconds >= 0.0001 else f"{seconds * 1e6:.0f} µs"


def _long(seconds: float) -> str:
    """Return a duration that may be many hours."""
    if seconds < 100:
        return _short(seconds)
    if seconds < 1000:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def lines_of(found: Statistics, width: int) -> StyledLines:
    """Return the report for a terminal of a width."""
    return StyledLines(_lines_of(found, min(width, MAX_WIDTH)))


def _lines_of(found: Statistics, width: int) -> Iterator[StyledLine]:
    yield from _folded(heading(found).split(" "), width, "", "bold", " ")
    for section in sections(found):
        yield StyledLine()
        yield from _section_lines(section, width)
    if found.approximate:
        yield StyledLine()
        yield StyledLine((APPROXIMATE, QUIET))


APPROXIMATE = "There were too many different clients, texts or sessions to count rare ones exactly."


def _section_lines(section: Section, width: int) -> Iterator[StyledLine]:
    widths = [
        max(map(width_of, column))
        for column in zip(section.columns, *(row.values for row in section.rows), strict=True)
    ]
    numbers = sum(widths) + 2 * len(widths)
    longest = max((width_of(row.label) for row in section.rows), default=0)
    label = min(longest, max(width - len(INDENT) - numbers, 0))
    label = max(label, min(width_of(section.title) - len(INDENT), width - len(INDENT) - numbers))
    bar = min(width - len(INDENT) - label - numbers - 2, BAR_WIDTH)
    title = StyledLine((section.title, "bold"))
    if section.columns and title.width > len(INDENT) + label:
        yield title
        title = StyledLine()
    title.add(" " * max(len(INDENT) + label - title.width, 0))
    title.add(_aligned(section.columns, widths), QUIET)
    yield title
    for row in section.rows:
        line = StyledLine((INDENT + row.label, row.style))
        if width_of(row.label) > label:
            yield line
            line = StyledLine()
        line.add(" " * (len(INDENT) + label - line.width))
        line.add(_aligned(row.values, widths))
        if bar >= LEAST_BAR and row.share:
            line.add("  " + bar_text(row.share, bar), "blue")
        yield line
        for parts in row.details:
            yield from _folded(parts, width, 2 * INDENT, QUIET)
    for note in section.notes:
        yield from _folded(note.split(" "), width, INDENT, "", " ")


def _aligned(values: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(
        "  " + " " * (width - width_of(value)) + value
        for value, width in zip(values, widths, strict=True)
    )


def _folded(
    parts: Sequence[str], width: int, indent: str, style: str, gap: str = "  "
) -> Iterator[StyledLine]:
    """Yield parts in lines, broken only between them."""
    line = StyledLine((indent, ""))
    for part in parts:
        if line.width > len(indent):
            if line.width + len(gap) + width_of(part) > width:
                yield line
                line = StyledLine((indent, ""))
            else:
                line.add(gap)
        line.add(part, style)
    yield line.truncated(width)


def bar_text(share: float, width: int) -> str:
    """Return a bar of eighths of a cell; anything above 0 has one."""
    eighths = max(round(share * width * 8), 1)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
