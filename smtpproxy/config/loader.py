"""Loads settings from a TOML file and from flags.

`load` reports all problems of a file at once, each with its line; `from_flags` overrides the file
by flags. `smtpproxy.config.schema` has all settings.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path as FilePath
from typing import cast
from urllib.parse import quote, urlsplit, urlunsplit

from msgspec.structs import replace

from smtpproxy.config import (
    certificate_validation,
    credentials,
    loop_validation,
    path_validation,
    tls_validation,
    token_file,
)
from smtpproxy.config.address import Address
from smtpproxy.config.decoding import (
    BAD,
    ConfigError,
    KeyProblem,
    Problem,
    SettingsDecoder,
    dotted,
    shown,
)
from smtpproxy.config.schema import (
    AdminAddress,
    BackendSettings,
    ListenAddress,
    ListenerSettings,
    LogFormat,
    LogLevel,
    ServerAddress,
    Settings,
    WorkerCount,
)
from smtpproxy.config.toml_lines import find_lines, line_of
from smtpproxy.config.validation import contradictions

_FLAG_BACKEND = "backend-1"


def load(
    path: str | os.PathLike[str],
    *,
    need_listener: bool = True,
    need_backend: bool = True,
    need_trace_directory: bool = True,
    need_credentials: bool = True,
    look_up: loop_validation.LookUp = loop_validation.no_look_up,
) -> Settings:
    """Load a settings file.

    Args:
        path: The file.
        need_listener: Report a file without a listener; False if a flag gives it.
        need_backend: Report a file without a backend; False if a flag gives it.
        need_trace_directory: Report `[trace]` without a directory; False if a flag gives it.
        need_credentials: Report credentials of systemd that this process cannot see; False if it
            is not the service.
        look_up: Resolves the names of servers, to find loops.

    Raises:
        ConfigError: All problems of the file.
    """
    name = os.fspath(path)
    text = _read_text(name)
    tree = _parse_toml(name, text)
    reader = SettingsDecoder()
    settings = cast("Settings", reader.read(tree, Settings))
    for key_path, what in contradictions(
        settings, need_listener, need_backend, need_trace_directory
    ):
        reader.add(key_path, what)
    files = chain(certificate_validation.problems(settings), path_validation.problems(settings))
    loops = loop_validation.problems(settings, look_up)
    unseen = set() if need_credentials else {path for path, _ in credentials.invisible(settings)}
    for key_path, what in chain(tls_validation.problems(settings), loops, files):
        if key_path not in unseen:
            reader.add(key_path, what)
    if ("admin", "token_file") not in unseen:
        settings = _with_token_read(settings, reader)
    if ("cluster", "password_file") not in unseen:
        settings = _with_password_read(settings, reader)
    if reader.found:
        lines_of_keys = find_lines(text)
        raise ConfigError(
            Problem(name, line_of(path, lines_of_keys), dotted(path), what)
            for path, what in reader.found
        )
    return _with_backends_named(settings)


def from_flags(
    settings: Settings | None,
    listen: Sequence[str],
    backend: Sequence[str],
    log_format: str | None = None,
    log_level: str | None = None,
    workers: int | None = None,
    trace: FilePath | None = None,
    admin: str | None = None,
) -> Settings:
    """Override settings by flags.

    Args:
        settings: The settings of a file, or None.
        listen: Addresses that replace all listeners, named `listener-1` and so on.
        backend: Servers, in order of preference, of a backend `backend-1` that replaces all others.
        log_format: Replaces `log.format`.
        log_level: Replaces `log.level`.
        workers: Replaces `workers`.
        trace: Replaces `trace.directory`.
        admin: Replaces `admin.address`.

    Raises:
        ConfigError: All problems; the key of each is the flag.
    """
    settings = settings or Settings()
    reader = SettingsDecoder()
    if log_format is not None:
        form = cast("LogFormat", reader.read(log_format, LogFormat, ("--log-format",)))
        settings = replace(settings, log=replace(settings.log, format=form))
    if log_level is not None:
        level = cast("LogLevel", reader.read(log_level, LogLevel, ("--log-level",)))
        settings = replace(settings, log=replace(settings.log, level=level))
    if workers is not None:
        read = cast("int", reader.read(workers, WorkerCount, ("-w",)))
        settings = replace(settings, workers=read)
    settings = _watched(settings, trace, admin, reader)
    if backend:
        servers = [cast("Address", reader.read(text, ServerAddress, ("-b",))) for text in backend]
        listeners = {
            name: replace(listener, backend="") for name, listener in settings.listeners.items()
        }
        backends = {_FLAG_BACKEND: BackendSettings(servers=servers)}
        settings = replace(settings, listeners=listeners, backends=backends)
    if listen:
        addresses = [cast("Address", reader.read(text, ListenAddress, ("-l",))) for text in listen]
        listeners = {
            f"listener-{number}": ListenerSettings(address=address)
            for number, address in enumerate(addresses, 1)
        }
        settings = replace(settings, listeners=listeners)
    missing = _missing_for_flags(settings, listen)
    for what in chain(missing, _contradictions_with_flags(settings, listen, backend, admin)):
        reader.add(*what)
    if reader.found:
        raise ConfigError(Problem("", None, dotted(path), what) for path, what in reader.found)
    return _with_backends_named(settings)


def control_from_flag(path: FilePath) -> Address:
    """Return the address of a control socket at this path.

    Raises:
        ConfigError: The path cannot be that of a socket.
    """
    reader = SettingsDecoder()
    address = reader.read(f"unix:{path.absolute()}", ListenAddress, ("--control",))
    if reader.found:
        raise ConfigError(Problem("", None, dotted(place), what) for place, what in reader.found)
    return cast("Address", address)


def _watched(
    settings: Settings, trace: FilePath | None, admin: str | None, reader: SettingsDecoder
) -> Settings:
    """Override the settings of trace and admin by their flags."""
    if trace is not None:
        # The flag is a wish to record.
        when = "all" if settings.trace.when == "off" else settings.trace.when
        directory = str(trace.absolute())
        if why := path_validation.why_not(directory):
            reader.add(("--trace",), why)
        settings = replace(settings, trace=replace(settings.trace, directory=directory, when=when))
    if admin is not None:
        address = cast("Address", reader.read(admin, AdminAddress, ("--admin",)))
        settings = replace(settings, admin=replace(settings.admin, address=address))
    return settings


def _missing_for_flags(settings: Settings, listen: Sequence[str]) -> Iterator[KeyProblem]:
    if not settings.listeners:
        yield ("-l",), "is missing: an address for clients, such as -l 127.0.0.1:2525"
    if not settings.backends:
        yield ("-b",), "is missing: the address of the MTA, such as -b 127.0.0.1:25"
    if listen and len(settings.backends) > 1:
        names = shown(settings.backends)
        what = f"cannot choose between the backends {names}; give -b too, or [listeners.NAME]"
        yield ("-l",), what


def _contradictions_with_flags(
    settings: Settings, listen: Sequence[str], backend: Sequence[str], admin: str | None
) -> Iterator[KeyProblem]:
    """Yield contradictions between flags and file; the file alone has been checked."""
    loops = loop_validation.problems(settings, loop_validation.no_look_up)
    alone = contradictions(settings, need_listener=False, need_backend=False)
    flags = {"listeners": ("-l", listen), "backends": ("-b", backend), "admin": ("--admin", admin)}
    for path, what in chain(alone, tls_validation.problems(settings), loops):
        flag, given = flags.get(str(path[0]), ("", None))
        if not given:
            yield path, what
        else:  # it is the value of the flag, or of a setting that goes with it
            named = "address" in path or "servers" in path
            yield (flag,), what if named else f"{dotted(path)} {what}"


def _with_token_read(settings: Settings, reader: SettingsDecoder) -> Settings:
    """Read the token from `admin.token_file`."""
    admin, place = settings.admin, ("admin", "token_file")
    if admin is BAD or admin.token_file in ("", BAD):
        return settings
    if admin.token:
        reader.add(place, "is not used: there is admin.token, too; leave one of them out")
        return settings
    try:
        token = token_file.read(admin.token_file)
    except ValueError as error:
        reader.add(place, str(error))
        return settings
    return replace(settings, admin=replace(admin, token=token))


def _with_password_read(settings: Settings, reader: SettingsDecoder) -> Settings:
    """Read the password of the cluster's store from `cluster.password_file` into its URL."""
    cluster, place = settings.cluster, ("cluster", "password_file")
    if cluster is BAD or cluster.url in ("", BAD) or cluster.password_file in ("", BAD):
        return settings
    url = urlsplit(cluster.url)
    if url.password is not None:
        reader.add(place, "is not used: cluster.url has a password, too; leave one of them out")
        return settings
    try:
        password = token_file.read_secret(cluster.password_file, "password")
    except ValueError as error:
        reader.add(place, str(error))
        return settings
    user, server = url.username or "", url.netloc.rpartition("@")[2]
    whole = urlunsplit(url._replace(netloc=f"{user}:{quote(password, safe='')}@{server}"))
    return replace(settings, cluster=replace(cluster, url=whole))


def _with_backends_named(settings: Settings) -> Settings:
    """Fill in the backend where it was left out because there is only one."""
    if len(settings.backends) != 1:
        return settings
    (only,) = settings.backends
    listeners = {
        name: replace(each, backend=each.backend or only)
        for name, each in settings.listeners.items()
    }
    return replace(settings, listeners=listeners)


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
        what = f"byte 0x{octets[error.start]:02x} is not UTF-8; save the file as UTF-8"
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
