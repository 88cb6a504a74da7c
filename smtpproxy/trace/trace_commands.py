"""The commands that read trace files: `smtpproxy trace list|show|follow|export|replay`.

Exit codes: 0 done; 1 failed, or a reply code differs (replay); 2 wrong usage; 3 done, but some
records or files could not be read.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NoReturn, TypeVar

import click
import msgspec
from rich.console import Group
from rich.progress import BarColumn, DownloadColumn, Progress
from rich.table import Table
from rich.text import Text

from smtpproxy.config.address import Address, parse_server
from smtpproxy.text.console import Terminal, fail, say
from smtpproxy.text.escaping import printable
from smtpproxy.text.number_options import WholeNumber
from smtpproxy.timeline.labels import BAD, GOOD
from smtpproxy.trace import html_page, pcapng, statistics_page, statistics_report, terminal
from smtpproxy.trace.latest_sessions import LatestSessions
from smtpproxy.trace.live_output import (
    LiveCapture,
    LiveLines,
    capture_file,
    until_the_reader_leaves,
    wait,
)
from smtpproxy.trace.reader import (
    Problems,
    RecordedSession,
    TraceFile,
    TraceReader,
    files_of,
    for_people,
    printable_record,
)
from smtpproxy.trace.records import Closed, Record
from smtpproxy.trace.replay import ReplayResult
from smtpproxy.trace.replay import replay as play_again
from smtpproxy.trace.session_filter import SessionFilter, filter_options
from smtpproxy.trace.statistics_collector import DECODER, StatisticsCollector

POLL_S = 0.2
"""The interval at which `trace follow` reads new lines."""
PROGRESS_BYTES = 64 * 1024 * 1024
"""From this size on, a progress bar is shown."""
LISTED_BYTES = 64 * 1024 * 1024
"""The most bytes of records that `list` keeps; of more, it shows the latest."""
CHOSEN_SESSIONS = 250_000
"""The most sessions that `stats` and `export` take if options choose them; also the most messages
that `--header` finds."""
EXPORTED_BYTES = 64 * 1024 * 1024
"""The most bytes of records that become one capture file."""
FOLLOWED_RECORDS = 1000
"""How many records are shown at once, if there are more."""
NEVER = b"\0"
"""A text that no line contains."""
Read = TypeVar("Read")
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
_last = click.option(
    "-n", "--last", type=WholeNumber(1, example=10), metavar="N", help="Only the latest N."
)
_html = partial(click.option, "--html", "page", type=click.Path(path_type=Path), metavar="FILE")


@click.group(short_help="Read what `smtpproxy run --trace DIR` has recorded.")
def trace() -> None:
    """Read what `smtpproxy run --trace DIR` has recorded.

    Exits 0 if done; 1 if it failed, or if a reply differs (replay); 2 for wrong usage; 3 if it is
    done but some records or files could not be read.
    """


@trace.command(
    "list",
    short_help="List the sessions that have ended, with their outcomes.",
    epilog="""
    \b
    Examples:
      smtpproxy trace list -d /var/log/smtpproxy --since 2026-11-24T08:00
      smtpproxy trace list -d /var/log/smtpproxy --address joe@example.org --code 550
      smtpproxy trace list -d /var/log/smtpproxy --text bare_   # `reject` would refuse these
      smtpproxy trace list -d /var/log/smtpproxy --message-id 20261124.4711@example.org
      smtpproxy trace list -d /var/log/smtpproxy --queue-id 4bXyz1 --header Subject=invoice
      smtpproxy trace list -d /var/log/smtpproxy --json > sessions.jsonl
    """,
)
@_directory
@filter_options
@_last
@click.option("--json", "as_json", is_flag=True, help="Print each session's last record as JSON.")
def list_sessions(chosen: SessionFilter, directory: Path, last: int | None, as_json: bool) -> None:
    """List the sessions that have ended: time, client, addresses and outcome.

    A terminal that is too narrow shows fewer columns.
    """
    chosen = _with_header(directory, chosen)
    reader = _reader(directory)
    found: LatestSessions[Closed] = LatestSessions(last, LISTED_BYTES)
    for each, size in _with_progress(reader, reader.closed_sessions()):
        if chosen.matches(each):
            found.add(each.opened, each, size)
    with until_the_reader_leaves():
        if as_json:
            _print_json(found.kept())
        else:
            _print_table(found.kept())
    if not as_json:
        say(terminal.counted(found.count, "session"), err=True)
    if found.too_many:
        more = terminal.counted(found.too_many, "earlier session")
        say(f"{more} left out: choose with --since and --until", err=True)
    _finish(reader)


def _print_table(sessions: list[Closed]) -> None:
    console = terminal.console()
    table, left_out = terminal.list_table(list(map(printable_record, sessions)), console)
    console.print(table)
    if left_out:
        columns = "columns" if len(left_out) > 1 else "column"
        say(f"the terminal is too narrow for the {columns} {', '.join(left_out)}", err=True)


def _print_json(found: Sequence[Record]) -> None:
    """Print each record as a line of JSON in ASCII; it has no escape sequence of a terminal."""
    for record in found:
        say(json.dumps(msgspec.to_builtins(record)))


def _with_header(directory: Path, chosen: SessionFilter) -> SessionFilter:
    """Return a filter that knows the sessions which have the header field."""
    if chosen.header is None:
        return chosen
    reader = _reader(directory)
    latest: LatestSessions[str] = LatestSessions(None, CHOSEN_SESSIONS)
    is_recorded = False
    for exchange in _with_progress(reader, reader.contents()):
        is_recorded = True
        if chosen.header.is_in(exchange.content):
            latest.add(exchange.framed, exchange.session)
    if not is_recorded:
        say("no header is recorded here: the setting trace.content chooses that", err=True)
    if latest.too_many:
        say(f"only the latest {CHOSEN_SESSIONS:,} messages with this header count", err=True)
    return replace(chosen, sessions=set(latest.kept()))


def _with_progress(reader: TraceReader, found: Iterator[Read]) -> Iterator[Read]:
    console = Terminal(stderr=True)
    hidden = reader.size < PROGRESS_BYTES or not console.is_terminal
    columns = ("reading", BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task("", total=reader.size)
        reader.on_progress(lambda size: progress.advance(task, size))
        yield from found


@trace.command(
    short_help="Show statistics of all sessions, or of those that options choose.",
    epilog="""
    \b
    Examples:
      smtpproxy trace stats -d /var/log/smtpproxy --since 2026-11-24 --until 2026-11-25
      smtpproxy trace stats -d /var/log/smtpproxy --address 192.0.2.7 --html stats.html
      smtpproxy trace stats -d /var/log/smtpproxy --json | jq '.verbs[] | {verb, p95_s}'
    """,
)
@_directory
@filter_options
@_last
@click.option("--json", "as_json", is_flag=True, help="Print them as one JSON object.")
@_html(help="Write them as an HTML page that needs nothing else.")
def stats(
    chosen: SessionFilter, directory: Path, last: int | None, as_json: bool, page: Path | None
) -> None:
    """Show statistics of all sessions, or of those that options choose.

    Messages by outcome, the MTA's time by verb, what pipelining has saved, replies by verb,
    clients, TLS versions, and sizes of groups.  Without an option that chooses, exchanges of
    sessions that have not ended count too.
    """
    ids = None
    if chosen != SessionFilter() or last is not None:
        ids = set(_ids_of(_reader(directory), _with_header(directory, chosen), last))
    reader = _reader(directory)
    collector = StatisticsCollector(ids)
    for records in _with_progress(reader, reader.decoded(DECODER)):
        collector.add(records)
    found = collector.report()
    if page is not None:
        _write_page(page, statistics_page.page(found))
    with until_the_reader_leaves():
        if as_json:
            say(json.dumps(msgspec.to_builtins(found)))
        elif page is None:
            console = terminal.console()
            console.print(statistics_report.lines_of(found, console.width))
    _finish(reader)


def _ids_of(reader: TraceReader, chosen: SessionFilter, last: int | None) -> list[str]:
    """Return the ids of the sessions that options choose, in the order in which they began."""
    latest: LatestSessions[str] = LatestSessions(last, CHOSEN_SESSIONS)
    for each, _ in _with_progress(reader, reader.closed_sessions()):
        if chosen.matches(each):
            latest.add(each.opened, each.session)
    if latest.too_many:
        say(f"only the latest {CHOSEN_SESSIONS:,} of these sessions count", err=True)
    return latest.kept()


def _write_page(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    say(f"wrote {path}", err=True)


@trace.command(
    short_help="Show the dialogue of SESSION, both sides on one time line.",
    epilog="""
    \b
    Examples:
      smtpproxy trace show -d /var/log/smtpproxy 53b4b0-1
      smtpproxy trace show -d /var/log/smtpproxy 53b4b0-1 --json > session.jsonl
    """,
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
    with until_the_reader_leaves():
        if as_json:
            _print_json(found.records)
        else:
            terminal.show(terminal.console(), for_people(found))
    _finish(reader, [found])


@trace.command(
    short_help="Print each exchange as it is recorded, until interrupted.",
    epilog="""
    \b
    Examples:
      smtpproxy trace follow -d /var/log/smtpproxy --text joe@example.org
      smtpproxy trace follow -d /var/log/smtpproxy --pcapng - | wireshark -k -i -
    """,
)
@_future_directory
@click.option("--text", help="Only lines that contain this.")
@click.option(
    "--pcapng",
    "capture",
    metavar="FILE",
    help="Write the sessions that begin from now on for Wireshark.  - for standard output.",
)
def follow(directory: Path, text: str | None, capture: str | None) -> None:
    """Print each exchange as it is recorded, until interrupted."""
    if text and capture is not None:
        raise click.UsageError("--text chooses lines, and --pcapng writes all")
    try:
        show = LiveLines() if capture is None else LiveCapture(capture)
    except OSError as error:
        fail(f"cannot write {capture}: {error.strerror}")
    follower = _Follower(directory)
    if not directory.exists():  # it is created with the first record
        say(f"waiting for {directory}, which does not exist yet", err=True)
    with suppress(KeyboardInterrupt), until_the_reader_leaves():
        while True:
            records = follower.new_records((text or "").encode(errors="replace"))
            while part := list(islice(records, FOLLOWED_RECORDS)):
                show.write(part)
            wait(POLL_S)  # each system has another API to be notified of new lines
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
            fail(f"cannot read {self._directory}: {error.strerror}")

    def _new(self, path: Path) -> TraceFile:
        return TraceFile(path, self.problems)


@trace.command(
    short_help="Write sessions to a file for Wireshark, or one as a page.",
    epilog="""
    \b
    Examples:
      smtpproxy trace export -d /var/log/smtpproxy 53b4b0-1 --html session.html
      smtpproxy trace export -d /var/log/smtpproxy 53b4b0-1 --pcapng - | wireshark -k -i -
      smtpproxy trace export -d /var/log/smtpproxy --code 550 --pcapng refused.pcapng
    """,
)
@_directory
@click.argument("session", required=False)
@filter_options
@_last
@click.option(
    "--pcapng",
    "capture",
    metavar="FILE",
    help="For Wireshark: both connections, also what was inside TLS.  - for standard output.",
)
@_html(help="An HTML page with the drawing of the live page.")
def export(
    chosen: SessionFilter,
    directory: Path,
    session: str | None,
    last: int | None,
    capture: str | None,
    page: Path | None,
) -> None:
    """Write SESSION to a file: for Wireshark, or as a page that needs nothing else.

    With --since, --address and so on instead of SESSION, all sessions that have ended and match
    become one file for Wireshark.
    """
    if capture is None and page is None:
        raise click.UsageError("give --pcapng FILE, --html FILE, or both")
    chooses = chosen != SessionFilter() or last is not None
    if chooses == (session is not None):
        raise click.UsageError("give SESSION, or choose several by --since, --address and so on")
    if chooses and page is not None:
        raise click.UsageError("--html is for one SESSION")
    chosen = _with_header(directory, chosen)
    reader = _reader(directory)
    if session is not None:
        found = [_find(reader, session)]
    else:
        names = _ids_of(reader, chosen, last)
        if not names:
            _report(reader)
            fail(f"no session matches in {reader.path}")
        say(terminal.counted(len(names), "session"), err=True)
        reader = _reader(directory)  # reads all again
        found = reader.sessions(names, EXPORTED_BYTES)
    try:
        if capture is not None:
            _write_capture(capture, pcapng.capture(*found))
        if page is not None:
            _write_page(page, html_page.page(found[0]))
    except ValueError as error:
        fail(str(error))
    _finish(reader, found)


def _write_capture(path: str, octets: bytes) -> None:
    try:
        file = capture_file(path)
        with until_the_reader_leaves():
            file.write(octets)
            file.flush()
        if path != "-":
            file.close()
            say(f"wrote {path}", err=True)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


@trace.command(
    short_help="Play SESSION to a server again, and compare the replies.",
    epilog="""
    \b
    Example:
      smtpproxy trace replay -d /var/log/smtpproxy 53b4b0-1 --to 127.0.0.1:2525
    """,
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
    if address.is_original:
        raise click.BadParameter("needs the address of a server", param_hint="--to")
    reader = _reader(directory)
    found = _find(reader, session)
    try:
        result = asyncio.run(play_again(found, address, lock_step=lock_step, as_fast=full_speed))
    except OSError as error:
        fail(f"cannot connect to {target}: {_why(error)}")
    with until_the_reader_leaves():
        terminal.console().print(_difference(result))
    if result.stopped:
        say(f"stopped: {result.stopped}", err=True)
    differing = sum(each.differs for each in result.played)
    codes = f"{differing} of {terminal.counted(len(result.played), 'reply code')}"
    say(f"{codes} {'differs' if differing == 1 else 'differ'}", err=True)
    _finish(reader, [found], failed=bool(result.stopped or differing))


def _why(error: OSError) -> str:
    """Return why no connection was made."""
    if error.errno and not isinstance(error, socket.gaierror):  # which has numbers of its own
        return os.strerror(error.errno)
    return error.strerror or str(error) or "timed out"


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
        fail(f"cannot read {directory}: {error.strerror}")


def _find(reader: TraceReader, name: str) -> RecordedSession:
    try:
        return reader.session(name)
    except ValueError as error:
        _report(reader)
        fail(f"{error} in {reader.path}")


def _finish(
    reader: TraceReader, sessions: Sequence[RecordedSession] = (), *, failed: bool = False
) -> NoReturn:
    """Report what could not be read, and end the command with its exit code."""
    _report(reader)
    left_out = sum(session.left_out for session in sessions)
    if left_out:
        records = terminal.counted(left_out, "record")
        if len(sessions) == 1:
            say(f"smtpproxy: {records} of the session left out: it is too long", err=True)
        else:
            what = "more than 64 MiB: choose with --since and --until"
            say(f"smtpproxy: {records} left out: {what}", err=True)
    if failed or reader.failed:
        sys.exit(1)
    sys.exit(INCOMPLETE if left_out or reader.problems.count else 0)


def _report(reader: TraceReader) -> None:
    if not reader.has_files:
        say(f"smtpproxy: no trace files in {reader.path}", err=True)
    problems = reader.problems
    for each in problems.first:
        say(f"smtpproxy: {each}", err=True)
    if problems.count:
        read = terminal.counted(problems.count, "record or file", "records or files")
        say(f"smtpproxy: {read} could not be read", err=True)
