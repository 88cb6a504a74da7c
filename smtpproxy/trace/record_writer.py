"""Gathers the lines of trace records, and hands them to the thread that writes the files.

hot path: measure before changing (python -m tests.bench.trace).
"""

from collections.abc import Callable
from time import monotonic, time
from typing import Protocol

from smtpproxy.log import events, log

Lines = bytes | Callable[[], bytes]
"""Whole lines, or a function that makes them if that takes long."""
Later = Callable[[Callable[[], None]], object]
"""Calls a function soon, on the event loop."""

GATHERED_OCTETS = 256 * 1024
"""The octets after which lines are passed to the thread, if `later` does not call before.

Fewer, larger writes are cheaper: each time, both threads compete for the interpreter.
"""


class Sink(Protocol):
    """Takes lines, and never blocks or raises."""

    @property
    def lost(self) -> int:
        """Return how many lines were dropped."""

    @property
    def why(self) -> str:
        """Return the last reason."""

    def write(self, parts: list[Lines], lines: int, size: int, /) -> None:
        """Take whole lines.

        Args:
            parts: The lines.
            lines: Their number.
            size: The approximate number of octets.
        """

    def close(self) -> None:
        """Finish."""


class Writer:
    """Buffers the records of all sessions of a worker.

    Args:
        files: Takes the lines: files appends them in another thread.
        later: Called with `flush` when there are lines to flush.
    """

    offset: float
    """Seconds to add to a time of the monotonic clock to get that of the wall clock."""

    def __init__(self, files: Sink, later: Later) -> None:
        self.offset = time() - monotonic()
        self._files = files
        self._later = later
        self._lines: list[Lines] = []
        self._octets = self._records = 0  # in these
        self._lost_logged = 0
        self._log = log.get()

    @property
    def lost(self) -> int:
        """Return how many records were not written."""
        return self._files.lost

    def add(self, lines: bytes, records: int = 1) -> None:
        """Write lines soon.

        Args:
            lines: The lines.
            records: The number of records in them.
        """
        self._add(lines, records, len(lines))

    def add_made(self, make: Callable[[], bytes], records: int, octets: int) -> None:
        """Let the thread make and write lines that take long to make.

        Args:
            make: Returns the lines.
            records: How many records they have.
            octets: How much memory `make` holds until then.
        """
        self._add(make, records, octets)

    def _add(self, lines: Lines, records: int, octets: int) -> None:
        if not self._lines:
            self._later(self.flush)
        self._lines.append(lines)
        self._octets += octets
        self._records += records
        if self._octets >= GATHERED_OCTETS:
            self._hand_over()

    def flush(self) -> None:
        """Hand over what was gathered, and log when records are being lost."""
        if self._lines:
            self._hand_over()
        if self._files.lost and not self._lost_logged:
            self._log_lost()

    def close(self) -> None:
        """Write what is left."""
        if self._lines:
            self._hand_over()
        self._files.close()
        if self._files.lost > self._lost_logged:
            self._log_lost()

    def _hand_over(self) -> None:
        self._files.write(self._lines, self._records, self._octets)
        self._lines = []
        self._octets = self._records = 0

    def _log_lost(self) -> None:
        self._lost_logged = self._files.lost
        events.TRACE_RECORDS_LOST.log(self._log, records=self._lost_logged, reason=self._files.why)
