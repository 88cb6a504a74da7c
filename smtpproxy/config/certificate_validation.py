"""Certificate files that settings name: what is wrong with them.

A bad file is a fault of the settings, so that a reload with it keeps what there was.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path as FilePath

from smtpproxy.config.decoding import BAD
from smtpproxy.config.schema import CertificateSettings, Settings
from smtpproxy.config.toml_lines import KeyPath
from smtpproxy.tls import contexts


def faults(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Find files that are no good: the place of each in the settings, and what is wrong."""
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
    for key in ("certificate", "key"):
        path = getattr(pair, key)
        try:
            FilePath(path or pair.certificate).read_bytes()
        except OSError as error:
            yield (*place, key), contexts.why_unusable(error)
            return
    try:
        contexts.load_pair(pair)
    except OSError as error:
        yield (*place, "certificate"), contexts.why_unusable(error)
