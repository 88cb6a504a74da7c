"""The log: one line per event on standard error, as JSON or as coloured lines for a terminal.

Each line has `timestamp` (ISO 8601, UTC), `level` and `event`, then its fields, and last the
`instance` that logs it. Text of peers is escaped in both formats, so that it can neither forge a
line nor control a terminal. A line has at most LINE_BYTES; longer values are cut and marked as cut.

Hot path: measure before changing (tests/log/test_log.py holds a line to its bound).
"""

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from time import monotonic
from typing import Any, BinaryIO, cast

import msgspec
import structlog
from structlog import dev
from structlog.typing import FilteringBoundLogger

from smtpproxy.log import events
from smtpproxy.log.line_writer import DELAY_S, Line, LineWriter
from smtpproxy.text.escaping import DELETE, cut, printable, shortened

LINE_BYTES = 16 * 1024
"""The longest line."""
VALUE_BYTES = 2048
"""The most that is shown of a text of a peer, as it stands in JSON."""
ADDRESS_BYTES = 320
"""The most that is shown of an address: 64 octets, @ and 255 (RFC 5321 section 4.5.3.1)."""
UNRAISABLE_EVERY_S = 1.0
"""The least time between two log lines about exceptions that cannot be caught."""
_SMALL_VALUE_BYTES = VALUE_BYTES // 8  # at most five bytes of JSON for one: \\x7f
_LINE_ROOM = LINE_BYTES - 1024
_LEAST_BYTES = 16
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_MAIL = 2
"""The facility of mail in syslog."""
_EVENT_WIDTH = 18
_AS_THEY_ARE = frozenset({int, float, bool, str, type(None), datetime})

Render = Callable[[Line], bytes]


def configure(
    level: str,
    format: str,  # noqa: A002  # the setting's name
    stream: BinaryIO | None = None,
    *,
    instance: str = "",
) -> None:
    """Configure the log of this process.

    In the journal of systemd each line has its priority, so that `journalctl -p warning` finds it.
    Messages of libraries, by the standard library's logging, become `library_message` events.

    Args:
        level: The lowest level that is logged: debug, info, warning or error.
        format: json; console; auto: console if `stream` is a terminal, else json; or syslog: json
            with a syslog priority before each line.
        stream: Where to write; standard error if None.
        instance: The name of the instance, for each line; empty for a command that has none.
    """
    if stream is None and sys.stderr is not None:  # None: started with descriptor 2 closed
        stream = sys.stderr.buffer
    terminal = stream is not None and stream.isatty()
    console = format == "console" or (format == "auto" and terminal)
    colors = terminal and "NO_COLOR" not in os.environ
    render = _console(instance, colors=colors) if console else _json(instance)
    if format == "syslog":
        render = _with_priority(render, _MAIL)
    elif stream is not None and _is_journal(stream):
        render = _with_priority(render, 0)
    writer = _writer()
    if writer is not None and writer.stream is stream:
        writer.change_render(render)  # loggers that were obtained before go on to write to it
    else:
        writer = LineWriter(stream, render)
    structlog.configure(
        processors=[_stamp],
        wrapper_class=_logger_class(_LEVELS[level]),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    _adopt_library_messages()


def _is_journal(stream: BinaryIO) -> bool:
    """Return whether a stream leads to the journal of systemd (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # not a file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _with_priority(render: Render, facility: int) -> Render:
    """Return a renderer that puts the priority before each line (sd-daemon(3), logger(1)).

    Args:
        render: Renders the line.
        facility: The facility of syslog; 0 for the journal, which knows it from the unit.
    """

    def prefixed(line: Line) -> bytes:
        prefix = b"<%d>" % (facility * 8 + _SEVERITIES[str(line["level"])])
        return prefix + render(line)[:-1].replace(b"\n", b"\n" + prefix) + b"\n"

    return prefixed


def get() -> FilteringBoundLogger:
    """Return the logger as `configure`, which must come first, has configured it."""
    return cast("FilteringBoundLogger", structlog.get_logger().bind())


def gather(later: Callable[[float, Callable[[], None]], object] | None) -> None:
    """Render lines together and write them in a thread, for a process that runs an event loop.

    Args:
        later: Calls a function after some seconds, as `loop.call_later` does. None writes the
            gathered lines, and all further lines one by one.
    """
    writer = _writer()
    assert writer is not None, "configure comes first"
    writer.gather(None if later is None else partial(later, DELAY_S))


def adopt_uncaught() -> None:
    """Log uncaught exceptions of this process and its threads instead of printing tracebacks."""

    def uncaught(error: BaseException | None) -> None:
        events.UNCAUGHT_EXCEPTION.log(get(), exc_info=error)

    sys.excepthook = lambda _kind, error, _traceback: uncaught(error)
    sys.unraisablehook = UnraisableLog()
    threading.excepthook = lambda found: uncaught(found.exc_value)


def lost() -> int:
    """Return the number of lines that could not be written."""
    writer = _writer()
    return 0 if writer is None else writer.lost


def _writer() -> LineWriter | None:
    made = structlog.get_config()["logger_factory"]() if structlog.is_configured() else None
    return made if isinstance(made, LineWriter) else None


def _logger_class(lowest: int) -> type[FilteringBoundLogger]:
    """Return structlog's class of loggers for a level, whose methods need no processors.

    A line of a session takes a third of the time so (bench S1).
    """
    methods = {name: _method(name) for name, level in _LEVELS.items() if level >= lowest}
    return type("Logger", (structlog.make_filtering_bound_logger(lowest),), methods)


def _method(level: str) -> Callable[..., None]:
    def write(self: Any, event: str, **fields: object) -> None:
        self._logger.write(_line(level, event, {**self._context, **fields}))

    return write


def _line(level: str, event: str, fields: dict[str, object]) -> Line:
    """Put time, level and event first; the rest of the work is done when the line is rendered."""
    if "exc_info" in fields and (text := _traceback(fields.pop("exc_info"))):
        fields["exception"] = text
    return {"timestamp": datetime.now(UTC), "level": level, "event": event, **fields}


def _stamp(_logger: object, level: str, fields: Line) -> tuple[tuple[Line], dict[str, object]]:
    """Return the line of a message that was logged with the number of its level."""
    event = str(fields.pop("event"))
    return (_line(level, event, dict(fields)),), {}


def text_of_value(value: bytes) -> str:
    """Return what a line shows of a value of a peer."""
    return printable(value) if len(value) <= _SMALL_VALUE_BYTES else _shortened_for_json(value)


def _complete(line: Line) -> Line:
    """Convert all values to JSON types, and add the fields that `details` returns."""
    details = cast("Callable[[], Line] | None", line.pop("details", None))
    for key, value in line.items():
        if type(value) not in _AS_THEY_ARE:
            line[key] = _plain(value)
    if details is not None:
        line.update(details())
    return line


def _plain(value: object) -> object:
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, bytes):
        return text_of_value(value)
    if type(value) is list and set(map(type, value)) <= _AS_THEY_ARE:  # the recipients
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(value)


def _shortened_for_json(value: bytes) -> str:
    text = shortened(value, VALUE_BYTES)
    size = len(text.encode())
    in_json = size + text.count("\\") + text.count('"')
    return text if in_json <= VALUE_BYTES else cut(text, VALUE_BYTES * size // in_json)


def _traceback(exc_info: object) -> str:
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if not isinstance(error, BaseException):
        return ""
    return "".join(traceback.format_exception(error)).rstrip("\n")


_encode = msgspec.json.Encoder().encode


def _json(instance: str) -> Render:
    """Return the renderer of lines of JSON."""
    # Encoded once: the instance is the same in each line, and never cut.
    end = f',"instance":"{instance}"}}\n'.encode() if instance else b"}\n"

    def render(line: Line) -> bytes:
        line = _complete(line)
        octets = _json_of(line)
        if len(octets) >= LINE_BYTES - len(end):
            octets = _json_of(_cut(line))
        return octets[:-1] + end

    return render


def _json_of(line: Line) -> bytes:
    try:
        octets = _encode(line)
    except UnicodeEncodeError:  # lone surrogates, as in the name of a file that is not UTF-8
        return json.dumps(line, default=str).encode()
    # JSON itself escapes controls below 0x20 only; 0x7f to 0x9f drive terminals as well.
    if not octets.isascii() or DELETE in octets:
        text = octets.decode()
        if not text.isprintable():
            octets = "".join(map(_json_character, text)).encode()
    return octets


@lru_cache(1024)
def _json_character(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _cut(line: Line) -> Line:
    """Return a line whose long values are cut, so that it has at most LINE_BYTES."""
    room = _LINE_ROOM
    cut: Line = {}
    for key, value in line.items():
        shown = value
        if isinstance(value, (str, list, dict)) and len(_json_of({key: value})) > room // 4:
            shown = _cut_value(value, max(room // 8, _LEAST_BYTES))
        room -= len(_json_of({key: shown}))
        cut[key] = shown
    return cut


def _cut_value(value: str | list[object] | dict[str, object], most: int) -> object:
    if isinstance(value, str):
        return shortened(value, most)
    if isinstance(value, dict):
        return shortened(str(value), most)
    items: list[object] = []
    for item in value:
        shown = shortened(str(item), min(ADDRESS_BYTES, most))
        most -= 2 * len(shown.encode()) + 3
        if most < 0:
            return [*items, f"{len(value) - len(items)} more"]
        items.append(shown)
    return items


def _console(instance: str, *, colors: bool) -> Render:
    """Return the renderer of coloured lines."""
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

    def render(line: Line) -> bytes:
        line = _complete(line)
        octets = shown(dict(line))
        return octets if len(octets) < LINE_BYTES else shown(_cut(line))

    def shown(line: Line) -> bytes:
        time = cast("datetime", line["timestamp"])
        line["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03}Z"
        if "exception" in line:
            # Indented, so that no line of a traceback looks like a log line.
            lines = str(line["exception"]).split("\n")
            line["exception"] = "\n".join("    " + printable(each) for each in lines)
        if instance:
            line["instance"] = instance
        return renderer(None, str(line["level"]), line).encode() + b"\n"

    return render


def _shown(value: object) -> str:
    """Return a value as text, in quotes if its end would not be visible otherwise."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if not isinstance(value, str):
        return printable(json.dumps(value))
    text = printable(value)
    if text and not set(text) & set(" =\"'"):
        return text
    return '"' + text.replace('"', '\\"') + '"'


class _LibraryMessages(logging.Handler):
    """Logs records of the standard library's logging, such as those of asyncio."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.ERROR)
        get().log(
            level,
            events.LIBRARY_MESSAGE.name,
            library=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


class UnraisableLog:
    """A `sys.unraisablehook` that logs at most one line a second.

    A client can cause such exceptions, by a TLS server name that is not ASCII; Python would print
    each traceback between the log lines.
    """

    def __init__(self) -> None:
        self._when = -UNRAISABLE_EVERY_S
        self._since = 0

    def __call__(self, unraisable: "sys.UnraisableHookArgs", /) -> None:
        """Log an exception with the number of exceptions since the last line, or only count it."""
        self._since += 1
        now = monotonic()
        if now - self._when < UNRAISABLE_EVERY_S:
            return
        self._when = now
        error = unraisable.exc_value
        events.LIBRARY_MESSAGE.log(
            get(),
            library="python",
            message=f"exception ignored in {unraisable.object!r}: {error!r}",
            exceptions=self._since,
            exc_info=error if unraisable.exc_traceback else None,
        )
        self._since = 0


def _adopt_library_messages() -> None:
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _LibraryMessages)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryMessages())
