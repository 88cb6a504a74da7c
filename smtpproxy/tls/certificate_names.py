"""What a certificate says of itself; in a file of its own, for it takes 11 MiB to load."""

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

_NO_NAMES = (
    *(ValueError, x509.InvalidVersion, x509.UnsupportedGeneralNameType),
    *(x509.ExtensionNotFound, x509.DuplicateExtension),
)


def names_in(path: str) -> Iterator[str]:
    """Yield those of the first certificate in a PEM file, in lower case; `*.` and the rest, too.

    None for one that cannot be read: OpenSSL takes it all the same.
    """
    try:
        leaf = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        yield from (name.lower() for name in names.get_values_for_type(x509.DNSName))
    except _NO_NAMES:
        return


def validity(pem: bytes) -> tuple[float, float] | None:
    """Return from when on and until when the first certificate of a PEM file is valid.

    Seconds since 1970; None for one that cannot be read.
    """
    try:
        leaf = x509.load_pem_x509_certificates(pem)[0]
    except _NO_NAMES:
        return None
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
