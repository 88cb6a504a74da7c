"""Tests which TLS versions work, reads the certificate, and finds TLS settings for the backend.

The settings are found by making handshakes as the proxy would, the strictest settings first.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from smtpproxy.config.schema import BackendSettings
from smtpproxy.probe.connector import Connector, unverified
from smtpproxy.probe.smtp_connection import (
    CheckFailed,
    HandshakeFailed,
    NoReply,
    OutOfTime,
    ProbeReply,
    SmtpConnection,
    short,
)
from smtpproxy.tls import contexts
from smtpproxy.tls.contexts import VERSIONS


@dataclass(frozen=True, slots=True)
class CertificateFindings:
    """The fields of a certificate; the texts are escaped for a terminal."""

    names: tuple[str, ...]
    """The host names and IP addresses that it is valid for."""
    issuer: str
    is_self_signed: bool
    begins: datetime
    """The start of its validity (notBefore)."""
    ends: datetime
    """The end of its validity (notAfter)."""
    key: str
    """The type and size in bits of its key, such as "RSA 2048"."""

    @property
    def has_expired(self) -> bool:
        """Whether the end of its validity is past."""
        return self.ends < datetime.now(UTC)


@dataclass(slots=True)
class TlsFindings:
    """The findings of the TLS checks."""

    versions: dict[str, str]
    """The reason why a version does not work, empty if it does, by version ("1.2")."""
    certificate: CertificateFindings | None = None
    """The server's certificate; None if there is none, or it cannot be read."""
    unverified: str = ""
    """Why the certificate does not verify; empty if it does."""
    backend: BackendSettings | None = None
    """Backend settings with which the handshake works; None if none do."""
    inside: ProbeReply | None = None
    """The reply to EHLO inside TLS."""
    is_injectable: bool = False
    """Whether it executes inside TLS what was sent in plaintext after STARTTLS (CVE-2011-0411)."""
    lacks_secure_renegotiation: bool = False
    """Whether it does not know RFC 5746, so that OpenSSL 3 refuses it by default."""
    undetermined: str = ""
    """Why some of these could not be determined; empty if all were."""

    @property
    def is_verified(self) -> bool:
        """Whether the suggested settings verify the certificate."""
        backend = self.backend
        return backend is not None and backend.verify and backend.tls != "opportunistic"

    @property
    def working(self) -> list[str]:
        """The versions that work, newest first."""
        return [version for version, why in self.versions.items() if not why]


def examine(connector: Connector) -> TlsFindings:
    """Try each TLS version, read the certificate, and find settings that work.

    Raises:
        OutOfTime: The run has reached its time limit.
    """
    found = TlsFindings({version: _attempt(connector, version) for version in reversed(VERSIONS)})
    try:
        if found.working:
            _look_inside(connector, found)
    except (CheckFailed, OSError) as failure:
        found.undetermined = str(failure)
    return found


def read_certificate(octets: bytes) -> CertificateFindings | None:
    """Return the fields of a DER certificate; None if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cryptography warns about oddities of old ones
            return _read(octets)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm):
        return None


def _read(octets: bytes) -> CertificateFindings:
    read = x509.load_der_x509_certificate(octets)
    return CertificateFindings(
        _names(read),
        _common_name(read.issuer) or short(read.issuer.rfc4514_string().encode()),
        read.issuer == read.subject,
        read.not_valid_before_utc,
        read.not_valid_after_utc,
        _key(read),
    )


def _look_inside(connector: Connector, found: TlsFindings) -> None:
    with connector.secured(unverified(), None) as connection:
        found.certificate = read_certificate(connection.certificate)
        found.inside = _speak(connector, connection)
    _fit(connector, found)
    if not connector.is_implicit:
        found.is_injectable = _obeys_what_was_injected(connector)


def _attempt(connector: Connector, version: str) -> str:
    try:
        context = unverified(version)
    except ValueError:
        return "not supported by this machine's OpenSSL"
    try:
        with connector.secured(context, None) as connection:
            _speak(connector, connection)
    except OutOfTime:
        raise
    except (CheckFailed, OSError) as failure:
        return str(failure)
    return ""


def _speak(connector: Connector, connection: SmtpConnection) -> ProbeReply:
    """Check that the server still answers inside TLS."""
    if connector.is_implicit:
        connector.greeting(connection)
    return connector.say_hello(connection)


def _fit(connector: Connector, found: TlsFindings) -> None:
    """Find the strictest settings with which the proxy's handshake succeeds."""
    name = _name_to_ask_for(found.certificate)
    newest = max(found.working)
    for minimum in [each for each in ("1.2", "1.1", "1.0") if each <= newest]:
        for candidate in _candidates(connector, minimum, name):
            try:
                _try(connector, candidate)
            except HandshakeFailed as failure:
                if str(failure) == "unsafe legacy renegotiation disabled":
                    found.lacks_secure_renegotiation = True
                if failure.code and not found.unverified:
                    found.unverified = str(failure)
                continue
            found.backend = candidate
            return


def _candidates(connector: Connector, minimum: str, name: str) -> list[BackendSettings]:
    tls = "implicit" if connector.is_implicit else "starttls"
    choices: list[dict[str, object]] = [{"tls": tls}]
    if name:
        choices.append({"tls": tls, "server_name": name})
    is_implicit = connector.is_implicit
    choices.append({"tls": tls, "verify": False} if is_implicit else {"tls": "opportunistic"})
    shared = {"servers": [connector.address], "minimum_tls": minimum}
    return [BackendSettings(**shared, **choice) for choice in choices]  # type: ignore[arg-type]  # by key


def _try(connector: Connector, backend: BackendSettings) -> None:
    name = backend.server_name or connector.address.host or "localhost"  # as the proxy does
    with connector.secured(contexts.for_backend(backend), name) as connection:
        _speak(connector, connection)


def _name_to_ask_for(certificate: CertificateFindings | None) -> str:
    """Return the first host name in the certificate; empty if there is none."""
    names = certificate.names if certificate else ()
    return next((name for name in names if _is_host_name(name)), "")


def _is_host_name(name: str) -> bool:
    letters = name.replace("-", "").replace(".", "")
    return "." in name and letters.isascii() and letters.isalnum() and not name[-1:].isdigit()


def _obeys_what_was_injected(connector: Connector) -> bool:
    """Send STARTTLS and NOOP in one write, and check whether NOOP is answered inside TLS."""
    try:
        with connector.introduced(connector.connect(), greeting=True) as connection:
            connection.say(b"STARTTLS\r\nNOOP\r\n")
            if connection.reply().code != 220 or connection.unread:
                connection.abort()
                return False
            connection.secure(unverified(), None)
            connection.reply(connector.patience_s)
            return True
    except (NoReply, HandshakeFailed):
        return False


def _names(read: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = read.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        name = _common_name(read.subject)
        return (name,) if name else ()
    found: Sequence[object] = [
        *extension.value.get_values_for_type(x509.DNSName),
        *extension.value.get_values_for_type(x509.IPAddress),
    ]
    return tuple(short(str(name).encode()) for name in found)


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    value = found[0].value if found else ""
    return short(value.encode() if isinstance(value, str) else value)


def _key(read: x509.Certificate) -> str:
    key = read.public_key()
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey):
        return f"{'RSA' if isinstance(key, rsa.RSAPublicKey) else 'DSA'} {key.key_size}"
    return f"EC {key.key_size}" if isinstance(key, ec.EllipticCurvePublicKey) else "other key"
