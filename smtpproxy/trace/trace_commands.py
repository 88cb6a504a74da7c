"""The commands that read trace files: `smtpproxy trace list|show|follow|export|replay`.

Exit codes: 0 done; 1 failed, or a reply code differs (replay); 2 wrong usage; 3 done, but some
records or files could not be read.
"""

import asyncio
import contextlib
import heapq
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import msgspec
from rich.console import Group
from rich.progress import BarColumn, DownloadColumn, Progress
from rich.table import Table
from rich.text import Text

from smtpproxy.config.address import Address, canonical, parse_server
from smtpproxy.text.console import Terminal, say
from smtpproxy.text.escaping import printable
from smtpproxy.timeline.drawing import duration_text
from smtpproxy.timeline.labels import BAD, COMMAND, GOOD
from smtpproxy.trace import html_page, pcapng, terminal
from smtpproxy.trace.reader import (
    Problems,
    RecordedSession,
    TraceFile,
    TraceReader,
    files_of,
    for_people,
    printable_record,
)
from smtpproxy.trace.records import Closed, Exchanged, Noted, Record, client_of
from smtpproxy.trace.replay import ReplayResult
from smtpproxy.trace.replay import replay as play_again

POLL_S = 0.2
PIPED_WIDTH = 1000
"""The width in a pipe, so that `grep` gets whole lines."""
PROGRESS_BYTES = 64 * 1024 * 1024
"""From this size on, a progress bar is shown."""
LISTED_BYTES = 64 * 1024 * 1024
"""The most bytes of records that `list` keeps; of more, it shows the latest."""
NEVER = b"\0"
"""A text that no line contains."""
Found = tuple[Closed, int]
"""A session's last record, and how many bytes it takes."""
INCOMPLETE = 3
"""The exit code if some records or files could not be read."""

_in_directory = partial(
    click.option,
    "-d",
    "--directory",
    required=True,
    metavar="DIR",
    envvar="SMTPPROXY_TRACE",
    help="The directory of the trace files, or one file; also $SMTPPROXY_TRACE.",
)
_directory = _in_directory(type=click.Path(path_type=Path, exists=True))
_future_directory = _in_directory(type=click.Path(path_type=Path))


class _Time(click.DateTime):
    """A time, whose error is an example and not a format."""

    def __init__(self) -> None:
        super().__init__(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"])

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the time that a text is."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            example = "2026-11-24, 2026-11-24T08:00 or 2026-11-24T08:00:30"
            self.fail(f"{value!r} is not a time; write, for example, {example}", param, ctx)


_time = _Time()


@click.group()
def trace() -> None:
    """Read what `smtpproxy run --trace DIR` has recorded.

    Exits 0 if done; 1 if it failed, or if a reply differs (replay); 2 for wrong usage; 3 if it is
    done but some records or files could not be read.
    """


@trace.command(
    "list",
    epilog="""
    \b
    Examples:
      smtpproxy trace list -d /var/log/smtpproxy --since 2026-11-24T08:00
      smtpproxy trace list -d /var/log/smtpproxy --address joe@example.org --code 550
      smtpproxy trace list -d /var/log/smtpproxy --text bare_   # `reject` would refuse these
      smtpproxy trace list -d /var/log/smtpproxy --json > sessions.jsonl
    """,
)
@_directory
@click.option(
    "--since",
    type=_time,
    metavar="TIME",
    help="Only sessions that began then or later (UTC).",
)
@click.option("--until", type=_time, metavar="TIME", help="Only sessions that began before (UTC).")
@click.option(
    "--address", metavar="TEXT", help="Only if client, sender or recipient contains this."
)
@click.option(
    "--code",
    type=click.IntRange(1, 999),
    metavar="CODE",
    help="Only if a reply had this code: 550, or 5 for 5xx.",
)
@click.option("--text", help="Only if the last record contains this.")
@click.option("-n", "--last", type=click.IntRange(1), metavar="N", help="Only the latest N.")
@click.option("--json", "as_json", is_flag=True, help="Print each session's last record as JSON.")
def list_sessions(
    directory: Path,
    since: datetime | None,
    until: datetime | None,
    address: str | None,
    code: int | None,
    text: str | None,
    last: int | None,
    as_json: bool,
) -> None:
    """List the sessions that have ended: time, client, addresses and outcome.

    A terminal that is too narrow shows fewer columns.
    """
    begin = since.replace(tzinfo=UTC).timestamp() if since else 0.0
    end = until.replace(tzinfo=UTC).timestamp() if until else float("inf")
    reader = _reader(directory)
    found = _Latest(last)
    for each, size in _with_progress(reader, reader.closed_sessions()):
        if (
            begin <= each.opened < end
            and (not address or _has_address(each, address))
            and (not code or _has_code(each, str(code)))
            and (not text or text.lower() in msgspec.json.encode(each).decode().lower())
        ):
            found.add(each, size)
    if as_json:
        _print_json(found.sessions())
    else:
        _print_table(found.sessions())
        click.echo(terminal.counted(found.count, "session"), err=True)
    if found.too_many:
        more = terminal.counted(found.too_many, "earlier session")
        say(f"{more} left out: choose with --since and --until", err=True)
    _finish(reader)


def _print_table(sessions: list[Closed]) -> None:
    console = _console()
    table, left_out = terminal.list_table(list(map(printable_record, sessions)), console)
    console.print(table)
    if left_out:
        columns = "columns" if len(left_out) > 1 else "column"
        say(f"the terminal is too narrow for the {columns} {', '.join(left_out)}", err=True)


def _print_json(found: Sequence[Record]) -> None:
    """Print each record as a line of JSON in ASCII; it has no escape sequence of a terminal."""
    for record in found:
        say(json.dumps(msgspec.to_builtins(record)))


class _Latest:
    """The latest sessions, in bounded memory."""

    def __init__(self, last: int | None) -> None:
        self._last = last
        self._kept: list[tuple[float, int, int, Closed]] = []  # a heap, the earliest one first
        self._bytes = 0
        self.count = self.too_many = 0

    def add(self, session: Closed, size: int) -> None:
        """Add a session."""
        self.count += 1
        heapq.heappush(self._kept, (session.opened, self.count, size, session))
        self._bytes += size
        if self._last is not None and len(self._kept) > self._last:
            self._drop()
        while self._bytes > LISTED_BYTES:
            self._drop()
            self.too_many += 1

    def _drop(self) -> None:
        _, _, size, _ = heapq.heappop(self._kept)
        self._bytes -= size

    def sessions(self) -> list[Closed]:
        """Return them in the order in which they began."""
        return [session for *_, session in sorted(self._kept, key=lambda each: each[:2])]


def _with_progress(reader: TraceReader, found: Iterator[Found]) -> Iterator[Found]:
    console = Terminal(stderr=True)
    hidden = reader.size < PROGRESS_BYTES or not console.is_terminal
    columns = ("reading", BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task("", total=reader.size)
        reader.progress = lambda size: progress.advance(task, size)
        yield from found


def _has_address(session: Closed, address: str) -> bool:
    wanted = address.lower()
    with contextlib.suppress(ValueError):  # not an IP address, but a part of one or other text
        wanted = canonical(wanted.strip("[]"))
    names = [client_of(session)]
    for message in session.transactions:
        names += [message.sender, *message.recipients, *message.refused]
    return any(wanted in name.lower() for name in names)


def _has_code(session: Closed, code: str) -> bool:
    codes = list(map(str, session.codes))
    codes += [message.reply[:3] for message in session.transactions]
    return any(each.startswith(code) for each in codes)


@trace.command(
    epilog="""
    \b
    Examples:
      smtpproxy trace show -d /var/log/smtpproxy 53b4b0-1
      smtpproxy trace show -d /var/log/smtpproxy 53b4b0-1 --json > session.jsonl
    """
)
@_directory
@click.argument("session")
@click.option("--json", "as_json", is_flag=True, help="Print its records as JSON, one a line.")
def show(directory: Path, session: str, as_json: bool) -> None:
    """Show the dialogue of SESSION, both sides on one time line.

    It shows what the client sent in one group, when each command was sent to the MTA, how long the
    MTA took, and when the replies were flushed.
    """
    reader = _reader(directory)
    found = _find(reader, session)
    if as_json:
        _print_json(found.records)
    else:
        terminal.show(_console(), for_people(found))
    _finish(reader, found)


@trace.command()
@_future_directory
@click.option("--text", help="Only lines that contain this.")
def follow(directory: Path, text: str | None) -> None:
    """Print each exchange as it is recorded, until interrupted."""
    console = _console()
    if not directory.exists():  # it is created with the first record
        say(f"waiting for {directory}, which does not exist yet", err=True)
    follower = _Follower(directory)
    try:
        while True:
            for record in follower.new_records((text or "").encode(errors="replace")):
                if line := _line_of(printable_record(record)):
                    console.print(line)
            time.sleep(POLL_S)  # each system has another API to be notified of new lines
    except KeyboardInterrupt:
        sys.exit(INCOMPLETE if follower.problems.count else 0)


class _Follower:
    """Reads records as they are appended to the files of a directory, and reports problems."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[Path, TraceFile] = {}
        self._reported = 0
        self.problems = Problems()
        for _ in self.new_records(NEVER):
            pass  # skips what is there already

    def new_records(self, wanted: bytes) -> Iterator[Record]:
        """Yield the records that have been appended since the last time."""
        found = self._find_files()
        self._files = {path: self._files.get(path) or self._new(path) for path in found}
        for file in self._files.values():
            for record, _ in file.records(wanted):
                yield record
        for each in self.problems.first[self._reported :]:
            say(f"smtpproxy: {each}", err=True)
        self._reported = len(self.problems.first)

    def _find_files(self) -> list[Path]:
        try:
            return files_of(self._directory) if self._directory.exists() else []
        except OSError as error:
            _fail(f"cannot read {self._directory}: {error.strerror}")

    def _new(self, path: Path) -> TraceFile:
        return TraceFile(path, self.problems)


def _line_of(record: Record) -> Text | None:
    if isinstance(record, Closed):
        text = f"closed, {record.reason}, {terminal.saved(record)}"
        return Text(f"{terminal.clock(record.at, '%H:%M:%S')} {record.session:12} {text}", "dim")
    if isinstance(record, Noted):
        when = f"{terminal.clock(record.at, '%H:%M:%S')} {record.session:12}   "
        label = terminal.note(record)
        return Text.assemble((when, "dim"), (label.long, label.style))
    if not isinstance(record, Exchanged):
        return None
    took = duration_text(record.replied - record.sent) if record.sent else ""
    asked = "  +" if record.pipelined else "   "
    command = terminal.command_of(record).long
    reply = record.reply.split("\r\n")[-1]
    return Text.assemble(
        (f"{terminal.clock(record.flushed or record.framed, '%H:%M:%S')} ", "dim"),
        f"{record.session:12}{asked}",
        (command, COMMAND),
        "  ",
        (reply, BAD if record.code >= 400 else GOOD),
        (f"  {took}", "dim"),
    )


@trace.command()
@_directory
@click.argument("session")
@click.option(
    "--pcapng",
    "capture",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For Wireshark: both connections, also what was inside TLS.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An HTML page with the drawing of the live page.",
)
def export(directory: Path, session: str, capture: Path | None, page: Path | None) -> None:
    """Write SESSION to a file: for Wireshark, or as a page that needs nothing else."""
    if capture is None and page is None:
        raise click.UsageError("give --pcapng FILE, --html FILE, or both")
    reader = _reader(directory)
    found = _find(reader, session)
    try:
        if capture is not None:
            capture.write_bytes(pcapng.capture(found))
            say(f"wrote {capture}", err=True)
        if page is not None:
            page.write_text(html_page.page(found), encoding="utf-8")
            say(f"wrote {page}", err=True)
    except OSError as error:
        _fail(f"cannot write {error.filename}: {error.strerror}")
    except ValueError as error:
        _fail(str(error))
    _finish(reader, found)


@trace.command(
    epilog="""
    \b
    Example:
      smtpproxy trace replay -d /var/log/smtpproxy 53b4b0-1 --to 127.0.0.1:2525
    """
)
@_directory
@click.argument("session")
@click.option("--to", "target", required=True, metavar="ADDR", help="The server to play it to.")
@click.option("--lock-step", is_flag=True, help="One command at a time instead of in groups.")
@click.option("--full-speed", is_flag=True, help="Without the recorded pauses.")
def replay(directory: Path, session: str, target: str, lock_step: bool, full_speed: bool) -> None:
    """Play the client's side of SESSION to any server, and compare the replies.

    A message may be delivered: choose the server with care.  AUTH, STARTTLS and the EHLO after it
    are left out, so all is sent in plaintext.  Content that was not recorded is replaced by filler
    of the same size.  Exits 1 if a reply code differs.
    """
    try:
        address: Address = parse_server(target)
    except ValueError as error:
        raise click.BadParameter(f"{target!r} {error}", param_hint="--to") from None
    reader = _reader(directory)
    found = _find(reader, session)
    try:
        result = asyncio.run(play_again(found, address, lock_step=lock_step, as_fast=full_speed))
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error) or "timed out"
        _fail(f"cannot connect to {target}: {why}")
    _console().print(_difference(result))
    if result.stopped:
        say(f"stopped: {result.stopped}", err=True)
    differing = sum(each.differs for each in result.played)
    codes = f"{differing} of {terminal.counted(len(result.played), 'reply code')}"
    say(f"{codes} {'differs' if differing == 1 else 'differ'}", err=True)
    _finish(reader, found, failed=bool(result.stopped or differing))


def _difference(performance: ReplayResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "command", "reply then", "reply now"):
        table.add_column(name, overflow="fold")
    for each in performance.played:
        mark = Text("≠", BAD) if each.differs else Text("=", GOOD)
        command = printable(each.exchange.command or each.exchange.verb)
        same = each.exchange.reply == each.now
        now = Text("same", "dim") if same else _lines(each.now)
        table.add_row(mark, command, _lines(each.exchange.reply), now)
    return table


def _lines(reply: str) -> Group:
    return Group(*map(printable, reply.split("\r\n")))


def _reader(directory: Path) -> TraceReader:
    try:
        return TraceReader(directory)
    except OSError as error:
        _fail(f"cannot read {directory}: {error.strerror}")


def _find(reader: TraceReader, name: str) -> RecordedSession:
    try:
        return reader.session(name)
    except ValueError as error:
        _report(reader)
        _fail(f"{error} in {reader.path}")


def _finish(
    reader: TraceReader, session: RecordedSession | None = None, *, failed: bool = False
) -> NoReturn:
    """Report what could not be read, and end the command with its exit code."""
    _report(reader)
    left_out = session.left_out if session else 0
    if left_out:
        records = terminal.counted(left_out, "record")
        say(f"smtpproxy: {records} of the session left out: it is too long", err=True)
    if failed or reader.failed:
        sys.exit(1)
    sys.exit(INCOMPLETE if left_out or reader.problems.count else 0)


def _report(reader: TraceReader) -> None:
    problems = reader.problems
    for each in problems.first:
        say(f"smtpproxy: {each}", err=True)
    if problems.count:
        read = terminal.counted(problems.count, "record or file", "records or files")
        say(f"smtpproxy: {read} could not be read", err=True)


def _fail(text: str) -> NoReturn:
    say(f"smtpproxy: {text}", err=True)
    sys.exit(1)


def _console() -> Terminal:
    console = Terminal()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console
