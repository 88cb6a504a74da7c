"""Settings: what smtpproxy can be told, by a TOML file and by flags, typed and checked.

The classes are the list of all settings: what is not here is an error, never ignored. `load`
reports every problem at once, each with its line; `from_flags` lays the flags over the file.
"""

import os
import re
import socket
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Annotated, Literal, cast

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from smtpproxy.address import Address, parse_listener, parse_server
from smtpproxy.core.capabilities import NEVER_PASSED
from smtpproxy.places import Path, find_places, line_of
from smtpproxy.problems import (
    BAD,
    ConfigError,
    Parsed,
    Problem,
    Reader,
    Written,
    dotted,
    instead,
    show,
    shown,
)

__all__ = [
    "Address",
    "Backend",
    "Capabilities",
    "ConfigError",
    "Limits",
    "Listener",
    "Log",
    "Problem",
    "Settings",
    "Timeouts",
    "exposed_listeners",
    "from_flags",
    "load",
]

Sync = Literal["safe", "strict", "off"]
BareNewlines = Literal["normalize", "reject", "pass"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]

_FLAG_BACKEND = "default"
_MOST = 1_000_000_000


def _host_name(text: str) -> str:
    """Read the name the proxy gives itself in its replies: a domain or an address literal."""
    if len(text) <= 255 and re.fullmatch(r"[A-Za-z0-9_.-]+|\[[A-Za-z0-9:.]+\]", text, re.ASCII):
        return text
    raise ValueError('is not a host name; write, for example, "mx.example.org"')


def _backend_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text, re.ASCII):
        return text
    raise ValueError("is not a possible name: letters, digits, hyphens, dots and underscores")


def _capability(text: str) -> str:
    """Read an esmtp-keyword (RFC 5321 section 4.1.1.1)."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", text, re.ASCII):
        return text.upper()
    raise ValueError(
        'is not a capability: one word of letters, digits and hyphens, such as "CHUNKING"'
    )


def _whole(least: int) -> Meta:
    return Meta(ge=least, le=_MOST, description=f"a whole number from {least} to {_MOST}")


Seconds = Annotated[
    float, Meta(gt=0, le=86400, description="a number of seconds above 0, at most 86400 (a day)")
]
CapabilityWords = Annotated[
    list[Annotated[str, Parsed(_capability, 'a capability in quotes, such as "CHUNKING"')]],
    Written('a list of capabilities, such as ["CHUNKING"]'),
]


ListenAddress = Annotated[Address, Parsed(parse_listener, 'an address, such as "127.0.0.1:25"')]
ServerAddress = Annotated[Address, Parsed(parse_server, 'an address, such as "10.0.0.5:25"')]


class Capabilities(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Capabilities of the backend to hide from clients, and unknown ones to let through.

    In upper case.
    """

    hide: CapabilityWords = []
    allow: CapabilityWords = []


class Listener(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where clients connect, and how they are treated there."""

    address: ListenAddress
    # Left out in the file when there is one backend; once loaded, always the name of a backend.
    backend: str = ""
    sync: Sync = "safe"
    bare_newlines: BareNewlines = "normalize"
    capabilities: Capabilities = Capabilities()


class Backend(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A legacy MTA: its servers in order of preference, and what it needs."""

    servers: Annotated[list[ServerAddress], Written('a list of addresses, such as ["10.0.0.5:25"]')]
    pipelining: Literal["auto", "never"] = "auto"
    helo_fallback: bool = True
    guard_data: bool = True


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds. Queue bounds are back-pressure, never an error; sizes are in octets."""

    queue_commands: Annotated[int, _whole(1)] = 1000
    queue_octets: Annotated[int, _whole(4096)] = 262144
    # RFC 5321 section 4.5.3.1.4 asks for 512 at least.
    line: Annotated[int, _whole(512)] = 2048
    # RFC 4954 section 4 asks for 12288; smaller ones break large Kerberos and OAuth tokens.
    auth_line: Annotated[int, _whole(512)] = 12288
    # 5xx replies in a row before a client is closed.
    errors: Annotated[int, _whole(1)] = 20


class Timeouts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Longest waits, in seconds."""

    connect: Seconds = 30.0
    greeting: Seconds = 300.0
    command: Seconds = 300.0
    data: Seconds = 120.0
    content: Seconds = 180.0
    end_of_data: Seconds = 600.0
    client: Seconds = 300.0
    drain: Seconds = 60.0
    hold: Seconds = 0.2


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged, and how it looks (auto: JSON unless standard error is a terminal)."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything one smtpproxy runs on."""

    hostname: Annotated[str, Parsed(_host_name, 'a name, such as "mx.example.org"')] = field(
        default_factory=socket.gethostname
    )
    listener: Annotated[
        list[Listener], Written("written [[listener]], in two brackets, once for each listener")
    ] = []
    backends: Annotated[
        dict[Annotated[str, Parsed(_backend_name, "a name")], Backend],
        Written("a table for each backend, written [backends.NAME]"),
    ] = {}
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    log: Log = Log()


def load(
    path: str | os.PathLike[str], *, need_listener: bool = True, need_backend: bool = True
) -> Settings:
    """Read the settings in the file `path`.

    With `need_listener` or `need_backend` false the file may do without them, because `from_flags`
    brings them. Raises ConfigError with all problems of the file.
    """
    name = os.fspath(path)
    text = _read_text(name)
    tree = _parse_toml(name, text)
    reader = Reader()
    settings = cast("Settings", reader.read(tree, Settings))
    for fault, what in _contradictions(settings, need_listener, need_backend):
        reader.add(fault, what)
    if reader.found:
        places = find_places(text)
        raise ConfigError(
            Problem(name, line_of(path, places), dotted(path), what) for path, what in reader.found
        )
    return _with_backends_named(settings)


def from_flags(
    settings: Settings | None,
    listen: Sequence[str],
    backend: Sequence[str],
    log_format: str | None = None,
    log_level: str | None = None,
) -> Settings:
    """Lay the flags over `settings` (those of a file, or None).

    `listen` replaces the file's listeners, `backend` its backends: by one that has these
    servers, in order of preference. Raises ConfigError with problems whose key is the flag.
    """
    settings = settings or Settings()
    reader = Reader()
    if log_format is not None:
        form = cast("LogFormat", reader.read(log_format, LogFormat, ("--log-format",)))
        settings = replace(settings, log=replace(settings.log, format=form))
    if log_level is not None:
        level = cast("LogLevel", reader.read(log_level, LogLevel, ("--log-level",)))
        settings = replace(settings, log=replace(settings.log, level=level))
    if backend:
        servers = [cast("Address", reader.read(text, ServerAddress, ("-b",))) for text in backend]
        listeners = [replace(listener, backend="") for listener in settings.listener]
        backends = {_FLAG_BACKEND: Backend(servers=servers)}
        settings = replace(settings, listener=listeners, backends=backends)
    if listen:
        addresses = [cast("Address", reader.read(text, ListenAddress, ("-l",))) for text in listen]
        settings = replace(settings, listener=[Listener(address=each) for each in addresses])
    for what in _missing_for_flags(settings, listen):
        reader.add(*what)
    if reader.found:
        raise ConfigError(Problem("", None, dotted(path), what) for path, what in reader.found)
    return _with_backends_named(settings)


def exposed_listeners(settings: Settings) -> list[Listener]:
    """Return the listeners that other machines can reach.

    The backend sees the proxy's own address for each of their clients, so that a backend which
    trusts that address relays for everyone: worth a warning.
    """
    return [listener for listener in settings.listener if not listener.address.is_loopback]


Fault = tuple[Path, str]


def _contradictions(settings: Settings, need_listener: bool, need_backend: bool) -> Iterator[Fault]:
    """Find what no setting shows alone. Any value may be BAD here, which is reported already."""
    if settings.listener is not BAD:
        if need_listener and not settings.listener:
            yield (), 'has no listener; add [[listener]] with address = "127.0.0.1:2525"'
        yield from _repeated_addresses(settings.listener)
        yield from _hidden_and_allowed(settings.listener)
    if settings.backends is not BAD:
        if need_backend and not settings.backends:
            yield (), 'has no backend; add [backends.NAME] with servers = ["10.0.0.5:25"]'
        for name, backend in settings.backends.items():
            if backend is not BAD and backend.servers == []:
                where = ("backends", name, "servers")
                yield where, 'must have at least one address, such as ["10.0.0.5:25"]'
    if need_backend and settings.backends and BAD not in (settings.listener, settings.backends):
        yield from _wrong_backends(settings.listener, list(settings.backends))
    if settings.limits is not BAD:
        yield from _small_queue(settings.limits)


def _repeated_addresses(listeners: Sequence[Listener]) -> Iterator[Fault]:
    first: dict[Address, int] = {}
    for index, listener in enumerate(listeners):
        if listener is BAD or not isinstance(listener.address, Address):
            continue
        # Port 0 is another port each time.
        if not listener.address.is_unix and listener.address.port == 0:
            continue
        other = first.setdefault(listener.address, index)
        if other != index:
            text = f"is {show(str(listener.address))} like that of listener[{other}]"
            yield ("listener", index, "address"), f"{text}; each listener needs its own"


def _wrong_backends(listeners: Sequence[Listener], names: list[str]) -> Iterator[Fault]:
    for index, listener in enumerate(listeners):
        if listener is BAD or listener.backend is BAD:
            continue
        where = ("listener", index, "backend")
        if listener.backend == "" and len(names) > 1:
            yield where, f"is missing; with several backends name one: {shown(names)}"
        elif listener.backend and listener.backend not in names:
            hint = instead(listener.backend, names, "there is")
            yield where, f"{show(listener.backend)} is not the name of a backend{hint}"


def _hidden_and_allowed(listeners: Sequence[Listener]) -> Iterator[Fault]:
    for index, listener in enumerate(listeners):
        if listener is BAD or listener.capabilities is BAD:
            continue
        hide, allow = listener.capabilities.hide, listener.capabilities.allow
        if hide is BAD or allow is BAD:
            continue
        for position, word in enumerate(allow):
            where = ("listener", index, "capabilities", "allow", position)
            if word is not BAD and word in hide:
                yield where, f"{show(word)} is hidden as well; write it in one of the two lists"
            elif word is not BAD and word.encode() in NEVER_PASSED:
                yield where, f"{show(word)} can never pass: it would break framing or trust"


def _small_queue(limits: Limits) -> Iterator[Fault]:
    """A line that the queue has no room for would never become a command."""
    sizes = (limits.queue_octets, limits.line, limits.auth_line)
    if BAD not in sizes and limits.queue_octets < max(sizes):
        yield (
            ("limits", "queue_octets"),
            f"must be at least line and auth_line, {max(sizes)} octets",
        )


def _missing_for_flags(settings: Settings, listen: Sequence[str]) -> Iterator[Fault]:
    if not settings.listener:
        yield ("-l",), "is missing: an address for clients, such as -l 127.0.0.1:2525"
    if not settings.backends:
        yield ("-b",), "is missing: the address of the MTA, such as -b 127.0.0.1:25"
    if listen:
        for _, what in _repeated_addresses(settings.listener):
            yield ("-l",), what
        if len(settings.backends) > 1:
            names = shown(settings.backends)
            what = f"cannot choose between the backends {names}; give -b too, or a [[listener]]"
            yield ("-l",), what


def _with_backends_named(settings: Settings) -> Settings:
    """Fill in the backend where it was left out because there is only one."""
    if len(settings.backends) != 1:
        return settings
    (only,) = settings.backends
    listeners = [replace(each, backend=each.backend or only) for each in settings.listener]
    return replace(settings, listener=listeners)


def _read_text(name: str) -> str:
    try:
        octets = FilePath(name).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        why = (error.strerror or "unreadable").lower()
        raise ConfigError([Problem(name, None, "", f"cannot be read: {why}")]) from None
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        what = f"octet 0x{octets[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError([Problem(name, line, "", what)]) from None


def _parse_toml(name: str, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Problem(name, None, "", "is not TOML: nested too deeply")]) from None
    except ValueError as error:
        what, _, place = str(error).partition(" (at ")
        found = re.match(r"line ([0-9]+), (column [0-9]+)", place)
        if found:
            line, column = int(found[1]), f" ({found[2]})"
        else:
            line, column = len(text.rstrip().split("\n")), " (end of the file)" if place else ""
        raise ConfigError([Problem(name, line, "", f"is not TOML: {what}{column}")]) from None
