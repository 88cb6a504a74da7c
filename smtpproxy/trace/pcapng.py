"""Exports sessions as a capture file: both connections as TCP streams, for Wireshark.

The bytes are those inside TLS, if there was any.  The packets are not those of the wire: one is
made for each group that was recorded.  Format: draft-ietf-opsawg-pcapng.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import groupby

from smtpproxy.log.verb_name import END_OF_DATA
from smtpproxy.text.escaping import octets_of
from smtpproxy.trace.reader import RecordedSession
from smtpproxy.trace.records import (
    Closed,
    Connected,
    Exchanged,
    Opened,
    Record,
    Step,
    announced_bytes,
    is_content_chunk,
)

RAW_IP = 101
"""The link type LINKTYPE_RAW: packets begin with their IP header."""
SEGMENT_OCTETS = 16384
"""The most payload of one TCP segment."""
SMTP_PORTS = (25, 587)
FILLER_OCTETS = 16 * 1024 * 1024
"""The most filler for BDAT payload that was not recorded, in all chunks together."""
SESSIONS = 10_000
"""The most open sessions; beyond it, the oldest are left out from then on."""
CONTENT = (END_OF_DATA, "BDAT")
"""Exchanges that have content or a payload."""
COMMENT = (
    "Made from a trace of smtpproxy. Server ports that are not those of SMTP are shown as 25; "
    "ends that are Unix sockets, as 127.0.0.1."
)
SYN, ACK, PSH, FIN = 2, 16, 8, 1
SEQUENCE_STEP = 1_000_003
"""Between the first sequence numbers of two sessions: Wireshark takes a SYN with that of an earlier
connection of the same addresses for a retransmission."""
UNIX_PORT, UNIX_PORTS = 40000, 20000
"""The first of the ports for ends that are Unix sockets, and how many there are."""
Address = IPv4Address | IPv6Address


@dataclass(slots=True)
class StreamEnd:
    """One end of a connection."""

    address: Address
    """Its IP address."""
    port: int
    """Its TCP port."""
    sequence: int
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


def capture(*sessions: RecordedSession) -> bytes:
    """Return the capture file of sessions, packets in order of time.

    Those without a connection to a server are left out.

    Raises:
        ValueError: None has one.
    """
    made = Capture(FILLER_OCTETS // max(1, len(sessions)))
    packets = made.packets(record for session in sessions for record in session.records)
    if not packets:
        raise ValueError(
            "the session has no connection to a server, so there is nothing to capture"
            if len(sessions) == 1
            else "no session has a connection to a server, so there is nothing to capture"
        )
    return head() + packets


class Capture:
    """Makes the packets of sessions, whose records may come in several parts.

    A session without its first records is left out.

    Args:
        filler: The most filler of one session for payload that was not recorded, in octets.
    """

    def __init__(self, filler: int = FILLER_OCTETS) -> None:
        self._filler = filler
        self._opened: dict[str, float] = {}  # the time, of those without a server
        self._legs: dict[str, _Legs] = {}
        self._count = 0

    def packets(self, records: Iterable[Record]) -> bytes:
        """Return the packets of more records, in order of time.

        The commands of a group become one packet if their records come together.
        """
        parts: dict[str, list[Record]] = {}
        for record in records:
            parts.setdefault(record.session, []).append(record)
        found: list[tuple[float, float, bytes]] = []
        for session, part in parts.items():
            latest = 0.0  # the order within a session is kept, whatever its times are
            for at, packet in self._packets_of(session, part):
                latest = max(latest, at)
                found.append((latest, at, packet))
        found.sort(key=lambda each: each[0])
        return b"".join(_enhanced_packet(at, packet) for _, at, packet in found)

    def _packets_of(self, session: str, records: list[Record]) -> Iterator[tuple[float, bytes]]:
        exchanges: list[Exchanged] = []
        for record in records:
            if isinstance(record, Exchanged):
                exchanges.append(record)
                continue
            yield from self._exchange_packets(session, exchanges)
            exchanges = []
            match record:
                case Opened():
                    self._opened[session] = record.at
                case Connected() if session in self._legs:
                    yield from self._legs[session].connect_to_another(record)
                case Connected():
                    self._count += 1
                    began = self._opened.pop(session, record.at)
                    legs = self._legs[session] = _Legs(began, record, self._count, self._filler)
                    yield from legs.opening(record.at)
                case Closed():
                    self._opened.pop(session, None)
                    if session in self._legs:
                        yield from self._legs.pop(session).closing(record.at)
        yield from self._exchange_packets(session, exchanges)
        for known in (self._opened, self._legs):  # the end of some may not have been recorded
            if len(known) > SESSIONS:
                del known[next(iter(known))]

    def _exchange_packets(
        self, session: str, exchanges: list[Exchanged]
    ) -> Iterator[tuple[float, bytes]]:
        if exchanges and session in self._legs:
            yield from self._legs[session].exchange_packets(exchanges)


class _Legs:
    """The two connections of a session.

    Args:
        began: When the client connected.
        ends: The addresses.
        number: Its number, by which Wireshark distinguishes sessions of equal addresses.
        filler: The most filler for payload that was not recorded, in octets.
    """

    def __init__(self, began: float, ends: Connected, number: int, filler: int) -> None:
        self._began = began
        self._number = number
        self._filler = filler
        self._outer = self._stream(ends.client_address, ends.listener_address)
        self._inner = self._stream(ends.proxy_address, ends.server_address)

    def _stream(self, client: str, server: str) -> Stream:
        return Stream(_end(client, self._number), _end(server, self._number, server=True))

    def opening(self, at: float) -> Iterator[tuple[float, bytes]]:
        """Yield the handshakes of both connections; that to the server was made at `at`."""
        yield from _opening(self._outer, self._began)
        yield from _opening(self._inner, at)

    def connect_to_another(self, ends: Connected) -> Iterator[tuple[float, bytes]]:
        """Yield the end of the connection to a server, and the handshake with the next one."""
        yield from _closing(self._inner, ends.at)
        self._inner = self._stream(ends.proxy_address, ends.server_address)
        yield from _opening(self._inner, ends.at)

    def exchange_packets(self, exchanges: Sequence[Exchanged]) -> Iterator[tuple[float, bytes]]:
        """Yield the packets of exchanges."""
        chunks = [each for each in exchanges if each.verb == "BDAT"]
        room = self._filler // max(1, len(chunks))
        partly = [each for each in chunks if each.content_cut or not each.content]
        self._filler -= sum(min(announced_bytes(each), room) for each in partly)
        for at, inside, from_client, octets in sorted(
            _payloads(exchanges, room), key=lambda said: said[0]
        ):
            stream = self._inner if inside else self._outer
            for start in range(0, len(octets), SEGMENT_OCTETS):
                part = octets[start : start + SEGMENT_OCTETS]
                yield at, stream.packet(from_client=from_client, flags=PSH | ACK, octets=part)

    def closing(self, at: float) -> Iterator[tuple[float, bytes]]:
        """Yield the end of both connections."""
        yield from _closing(self._inner, at)
        yield from _closing(self._outer, at)


def _opening(stream: Stream, at: float) -> Iterator[tuple[float, bytes]]:
    yield at, stream.packet(from_client=True, flags=SYN)
    yield at, stream.packet(from_client=False, flags=SYN | ACK)
    yield at, stream.packet(from_client=True, flags=ACK)


def _closing(stream: Stream, at: float) -> Iterator[tuple[float, bytes]]:
    yield at, stream.packet(from_client=False, flags=FIN | ACK)
    yield at, stream.packet(from_client=True, flags=FIN | ACK)
    yield at, stream.packet(from_client=False, flags=ACK)


def _payloads(
    exchanges: Sequence[Exchanged], room: int = FILLER_OCTETS
) -> Iterator[tuple[float, bool, bool, bytes]]:
    """Yield what each side sent: time, connection, direction and octets.

    The connection is True for the one to the MTA, the direction True for what its client sent.
    """
    asked = [each for each in exchanges if each.verb not in {"greeting", "unsolicited"}]
    for framed, group in groupby(asked, lambda each: each.framed):
        yield framed, False, True, b"".join(client_octets(each, room) for each in group)
    for each in exchanges:
        for step in each.steps:
            yield step.sent, True, True, _step_octets(each, step, room)
            if step.replied:
                yield step.replied, True, False, octets_of(step.reply) + b"\r\n"
        if is_content_chunk(each):
            yield each.replied, True, True, _payload_octets(each, room)
        if each.steps:
            continue
        if each.sent:
            yield each.sent, True, True, command_octets(each, room)
        if each.replied and (each.sent or each.verb in {"greeting", "unsolicited"}):
            yield each.replied, True, False, octets_of(each.reply) + b"\r\n"
    answered = [each for each in exchanges if each.flushed]
    for flushed, replies in groupby(answered, lambda each: each.flushed):
        yield flushed, False, False, b"".join(octets_of(e.reply) + b"\r\n" for e in replies)


def client_octets(exchange: Exchanged, room: int = FILLER_OCTETS) -> bytes:
    """Return what the client sent for an exchange, where that is known; see `command_octets`."""
    if exchange.content_received:
        line = octets_of(exchange.command) + b"\r\n" if exchange.command else b""  # of BDAT
        return line + octets_of(exchange.content_received)
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
    if exchange.verb == "BDAT":
        return line + _payload_octets(exchange, room)
    content = octets_of(exchange.content)
    if content and not exchange.content_cut:
        return content
    end = content.rfind(b"\n") + 1
    note = b"[%d bytes of content, of which %d were recorded]\r\n" % (exchange.content_bytes, end)
    return content[:end] + note + b".\r\n"


def _payload_octets(exchange: Exchanged, room: int) -> bytes:
    """Return the payload of BDAT as sent to the backend, filled up if it was not recorded."""
    content = octets_of(exchange.content)
    if content and not exchange.content_cut:
        return content
    size = min(announced_bytes(exchange), max(len(content), room))
    return content.ljust(size, b"-")[:size]


def _step_octets(exchange: Exchanged, step: Step, room: int) -> bytes:
    """Return what was sent to the backend in a step."""
    if exchange.verb == "BDAT" and step.command == ".":
        return _payload_octets(exchange, room) + b".\r\n"
    if exchange.verb in CONTENT and step.command == exchange.command:
        return command_octets(exchange, room)
    return octets_of(step.command) + b"\r\n"


def _end(name: str, number: int = 0, *, server: bool = False) -> StreamEnd:
    host, _, given = name.rpartition(":")
    try:
        address, port = ip_address(host.strip("[]").partition("%")[0]), int(given)
    except ValueError:  # a Unix socket
        address, port = ip_address("127.0.0.1"), UNIX_PORT + number % UNIX_PORTS
    if not 0 <= port <= 65535:
        port = UNIX_PORT
    if server and port not in SMTP_PORTS:
        port = 25
    return StreamEnd(address, port, 1000 + number * SEQUENCE_STEP & 0xFFFFFFFF)


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


def head() -> bytes:
    """Return the blocks before the packets."""
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
