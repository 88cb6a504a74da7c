"""TLS contexts, made from certificate files.

Files are read when a context is made: at the start and at each reload.
"""

import ssl
import warnings
from collections.abc import Mapping
from typing import Protocol

VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}


class CertificatePair(Protocol):
    """The files of a certificate and its key."""

    @property
    def certificate(self) -> str:
        """The path of a PEM file: the certificate, then those that lead to its root."""

    @property
    def key(self) -> str:
        """The path of its key; empty if it is in the same file."""


class ServedCertificates(CertificatePair, Protocol):
    """What clients are shown: a pair, and others by the name that a client asks for."""

    @property
    def sni(self) -> Mapping[str, CertificatePair]:
        """Host name, or `*.` and the rest of it -> pair."""


class BackendVerification(Protocol):
    """How the certificate of a backend is verified."""

    @property
    def tls(self) -> str:
        """`opportunistic`: not at all."""

    @property
    def verify(self) -> bool: ...

    @property
    def ca_file(self) -> str:
        """The path of a PEM file with the roots; empty: those of the system."""

    @property
    def minimum_tls(self) -> str:
        """One of VERSIONS."""


def for_clients(listener: ServedCertificates) -> ssl.SSLContext:
    """Return the context in which clients are served; raises OSError for a file that is no good.

    TLS 1.2 at least, with the ciphers that Python deems safe.
    """
    context = load_pair(listener)
    if listener.sni:
        from smtpproxy.tls.certificate_names import names_in

        contexts = dict.fromkeys(names_in(listener.certificate), context)
        contexts |= {name.lower(): load_pair(each) for name, each in listener.sni.items()}

        def choose(inside: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            inside.context = _chosen(name or "", contexts) or context

        context.sni_callback = choose
    return context


def for_backend(backend: BackendVerification) -> ssl.SSLContext:
    """Return the context for a backend; raises OSError for a CA file that is no good.

    What is opportunistic is not verified: whoever could forge the certificate could hide STARTTLS.
    """
    context = ssl.create_default_context(cafile=backend.ca_file or None)
    context.hostname_checks_common_name = False  # RFC 9525 section 2
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


def load_pair(pair: CertificatePair) -> ssl.SSLContext:
    """Return a context that serves one certificate; raises OSError for a file that is no good."""
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


def why_unusable(error: OSError) -> str:
    """Return what is wrong with a file, from the error of a function above."""
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
