"""The files of a trace: whole lines appended by a thread, rotated by size, the oldest removed.

Each worker writes its own files: a new one at its start and whenever one is full.  They are named
`trace-TIME-WORKER-PROCESS-COUNT.jsonl`, so no two writers share one, and names are in order of
time.  Lines that cannot be written because the disk is full or too slow are dropped and counted;
mail is not affected.
"""

import contextlib
import errno
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from smtpproxy.trace.record_writer import Lines
from smtpproxy.trace.records import HEADER

WAITING_OCTETS = 16 * 1024 * 1024
"""How much may wait for a slow disk; more is dropped."""
STOP_LIMIT_S = 5.0
"""How long `close` waits for the lines that are still to be written."""
SUFFIX = ".jsonl"
DIRECTORY_MODE = 0o750


class RotatingFiles:
    """Takes lines for one worker's files, and never blocks or raises.

    Args:
        directory: Where the files are; it is made when the first line is written.
        worker: The worker's number, part of the files' names.
        max_octets: A new file is begun at this size.
        max_files: How many files of this worker's number are kept.
    """

    lost: int
    """How many lines were dropped."""
    why: str
    """The last reason, as the system describes it."""

    def __init__(self, directory: Path, worker: int, max_octets: int, max_files: int) -> None:
        self._directory = directory
        self._worker = worker
        self._max_octets = max_octets
        self._max_files = max_files
        self._queue: SimpleQueue[tuple[list[Lines], int, int] | None] = SimpleQueue()
        self._put = self._written = 0  # octets, by the loop and by the thread
        self._descriptor = -1
        self._size = 0
        self._torn = False
        self._serial = 0
        self._time = datetime.min.replace(tzinfo=UTC)  # of the last file
        self.lost = 0
        self.why = ""
        self._thread = Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def write(self, parts: list[Lines], lines: int, size: int) -> None:
        """Append whole lines soon.

        Args:
            parts: The lines.
            lines: The number of lines, which is counted if they are lost.
            size: The approximate number of octets.
        """
        if self._put - self._written > WAITING_OCTETS:
            self.lost += lines
            self.why = "the disk is too slow"
            return
        self._put += size
        self._queue.put((parts, lines, size))

    def close(self) -> None:
        """Write the lines that wait, and end the thread."""
        self._queue.put(None)
        self._thread.join(STOP_LIMIT_S)

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            parts, lines, size = item
            try:
                self._append(
                    b"".join(each if isinstance(each, bytes) else each() for each in parts)
                )
            except OSError as error:
                self.lost += lines
                self.why = error.strerror or "cannot be written"
            except Exception as error:  # noqa: BLE001  the outermost frame: the thread must go on
                self.lost += lines
                self.why = f"internal error: {error!r}"
            self._written += size
        self._close_file()

    def _append(self, octets: bytes) -> None:
        if self._descriptor >= 0 and not os.fstat(self._descriptor).st_nlink:
            self._close_file()  # the file has been removed
        if self._descriptor < 0 or self._size + len(octets) > self._max_octets:
            self._close_file()
            self._open_next()
        if self._torn:  # the rest of a line cut off by a full disk must not swallow this one
            octets = b"\n" + octets
        while octets:
            written = os.write(self._descriptor, octets)
            self._size += written
            octets = octets[written:]
            self._torn = bool(octets)
        self._torn = False

    def _open_next(self) -> None:
        _make_directory(self._directory)
        self._serial += 1
        self._time = max(self._time, datetime.now(UTC))  # the clock may have been set back
        time = f"{self._time:%Y%m%dT%H%M%S.%f}"
        name = f"trace-{time}-w{self._worker}-{os.getpid()}-{self._serial:06}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        # Traces may contain mail: other accounts of the machine must not read them.
        path = self._directory / name
        descriptor = os.open(path, flags, 0o640)
        with contextlib.suppress(OSError):  # writing continues
            self._remove_oldest(name)
        try:
            if os.write(descriptor, HEADER) < len(HEADER):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)  # a file without its header cannot be read
            raise
        self._descriptor, self._size, self._torn = descriptor, len(HEADER), False

    def _remove_oldest(self, current: str) -> None:
        """Remove the oldest files of this worker's number; those of a later date come first.

        A file dated later than `current` was written before it, while the clock was wrong.  If it
        counted as the newest, the current file would be removed, and its records lost.
        """
        is_ours = re.compile(rf"trace-\d{{8}}T\d{{6}}\.\d{{6}}-w{self._worker}-\d+-\d+\.jsonl")
        with os.scandir(self._directory) as entries:
            found = [
                each.name
                for each in entries
                if is_ours.fullmatch(each.name) and not each.is_dir(follow_symlinks=False)
            ]
        found.sort(key=lambda name: (name <= current, name))
        for name in found[: -self._max_files]:
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _make_directory(directory: Path) -> None:
    """Make a directory, and those above it, for owner and group only, whatever the umask is."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):  # another worker was first
        directory.mkdir(DIRECTORY_MODE)
        directory.chmod(DIRECTORY_MODE)
