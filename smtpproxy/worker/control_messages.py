"""The control channel: what the supervisor and a worker say to one another.

A socket pair for each worker; each message is one line of JSON.  First the supervisor sends the
descriptors that the worker is to have, then `Start`; all that follows is told without waiting for
an answer.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import Struct

from smtpproxy.config.schema import Settings
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.worker.certificate_snapshot import Files

LINE_BYTES = 64 * 1024 * 1024
"""No message is longer: settings with their certificates, or a second's figures with sessions."""
_MOST_DESCRIPTORS = 250
"""So many go in one piece; Linux takes 253."""


class Start(Struct, tag=True):
    """To a worker: what it is to be.

    files: the certificate files that the settings name.
    sockets: for each listener of the settings, how many sockets it has; the descriptors sent before
    are that of the shared counters, then those of each listener.
    row: of the shared counters, that this worker writes.
    """

    settings: Settings
    files: Files
    sockets: list[int]
    row: int


class Retire(Struct, tag=True):
    """To a worker: accept nobody any more, and end when the sessions have."""


class Drain(Struct, tag=True):
    """To a worker: accept nobody any more, and let the sessions end with their transactions."""


class Stop(Struct, tag=True):
    """To a worker: end at once."""


class Granted(Struct, tag=True):
    """To a worker: whether a session that asked for a place at a backend has got it."""

    ticket: int
    granted: bool


class Reclaim(Struct, tag=True):
    """To a worker: a session that has a place at a backend is to make room for another one."""

    ticket: int


class Health(Struct, tag=True):
    """Both ways: a server is down, or up again; `reason` is for the log."""

    backend: str
    server: str
    up: bool
    reason: str = ""


class Look(Struct, tag=True):
    """To a worker: somebody looks at the live page, so for a few seconds tell of sessions.

    anew: of all that are known, not only of those that change.
    """

    anew: bool = False


class Ready(Struct, tag=True):
    """From a worker: it accepts clients."""


class Retired(Struct, tag=True):
    """From a worker: it accepts nobody any more."""


class Beat(Struct, tag=True):
    """From a worker, once a second: it lives, and these are its figures."""

    snapshot: MetricsSnapshot


class Ask(Struct, tag=True):
    """From a worker: a session wants a place at a backend, for a client of this address."""

    backend: str
    ticket: int
    address: bytes


class Leave(Struct, tag=True):
    """From a worker: a session gives its place back, or waits for one no more."""

    backend: str
    ticket: int


ToWorker = Start | Retire | Drain | Stop | Granted | Reclaim | Health | Look
FromWorker = Ready | Retired | Beat | Ask | Leave | Health

encode_line: Callable[[object], bytes] = msgspec.json.Encoder().encode
_to_worker = msgspec.json.Decoder(ToWorker)
_from_worker = msgspec.json.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """Return a message as it goes over the channel."""
    return encode_line(message) + b"\n"


class MessageReader:
    """Octets of the channel become messages."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def to_worker(self, octets: bytes) -> Iterator[ToWorker]:
        """Take octets that the supervisor has sent; yield the messages that are complete."""
        return map(_to_worker.decode, self._split(octets))

    def from_worker(self, octets: bytes) -> Iterator[FromWorker]:
        """Take octets that a worker has sent; yield the messages that are complete."""
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
    """Send these to a worker, before anything else; to one that is gone, nothing."""
    with contextlib.suppress(ConnectionError):
        for begin in range(0, len(descriptors), _MOST_DESCRIPTORS):
            piece = descriptors[begin : begin + _MOST_DESCRIPTORS]
            last = begin + len(piece) == len(descriptors)
            socket.send_fds(channel, [b"." if last else b","], piece)


def take_descriptors(channel: socket.socket) -> list[int]:
    """Return what `send_descriptors` has sent; nothing if the supervisor is gone."""
    found: list[int] = []
    while True:
        octets, descriptors, _, _ = socket.recv_fds(channel, 1, _MOST_DESCRIPTORS)
        found += descriptors
        if octets != b",":
            return found
