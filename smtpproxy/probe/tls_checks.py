"""TLS checks: which versions of TLS work, what the certificate is, and the settings that fit.

The settings are found by trying: the handshakes are made as the proxy would make them, the
strictest first.
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
    """What a certificate says of itself; the texts are safe to show.

    names: host names and IP addresses that it is for.
    """

    names: tuple[str, ...]
    issuer: str
    is_self_signed: bool
    begins: datetime
    ends: datetime
    key: str

    @property
    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.ends < datetime.now(UTC)


@dataclass(slots=True)
class TlsFindings:
    """What was found.

    versions: version -> why it did not work, empty if it did.
    certificate: None if there is none, or none that can be read.
    unverified: why the certificate does not verify; empty: it does.
    backend: settings that work; None: none do.
    inside: the reply to EHLO inside TLS.
    is_injectable: it obeys what was sent in plaintext behind STARTTLS (CVE-2011-0411).
    undetermined: why some of this could not be found out.
    """

    versions: dict[str, str]
    certificate: CertificateFindings | None = None
    unverified: str = ""
    backend: BackendSettings | None = None
    inside: ProbeReply | None = None
    is_injectable: bool = False
    undetermined: str = ""

    @property
    def is_verified(self) -> bool:
        """Whether the settings have the certificate verified."""
        backend = self.backend
        return backend is not None and backend.verify and backend.tls != "opportunistic"

    @property
    def working(self) -> list[str]:
        """The versions that work, the newest first."""
        return [version for version, why in self.versions.items() if not why]


def examine(connector: Connector) -> TlsFindings:
    """Try each version, read the certificate, and find settings for it."""
    found = TlsFindings({version: _attempt(connector, version) for version in reversed(VERSIONS)})
    try:
        if found.working:
            _look_inside(connector, found)
    except (CheckFailed, OSError) as failure:
        found.undetermined = str(failure)
    return found


def read_certificate(octets: bytes) -> CertificateFindings | None:
    """Read a DER certificate; None for what is none, or is none that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities, of which old certificates have many
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
        return "this machine can't"
    try:
        with connector.secured(context, None) as connection:
            _speak(connector, connection)
    except OutOfTime:
        raise
    except (CheckFailed, OSError) as failure:
        return str(failure)
    return ""


def _speak(connector: Connector, connection: SmtpConnection) -> ProbeReply:
    """Make sure that the server goes on inside TLS."""
    if connector.is_implicit:
        connector.greeting(connection)
    return connector.say_hello(connection)


def _fit(connector: Connector, found: TlsFindings) -> None:
    """Find the strictest settings with which the proxy's own handshake succeeds."""
    name = _name_to_ask_for(found.certificate)
    newest = max(found.working)
    for minimum in [each for each in ("1.2", "1.1", "1.0") if each <= newest]:
        for candidate in _candidates(connector, minimum, name):
            try:
                _try(connector, candidate)
            except HandshakeFailed as failure:
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
    name = backend.server_name or connector.address.host or "localhost"  # as the proxy has it
    with connector.secured(contexts.for_backend(backend), name) as connection:
        _speak(connector, connection)


def _name_to_ask_for(certificate: CertificateFindings | None) -> str:
    """Return a host name that the certificate is for, if there is one."""
    names = certificate.names if certificate else ()
    return next((name for name in names if _is_host_name(name)), "")


def _is_host_name(name: str) -> bool:
    letters = name.replace("-", "").replace(".", "")
    return "." in name and letters.isascii() and letters.isalnum() and not name[-1:].isdigit()


def _obeys_what_was_injected(connector: Connector) -> bool:
    """Send NOOP in the segment of STARTTLS, and see whether it is answered inside TLS."""
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
