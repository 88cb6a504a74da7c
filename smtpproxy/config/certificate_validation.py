"""Checks of the certificate files that the settings name.

An unusable file is an error in the settings, so a reload with it changes nothing.
"""

import ssl
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path as FilePath

from smtpproxy.config import token_file
from smtpproxy.config.decoding import BAD, KeyProblem, dotted
from smtpproxy.config.schema import (
    BackendSettings,
    CertificateSettings,
    ListenerSettings,
    Settings,
)
from smtpproxy.config.toml_lines import KeyPath
from smtpproxy.tls import contexts

DEFAULT = "default"
"""The name of the listener's own certificate, as opposed to those of `sni`."""
_SOON_S = 14 * 86400


def served(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield each certificate for clients: listener, host name or DEFAULT, and file."""
    for listener, each in settings.listeners.items():
        pairs: dict[str, CertificateSettings | ListenerSettings] = {DEFAULT: each, **each.sni}
        for host, pair in pairs.items():
            for file in (pair.certificate, pair.ecdsa_certificate):
                if file:
                    yield listener, host, file


def certificates_of(
    listener: ListenerSettings, key_path: KeyPath
) -> Iterator[tuple[KeyPath, CertificateSettings | ListenerSettings]]:
    """Yield the settings of each certificate for clients, and their key path.

    They are those of the listener itself, and of each host name in its `sni` that is not BAD.
    """
    yield key_path, listener
    for host, each in ({} if listener.sni is BAD else listener.sni).items():
        if each is not BAD:
            yield (*key_path, "sni", host), each


def expiries(settings: Settings) -> Iterator[tuple[str, str, float]]:
    """Yield when each certificate expires: listener, host name or DEFAULT, Unix time.

    Of two certificates for the same name it is the earlier time.
    """
    ends: dict[tuple[str, str], float] = {}
    for listener, host, file in served(settings):
        if (valid := _validity(file)) is not None:
            ends[listener, host] = min(valid[1], ends.get((listener, host), valid[1]))
    yield from ((*names, end) for names, end in ends.items())


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
    return [f"{dotted(key_path)}: {what}" for key_path, what in problems(settings)]


def problems(settings: Settings) -> Iterator[KeyProblem]:
    """Yield unusable files: the key path in the settings, and the problem."""
    for name, listener in ({} if settings.listeners is BAD else settings.listeners).items():
        if listener is not BAD:
            yield from _problems_of_listener(listener, ("listeners", name))
    for name, backend in ({} if settings.backends is BAD else settings.backends).items():
        if backend is not BAD:
            yield from _problems_of_backend(backend, ("backends", name))


def _problems_of_listener(listener: ListenerSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    if listener.certificate in ("", BAD) or listener.ciphers is BAD:
        return
    for where, each in certificates_of(listener, key_path):
        yield from _problems_of(each, where, listener.ciphers)


def _problems_of_backend(backend: BackendSettings, key_path: KeyPath) -> Iterator[KeyProblem]:
    if backend.ca_file not in ("", BAD):
        try:
            ssl.create_default_context(cafile=backend.ca_file)
        except OSError as error:
            yield (*key_path, "ca_file"), contexts.why_unusable(error)
    if backend.client_certificate in ("", BAD):
        return
    fine = yield from _problems_of_pair(backend, key_path, "client_", "legacy")
    if fine:
        name = "client_key" if backend.client_key else "client_certificate"
        mode = FilePath(getattr(backend, name)).stat().st_mode
        if why := token_file.why_exposed(mode):
            yield (*key_path, name), why


def _problems_of(
    served: CertificateSettings | ListenerSettings, key_path: KeyPath, ciphers: str
) -> Iterator[KeyProblem]:
    first = yield from _problems_of_pair(served, key_path, "", ciphers)
    if served.ecdsa_certificate == "":
        return
    second = yield from _problems_of_pair(served, key_path, "ecdsa_", ciphers)
    if first and second:
        from smtpproxy.tls.certificate_names import has_ecdsa_key

        if not has_ecdsa_key(served.ecdsa_certificate):
            yield (*key_path, "ecdsa_certificate"), "is not a certificate with an ECDSA key"
        elif has_ecdsa_key(served.certificate):
            yield (
                (*key_path, "certificate"),
                "has an ECDSA key, like ecdsa_certificate; leave one out",
            )


def _problems_of_pair(
    served: CertificateSettings | ListenerSettings | BackendSettings,
    key_path: KeyPath,
    prefix: str,
    ciphers: str,
) -> Generator[KeyProblem, None, bool]:
    """Yield the problems of a certificate and its key; return whether there are none."""
    certificate, key = (getattr(served, f"{prefix}{name}") for name in ("certificate", "key"))
    if BAD in (certificate, key):
        return False
    missing = False
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            FilePath(path or certificate).read_bytes()
        except OSError as error:
            missing = True
            if path:
                yield (*key_path, f"{prefix}{name}"), contexts.why_unusable(error)
    if missing:
        return False
    try:
        contexts.load_pair(certificate, key, ciphers)
    except OSError as error:
        yield (*key_path, f"{prefix}certificate"), contexts.why_unusable(error)
        return False
    return True
