"""The log: one line per thing worth knowing, on standard error.

JSON, or aligned coloured lines for a terminal. Each line has `timestamp` (ISO 8601, UTC), `level`
and `event`, then its fields. What comes from peers is escaped in both forms, so that nobody can
forge a line or drive a terminal. A log that cannot be written never stops the mail: lines are
dropped, and counted in the next one that can be written.

hot path: measure before changing (tests/log/test_log.py holds a line to its bound).
"""

import json
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from stat import S_ISREG
from typing import BinaryIO, cast

import msgspec
import structlog
from structlog import dev
from structlog.typing import FilteringBoundLogger

from smtpproxy.text.escaping import printable

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_EVENT_WIDTH = 18
_AS_THEY_ARE = frozenset({int, float, bool, str, type(None)})

Line = MutableMapping[str, object]
Render = Callable[[object, str, Line], bytes]


def configure(level: str, format: str, stream: BinaryIO | None = None) -> None:  # noqa: A002  # the setting's name
    """Send the log to `stream` (default: standard error), from `level` (debug to error) upwards.

    `format` is json, console, or auto: console if `stream` is a terminal. What libraries say
    through the standard library's logging comes out as event `library_message`.
    """
    if stream is None and sys.stderr is not None:  # None: started with descriptor 2 closed
        stream = sys.stderr.buffer
    terminal = stream is not None and stream.isatty()
    console = format == "console" or (format == "auto" and terminal)
    render = _console(colors=terminal and "NO_COLOR" not in os.environ) if console else _json
    writer = _Writer(stream, render)
    structlog.configure(
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    _adopt_library_messages()


def get() -> FilteringBoundLogger:
    """Return the logger as it is configured now; so `configure` comes first."""
    return cast("FilteringBoundLogger", structlog.get_logger().bind())


def gather(later: Callable[[Callable[[], None]], object] | None) -> None:
    """Write lines together: `later` is told when there are some, and calls what it is given soon.

    With None, lines are written one by one again, and those gathered at once.
    """
    cast("_Writer", structlog.get_config()["logger_factory"]()).gather(later)


def _complete(level: str, fields: Line) -> Line:
    """Put time, level and event first, and turn the values into what JSON has: str for bytes."""
    if "exc_info" in fields and (text := _traceback(fields.pop("exc_info"))):
        fields["exception"] = text
    line: Line = {"timestamp": datetime.now(UTC), "level": level, "event": "", **fields}
    for key, value in fields.items():
        if type(value) not in _AS_THEY_ARE:
            line[key] = _plain(value)
    return line


def _plain(value: object) -> object:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, bytes):
        return printable(value)
    if type(value) is list and set(map(type, value)) <= _AS_THEY_ARE:  # the recipients
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _traceback(exc_info: object) -> str:
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if not isinstance(error, BaseException):
        return ""
    return "".join(traceback.format_exception(error)).rstrip("\n")


_encode = msgspec.json.Encoder().encode


def _json(_logger: object, level: str, fields: Line) -> bytes:
    line = _complete(level, fields)
    try:
        octets = _encode(line)
    except UnicodeEncodeError:  # lone surrogates, as in the name of a file that is not UTF-8
        return json.dumps(line, default=str).encode() + b"\n"
    # JSON itself escapes controls below 0x20 only; 0x7f to 0x9f drive terminals as well.
    if not octets.isascii() or b"\x7f" in octets:
        text = octets.decode()
        octets = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text).encode()
    return octets + b"\n"


def _console(*, colors: bool) -> Render:
    """Return what renders a line for people."""
    reset, dim = (dev.RESET_ALL, dev.DIM) if colors else ("", "")
    bright, key_style = (dev.BRIGHT, dev.CYAN) if colors else ("", "")
    levels = {
        "debug": dim,
        "info": dev.GREEN if colors else "",
        "warning": dev.YELLOW if colors else "",
        "error": dev.RED + bright if colors else "",
    }
    columns = [
        dev.Column("timestamp", dev.KeyValueColumnFormatter(None, dim, reset, str)),
        dev.Column("level", dev.LogLevelColumnFormatter(levels, reset, width=7)),
        dev.Column("event", dev.KeyValueColumnFormatter(None, bright, reset, _shown, _EVENT_WIDTH)),
        dev.Column("", dev.KeyValueColumnFormatter(key_style, "", reset, _shown)),
    ]
    renderer = dev.ConsoleRenderer(columns=columns, sort_keys=False)

    def render(logger: object, level: str, fields: Line) -> bytes:
        line = _complete(level, fields)
        time = cast("datetime", line["timestamp"])
        line["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03}Z"
        if "exception" in line:
            # Indented, so that no line of it can pass for a log line.
            lines = str(line["exception"]).split("\n")
            line["exception"] = "\n".join("    " + printable(each) for each in lines)
        return renderer(logger, level, line).encode() + b"\n"

    return render


def _shown(value: object) -> str:
    """Return a field's value for people, in quotes where its end would not be seen otherwise."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if not isinstance(value, str):
        return printable(json.dumps(value))
    text = printable(value)
    if text and not set(text) & set(" =\"'"):
        return text
    return '"' + text.replace('"', '\\"') + '"'


class _Writer:
    """Writes whole lines, without waiting and without ever raising.

    Straight to the descriptor where there is one: a buffer of Python's would keep what could not
    be written and fail again at exit.
    """

    def __init__(self, stream: BinaryIO | None, render: Render) -> None:
        self._stream = stream
        self._render = render
        self._lost = 0
        self._torn = False
        self._gathered: list[bytes] = []
        self._later: Callable[[Callable[[], None]], object] | None = None
        self._descriptor = _descriptor(stream)
        self._is_file = self._descriptor is not None and S_ISREG(os.fstat(self._descriptor).st_mode)
        self._poll = select.poll()
        if self._descriptor is not None:
            self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        if self._later is None:
            self._put([line])
            return
        if not self._gathered:
            self._later(self.flush)
        self._gathered.append(line)

    # What structlog calls, by level.
    debug = info = warning = error = critical = write

    def gather(self, later: Callable[[Callable[[], None]], object] | None) -> None:
        self.flush()
        self._later = later

    def flush(self) -> None:
        """Write what was gathered, in pieces that a pipe takes without waiting (PIPE_BUF)."""
        lines, self._gathered = self._gathered, []
        if self._is_file:
            self._put(lines)
            return
        piece: list[bytes] = []
        size = 0
        for line in lines:
            if size + len(line) > select.PIPE_BUF:
                self._put(piece)
                piece, size = [], 0
            piece.append(line)
            size += len(line)
        self._put(piece)

    def _put(self, lines: list[bytes]) -> None:
        if not lines:
            return
        octets = b"".join(lines)
        if self._lost:
            fields: Line = {"event": "log_lines_lost", "lines": self._lost}
            octets = self._render(self, "warning", fields) + octets
        if self._torn:  # the rest of a line cut off by a full disk must not swallow this one
            octets = b"\n" + octets
        try:
            written = self._write(octets)
        except (OSError, ValueError):  # ValueError: the stream is closed
            written = 0
        if written == 0:
            self._lost += len(lines)
            return
        self._lost = 0
        self._torn = written < len(octets)

    def _write(self, octets: bytes) -> int:
        """Return how many octets were written."""
        if self._descriptor is not None:
            # A reader that has stopped must not stop the mail.
            ready = self._is_file or self._poll.poll(0)
            return os.write(self._descriptor, octets) if ready else 0
        if self._stream is None:
            return len(octets)
        self._stream.write(octets)
        self._stream.flush()
        return len(octets)


def _descriptor(stream: BinaryIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except OSError:  # not a file: a test's BytesIO
        return None


class _LibraryMessages(logging.Handler):
    """Turns records of the standard library's logging (asyncio's, above all) into log lines."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.ERROR)
        get().log(
            level,
            "library_message",
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def _adopt_library_messages() -> None:
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _LibraryMessages)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryMessages())
