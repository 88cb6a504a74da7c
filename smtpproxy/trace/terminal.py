"""Drawings for the terminal: the list of sessions, and one as a time line of both sides.

They are made of records that people may see (`reader.printable_record`).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby, zip_longest
from typing import NoReturn

from rich.console import Console, RenderableType
from rich.text import Text

from smtpproxy.log.verb_name import END_OF_DATA
from smtpproxy.text.console import Terminal
from smtpproxy.text.escaping import in_capitals
from smtpproxy.text.styled_lines import Piece, StyledLine, StyledLines, width_of
from smtpproxy.timeline.drawing import Row, Timeline, duration_text
from smtpproxy.timeline.labels import BAD, COMMAND, GOOD, QUIET, Label
from smtpproxy.trace.reader import RecordedSession
from smtpproxy.trace.records import (
    Closed,
    Exchanged,
    Noted,
    Record,
    Step,
    Transaction,
    client_of,
    is_content_chunk,
)

Cell = list[Piece]
"""A cell of a table: its lines."""
COLUMNS = "time (UTC)", "session", "client", "sender", "recipients", "outcome", "saved"
"""The columns of the list."""
LEFT_OUT = "saved", "client", "sender"
"""The columns of the list that a narrow console does not show, the first one first."""
RIGHT = frozenset(("saved",))
"""The columns of the list that are aligned to the right."""
WHOLE = frozenset(("session", "saved"))
"""The columns of the list that are never folded: the id is what the other commands take."""
NARROWEST = 5
"""No column is folded to fewer cells."""
GAP = "  "
"""Between two columns."""
_FOLDING = Terminal(width=1000)
DATE = len("2026-11-25")
"""The width of a date; the time goes below it."""


class _Output(Terminal):
    """A terminal, or a pipe whose reader may leave."""

    def on_broken_pipe(self) -> NoReturn:
        """Report it to `live_output.until_the_reader_leaves`."""
        raise BrokenPipeError


def console() -> Terminal:
    """Return the terminal or pipe that standard output is; see `until_the_reader_leaves`."""
    made = _Output()
    made.widen_in_a_pipe()
    return made


def list_table(sessions: Sequence[Closed], console: Console) -> tuple[StyledLines, list[str]]:
    """Return the table of sessions: one row for each message, or for one without any.

    Where it is too wide for the console, the time goes below the date, then columns are left out;
    what is still too long is folded.

    Returns:
        The table, and the names of the columns that were left out.
    """
    rows = [[[(name, "bold")] for name in COLUMNS], *_list_rows(sessions)]
    widths = [max(map(_width_of, column)) for column in zip(*rows, strict=True)]
    if _width_of_all(widths) > console.width:
        widths[0] = DATE
    left_out: list[str] = []
    for name in LEFT_OUT:
        if _width_of_all(widths) > console.width:
            left_out.append(name)
            widths[COLUMNS.index(name)] = 0
    _narrow(widths, console.width)
    return StyledLines(line for row in rows for line in _lines_of(row, widths)), left_out


def _width_of(cell: Cell) -> int:
    return max((width_of(text) for text, _ in cell), default=0)


def _width_of_all(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + len(GAP) * (len(shown) - 1)


def _narrow(widths: list[int], most: int) -> None:
    """Take from the widest columns what is too much; not from one that must stay whole."""
    while _width_of_all(widths) > most:
        foldable = [at for at, name in enumerate(COLUMNS) if name not in WHOLE]
        widest = max(foldable, key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            return
        widths[widest] -= 1


def _lines_of(row: Sequence[Cell], widths: Sequence[int]) -> Iterator[StyledLine]:
    """Yield the lines of a row, as many as its tallest cell has."""
    cells = [
        [(part, style) for text, style in cell for part in _folded(text, width)]
        for cell, width in zip(row, widths, strict=True)
        if width
    ]
    shown = [(width, name in RIGHT) for name, width in zip(COLUMNS, widths, strict=True) if width]
    for parts in zip_longest(*cells, fillvalue=("", "")):
        line, gap = StyledLine(), ""
        for (text, style), (width, is_right) in zip(parts, shown, strict=True):
            blank = " " * (width - width_of(text))
            line.add(gap + blank if is_right else gap)
            line.add(text, style)
            line.add("" if is_right else blank)
            gap = GAP
        yield line


def _folded(text: str, width: int) -> Sequence[str]:
    """Return a text in lines of at most so many cells, between words if possible."""
    if width_of(text) <= width:
        return (text,)
    return [str(line).rstrip() for line in Text(text).wrap(_FOLDING, width, overflow="fold")]


def _list_rows(sessions: Sequence[Closed]) -> Iterator[Sequence[Cell]]:
    for session in sessions:
        first = [clock(session.opened), session.session, client_of(session)]
        saved = str(session.round_trips_saved)
        if not session.transactions:
            yield _row(*first, "", [], [_reason(session)], saved)
        for message in session.transactions:
            sender, outcome = message.sender or "<>", [_outcome(message)]
            yield _row(*first, sender, _recipients(message), outcome, saved)
            first, saved = ["", "", ""], ""
        if session.more_transactions:
            more = counted(session.more_transactions, "message") + " more"
            yield _row("", "", "", "", [], [(more, "")], "")


def _row(*cells: str | Cell) -> list[Cell]:
    return [[(cell, "")] if isinstance(cell, str) else cell for cell in cells]


def clock(at: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time as text."""
    return datetime.fromtimestamp(at, UTC).strftime(form)


def _recipients(message: Transaction) -> Cell:
    shown = [(each, "") for each in message.recipients[:3]]
    shown += [(each, BAD) for each in message.refused[:3]]
    more = len(message.recipients) + len(message.refused) - len(shown)
    if more:
        shown.append((f"and {more} more", QUIET))
    return shown


def _outcome(message: Transaction) -> Piece:
    style = GOOD if message.outcome == "relayed" else BAD
    return f"{message.outcome} {message.reply[:3]}".rstrip(), style


def _reason(session: Closed) -> Piece:
    bad = bool(session.codes or session.violations)
    codes = " ".join(map(str, session.codes))
    return f"{session.reason} {codes}".rstrip(), BAD if bad else QUIET


def show(console: Console, session: RecordedSession) -> None:
    """Print a session: its addresses, the time line of both sides, and its outcome."""
    console.print(Text(f"session {session.id}  {clock(session.began)} UTC", "bold"))
    if session.connected is not None:
        ends = session.connected
        console.print(
            Text(
                f"{ends.client_address} -> {ends.listener_address}   "
                f"{ends.proxy_address} -> {ends.server_address}",
                QUIET,
            )
        )
    for gone in session.gave_up:
        console.print(Text(f"gave up {gone.server}: {gone.reason}", BAD))
    console.print()
    console.print(Timeline(rows_of(session)))
    if session.gap is not None:
        console.print(Text(f"{session.gap.exchanges} exchanges between were not kept", BAD))
    for line in _what_went_on(session):
        console.print(line)


def line_of(record: Record) -> Text | None:
    """Return the line of a record while it is followed; None if it has none."""
    if isinstance(record, Closed):
        text = f"closed, {record.reason}, {saved(record)}"
        return Text(f"{clock(record.at, '%H:%M:%S')} {record.session:12} {text}", "dim")
    if isinstance(record, Noted):
        when = f"{clock(record.at, '%H:%M:%S')} {record.session:12}   "
        label = note(record)
        return Text.assemble((when, "dim"), (label.long, label.style))
    if not isinstance(record, Exchanged):
        return None
    took = duration_text(record.replied - record.sent) if record.sent else ""
    asked = "  +" if record.pipelined else "   "
    command = command_of(record).long
    reply = record.reply.split("\r\n")[-1]
    return Text.assemble(
        (f"{clock(record.flushed or record.framed, '%H:%M:%S')} ", "dim"),
        f"{record.session:12}{asked}",
        (command, COMMAND),
        "  ",
        (reply, BAD if record.code >= 400 else GOOD),
        (f"  {took}", "dim"),
    )


def rows_of(session: RecordedSession) -> Iterator[Row]:
    """Yield what is to be drawn: groups in, single commands to the MTA, replies flushed."""
    began = session.began
    yield Row(0.0, to_mta=(Label("", "connects", QUIET),))
    for noted in session.noted:
        yield Row(noted.at - began, noted.side == "backend", note=note(noted))
    asked = [each for each in session.exchanges if _is_asked(each)]
    for framed, group in groupby(asked, lambda each: each.framed):
        yield Row(framed - began, to_mta=tuple(map(command_of, group)))
    for each in session.exchanges:
        for step in each.steps:
            took = step.replied - step.sent if step.replied else None
            reply = _reply_label(step.reply[:3], step.reply) if step.reply else _NO_REPLY
            yield Row(step.sent - began, True, (_step(each, step),), (reply,), took_s=took)
        if each.replied and not each.steps and (each.sent or each.verb == "greeting"):
            at, label = each.sent, command_of(each)
            if each.verb == "greeting":  # it is due from a moment before the session begins
                at, label = min(max(each.framed, began), each.replied), Label("open", "open", QUIET)
            yield Row(at - began, True, (label,), (_reply(each),), took_s=each.replied - at)
        if is_content_chunk(each):
            content = f"content, {counted(each.content_bytes, 'byte')}"
            yield Row(each.replied - began, True, (Label("content", content, COMMAND),))
    answered = [each for each in session.exchanges if each.flushed]
    for flushed, replies in groupby(answered, lambda each: each.flushed):
        yield Row(flushed - began, to_client=tuple(map(_reply, replies)))


def _is_asked(exchange: Exchanged) -> bool:
    return exchange.verb not in {"greeting", "unsolicited"}


def command_of(exchange: Exchanged) -> Label:
    """Return the label of a command, or of content."""
    if exchange.verb == END_OF_DATA:
        text = f"content, {counted(exchange.content_bytes, 'byte')}, end of data"
        return Label("end of data", text, COMMAND)
    text = exchange.command or exchange.verb
    return Label(exchange.verb, text, COMMAND)


def _step(exchange: Exchanged, step: Step) -> Label:
    if step.command == ".":
        return _END_OF_DATA
    verb = in_capitals(step.command.split(" ")[0]) or exchange.verb
    return Label(verb, step.command or exchange.verb, COMMAND)


def _reply(exchange: Exchanged) -> Label:
    return _reply_label(str(exchange.code), exchange.reply)


def _reply_label(code: str, reply: str) -> Label:
    first, *more = reply.split("\r\n")
    text = first + (f" ... {more[-1]}" if more else "")
    return Label(code, text, BAD if code >= "4" else GOOD)


_END_OF_DATA = Label("end of data", "end of data", COMMAND)
_NO_REPLY = Label("-", "no reply", BAD)


def note(noted: Noted) -> Label:
    """Return the label of what happened besides the dialogue."""
    side = "the MTA" if noted.side == "backend" else "the client"
    match noted.event:
        case "tls_started":
            inside = f"inside {noted.version.replace('TLSv', 'TLS ')}"
            return Label(inside, f"{side} is {inside}, {noted.cipher}", QUIET)
        case "tls_failed":
            return Label("TLS failed", f"TLS with {side} failed: {noted.reason}", BAD)
        case "proxy_header_read":
            said = {
                "authority": noted.forwarded_authority,
                "unique id": noted.forwarded_unique_id,
                "TLS": noted.forwarded_tls,
                "CN": noted.forwarded_cn,
            }
            texts = ", ".join(f"{name} {value}" for name, value in said.items() if value)
            return Label("PROXY header", f"PROXY header of the proxy in front: {texts}", QUIET)
        case "fault_injected":
            return Label("fault injected", f"fault injected: {noted.fault}", BAD)
        case "content_not_ended":
            kind = noted.kind.replace("_", " ")
            return Label("no end of data", f"the client's lone dot is no end of data: {kind}", BAD)
        case _:
            words = noted.event.replace("_", " ")
            return Label(words.removeprefix("client "), f"{words}: {noted.reason}", BAD)


def _what_went_on(session: RecordedSession) -> Iterator[RenderableType]:
    for label in map(note, session.noted):
        yield Text(label.long, label.style)
    for each in session.exchanges:
        if each.violation is not None:
            how = "rewritten" if each.violation.rewritten else "refused"
            yield Text(f"violation by the {each.violation.side}: {each.violation.kind}, {how}", BAD)
            yield Text(f"    {each.violation.bytes}", QUIET)
        yield from _what_differed(each)
        if each.content:
            yield Text(
                "content as sent to the MTA" + (" (cut)" if each.content_cut else ""), "bold"
            )
            yield from _lines(each.content)
        if each.content_received:
            yield Text("content as the client sent it", "bold")
            yield from _lines(each.content_received)
    slow = sorted((e for e in session.exchanges if e.sent), key=lambda e: e.sent - e.replied)[:3]
    if slow:
        text = ", ".join(f"{e.verb} {duration_text(max(0, e.replied - e.sent))}" for e in slow)
        yield Text(f"the MTA took longest for {text}", QUIET)
    closed = session.closed
    if closed is None:
        yield Text("the session is not over, or its end was not recorded", BAD)
        return
    facts = counted(closed.messages, "message"), counted(closed.commands, "command"), saved(closed)
    yield Text(
        f"{closed.reason} after {duration_text(closed.duration_s)}: {', '.join(facts)}", "bold"
    )


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return `1 message` or `2,000 messages`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def saved(closed: Closed) -> str:
    """Return how many round trips a session has saved, in words."""
    return counted(closed.round_trips_saved, "round trip") + " saved"


def _what_differed(exchange: Exchanged) -> Iterator[Text]:
    """Yield what one of client and MTA did not see."""
    if exchange.bare_lf:
        yield Text(f"the client ended {exchange.verb} with a bare LF", BAD)
    if not exchange.steps:
        return
    yield Text(f"{exchange.verb}, between smtpproxy and the MTA", "bold")
    for step in exchange.steps:
        yield Text("    > " + step.command, QUIET)
        for line in step.reply.split("\r\n") if step.reply else ["(no reply)"]:
            yield Text("    < " + line, QUIET)


def _lines(text: str) -> Iterator[Text]:
    for line in text.split("\r\n"):
        yield Text("    " + line, QUIET)
