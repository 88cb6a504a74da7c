"""`smtpproxy trace watch`: records sessions of the running service, and shows them.

The service records as long as the connection to its control socket is open, so nothing is left on
when this command ends, however it does.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

import click
import msgspec

from smtpproxy.config.address import canonical_network
from smtpproxy.control_socket import control_client, locations
from smtpproxy.text.console import fail, say
from smtpproxy.text.number_options import WholeNumber
from smtpproxy.trace import terminal
from smtpproxy.trace.live_output import (
    LiveCapture,
    LiveLines,
    LiveSessions,
    until_the_reader_leaves,
    wait,
)
from smtpproxy.trace.reader import RecordedSession, add_bounded
from smtpproxy.trace.records import VERSION, Closed, FileHeader, Record
from smtpproxy.trace.watch import (
    NETWORKS,
    Content,
    RecordsLost,
    Watching,
    WatchRequest,
    read_line,
)

GATHER_S = 0.05
"""Lines are shown after a pause of this length, so that a group of commands is shown as one."""
GATHER_MOST_S = 0.5
"""Lines are shown this long after the first of them, if there is no such pause."""
GATHER_BYTES = 1024 * 1024
"""Lines of this size in all are shown without a pause."""
LINE_BYTES = 32 * 1024 * 1024
"""The longest line that is accepted from the service."""
KEPT_BYTES = 256 * 1024 * 1024
"""The most bytes of records of open sessions; further ones are left out."""
CHECK_S = 3600.0
"""The longest single wait for data, after which the loop waits again."""
INCOMPLETE = 3
"""The exit code if records were lost or left out."""


def _networks(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> list[str]:
    """Return networks in their usual spelling."""
    found = []
    for each in given:
        try:
            found.append(str(canonical_network(each)))
        except ValueError as error:
            raise click.BadParameter(f"{each!r} {error}") from None
    if len(found) > NETWORKS:
        raise click.BadParameter(f"at most {NETWORKS}")
    return found


@click.command(
    short_help="Record sessions of the running service now, and show them.",
    epilog="""
    \b
    Examples:
      smtpproxy trace watch --client 192.0.2.7
      smtpproxy trace watch --client 192.0.2.0/24 --problems --count 3
      smtpproxy trace watch --client 192.0.2.7 --content full --follow
      smtpproxy trace watch --client 2001:db8::/32 --follow --pcapng - | wireshark -k -i -
    """,
)
@click.option(
    "--client",
    "clients",
    callback=_networks,
    multiple=True,
    required=True,
    metavar="CIDR",
    help="An address or a network of clients.  May be repeated.",
)
@click.option("--count", type=WholeNumber(1, example=3), metavar="N", help="End after N sessions.")
@click.option(
    "--content",
    type=click.Choice(["headers", "full"]),
    help="Also message content, if the service's trace.content allows it.",
)
@click.option("--problems", is_flag=True, help="Only sessions in which something failed.")
@click.option("--follow", is_flag=True, help="Each exchange at once, not each session at its end.")
@click.option(
    "--pcapng",
    "capture",
    metavar="FILE",
    help="For Wireshark: both connections, also what was inside TLS.  - for standard output.",
)
@locations.control_option
def watch(
    clients: list[str],
    count: int | None,
    content: Content | None,
    problems: bool,
    follow: bool,
    capture: str | None,
    control: Path | None,
) -> None:
    """Record sessions of the running service from now on, and show each when it ends.

    Needs no trace directory and no reload, and nothing is kept.  Only sessions that begin after it
    are recorded, and none any more when this command has ended.  Be root, or the service's user;
    the service logs who watches which clients.
    """
    if follow and problems:
        raise click.UsageError("--problems is known when a session ends: leave out --follow")
    request = WatchRequest(tuple(clients), content or "none", problems)
    socket_paths = [control] if control else locations.of_commands(os.environ)
    try:
        show = _output(follow, capture)
        stream = control_client.Stream(request.target, socket_paths)
    except control_client.NoAnswer as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {capture}: {error.strerror}")
    watched = _Watched(show, count, f"watching {', '.join(clients)}; Ctrl-C ends it")
    is_over = False
    with stream.connection, suppress(KeyboardInterrupt), until_the_reader_leaves():
        is_over = not any(map(watched.take, _batches(stream)))
    watched.report()
    if is_over:
        fail("the service has ended the watch: it stops, or a new version took over")
    sys.exit(INCOMPLETE if watched.lost else 0)


def _batches(stream: control_client.Stream) -> Iterator[list[bytes]]:
    """Yield lines in batches, each of those that came together, until the service closes."""
    unread = bytearray(stream.received)
    connection = stream.connection
    due = monotonic() + GATHER_MOST_S
    while True:
        is_due = len(unread) >= GATHER_BYTES or monotonic() >= due
        if b"\n" in unread and (is_due or not wait(GATHER_S, connection.fileno())):
            *lines, rest = bytes(unread).split(b"\n")
            unread = bytearray(rest)
            yield lines
        elif wait(CHECK_S, connection.fileno()):
            octets = connection.recv(65536)
            if not octets:
                yield bytes(unread).split(b"\n")[:-1]
                return
            if b"\n" not in unread:
                due = monotonic() + GATHER_MOST_S
            unread += octets
            if len(unread) > LINE_BYTES:
                fail("the service sent a line that is too long")


class _Watched:
    """What is shown of a watch.

    Args:
        show: Shows it.
        most: After how many sessions the watch ends; None for no end.
        begun: Is printed when all workers record.
    """

    def __init__(self, show: "_Records | _Sessions", most: int | None, begun: str) -> None:
        self._show = show
        self._most = most
        self._begun = begun
        self._sessions = 0
        self.lost = 0
        """How many records are missing."""

    def take(self, lines: list[bytes]) -> bool:
        """Show records; return whether there were enough sessions."""
        records: list[tuple[Record, int]] = []
        for line in lines:
            match self._read(line):
                case Watching():
                    say(self._begun, err=True)
                case RecordsLost(number):
                    self.lost += number
                case FileHeader() as header:
                    if header.version != VERSION:
                        fail("the service is another version of smtpproxy: reload it")
                case record:
                    records.append((record, len(line)))
                    self._sessions += isinstance(record, Closed)
                    if self._sessions == self._most:
                        break
        self._show.write(records)
        return self._sessions == self._most

    def _read(self, line: bytes) -> Record | FileHeader | Watching | RecordsLost:
        try:
            return read_line(line)
        except msgspec.MsgspecError:
            fail("the service sent a line that is no record: is it of another version?")

    def report(self) -> None:
        """Print how many sessions were shown, and how many records are missing."""
        self.lost += self._show.left_out
        say(terminal.counted(self._sessions, "session"), err=True)
        if self.lost:
            records = terminal.counted(self.lost, "record")
            say(f"smtpproxy: {records} lost: there were more than could be shown", err=True)


class _Records:
    """Shows each record at once."""

    left_out = 0
    """How many records were too many to keep: none."""

    def __init__(self, show: LiveLines | LiveCapture) -> None:
        self._show = show

    def write(self, records: Iterable[tuple[Record, int]]) -> None:
        """Show records, each with the bytes of its line."""
        self._show.write([record for record, _ in records])


class _Sessions:
    """Keeps the records of open sessions, and shows each session when it ends."""

    left_out: int
    """How many records were too many to keep."""

    def __init__(self, show: LiveSessions | LiveCapture) -> None:
        self._show = show
        self._open: dict[str, RecordedSession] = {}
        self._bytes = 0
        self.left_out = 0

    def write(self, records: Iterable[tuple[Record, int]]) -> None:
        """Take records, each with the bytes of its line."""
        for record, size in records:
            name = record.session
            is_last = isinstance(record, Closed)
            if self._bytes + size > KEPT_BYTES and not is_last:
                self.left_out += 1
                continue
            session = self._open.setdefault(name, RecordedSession(name))
            before = session.read_bytes
            add_bounded(session, record, size)
            self._bytes += session.read_bytes - before
            if is_last:
                del self._open[name]
                self._bytes -= session.read_bytes
                self.left_out += session.left_out
                self._show.show(session)


def _output(follow: bool, capture: str | None) -> _Records | _Sessions:
    if follow:
        return _Records(LiveLines() if capture is None else LiveCapture(capture))
    return _Sessions(LiveSessions() if capture is None else LiveCapture(capture))
