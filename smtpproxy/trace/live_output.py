"""Output that goes on until its reader leaves: a terminal, a pager, or Wireshark."""

import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import click

from smtpproxy.trace import pcapng, terminal
from smtpproxy.trace.reader import RecordedSession, for_people, printable_record
from smtpproxy.trace.records import Record


class LiveCapture:
    """A capture file, or a pipe to Wireshark, that gets packets as they come.

    Args:
        path: The file; `-` for standard output.

    Raises:
        click.UsageError: Standard output is a terminal.
        OSError: The file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = capture_file(path)
        self._capture = pcapng.Capture()
        self._put(pcapng.head())

    def write(self, records: Iterable[Record]) -> None:
        """Write the packets of records, and flush them."""
        if packets := self._capture.packets(records):
            self._put(packets)

    def show(self, session: RecordedSession) -> None:
        """Write the packets of a whole session, and flush them."""
        self.write(session.records)

    def _put(self, octets: bytes) -> None:
        self._file.write(octets)
        self._file.flush()


class LiveLines:
    """Prints records as lines."""

    def __init__(self) -> None:
        self._console = terminal.console()

    def write(self, records: Iterable[Record]) -> None:
        """Print each record that has a line."""
        for record in records:
            if line := terminal.line_of(printable_record(record)):
                self._console.print(line)


class LiveSessions:
    """Prints whole sessions as drawings."""

    def __init__(self) -> None:
        self._console = terminal.console()

    def show(self, session: RecordedSession) -> None:
        """Print a session, and an empty line."""
        terminal.show(self._console, for_people(session))
        self._console.print()


def capture_file(path: str) -> BinaryIO:
    """Open a capture file; see `LiveCapture`."""
    if path != "-":
        return Path(path).open("wb")
    if sys.stdout.isatty():
        raise click.UsageError(
            "a capture is no text: add `| wireshark -k -i -`, or name a file instead of -"
        )
    return sys.stdout.buffer


def wait(timeout_s: float, readable: int | None = None) -> bool:
    """Wait until a descriptor can be read; return whether it can.

    Args:
        timeout_s: How long at most, in seconds.
        readable: The descriptor; None to wait for the time only.

    Raises:
        BrokenPipeError: The reader of standard output has left.
    """
    poll = select.poll()
    output = -1
    with suppress(OSError):  # it may be no real file
        output = sys.stdout.fileno()
        poll.register(output, 0)
    if readable is not None:
        poll.register(readable, select.POLLIN)
    found = [descriptor for descriptor, _ in poll.poll(timeout_s * 1000)]
    if output in found:
        raise BrokenPipeError
    return bool(found)


@contextmanager
def until_the_reader_leaves() -> Iterator[None]:
    """End a block quietly when the reader of its output leaves."""
    try:
        yield
    except BrokenPipeError:
        with suppress(OSError):  # what is still buffered must not fail at the end of the process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
