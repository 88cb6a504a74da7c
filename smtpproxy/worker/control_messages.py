"""The messages of the control channel between the supervisor and a worker.

Each worker has a socket pair; each message is one line of JSON.  First the supervisor sends file
descriptors, then `Start`.  No later message is answered.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

from smtpproxy.config.fault_flag import NO_FAULTS, Faults
from smtpproxy.config.schema import Settings
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.trace.watch import WatchRequest
from smtpproxy.worker.certificate_snapshot import Files

LINE_BYTES = 64 * 1024 * 1024
"""The limit of a message: settings with certificates, or a snapshot with sessions."""
_MOST_DESCRIPTORS = 250
"""The number of descriptors in one send; the limit of Linux is 253."""


class Start(Struct, tag=True):
    """To a worker: its settings; sent once, after the descriptors.

    The descriptors are that of the shared counters, then those of each listener.
    """

    settings: Settings
    files: Files
    """The certificate files that the settings name."""
    sockets: list[int]
    """The number of sockets of each listener, in the order of the settings."""
    row: int
    """The row of the shared counters that this worker writes."""
    faults: Faults = NO_FAULTS
    """The faults to inject."""


class Retire(Struct, tag=True):
    """To a worker: accept no more clients, and end when all sessions have ended."""


class Drain(Struct, tag=True):
    """To a worker: accept no more clients, and end each session with its transaction."""


class Stop(Struct, tag=True):
    """To a worker: end at once."""


class Granted(Struct, tag=True):
    """To a worker: whether a session gets the connection slot that it requested."""

    ticket: int
    granted: bool


class Reclaim(Struct, tag=True):
    """To a worker: a session should release its connection slot for another client."""

    ticket: int


class Health(Struct, tag=True):
    """Both ways: a server went down or came up."""

    backend: str
    server: str
    up: bool
    reason: str = ""
    """Why, for the log."""
    alone_s: float = 0.0
    """How many seconds at least a server that is down is left alone; to a worker."""


class Look(Struct, tag=True):
    """To a worker: the live page is open, so include sessions in snapshots for a few seconds."""

    full: bool = False
    """Whether to include all sessions once, not only those that changed."""


class Watch(Struct, tag=True):
    """To a worker: record sessions for a client of the control socket, until `Unwatch`."""

    number: int
    """The number of the watch, of this supervisor."""
    request: WatchRequest


class Unwatch(Struct, tag=True):
    """To a worker: a watch has ended."""

    number: int


class Ready(Struct, tag=True):
    """From a worker: it accepts clients."""


class Retired(Struct, tag=True):
    """From a worker: it accepts no more clients."""


class Beat(Struct, tag=True):
    """From a worker, once a second: it is alive, and these are its metrics."""

    snapshot: MetricsSnapshot


class Ask(Struct, tag=True):
    """From a worker: a session requests a connection slot of a backend."""

    backend: str
    ticket: int
    address: bytes
    """The client's address."""


class Leave(Struct, tag=True):
    """From a worker: a session releases its connection slot, or cancels its request."""

    backend: str
    ticket: int


class Watched(Struct, tag=True):
    """From a worker: records of a watch; none when it begins."""

    watch: int
    """Its number."""
    records: Sequence[Raw]
    lost: int
    """How many could not be sent since the last such message."""


ToWorker = Start | Retire | Drain | Stop | Granted | Reclaim | Health | Look | Watch | Unwatch
FromWorker = Ready | Retired | Beat | Ask | Leave | Health | Watched

encode_line: Callable[[object], bytes] = msgspec.json.Encoder().encode
_to_worker = msgspec.json.Decoder(ToWorker)
_from_worker = msgspec.json.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """Return a message as it is sent: a line of JSON with its LF."""
    return encode_line(message) + b"\n"


class MessageReader:
    """Splits the channel's data into messages.

    Both methods raise `msgspec.DecodeError` for an invalid or too long message.
    """

    def __init__(self) -> None:
        self._unread = bytearray()

    def to_worker(self, octets: bytes) -> Iterator[ToWorker]:
        """Process data from the supervisor, and return the complete messages."""
        return map(_to_worker.decode, self._split(octets))

    def from_worker(self, octets: bytes) -> Iterator[FromWorker]:
        """Process data from a worker, and return the complete messages."""
        return map(_from_worker.decode, self._split(octets))

    def _split(self, octets: bytes) -> list[bytes]:
        *lines, rest = octets.split(b"\n")
        if lines:
            lines[0] = bytes(self._unread) + lines[0]
            self._unread.clear()
        self._unread += rest
        if len(self._unread) > LINE_BYTES:
            self._unread.clear()
            raise msgspec.DecodeError("a line of the control channel is too long")
        return lines


def send_descriptors(channel: socket.socket, descriptors: Sequence[int]) -> None:
    """Send descriptors to a worker, before any message; a closed channel is ignored."""
    with contextlib.suppress(ConnectionError):
        for begin in range(0, len(descriptors), _MOST_DESCRIPTORS):
            piece = descriptors[begin : begin + _MOST_DESCRIPTORS]
            last = begin + len(piece) == len(descriptors)
            socket.send_fds(channel, [b"." if last else b","], piece)


def take_descriptors(channel: socket.socket) -> list[int]:
    """Wait for the descriptors from `send_descriptors`; incomplete if the supervisor has ended."""
    found: list[int] = []
    while True:
        octets, descriptors, _, _ = socket.recv_fds(channel, 1, _MOST_DESCRIPTORS)
        found += descriptors
        if octets != b",":
            return found
