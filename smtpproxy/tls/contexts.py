"""TLS contexts for clients and backends, made from certificate files at start and reload."""

import ssl
import warnings
from collections.abc import Mapping
from typing import Protocol

from smtpproxy.tls.client_transport import ServerObject

VERSIONS = {
    "1.0": ssl.TLSVersion.TLSv1,
    "1.1": ssl.TLSVersion.TLSv1_1,
    "1.2": ssl.TLSVersion.TLSv1_2,
    "1.3": ssl.TLSVersion.TLSv1_3,
}
"""The TLS versions by their name in the settings, in ascending order."""
_OLD = "DEFAULT:!PSK:!SRP:@SECLEVEL=0"  # OpenSSL allows TLS 1.0 and 1.1 at no higher level
CIPHERS = {
    "modern": "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL",
    "intermediate": "",  # Python's default
    "legacy": _OLD,
}
"""The cipher suites before TLS 1.3, by their name in the settings, in the format of OpenSSL."""


class ServedCertificate(Protocol):
    """The files of a certificate for clients and its key, or of one of each kind of key."""

    @property
    def certificate(self) -> str:
        """The path of a PEM file: the certificate, followed by its intermediates."""

    @property
    def key(self) -> str:
        """The path of the PEM file with its key; empty if it is in the certificate's file."""

    @property
    def ecdsa_certificate(self) -> str:
        """The same as `certificate` for the ECDSA one; empty if there is only one."""

    @property
    def ecdsa_key(self) -> str:
        """The same as `key` for the ECDSA one."""


class ClientTlsSettings(ServedCertificate, Protocol):
    """TLS with clients: the default certificate, and others by server name (SNI)."""

    @property
    def sni(self) -> Mapping[str, ServedCertificate]:
        """The other certificates by host name or wildcard (`*.example.org`)."""

    @property
    def minimum_tls(self) -> str:
        """The oldest TLS version to use, a key of `VERSIONS`."""

    @property
    def ciphers(self) -> str:
        """The cipher suites, a key of `CIPHERS`."""


class BackendTlsSettings(Protocol):
    """TLS with a backend."""

    @property
    def tls(self) -> str:
        """The backend's `tls` setting; with `opportunistic` the certificate is not verified."""

    @property
    def verify(self) -> bool:
        """Whether to verify the certificate with the other values of `tls`."""

    @property
    def ca_file(self) -> str:
        """The path of a PEM file with trusted authorities; empty for those of the system."""

    @property
    def minimum_tls(self) -> str:
        """The oldest TLS version to accept, a key of `VERSIONS`."""

    @property
    def client_certificate(self) -> str:
        """The path of a PEM file with the proxy's own certificate; empty for none."""

    @property
    def client_key(self) -> str:
        """The path of the PEM file with its key; empty if it is in the certificate's file."""


def for_clients(listener: ClientTlsSettings, *, notes_names: bool = False) -> ssl.SSLContext:
    """Return the context for clients.

    Args:
        listener: The settings.
        notes_names: Whether `ServerObject.asked_for` is set.

    Raises:
        OSError: A certificate file cannot be used; see `why_unusable`.
    """
    context = load_served(listener, listener.ciphers)
    set_versions(context, listener.minimum_tls)
    contexts: dict[str, ssl.SSLContext] = {}
    if listener.sni:
        from smtpproxy.tls.certificate_names import names_in

        contexts = dict.fromkeys(names_in(listener.certificate), context)
        contexts |= {
            # Only certificates and security level of these contexts are used.
            name.lower(): load_served(each, listener.ciphers)
            for name, each in listener.sni.items()
        }

    def choose(inside: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        inside.context = _chosen(name or "", contexts) or context
        if isinstance(inside, ServerObject):
            inside.note_name(name or "")

    if listener.sni or notes_names:
        context.sni_callback = choose
    return context


def for_backend(backend: BackendTlsSettings) -> ssl.SSLContext:
    """Return the context for a backend.

    Opportunistic TLS is not verified: an attacker on the network could as well remove STARTTLS.

    Raises:
        OSError: A file cannot be used; see `why_unusable`.
    """
    context = ssl.create_default_context(cafile=backend.ca_file or None)
    context.hostname_checks_common_name = False  # RFC 9525 section 2
    if backend.tls == "opportunistic" or not backend.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    set_versions(context, backend.minimum_tls)
    if backend.minimum_tls in ("1.0", "1.1"):
        context.set_ciphers(_OLD)
        allow_insecure_renegotiation(context)
    if backend.client_certificate:
        add_pair(context, backend.client_certificate, backend.client_key)
    return context


def allow_insecure_renegotiation(context: ssl.SSLContext) -> None:
    """Allow servers without secure renegotiation (RFC 5746), which OpenSSL 3 refuses otherwise.

    The proxy never renegotiates.
    """
    context.options |= getattr(ssl, "OP_LEGACY_SERVER_CONNECT", 0x4)  # Python 3.12 has the name


def load_served(served: ServedCertificate, ciphers: str) -> ssl.SSLContext:
    """Return a server context with its certificates.

    Args:
        served: The certificates.
        ciphers: The cipher suites, a key of `CIPHERS`; `legacy` also allows short keys.

    Raises:
        OSError: A file cannot be used; see `why_unusable`.
    """
    context = load_pair(served.certificate, served.key, ciphers)
    if served.ecdsa_certificate:
        add_pair(context, served.ecdsa_certificate, served.ecdsa_key)
    return context


def load_pair(certificate: str, key: str, ciphers: str) -> ssl.SSLContext:
    """Return a server context with one certificate.

    Args:
        certificate: The path of its PEM file.
        key: The path of its key; empty if it is in the same file.
        ciphers: As for `load_served`.

    Raises:
        OSError: A file cannot be used; see `why_unusable`.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if CIPHERS[ciphers]:
        context.set_ciphers(CIPHERS[ciphers])
    add_pair(context, certificate, key)
    return context


def set_versions(context: ssl.SSLContext, oldest: str, newest: str = "") -> None:
    """Set the oldest and the newest TLS version of a context, keys of `VERSIONS`.

    Args:
        context: The context.
        oldest: The oldest version.
        newest: The newest version; empty for any.

    Raises:
        ValueError: This machine's OpenSSL does not have that version.
    """
    with warnings.catch_warnings():
        # Python warns about TLS 1.0 and 1.1; `check` does so, too.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = VERSIONS[oldest]
        if newest:
            context.maximum_version = VERSIONS[newest]


def add_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Add a certificate and its key to a context.

    Raises:
        OSError: A file cannot be used; see `why_unusable`.
    """
    # Without it, OpenSSL would ask for the pass phrase of a key at the terminal.
    context.load_cert_chain(certificate, key or None, password=_no_pass_phrase)


def _no_pass_phrase() -> str:
    raise OSError("the key has a pass phrase; save it without one")


def _chosen(name: str, contexts: dict[str, ssl.SSLContext]) -> ssl.SSLContext | None:
    """Return the context for a host name, or for its wildcard; None if there is neither."""
    name = name.lower().rstrip(".")
    return contexts.get(name) or contexts.get("*." + name.partition(".")[2])


def why_unusable(error: OSError) -> str:
    """Return what is wrong with a file, given the error of a function above.

    The text completes a sentence that begins with the file, such as "is not a PEM file ...".
    """
    if isinstance(error, ssl.SSLError):
        known = {
            "KEY_VALUES_MISMATCH": "does not belong to the key",
            "NO_START_LINE": (
                "is not a PEM file with a certificate and its key; if the key has a file of its"
                " own, set that, too"
            ),
            "NO_CERTIFICATE_OR_CRL_FOUND": "is not a PEM file with certificates",
        }
        # For most files without a certificate or key, OpenSSL has no reason except "PEM lib".
        reason = error.reason or "NO_START_LINE"
        return known.get(reason, f"cannot be used: {reason.lower().replace('_', ' ')}")
    return f"cannot be read: {(error.strerror or str(error)).lower()}"
