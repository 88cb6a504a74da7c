"""The commands that read trace files: `smtpproxy trace list|show|follow|export|replay`."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
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
from smtpproxy.timeline.drawing import seconds_told
from smtpproxy.timeline.labels import BAD, COMMAND, GOOD
from smtpproxy.trace import html_page, pcapng, terminal
from smtpproxy.trace.reader import (
    RecordedSession,
    closed_sessions,
    files_of,
    for_people,
    octets_of_all,
    printable_record,
    session_of,
)
from smtpproxy.trace.records import Closed, Exchanged, Noted, Record, decode
from smtpproxy.trace.replay import ReplayResult
from smtpproxy.trace.replay import replay as play_again

POLL_S = 0.2
PIPED_WIDTH = 1000
"""Whoever reads from a pipe, as grep does, gets lines that are whole."""
PROGRESS_OCTETS = 64 * 1024 * 1024
"""From this size on a bar shows how far reading has come."""

_in_directory = partial(
    click.option,
    "-d",
    "--directory",
    required=True,
    metavar="DIR",
    envvar="SMTPPROXY_TRACE",
    help="Where the trace files are, or one of them; also $SMTPPROXY_TRACE.",
)
_directory = _in_directory(type=click.Path(path_type=Path, exists=True))
_future_directory = _in_directory(type=click.Path(path_type=Path))

_time = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"])


@click.group()
def trace() -> None:
    """Read what `smtpproxy run --trace DIR` has recorded."""


@trace.command(
    "list",
    epilog="""
    \b
    Examples:
      smtpproxy trace list -d /var/log/smtpproxy --since 2026-11-24T08:00
      smtpproxy trace list -d /var/log/smtpproxy --address joe@example.org --code 550
      smtpproxy trace list -d /var/log/smtpproxy --text bare_       # whom `reject` would refuse
    """,
)
@_directory
@click.option(
    "--since", type=_time, metavar="TIME", help="Sessions that began then or later (UTC)."
)
@click.option("--until", type=_time, metavar="TIME", help="Sessions that began before (UTC).")
@click.option("--address", metavar="TEXT", help="Client, sender or recipient has this in it.")
@click.option(
    "--code", type=int, metavar="CODE", help="A reply had this code: 550, or 5 for all of 5xx."
)
@click.option("--text", help="Anything in a session's last record has this in it.")
@click.option("-n", "--last", type=click.IntRange(1), metavar="N", help="Only so many, the latest.")
def list_sessions(
    directory: Path,
    since: datetime | None,
    until: datetime | None,
    address: str | None,
    code: int | None,
    text: str | None,
    last: int | None,
) -> None:
    """List the sessions that are over: when, who, to whom, with what outcome."""
    begin = since.replace(tzinfo=UTC).timestamp() if since else 0.0
    end = until.replace(tzinfo=UTC).timestamp() if until else float("inf")
    found = [
        each
        for each in _read_all(files_of(directory))
        if begin <= each.opened < end
        and (not address or _has_address(each, address))
        and (not code or _has_code(each, str(code)))
        and (not text or text.lower() in msgspec.json.encode(each).decode().lower())
    ]
    found.sort(key=lambda each: each.opened)
    shown = found[-last:] if last else found
    console = _console()
    console.print(terminal.list_table(list(map(printable_record, shown)), console))
    click.echo(terminal.counted(len(found), "session"), err=True)


def _read_all(paths: list[Path]) -> Iterator[Closed]:
    size = octets_of_all(paths)
    console = Terminal(stderr=True)
    hidden = size < PROGRESS_OCTETS or not console.is_terminal
    columns = ("reading", BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
        task = progress.add_task("", total=size)
        yield from closed_sessions(paths, lambda octets: progress.advance(task, octets))


def _has_address(session: Closed, address: str) -> bool:
    wanted = address.lower()
    with contextlib.suppress(ValueError):  # it is no IP address, but a part of one, or of another
        wanted = canonical(wanted.strip("[]"))
    names = [session.client]
    for message in session.transactions:
        names += [message.sender, *message.recipients, *message.refused]
    return any(wanted in name.lower() for name in names)


def _has_code(session: Closed, code: str) -> bool:
    codes = list(map(str, session.codes))
    codes += [message.reply[:3] for message in session.transactions]
    return any(each.startswith(code) for each in codes)


@trace.command()
@_directory
@click.argument("session")
def show(directory: Path, session: str) -> None:
    """Show the dialogue of SESSION, both sides on one time line.

    In it: what the client sent in one group, when each command went to the MTA, how long that took
    for it, and when the replies were flushed.
    """
    terminal.show(_console(), for_people(_find(directory, session)))


@trace.command()
@_future_directory
@click.option("--text", help="Only lines that have this in them.")
def follow(directory: Path, text: str | None) -> None:
    """Print each exchange as it is recorded, until interrupted."""
    console = _console()
    if not directory.exists():  # it is made when the first session is recorded
        click.echo(f"waiting for {directory}, which does not exist yet", err=True)
    positions = {path: path.stat().st_size for path in files_of(directory)}
    try:
        while True:
            for line in _new_lines(directory, positions):
                if text and text.encode() not in line:
                    continue
                try:
                    record = printable_record(decode(line))
                except msgspec.DecodeError:
                    continue
                if told := _told(record):
                    console.print(told)
            time.sleep(POLL_S)  # to be told of new lines takes another API on each system
    except KeyboardInterrupt:
        return


def _new_lines(directory: Path, positions: dict[Path, int]) -> Iterator[bytes]:
    """Yield the whole lines that have come since the last time, and note how far that was."""
    for path in files_of(directory):
        try:
            with path.open("rb") as file:
                file.seek(positions.get(path, 0))
                octets = file.read()
        except FileNotFoundError:  # it was the oldest, and has been removed
            continue
        whole = octets[: octets.rfind(b"\n") + 1]
        positions[path] = positions.get(path, 0) + len(whole)
        yield from whole.splitlines()


def _told(record: Record) -> Text | None:
    if isinstance(record, Closed):
        told = f"closed, {record.reason}, {terminal.saved(record)}"
        return Text(f"{terminal.clock(record.at, '%H:%M:%S')} {record.session:12} {told}", "dim")
    if isinstance(record, Noted):
        when = f"{terminal.clock(record.at, '%H:%M:%S')} {record.session:12}   "
        label = terminal.note(record)
        return Text.assemble((when, "dim"), (label.long, label.style))
    if not isinstance(record, Exchanged):
        return None
    took = seconds_told(record.replied - record.sent) if record.sent else ""
    asked = "  +" if record.pipelined else "   "
    command = record.line or f"{record.verb} {record.octets or ''}".strip()
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
    help="For Wireshark: both connections, also of what was under TLS.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A page with the picture of the live page.",
)
def export(directory: Path, session: str, capture: Path | None, page: Path | None) -> None:
    """Write SESSION to a file: for Wireshark, or as a page that needs nothing else."""
    if capture is None and page is None:
        raise click.UsageError("give --pcapng FILE, --html FILE, or both")
    found = _find(directory, session)
    try:
        if capture is not None:
            capture.write_bytes(pcapng.capture(found))
        if page is not None:
            page.write_text(html_page.page(found), encoding="utf-8")
    except (OSError, ValueError) as error:
        _fail(str(error))


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
@click.option("--full-speed", is_flag=True, help="Without the pauses of the original.")
def replay(directory: Path, session: str, target: str, lock_step: bool, full_speed: bool) -> None:
    """Play the client's side of SESSION to any server, and compare the replies.

    A message may be delivered: mind the server.  AUTH, STARTTLS and the EHLO behind it are left
    out, so it goes in plaintext, and content that was not recorded is replaced by as many octets.
    Exits 1 if a reply code differs.
    """
    try:
        address: Address = parse_server(target)
    except ValueError as error:
        raise click.BadParameter(f"{target!r} {error}", param_hint="--to") from None
    found = _find(directory, session)
    try:
        performance = asyncio.run(
            play_again(found, address, lock_step=lock_step, as_fast=full_speed)
        )
    except OSError as error:
        _fail(f"cannot connect to {target}: {error.strerror or error}")
    _console().print(_difference(performance))
    if performance.stopped:
        say(f"stopped: {performance.stopped}", err=True)
    if performance.stopped or any(each.differs for each in performance.played):
        sys.exit(1)


def _difference(performance: ReplayResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "command", "reply then", "reply now"):
        table.add_column(name, overflow="fold")
    for each in performance.played:
        mark = Text("≠", BAD) if each.differs else Text("=", GOOD)
        command = printable(each.exchange.line or each.exchange.verb)
        same = each.exchange.reply == each.now
        now = Text("same", "dim") if same else _lines(each.now)
        table.add_row(mark, command, _lines(each.exchange.reply), now)
    return table


def _lines(reply: str) -> Group:
    return Group(*map(printable, reply.split("\r\n")))


def _find(directory: Path, name: str) -> RecordedSession:
    session = session_of(files_of(directory), name)
    if session is None:
        _fail(f"no session {name} in {directory}")
    return session


def _fail(text: str) -> NoReturn:
    say(f"smtpproxy: {text}", err=True)
    sys.exit(1)


def _console() -> Terminal:
    console = Terminal()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console
