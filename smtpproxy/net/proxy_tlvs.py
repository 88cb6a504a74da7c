"""The TLVs of a PROXY header of version 2: what it says about a client besides the addresses.

They are part of a header whose content is trusted (HAProxy's proxy-protocol.txt, section 2.2).
What comes in is shown in the log as the word of the proxy in front, never as the TLS of this one.
"""

import ssl
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from smtpproxy.text.escaping import shortened
from smtpproxy.tls.client_transport import ServerObject

TLV_LIMIT = 64
"""The most TLVs in a header, those inside another one counted."""
AUTHORITY_LIMIT = 255
"""The most octets of an authority, which is a host name."""
UNIQUE_ID_LIMIT = 128
"""The most octets of a unique id (section 2.2.5)."""
SHOWN_BYTES = 255
"""The most bytes of one value that are logged."""

AUTHORITY, CRC32C, UNIQUE_ID, SSL = 0x02, 0x03, 0x05, 0x20
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23
CLIENT_SSL = 0x01
"""The flag that the client has connected over TLS."""
_CERTIFICATE = 0x06  # the client has shown one in this connection, or in an earlier one
NOT_VERIFIED = 1
_HEAD = struct.Struct("!BH")
_SSL_HEAD = struct.Struct("!BI")
_SUM_SIZE = 4


class BadTlvs(Exception):
    """The TLVs are not valid."""


class WrongChecksum(BadTlvs):
    """The header was damaged on its way, and so its command and addresses may be wrong."""


@dataclass(frozen=True, slots=True)
class SslTlv:
    """A client's TLS, or that it has none."""

    client: int
    """The flags, `CLIENT_SSL` among them."""
    verify: int = NOT_VERIFIED
    """0 if the client has shown a certificate that was verified."""
    version: bytes = b""
    """The version of TLS, such as `TLSv1.3`."""
    cn: bytes = b""
    """The common name of the client's certificate, mostly in UTF-8."""
    cipher: bytes = b""
    """The cipher suite."""


@dataclass(frozen=True, slots=True)
class ProxyTlvs:
    """What a header says about a client besides the addresses."""

    authority: bytes = b""
    """The host name that the client asked for (SNI), in UTF-8; empty if not known."""
    ssl: SslTlv | None = None
    """The client's TLS; None if not known."""
    unique_id: bytes = b""
    """The id of the connection in the log of the proxy in front; empty if not known."""

    def shown(self) -> dict[str, str]:
        """Return the fields of the log, escaped and cut; those without a value are left out.

        The name of a certificate that the proxy in front did not verify proves nothing, and is
        left out, too.
        """
        values = {"forwarded_authority": self.authority, "forwarded_unique_id": self.unique_id}
        tls = self.ssl
        if tls is not None and tls.client & CLIENT_SSL:
            values["forwarded_tls"] = b" ".join(filter(None, (tls.version, tls.cipher)))
            if tls.client & _CERTIFICATE and not tls.verify:
                values["forwarded_cn"] = tls.cn
        return {name: shortened(value, SHOWN_BYTES) for name, value in values.items() if value}


def read_tlvs(header: bytes, begin: int) -> ProxyTlvs | None:
    """Read the TLVs of a header, from `begin` to its end; None if none of them is used here.

    Raises:
        WrongChecksum: The header does not match its checksum.
        BadTlvs: A TLV is malformed.
    """
    found = list(_split(header, begin, TLV_LIMIT))
    _check_sum(header, found)
    values = _values(header, found, (AUTHORITY, UNIQUE_ID, SSL))
    authority, unique_id = values.get(AUTHORITY, b""), values.get(UNIQUE_ID, b"")
    if len(authority) > AUTHORITY_LIMIT or not _is_utf8(authority):
        raise BadTlvs("invalid authority")
    if len(unique_id) > UNIQUE_ID_LIMIT:
        raise BadTlvs("unique id too long")
    tls = _read_ssl(values[SSL], TLV_LIMIT - len(found)) if SSL in values else None
    return ProxyTlvs(authority, tls, unique_id) if authority or unique_id or tls else None


def tlvs_for_backend(
    front: ProxyTlvs | None, inside: ssl.SSLObject | None, session: str
) -> ProxyTlvs:
    """Return what is passed on about a client.

    The proxy in front knows better than this one: it may have ended the client's TLS, and its own
    TLS with this proxy is not the client's.

    Args:
        front: What the header of a proxy in front says; None if there was none.
        inside: The client's TLS with this proxy; None if there is none, or it is not the client's.
        session: The session's id, for a client that has no unique id yet.
    """
    front = front or ProxyTlvs()
    authority, tls = front.authority, front.ssl
    if isinstance(inside, ServerObject) and tls is None:
        authority = authority or inside.asked_for.encode()
        tls = _tls_of(inside)
    return ProxyTlvs(authority, tls, front.unique_id or session.encode())


def _tls_of(inside: ssl.SSLObject) -> SslTlv:
    version, cipher = inside.version(), inside.cipher()
    # No certificate of a client is verified here, so there is no name of one.
    return SslTlv(
        CLIENT_SSL,
        version=version.encode() if version else b"",
        cipher=cipher[0].encode() if cipher else b"",
    )


def make_tlvs(tlvs: ProxyTlvs | None, room: int) -> bytes:
    """Return the TLVs of a header, without its checksum.

    One that does not fit is left out, the least important first: the client's TLS stays longest.

    Args:
        tlvs: What the header says.
        room: The most octets.
    """
    made = b""
    for each in _made(tlvs or ProxyTlvs()):
        if len(made) + len(each) <= room:
            made += each
    return made


def summed(header: bytes) -> bytes:
    """Return a header with its checksum in place of four zeros at its end."""
    return header[:-_SUM_SIZE] + _crc32c(header).to_bytes(_SUM_SIZE, "big")


NO_SUM = _HEAD.pack(CRC32C, _SUM_SIZE) + bytes(_SUM_SIZE)
"""The TLV of a checksum that is still to be made by `summed`."""


def _read_ssl(value: bytes, most: int) -> SslTlv:
    if len(value) < _SSL_HEAD.size:
        raise BadTlvs("malformed TLV")
    found = _split(value, _SSL_HEAD.size, most)
    values = _values(value, found, (SSL_VERSION, SSL_CN, SSL_CIPHER))
    texts = [values.get(kind, b"") for kind in (SSL_VERSION, SSL_CN, SSL_CIPHER)]
    return SslTlv(*_SSL_HEAD.unpack_from(value), *texts)


def _made(tlvs: ProxyTlvs) -> Iterator[bytes]:
    tls = tlvs.ssl
    if tls is not None:
        inside = ((SSL_VERSION, tls.version), (SSL_CN, tls.cn), (SSL_CIPHER, tls.cipher))
        texts = b"".join(_tlv(kind, value) for kind, value in inside if value)
        yield _tlv(SSL, _SSL_HEAD.pack(tls.client, tls.verify) + texts)
    for kind, value in ((UNIQUE_ID, tlvs.unique_id), (AUTHORITY, tlvs.authority)):
        if value:
            yield _tlv(kind, value)


def _tlv(kind: int, value: bytes) -> bytes:
    return _HEAD.pack(kind, len(value)) + value


_Found = tuple[int, int, int]  # the type of a TLV, where its value is, and its size


def _split(octets: bytes, at: int, most: int) -> Iterator[_Found]:
    """Yield each TLV up to the end."""
    while at < len(octets):
        if most == 0:
            raise BadTlvs("too many TLVs")
        if len(octets) - at < _HEAD.size:
            raise BadTlvs("malformed TLV")
        kind, size = _HEAD.unpack_from(octets, at)
        at += _HEAD.size
        if size > len(octets) - at:
            raise BadTlvs("malformed TLV")
        yield kind, at, size
        at, most = at + size, most - 1


def _values(octets: bytes, found: Iterable[_Found], kinds: Collection[int]) -> dict[int, bytes]:
    """Return the value of each TLV of these types, none of which may be repeated."""
    values: dict[int, bytes] = {}
    for kind, at, size in found:
        if kind in values:
            raise BadTlvs("repeated TLV")
        if kind in kinds:
            values[kind] = octets[at : at + size]
    return values


def _check_sum(header: bytes, found: Iterable[_Found]) -> None:
    """Refuse a header that does not match its checksum (section 2.2.3)."""
    sums = [(at, size) for kind, at, size in found if kind == CRC32C]
    if not sums:
        return
    at, size = sums[0]
    if len(sums) > 1 or size != _SUM_SIZE:
        raise BadTlvs("malformed TLV")
    end = at + size
    if _crc32c(header[:at] + bytes(size) + header[end:]) != int.from_bytes(header[at:end], "big"):
        raise WrongChecksum("wrong checksum")


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def _crc32c(octets: bytes) -> int:
    """Return the checksum of RFC 4960 appendix B."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = _CRC_TABLE[(crc ^ octet) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_row(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc


_CRC_TABLE = tuple(map(_crc_row, range(256)))
