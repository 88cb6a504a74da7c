"""Reading trace files: which sessions there are, and all of one.

Only the lines that are asked for are decoded; the others are passed over at the speed of memory, so
that a list of a gigabyte takes seconds.  A line that is torn or strange is passed over too.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from smtpproxy.text.escaping import printable
from smtpproxy.trace.records import (
    Closed,
    Connected,
    Exchanged,
    Gap,
    GaveUp,
    Noted,
    Opened,
    Record,
    decode,
)

CLOSED = b'{"what":"closed"'
OF_LINES = frozenset(("reply", "content", "came"))
"""The fields of records that have lines, with CRLF between them; every other one is one line."""
Progress = Callable[[int], object]
"""Is told how many octets more have been read."""
AnyRecord = TypeVar("AnyRecord", bound=Struct)


@dataclass(slots=True)
class RecordedSession:
    """One session as it was recorded; what is not there, is None.

    before_gap: how many of the exchanges come ahead of the gap, if there is one.
    """

    id: str
    opened: Opened | None = None
    connected: Connected | None = None
    gave_up: list[GaveUp] = field(default_factory=list)
    noted: list[Noted] = field(default_factory=list)
    exchanges: list[Exchanged] = field(default_factory=list)
    closed: Closed | None = None
    gap: Gap | None = None
    before_gap: int = 0

    @property
    def records(self) -> list[Record]:
        """All records of it, in order."""
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


def files_of(directory: Path) -> list[Path]:
    """Return the trace files of a directory, in order of time; a file stands for itself."""
    if directory.is_file():
        return [directory]
    return sorted(directory.glob("trace-*.jsonl"))


def octets_of_all(paths: list[Path]) -> int:
    """Return the size of all files."""
    return sum(path.stat().st_size for path in paths)


def closed_sessions(paths: list[Path], progress: Progress) -> Iterator[Closed]:
    """Yield the last record of each session that is over, in order of its end."""
    for path in paths:
        for record in _matching(path, CLOSED, progress):
            if isinstance(record, Closed):
                yield record


def session_of(paths: list[Path], name: str) -> RecordedSession | None:
    """Return a session by its id, or by the begin of it; None if there is none such."""
    session: RecordedSession | None = None
    for path in paths:
        for record in _matching(path, b'"session":"' + name.encode(), lambda _: None):
            if session is None:
                session = RecordedSession(record.session)
            if record.session == session.id:
                add(session, record)
    return session


def add(session: RecordedSession, record: Record) -> None:
    """Put a record where it belongs."""
    match record:
        case Opened():
            session.opened = record
        case Connected():
            session.connected = record
        case GaveUp():
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
    shown = RecordedSession(printable(session.id))
    for record in session.records:
        add(shown, printable_record(record))
    return shown


def printable_record(record: AnyRecord) -> AnyRecord:
    """Return a record with each of its texts printable: whoever wrote the file, or is in it."""
    values = {
        name: _printable(getattr(record, name), of_lines=name in OF_LINES)
        for name in record.__struct_fields__
    }
    return replace(record, **values)


def _printable(value: object, *, of_lines: bool) -> object:
    if isinstance(value, str):
        lines = value.split("\r\n") if of_lines else [value]
        return "\r\n".join(map(printable, lines))
    if isinstance(value, Struct):
        return printable_record(value)
    if isinstance(value, list | tuple):
        return [_printable(each, of_lines=of_lines) for each in value]
    return value


def _matching(path: Path, octets: bytes, progress: Progress) -> Iterator[Record]:
    """Yield the records whose line has these octets."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            told = 0
            at = text.find(octets)
            while at >= 0:
                begin = text.rfind(b"\n", 0, at) + 1
                end = text.find(b"\n", at)
                end = end if end >= 0 else len(text)
                with contextlib.suppress(msgspec.DecodeError):
                    yield decode(text[begin:end])
                progress(end - told)
                told = end
                at = text.find(octets, end)
            progress(len(text) - told)
