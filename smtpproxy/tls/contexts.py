"""Certificates: TLS contexts from settings, and what is wrong with the files that they name.

Files are read when a context is made: at the start and at each reload.  A bad one is a fault of the
settings, so that a reload with it keeps what there was.
"""

import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path as FilePath

from smtpproxy.config.decoding import BAD
from smtpproxy.config.schema import BackendSettings, CertificateSettings, ListenerSettings, Settings
from smtpproxy.config.toml_lines import KeyPath

VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}


def for_clients(listener: ListenerSettings) -> ssl.SSLContext:
    """Return the context in which clients are served; raises OSError for a file that is no good.

    TLS 1.2 at least, with the ciphers that Python deems safe.
    """
    context = _serving(CertificateSettings(certificate=listener.certificate, key=listener.key))
    if listener.sni:
        from smtpproxy.tls.certificate_names import names_in

        contexts = dict.fromkeys(names_in(listener.certificate), context)
        contexts |= {name.lower(): _serving(each) for name, each in listener.sni.items()}

        def choose(inside: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            inside.context = _chosen(name or "", contexts) or context

        context.sni_callback = choose
    return context


def for_backend(backend: BackendSettings) -> ssl.SSLContext:
    """Return the context for a backend; raises OSError for a CA file that is no good.

    What is opportunistic is not verified: whoever could forge the certificate could hide STARTTLS.
    """
    context = ssl.create_default_context(cafile=backend.ca_file or None)
    if backend.tls == "opportunistic" or not backend.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        # Python calls them deprecated, as we do: whoever asks for one is told at the start.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = VERSIONS[backend.minimum_tls]
    if backend.minimum_tls in ("1.0", "1.1"):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # OpenSSL allows neither at a higher level
    return context


def faults(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Find files that are no good: the place of each in the settings, and what is wrong."""
    for index, listener in enumerate([] if settings.listener is BAD else settings.listener):
        if listener is BAD or listener.certificate in ("", BAD):
            continue
        place: KeyPath = ("listener", index)
        yield from _faults_of(
            CertificateSettings(certificate=listener.certificate, key=listener.key), place
        )
        if listener.sni is not BAD:
            for name, each in listener.sni.items():
                if each is not BAD:
                    yield from _faults_of(each, (*place, "sni", name))
    backends = {} if settings.backends is BAD else settings.backends
    for name, backend in backends.items():
        if backend is BAD or backend.ca_file in ("", BAD):
            continue
        try:
            ssl.create_default_context(cafile=backend.ca_file)
        except OSError as error:
            yield ("backends", name, "ca_file"), _why(error)


def _faults_of(pair: CertificateSettings, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if BAD in (pair.certificate, pair.key):
        return
    for key in ("certificate", "key"):
        path = getattr(pair, key)
        try:
            FilePath(path or pair.certificate).read_bytes()
        except OSError as error:
            yield (*place, key), _why(error)
            return
    try:
        _serving(pair)
    except OSError as error:
        yield (*place, "certificate"), _why(error)


def _serving(pair: CertificateSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A key with a pass phrase would have OpenSSL ask at the terminal.
    context.load_cert_chain(pair.certificate, pair.key or None, password=_no_pass_phrase)
    return context


def _no_pass_phrase() -> str:
    raise OSError("the key has a pass phrase; write it without one")


def _chosen(name: str, contexts: dict[str, ssl.SSLContext]) -> ssl.SSLContext | None:
    """Return the context for a host name, or for `*` and the rest of it."""
    name = name.lower().rstrip(".")
    return contexts.get(name) or contexts.get("*." + name.partition(".")[2])


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        known = {
            "KEY_VALUES_MISMATCH": "does not belong to the key",
            "NO_START_LINE": "is not a PEM file with a certificate and its key",
            "NO_CERTIFICATE_OR_CRL_FOUND": "is not a PEM file with certificates",
        }
        # OpenSSL has no reason but "PEM lib" for most of what is no certificate or no key.
        reason = error.reason or "NO_START_LINE"
        return known.get(reason, f"cannot be used: {reason.lower().replace('_', ' ')}")
    return f"cannot be read: {(error.strerror or str(error)).lower()}"
