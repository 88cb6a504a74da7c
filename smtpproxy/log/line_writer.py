"""Writes log lines without ever blocking the event loop.

While an event loop runs, lines are gathered, rendered in short turns of the loop, and written by a
thread, since a write to a pipe, a terminal or a disk may block for ever. (A non-blocking descriptor
would be non-blocking for all processes that share it.) Lines that the thread cannot keep up with
are dropped and counted; the count is logged as soon as a line can be written.
"""

import os
import select
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from queue import SimpleQueue
from stat import S_ISREG
from threading import Thread
from time import monotonic
from typing import BinaryIO

from smtpproxy.log.events import LOG_LINES_LOST

Line = MutableMapping[str, object]
"""The fields of a line; the first are `timestamp`, `level` and `event`."""
Later = Callable[[Callable[[], None]], object]
"""Calls a function soon, on the event loop."""

DELAY_S = 0.02
"""The longest time that a line waits to be written together with others."""
TURN_S = 0.005
"""The longest time that lines are rendered in one turn of the loop."""
WAITING_LINES = 256
"""The most lines that wait to be rendered; beyond it the oldest is rendered at once."""
WAITING_BYTES = 4 * 1024 * 1024
"""The most bytes that wait for the thread; lines beyond it are dropped and counted."""
STOP_LIMIT_S = 1.0
"""The longest time to wait at the end for a thread that cannot write."""


class LineWriter:
    """Writes whole lines. No method blocks or raises.

    It writes to the descriptor of the stream, if there is one: Python's own buffer would keep lines
    that could not be written and fail again at exit.

    Args:
        stream: Where to write; None discards all lines.
        render: Renders the fields of a line; called in the loop's thread and in the writer's.
    """

    def __init__(self, stream: BinaryIO | None, render: Callable[[Line], bytes]) -> None:
        self.stream = stream
        self.render = render
        self._waiting: deque[Line] = deque()
        self._rendered: list[bytes] = []
        self._later: Later | None = None
        self._output = _Output(stream, lambda line: self.render(line))
        self._thread: _WriterThread | None = None

    def change_render(self, render: Callable[[Line], bytes]) -> None:
        """Render lines in another format from now on."""
        self.render = render

    @property
    def lost(self) -> int:
        """The number of lines that could not be written."""
        return self._output.lost + (self._thread.dropped if self._thread else 0)

    def write(self, line: Line) -> None:
        """Write a line: at once, or soon if lines are gathered."""
        if self._later is None:
            self._rendered.append(self.render(line))
            self._put()
            return
        if not self._waiting:
            self._later(self.flush)
        self._waiting.append(line)
        if len(self._waiting) > WAITING_LINES:
            self._rendered.append(self.render(self._waiting.popleft()))
            if len(self._rendered) > WAITING_LINES:
                self._put()

    # What structlog calls, by level.
    debug = info = warning = error = critical = write

    def gather(self, later: Later | None) -> None:
        """Gather lines from now on; with None, write the gathered lines and stop gathering."""
        self._later = None
        self._rendered += map(self.render, self._waiting)
        self._waiting.clear()
        self._put()
        if self._thread is not None:
            thread, self._thread = self._thread, None
            self._output.stuck = not thread.stop()
            self._output.lost += thread.dropped
        if later is not None:
            self._later = later
            self._thread = _WriterThread(self._output) if self._output.may_block else None

    def flush(self) -> None:
        """Write the gathered lines: in this turn of the loop for TURN_S at most."""
        waiting, rendered = self._waiting, self._rendered
        until = monotonic() + TURN_S
        while waiting:
            rendered.append(self.render(waiting.popleft()))
            if monotonic() > until:
                break
        self._put()
        if waiting and self._later is not None:
            self._later(self.flush)

    def _put(self) -> None:
        if not self._rendered:
            return
        lines, self._rendered = self._rendered, []
        if self._thread is None:
            self._output.write(lines, may_wait=False)
        else:
            self._thread.put(lines)


class _WriterThread:
    """Writes lines in order, however long that takes."""

    dropped: int
    """The number of lines that it did not accept, because too much was waiting."""

    def __init__(self, output: "_Output") -> None:
        self._output = output
        self._queue: SimpleQueue[list[bytes] | None] = SimpleQueue()
        self._bytes_put = self._bytes_done = 0  # by the loop, and by the thread
        self.dropped = 0
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, lines: list[bytes]) -> None:
        """Queue lines to be written, or count them as dropped."""
        if self._bytes_put - self._bytes_done > WAITING_BYTES:
            self.dropped += len(lines)
            return
        self._bytes_put += sum(map(len, lines))
        self._queue.put(lines)

    def stop(self) -> bool:
        """Wait until all is written, STOP_LIMIT_S at most; return whether it is."""
        self._queue.put(None)
        self._thread.join(STOP_LIMIT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            self._output.write(lines, may_wait=True, dropped=self.dropped)
            self._bytes_done += sum(map(len, lines))


class _Output:
    """Writes to the stream; used by one thread at a time."""

    lost: int
    """The number of lines that could not be written."""
    stuck: bool
    """Whether a thread still waits to write; then all further lines are lost."""
    may_block: bool
    """Whether a write can block."""

    def __init__(self, stream: BinaryIO | None, render: Callable[[Line], bytes]) -> None:
        self._stream = stream
        self._render = render
        self.lost = self._lost_logged = 0
        self.stuck = False
        self._torn = False
        self._descriptor = _descriptor(stream)
        self.may_block = self._descriptor is not None
        self._is_file = self._descriptor is not None and S_ISREG(os.fstat(self._descriptor).st_mode)
        self._poll = select.poll()
        if self._descriptor is not None:
            self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, lines: list[bytes], *, may_wait: bool, dropped: int = 0) -> None:
        """Write lines; `dropped` is the number of lines that were dropped before."""
        for piece in [lines] if self._is_file else _pieces(lines):
            self._write_piece(piece, may_wait, dropped)

    def _write_piece(self, lines: list[bytes], may_wait: bool, dropped: int) -> None:
        octets = b"".join(lines)
        lost = self.lost + dropped
        if lost > self._lost_logged:
            octets = self._notice(lost - self._lost_logged) + octets
        if self._torn:  # a line that a full disk cut off must not run into this one
            octets = b"\n" + octets
        written = 0 if self.stuck else self._write(octets, may_wait=may_wait)
        if written == 0:
            self.lost += len(lines)
            return
        self._lost_logged = lost
        self._torn = written < len(octets)

    def _notice(self, lines: int) -> bytes:
        now = datetime.now(UTC)
        return self._render(
            {
                "timestamp": now,
                "level": LOG_LINES_LOST.level,
                "event": LOG_LINES_LOST.name,
                "lines": lines,
            }
        )

    def _write(self, octets: bytes, *, may_wait: bool) -> int:
        """Return the number of bytes written."""
        if self._stream is None:
            return len(octets)
        written = 0
        try:
            if self._descriptor is None:
                self._stream.write(octets)
                return len(octets)
            while written < len(octets) and (may_wait or self._is_file or self._poll.poll(0)):
                # Without a thread, no more at once than a pipe takes without blocking.
                end = len(octets) if may_wait or self._is_file else written + select.PIPE_BUF
                try:
                    written += os.write(self._descriptor, octets[written:end])
                except BlockingIOError:  # another process has made it non-blocking
                    if not may_wait:
                        break
                    self._poll.poll()
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass
        return written


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Yield pieces that a pipe takes whole: PIPE_BUF bytes at most, or one longer line."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > select.PIPE_BUF:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece


def _descriptor(stream: BinaryIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except OSError:  # not a file: a test's BytesIO
        return None
