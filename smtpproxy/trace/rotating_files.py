"""The files of a trace: whole lines appended by a thread, rotated by size, the oldest removed.

Each worker writes files of its own, a new one at its start and whenever one is full; they are
named `trace-TIME-WORKER-PROCESS-COUNT.jsonl`.  So no two writers share one, and names are in order
of time.  What cannot be written, as the disk is full or too slow, is dropped and counted; the mail
goes on.
"""

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

Lines = bytes | Callable[[], bytes]
"""Whole lines, or what makes them in the thread, where they take long to make."""
WAITING_OCTETS = 16 * 1024 * 1024
"""So much may wait for a slow disk; more is dropped."""
STOP_LIMIT_S = 5.0
"""How long the end waits for what is to be written."""
SUFFIX = ".jsonl"
DIRECTORY_MODE = 0o750


class RotatingFiles:
    """Takes lines for one worker's files, and never blocks or raises.

    lost: how many lines were dropped.  why: what the system said about it last.
    """

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
        self.lost = 0
        self.why = ""
        self._thread = Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def write(self, parts: list[Lines], lines: int, size: int) -> None:
        """Have so many whole lines appended soon, which take about so many octets."""
        if self._put - self._written > WAITING_OCTETS:
            self.lost += lines
            self.why = "the disk is too slow"
            return
        self._put += size
        self._queue.put((parts, lines, size))

    def close(self) -> None:
        """Write what waits, and end the thread."""
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
            self._close_file()  # somebody has removed it
        if self._descriptor < 0 or self._size + len(octets) > self._max_octets:
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
        self._close_file()
        _make_directory(self._directory)
        self._serial += 1
        time = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        name = f"trace-{time}-w{self._worker}-{os.getpid()}-{self._serial}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        # What people write to each other: not for every account of the machine.
        self._descriptor = os.open(self._directory / name, flags, 0o640)
        self._size = 0
        self._torn = False
        old = sorted(self._directory.glob(f"trace-*-w{self._worker}-*{SUFFIX}"))
        for path in old[: -self._max_files]:
            with contextlib.suppress(OSError):
                path.unlink()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _make_directory(directory: Path) -> None:
    """Make a directory, and those above it, for the owner and the group only, whatever the mask."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):  # another worker was first
        directory.mkdir(DIRECTORY_MODE)
        directory.chmod(DIRECTORY_MODE)
