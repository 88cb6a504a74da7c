"""Reads names, validity and keys of certificates; imported if needed, since it takes 11 MiB."""

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

_NO_NAMES = (
    *(ValueError, x509.InvalidVersion, x509.UnsupportedGeneralNameType),
    *(x509.ExtensionNotFound, x509.DuplicateExtension),
)


def names_in(path: str) -> Iterator[str]:
    """Yield the DNS names of the first certificate in a PEM file.

    Names are in lower case and may be wildcards (`*.example.org`).  A certificate that cannot be
    parsed yields none, since OpenSSL may accept it all the same.
    """
    try:
        leaf = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        yield from (name.lower() for name in names.get_values_for_type(x509.DNSName))
    except _NO_NAMES:
        return


def has_ecdsa_key(path: str) -> bool:
    """Return whether the key of the first certificate in a PEM file is for ECDSA."""
    try:
        leaf = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
        return isinstance(leaf.public_key(), EllipticCurvePublicKey)
    except (*_NO_NAMES, UnsupportedAlgorithm):
        return False


def validity(pem: bytes) -> tuple[float, float] | None:
    """Return the start and end of validity of the first certificate in PEM data.

    Returns:
        Both in seconds since 1970; None for a certificate that cannot be parsed.
    """
    try:
        leaf = x509.load_pem_x509_certificates(pem)[0]
    except _NO_NAMES:
        return None
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
