"""Reads trace files: the list of their sessions, or all records of one session.

A trace file is untrusted input.  It is read in blocks, so that it may be of any size, grow, be
truncated or be removed meanwhile; only regular files are read, each record is checked, and a
session takes bounded memory.  Unreadable records are counted and reported, and reading continues.

Lines of other sessions are only checked to be whole, so that listing a gigabyte takes seconds.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from smtpproxy.text.escaping import expanded, printable, shortened
from smtpproxy.trace.records import (
    VERSION,
    Closed,
    Connected,
    Exchanged,
    FileHeader,
    Gap,
    Noted,
    Opened,
    Record,
    ServerGivenUp,
    decode,
    encode,
)

BLOCK_BYTES = 1024 * 1024
LINE_BYTES = 32 * 1024 * 1024
"""A longer line ends the reading of its file."""
SHORT_LINE_BYTES = 1024 * 1024
"""The longest line of a record that is no exchange."""
SESSION_BYTES, SESSION_RECORDS = 32 * 1024 * 1024, 100_000
"""How much is read of one session, as it is in the files."""
PROBLEMS_NAMED = 5
"""How many problems are described; the others are counted."""
OTHERS_NAMED = 5
"""How many other sessions are named whose id begins the same."""
SHOWN_CONTENT = 256 * 1024
"""How much of the content of a message is shown to people, in characters as it is in the file."""
OF_LINES = frozenset(("reply", "content", "content_received"))
"""The fields of records that have lines, with CRLF between them; every other one is one line."""
CONTENT = frozenset(("content", "content_received"))
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoding raises for a line that is no record, no UTF-8, or nested too deeply."""
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
"""How files of gzip, zstd, xz and bzip2 begin."""
Progress = Callable[[int], object]
"""Is called with the number of bytes that have been read since the last call."""
AnyRecord = TypeVar("AnyRecord", bound=Struct)
Decoded = TypeVar("Decoded")
Found = TypeVar("Found")


@dataclass(slots=True)
class Problems:
    """What could not be read."""

    count: int = 0
    """How many records or files."""
    first: list[str] = field(default_factory=list)
    """The first of them, each with its file, its line, and what is wrong."""

    def add(self, path: Path, line: int, what: object) -> None:
        """Count a problem; line 0 is that of the whole file."""
        self.count += 1
        if len(self.first) < PROBLEMS_NAMED:
            where = f", line {line}" if line else ""
            self.first.append(f"{path}{where}: {shortened(str(what), 200)}")


@dataclass(slots=True)
class RecordedSession:
    """One session as it was recorded; what is not there is None."""

    id: str
    """The session's id."""
    opened: Opened | None = None
    """Its first record."""
    connected: Connected | None = None
    """Its connection to a server."""
    gave_up: list[ServerGivenUp] = field(default_factory=list)
    """Servers that were not reached."""
    noted: list[Noted] = field(default_factory=list)
    """Events besides the dialogue."""
    exchanges: list[Exchanged] = field(default_factory=list)
    """The dialogue."""
    closed: Closed | None = None
    """Its last record."""
    gap: Gap | None = None
    """How many exchanges are missing, if some are."""
    before_gap: int = 0
    """How many of the exchanges come before the gap."""
    read_bytes: int = 0
    """How many bytes its records take in the files."""
    left_out: int = 0
    """How many records were left out because there are too many."""

    @property
    def records(self) -> list[Record]:
        """All its records, in order."""
        found: list[Record] = [
            each for each in (self.opened, *self.gave_up, self.connected) if each
        ]
        found += self.noted
        found += self.exchanges[: self.before_gap]
        found += [self.gap] if self.gap else []
        found += self.exchanges[self.before_gap :]
        return [*found, *([self.closed] if self.closed else [])]

    @property
    def began(self) -> float:
        """When it began, in seconds since 1970."""
        if self.opened is not None:
            return self.opened.at
        return self.exchanges[0].framed if self.exchanges else 0.0


class TraceReader:
    """Reads the trace files of a directory, or one file.

    Args:
        path: The directory, or the file.

    Raises:
        OSError: The directory cannot be read.
    """

    path: Path
    """The directory, or the file."""
    problems: Problems
    """What could not be read so far."""
    size: int
    """The size of all files in bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems = Problems()
        self._files = [TraceFile(each, self.problems) for each in files_of(path)]
        self.size = sum(each.size for each in self._files)
        self._progress: Progress = lambda _: None

    def on_progress(self, progress: Progress) -> None:
        """Set what is called as reading goes on."""
        self._progress = progress

    @property
    def has_files(self) -> bool:
        """Whether there are any files."""
        return bool(self._files)

    @property
    def failed(self) -> bool:
        """Whether there are files, and none of them could be read."""
        return bool(self._files) and all(each.refused for each in self._files)

    def closed_sessions(self) -> Iterator[tuple[Closed, int]]:
        """Yield the last record of each session that is over, and how many bytes it takes."""
        for record, size in self._records(b'{"what":"closed"'):
            if isinstance(record, Closed):
                yield record, size

    def contents(self) -> Iterator[Exchanged]:
        """Yield each exchange of which message content is recorded."""
        for record, _ in self._records(b'"content":"'):
            if isinstance(record, Exchanged) and record.content:
                yield record

    def session(self, name: str) -> RecordedSession:
        """Return a session by its id, or by the start of it.

        Raises:
            ValueError: There is no such session, or there are several.
        """
        found: RecordedSession | None = None
        others: set[str] = set()
        for record, size in self._records(b'"session":"' + name.encode(errors="replace")):
            if not record.session.startswith(name):
                continue
            if found is None or record.session == name != found.id:
                found = RecordedSession(record.session)
            if record.session == found.id:
                add_bounded(found, record, size)
            elif len(others) < OTHERS_NAMED:
                others.add(record.session)
        if found is None:
            raise ValueError(f"no session {name}")
        if found.id != name and others:
            several = ", ".join(sorted({found.id, *others}))
            raise ValueError(f"several sessions begin with {name} ({several})")
        return found

    def sessions(self, names: Collection[str], most: int) -> list[RecordedSession]:
        """Return several sessions by their ids.

        Args:
            names: The ids.
            most: How many bytes of records are read in all; what is beyond is left out.
        """
        found = {name: RecordedSession(name) for name in names}
        for record, size in self._records(b'"session":"'):
            if (session := found.get(record.session)) is not None:
                if size > most and not isinstance(record, Closed):
                    session.left_out += 1
                    continue
                most -= size
                add_bounded(session, record, size)
        return list(found.values())

    def decoded(self, decoder: msgspec.json.Decoder[Decoded]) -> Iterator[Sequence[Decoded]]:
        """Yield all records as a decoder returns them; see `TraceFile.decoded`."""
        for file in self._files:
            yield from file.decoded(decoder, self._progress)

    def _records(self, wanted: bytes) -> Iterator[tuple[Record, int]]:
        for file in self._files:
            yield from file.records(wanted, self._progress, to_the_end=True)


def files_of(path: Path) -> list[Path]:
    """Return the trace files of a directory, in order of time; a file stands for itself.

    Raises:
        OSError: The directory cannot be read.
    """
    if not path.is_dir():
        return [path]
    names = (each.name for each in os.scandir(path))
    return [path / each for each in sorted(names) if each.startswith("trace-") and ".jsonl" in each]


class _RefusedError(Exception):
    """A file is not read any further."""


class TraceFile:
    """One trace file; each call of `records` goes on where the one before ended.

    Args:
        path: The file.
        problems: Takes what cannot be read.
    """

    refused: bool
    """The file could not be read, or not to its end."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self._path = path
        self._problems = problems
        self._position = self._lines = 0  # bytes and lines that were read
        self.refused = False

    @property
    def size(self) -> int:
        """How many bytes it has, 0 if it cannot be read."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def records(
        self, wanted: bytes, progress: Progress = lambda _: None, *, to_the_end: bool = False
    ) -> Iterator[tuple[Record, int]]:
        """Yield the records whose line has some bytes, and how many bytes each takes.

        Where another program has rewritten the lines, with blanks or other escapes, they count
        as this service writes them.

        Args:
            wanted: The bytes.
            progress: Is called as reading goes on.
            to_the_end: Read a last line without an end, too; else it is left for the next call.
        """
        yield from self._in_blocks(
            lambda block: self._records_in(block, wanted), progress, to_the_end=to_the_end
        )

    def decoded(
        self, decoder: msgspec.json.Decoder[Decoded], progress: Progress
    ) -> Iterator[Sequence[Decoded]]:
        """Yield all records as a decoder returns them, some thousand at a time.

        It is much faster than `records`.

        Args:
            decoder: Returns records, perhaps with fewer fields, and `FileHeader` for one.
            progress: Is called as reading goes on.
        """
        yield from self._in_blocks(
            lambda block: self._decoded_in(block, decoder), progress, to_the_end=True
        )

    def _in_blocks(
        self,
        read: Callable[[bytes], Iterator[Found]],
        progress: Progress,
        *,
        to_the_end: bool,
    ) -> Iterator[Found]:
        """Yield what is read of each block of lines that is new."""
        if self.refused:
            return
        try:
            with closing(_opened(self._path)) as file:
                size = os.fstat(file.fileno()).st_size  # what is appended meanwhile is not read
                if size < self._position:  # it was cut short, or is another one
                    self._position = self._lines = 0
                if not self._position and size:
                    self._check_header(os.pread(file.fileno(), 4096, 0))
                file.seek(self._position)
                for block in self._blocks(file, size - self._position, to_the_end):
                    yield from read(block)
                    self._position += len(block)
                    progress(len(block))
        except FileNotFoundError as error:
            if self._path.is_symlink():
                self._refuse(error.strerror)  # else it was the oldest, and has been removed
        except OSError as error:
            self._refuse(error.strerror)
        except _RefusedError as error:
            self._refuse(error)

    def _refuse(self, what: object) -> None:
        self.refused = True
        self._problems.add(self._path, 0, what)

    def _check_header(self, head: bytes) -> None:
        if head.startswith(COMPRESSED):
            raise _RefusedError("it is compressed: decompress it first")
        try:
            header = decode(head[: head.find(b"\n") + 1])
        except UNREADABLE:
            header = None
        if not isinstance(header, FileHeader):
            raise _RefusedError("it is no trace file: its first line has no version")
        _check_version(header)

    def _blocks(self, file: FileIO, size: int, to_the_end: bool) -> Iterator[bytes]:
        """Yield whole lines, about a block at a time, of the next so many bytes."""
        rest = bytearray()
        while size > 0:
            read = file.read(min(size, BLOCK_BYTES))
            if not read:
                raise _RefusedError("it was cut short while it was read")
            size -= len(read)
            end = read.rfind(b"\n") + 1
            if end:
                yield bytes(rest) + read[:end]
                rest.clear()
            rest += read[end:]
            if len(rest) > LINE_BYTES:
                raise _RefusedError(
                    f"line {self._lines + 1} is longer than {LINE_BYTES >> 20} MiB; "
                    "the file was read up to it"
                )
        if rest and to_the_end:
            yield bytes(rest)

    def _records_in(self, block: bytes, wanted: bytes) -> Iterator[tuple[Record, int]]:
        number, counted = self._lines + 1, 0
        is_whole = _is_whole(block)
        for begin, end in _lines_with(wanted if is_whole else b"", block):
            number, counted = number + block.count(b"\n", counted, begin), begin
            line = block[begin:end]
            try:
                record = decode(line)
                _check_length(record, len(line))
            except UNREADABLE as error:
                self._problems.add(self._path, number, f"no record: {error}")
                continue
            if isinstance(record, FileHeader):
                _check_version(record)
            elif wanted in (line if is_whole else encode(record)):
                yield record, len(line)
        self._lines += block.count(b"\n")

    def _decoded_in(
        self, block: bytes, decoder: msgspec.json.Decoder[Decoded]
    ) -> Iterator[Sequence[Decoded]]:
        try:
            found = decoder.decode_lines(block)
            self._lines += len(found)  # empty lines are no records; to search for them takes long
        except UNREADABLE:
            found = list(self._readable_in(block, decoder))
            self._lines += block.count(b"\n")
        if FileHeader in set(map(type, found)):
            for each in found:
                if isinstance(each, FileHeader):
                    _check_version(each)
        yield found

    def _readable_in(
        self, block: bytes, decoder: msgspec.json.Decoder[Decoded]
    ) -> Iterator[Decoded]:
        """Yield the records of a block that has lines which are none."""
        lines = block.removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, self._lines + 1):
            try:
                yield decoder.decode(line)
            except UNREADABLE as error:
                self._problems.add(self._path, number, f"no record: {error}")


def _opened(path: Path) -> FileIO:
    # Without O_NONBLOCK, to open a FIFO waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return FileIO(descriptor, "rb")
    os.close(descriptor)
    raise _RefusedError("it is no regular file")


def _check_version(header: FileHeader) -> None:
    if header.version != VERSION:
        raise _RefusedError(
            f"its records have version {header.version}, and this smtpproxy reads version {VERSION}"
        )


def _check_length(record: Record | FileHeader, size: int) -> None:
    if size > SHORT_LINE_BYTES and not isinstance(record, Exchanged):
        raise ValueError(f"the record is longer than {SHORT_LINE_BYTES >> 20} MiB")


def _is_whole(block: bytes) -> bool:
    """Return whether all lines begin and end as this service writes them, and none is a header."""
    between = block.count(b'}\n{"what":"')
    return (
        block.startswith(b'{"what":"')
        and block.endswith(b"}\n")
        and between == block.count(b"\n") - 1
        and b'{"what":"trace_file"' not in block
    )


def _lines_with(wanted: bytes, block: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each line that has these bytes."""
    at = block.find(wanted)
    while 0 <= at < len(block):
        begin = block.rfind(b"\n", 0, at) + 1
        end = block.find(b"\n", at)
        if end < 0:
            end = len(block)
        yield begin, end
        at = block.find(wanted, end + 1)


def add_bounded(session: RecordedSession, record: Record, size: int) -> None:
    """Put a record of a session where it belongs, or count it as left out if there are too many.

    Args:
        session: The session.
        record: The record.
        size: How many bytes its line has.
    """
    count = len(session.exchanges) + len(session.noted) + len(session.gave_up)
    is_full = session.read_bytes + size > SESSION_BYTES or count >= SESSION_RECORDS
    if is_full and not isinstance(record, Closed):
        session.left_out += 1
    else:
        session.read_bytes += size
        add(session, record)


def add(session: RecordedSession, record: Record) -> None:
    """Put a record of a session where it belongs."""
    match record:
        case Opened():
            session.opened = record
        case Connected():
            session.connected = record
        case ServerGivenUp():
            session.gave_up.append(record)
        case Noted():
            session.noted.append(record)
        case Exchanged():
            session.exchanges.append(record)
        case Closed():
            session.closed = record
        case Gap():
            session.gap, session.before_gap = record, len(session.exchanges)


def for_people(session: RecordedSession) -> RecordedSession:
    """Return a session with all of its records as people may see them."""
    shown = RecordedSession(printable(session.id), left_out=session.left_out)
    for record in session.records:
        add(shown, printable_record(record))
    return shown


def printable_record(record: AnyRecord) -> AnyRecord:
    """Return a record with each of its texts printable, whatever is in the file."""
    changed = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if not value or isinstance(value, int | float):
            continue
        shown = expanded(value, SHOWN_CONTENT) if name in CONTENT else value
        shown = _printable(shown, of_lines=name in OF_LINES)
        if shown is not value:
            changed[name] = shown
    return replace(record, **changed) if changed else record


def _printable(value: object, *, of_lines: bool) -> object:
    if isinstance(value, str):
        if value.isprintable():
            return value
        lines = value.split("\r\n") if of_lines else [value]
        return "\r\n".join(map(printable, lines))
    if isinstance(value, Struct):
        return printable_record(value)
    if isinstance(value, list | tuple):
        return [_printable(each, of_lines=of_lines) for each in value]
    return value
