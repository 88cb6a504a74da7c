"""Exports a session as a capture file: both connections as TCP streams, for Wireshark.

The bytes are those inside TLS, if there was any.  The packets are not those of the wire: one is
made for each group that was recorded.  Format: draft-ietf-opsawg-pcapng.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import groupby

from smtpproxy.log.verb_name import END_OF_DATA
from smtpproxy.text.escaping import octets_of
from smtpproxy.trace.reader import RecordedSession
from smtpproxy.trace.records import Exchanged

RAW_IP = 101
SEGMENT_OCTETS = 16384
SMTP_PORTS = (25, 587)
FILLER_OCTETS = 16 * 1024 * 1024
"""The most filler for BDAT payload that was not recorded, in all chunks together."""
CONTENT = (END_OF_DATA, "BDAT")
"""Exchanges that have content or a payload."""
COMMENT = (
    "Made from a trace of smtpproxy. Server ports that are not those of SMTP are shown as 25; "
    "ends that are Unix sockets, as 127.0.0.1."
)
SYN, ACK, PSH, FIN = 2, 16, 8, 1
Address = IPv4Address | IPv6Address


@dataclass(slots=True)
class StreamEnd:
    """One end of a connection."""

    address: Address
    """Its IP address."""
    port: int
    """Its TCP port."""
    sequence: int = 1000
    """The sequence number of the next octet that it sends."""


@dataclass(slots=True)
class Stream:
    """A connection whose packets are made."""

    client: StreamEnd
    server: StreamEnd

    def packet(self, *, from_client: bool, flags: int, octets: bytes = b"") -> bytes:
        """Return the next packet."""
        source, target = (self.client, self.server) if from_client else (self.server, self.client)
        acknowledged = target.sequence if flags & ACK else 0
        header = struct.pack(
            "!HHIIBBHHH",
            *(source.port, target.port, source.sequence, acknowledged, 5 << 4, flags, 65535, 0, 0),
        )
        source.sequence += len(octets) + bool(flags & (SYN | FIN))
        source.sequence &= 0xFFFFFFFF
        return _ip(source.address, target.address, header + octets)


def capture(session: RecordedSession) -> bytes:
    """Return the capture file of a session.

    Raises:
        ValueError: The session has no connection to a server.
    """
    ends = session.connected
    if ends is None:
        raise ValueError(
            "the session has no connection to a server, so there is nothing to capture"
        )
    outer = Stream(_end(ends.client_address), _end(ends.listener_address, server=True))
    inner = Stream(_end(ends.proxy_address), _end(ends.server_address, server=True))
    packets: list[tuple[float, bytes]] = []
    packets += _opening(outer, session.began)
    packets += _opening(inner, ends.at)
    for at, inside, from_client, octets in sorted(_said(session), key=lambda said: said[0]):
        stream = inner if inside else outer
        for start in range(0, len(octets), SEGMENT_OCTETS):
            part = octets[start : start + SEGMENT_OCTETS]
            packets.append(
                (at, stream.packet(from_client=from_client, flags=PSH | ACK, octets=part))
            )
    end = session.closed.at if session.closed else packets[-1][0]
    for stream in (inner, outer):
        packets.append((end, stream.packet(from_client=False, flags=FIN | ACK)))
        packets.append((end, stream.packet(from_client=True, flags=FIN | ACK)))
        packets.append((end, stream.packet(from_client=False, flags=ACK)))
    return _head() + b"".join(_enhanced_packet(at, packet) for at, packet in packets)


def _opening(stream: Stream, at: float) -> Iterator[tuple[float, bytes]]:
    yield at, stream.packet(from_client=True, flags=SYN)
    yield at, stream.packet(from_client=False, flags=SYN | ACK)
    yield at, stream.packet(from_client=True, flags=ACK)


def _said(session: RecordedSession) -> Iterator[tuple[float, bool, bool, bytes]]:
    """Yield time, on the inner connection, from the client of that connection, octets."""
    chunks = sum(each.verb == "BDAT" for each in session.exchanges)
    room = FILLER_OCTETS // max(1, chunks)
    asked = [each for each in session.exchanges if each.verb not in {"greeting", "unsolicited"}]
    for framed, group in groupby(asked, lambda each: each.framed):
        yield framed, False, True, b"".join(client_octets(each, room) for each in group)
    for each in session.exchanges:
        for step in each.steps:
            line = octets_of(step.command) + b"\r\n"
            sent = command_octets(each, room) if each.verb in CONTENT else line
            yield step.sent, True, True, sent
            if step.replied:
                yield step.replied, True, False, octets_of(step.reply) + b"\r\n"
        if each.steps:
            continue
        if each.sent:
            yield each.sent, True, True, command_octets(each, room)
        if each.replied and (each.sent or each.verb in {"greeting", "unsolicited"}):
            yield each.replied, True, False, octets_of(each.reply) + b"\r\n"
    answered = [each for each in session.exchanges if each.flushed]
    for flushed, replies in groupby(answered, lambda each: each.flushed):
        yield flushed, False, False, b"".join(octets_of(e.reply) + b"\r\n" for e in replies)


def client_octets(exchange: Exchanged, room: int = FILLER_OCTETS) -> bytes:
    """Return what the client sent for an exchange, where that is known; see `command_octets`."""
    if exchange.content_received:
        return octets_of(exchange.content_received)
    octets = command_octets(exchange, room)
    if exchange.bare_lf:
        line = octets_of(exchange.command)
        return line + b"\n" + octets[len(line) + 2 :]
    if not octets and exchange.violation is not None and exchange.violation.side == "client":
        return octets_of(exchange.violation.bytes)
    return octets


def command_octets(exchange: Exchanged, room: int = FILLER_OCTETS) -> bytes:
    """Return what was sent to the backend.

    For content that was not recorded, a line gives its size.  Payload of BDAT is filled up, so that
    Wireshark finds the next command after it.

    Args:
        exchange: The exchange.
        room: How many octets payload is filled up to at most.
    """
    line = octets_of(exchange.command) + b"\r\n" if exchange.command else b""
    if exchange.verb not in CONTENT:
        return line
    content = octets_of(exchange.content)
    if exchange.verb == "BDAT":
        size = min(exchange.content_bytes, max(len(content), room))
        return line + content.ljust(size, b"-")[:size]
    if content and not exchange.content_cut:
        return content
    end = content.rfind(b"\n") + 1
    note = b"[%d bytes of content, of which %d were recorded]\r\n" % (exchange.content_bytes, end)
    return content[:end] + note + b".\r\n"


def _end(name: str, *, server: bool = False) -> StreamEnd:
    host, _, port = name.rpartition(":")
    try:
        address, number = ip_address(host.strip("[]").partition("%")[0]), int(port)
    except ValueError:  # a Unix socket
        address, number = ip_address("127.0.0.1"), 40000
    if not 0 <= number <= 65535:
        number = 40000
    if server and number not in SMTP_PORTS:
        number = 25
    return StreamEnd(address, number)


def _ip(source: Address, target: Address, segment: bytes) -> bytes:
    if source.version != target.version:  # a Unix socket on one side
        source = target = IPv4Address("127.0.0.1")
    pseudo = source.packed + target.packed + struct.pack("!HH", 6, len(segment))
    checksum = _checksum(pseudo + segment)
    segment = segment[:16] + struct.pack("!H", checksum) + segment[18:]
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(segment), 6, 64)
        return head + source.packed + target.packed + segment
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0x4000, 64, 6, 0)
    head += source.packed + target.packed
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + segment


def _checksum(octets: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    octets += b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _head() -> bytes:
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(1, COMMENT.encode())
    interface = struct.pack("<HHI", RAW_IP, 0, 0) + _option(9, b"\x06")
    return _block(0x0A0D0D0A, section + _option(0, b"")) + _block(1, interface + _option(0, b""))


def _enhanced_packet(at: float, packet: bytes) -> bytes:
    time = int(at * 1e6)
    head = struct.pack("<IIIII", 0, time >> 32, time & 0xFFFFFFFF, len(packet), len(packet))
    return _block(6, head + _padded(packet))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(octets: bytes) -> bytes:
    return octets + b"\0" * (-len(octets) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length
