"""Checks of the certificate files that the settings name.

An unusable file is an error in the settings, so a reload with it changes nothing.
"""

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path as FilePath

from smtpproxy.config.decoding import BAD, dotted
from smtpproxy.config.schema import CertificateSettings, Settings
from smtpproxy.config.toml_lines import KeyPath
from smtpproxy.tls import contexts

DEFAULT = "default"
"""The name of the listener's own certificate, as opposed to those of `sni`."""
_SOON_S = 14 * 86400


def served(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield each certificate for clients: listener, host name or DEFAULT, and file."""
    for listener, each in settings.listeners.items():
        if each.certificate:
            yield listener, DEFAULT, each.certificate
        for host, pair in each.sni.items():
            yield listener, host, pair.certificate


def expiries(settings: Settings) -> Iterator[tuple[str, str, float]]:
    """Yield when each certificate expires: listener, host name or DEFAULT, Unix time."""
    for listener, host, file in served(settings):
        if (valid := _validity(file)) is not None:
            yield listener, host, valid[1]


def doubtful_certificates(settings: Settings, now: float) -> Iterator[tuple[str, str, str]]:
    """Yield certificates that clients may refuse: listener, host name or DEFAULT, reason."""
    for listener, host, file in served(settings):
        begin, end = _validity(file) or (now, now + 2 * _SOON_S)
        if now > end:
            yield listener, host, f"{file} has expired on {_day(end)}"
        elif now > end - _SOON_S:
            yield listener, host, f"{file} expires on {_day(end)}"
        elif now < begin:
            yield listener, host, f"{file} is not valid before {_day(begin)}"
        if host != DEFAULT and not _covers(file, host.lower()):
            yield listener, host, f"{file} is for other names, not for {host}"


def _validity(file: str) -> tuple[float, float] | None:
    from smtpproxy.tls.certificate_names import validity  # not for settings without TLS

    try:
        return validity(FilePath(file).read_bytes())
    except OSError:
        return None


def _covers(file: str, host: str) -> bool:
    from smtpproxy.tls.certificate_names import names_in

    try:
        return bool({host, "*." + host.partition(".")[2]} & set(names_in(file)))
    except OSError:  # reported elsewhere
        return True


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def certificate_problems(settings: Settings) -> list[str]:
    """Return the problems of the certificate files of valid settings."""
    return [f"{dotted(place)}: {what}" for place, what in faults(settings)]


def faults(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Yield unusable files: the key path in the settings, and the problem."""
    for name, listener in ({} if settings.listeners is BAD else settings.listeners).items():
        if listener is BAD or listener.certificate in ("", BAD):
            continue
        place: KeyPath = ("listeners", name)
        yield from _faults_of(
            CertificateSettings(certificate=listener.certificate, key=listener.key), place
        )
        if listener.sni is not BAD:
            for host, each in listener.sni.items():
                if each is not BAD:
                    yield from _faults_of(each, (*place, "sni", host))
    backends = {} if settings.backends is BAD else settings.backends
    for name, backend in backends.items():
        if backend is BAD or backend.ca_file in ("", BAD):
            continue
        try:
            ssl.create_default_context(cafile=backend.ca_file)
        except OSError as error:
            yield ("backends", name, "ca_file"), contexts.why_unusable(error)


def _faults_of(pair: CertificateSettings, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if BAD in (pair.certificate, pair.key):
        return
    missing = False
    for key in ("certificate", "key"):
        path = getattr(pair, key)
        try:
            FilePath(path or pair.certificate).read_bytes()
        except OSError as error:
            missing = True
            if path:
                yield (*place, key), contexts.why_unusable(error)
    if missing:
        return
    try:
        contexts.load_pair(pair)
    except OSError as error:
        yield (*place, "certificate"), contexts.why_unusable(error)
