"""The control channel: what the supervisor and a worker say to one another.

A socket pair for each worker; each message is one line of JSON.  The worker's first line is the
supervisor's `Start`; all that follows is told without waiting for an answer.
"""

from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct

from smtpproxy.config.schema import Settings
from smtpproxy.metrics.snapshot import MetricsSnapshot


class Start(Struct, tag=True):
    """To a worker: what it is to be.

    sockets: for each listener of the settings, the descriptors to accept from.
    shared_counters, row: the descriptor of the shared counts, and the row in it that this worker
    writes.
    """

    settings: Settings
    sockets: list[list[int]]
    shared_counters: int
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


class Health(Struct, tag=True):
    """Both ways: a server is down, or up again; `why` is for the log."""

    backend: str
    server: str
    up: bool
    why: str = ""


class Look(Struct, tag=True):
    """To a worker: somebody looks at the live page, so for a few seconds tell of sessions."""


class Ready(Struct, tag=True):
    """From a worker: it accepts clients."""


class Retired(Struct, tag=True):
    """From a worker: it accepts nobody any more."""


class Beat(Struct, tag=True):
    """From a worker, once a second: it lives, and these are its figures."""

    snapshot: MetricsSnapshot


class Ask(Struct, tag=True):
    """From a worker: a session wants a place at a backend."""

    backend: str
    ticket: int


class Leave(Struct, tag=True):
    """From a worker: a session gives its place back, or waits for one no more."""

    backend: str
    ticket: int


ToWorker = Start | Retire | Drain | Stop | Granted | Health | Look
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
        self._unread = b""

    def to_worker(self, octets: bytes) -> Iterator[ToWorker]:
        """Take octets that the supervisor has sent; yield the messages that are complete."""
        return map(_to_worker.decode, self._split(octets))

    def from_worker(self, octets: bytes) -> Iterator[FromWorker]:
        """Take octets that a worker has sent; yield the messages that are complete."""
        return map(_from_worker.decode, self._split(octets))

    def _split(self, octets: bytes) -> list[bytes]:
        *lines, self._unread = (self._unread + octets).split(b"\n")
        return lines
