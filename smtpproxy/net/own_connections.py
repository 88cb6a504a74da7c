"""Loop detection: recognises a client connection that the service itself has made to a server.

Such a connection would be proxied for ever.  Both sides see the same two addresses and ports,
whatever a PROXY header or an identity names as the client.

All workers map the same memory, where each worker writes only its own row: a hash of the addresses
of each connection that it makes, at an index given by the local port.  An entry expires after a
while, so no messages, locks or removals are needed.
"""

import asyncio
import mmap
import os
import socket
from hashlib import blake2b
from time import monotonic
from typing import Any
from zlib import crc32

from smtpproxy.core.observer import Endpoint
from smtpproxy.net import shared_counters
from smtpproxy.net.peer import endpoint
from smtpproxy.net.tproxy import redirected_from

ENTRIES = 4096
"""The number of entries in the row of a worker."""
NOTED_S = 30.0
"""How long an entry is valid; a connection is usually accepted at once."""

# In 64-bit words after the shared counters.  An entry: the time in ms and, in the lowest bits, the
# tag of the source; a hash of both addresses.
_TAG_BITS = 16
_TAG = (1 << _TAG_BITS) - 1
_ENTRY_WORDS = 2
_ROW = ENTRIES * _ENTRY_WORDS
_BEGIN = -(-shared_counters.OCTETS // 8)
OCTETS = 8 * (_BEGIN + shared_counters.ROWS * _ROW)


class OwnConnections:
    """The service's own connections; a worker writes one row and reads all.

    Args:
        descriptor: The descriptor of the shared counters; -1 for new memory, for a single worker.
        row: The row that this worker writes.
    """

    def __init__(self, descriptor: int = -1, row: int = 0) -> None:
        if descriptor >= 0 and os.fstat(descriptor).st_size < OCTETS:
            os.ftruncate(descriptor, OCTETS)
        memory = memoryview(mmap.mmap(descriptor, OCTETS))
        self._words = memory.cast("Q")
        self._head = memory.cast("I")  # its first word: the number of rows used so far
        self._row = row
        self._own = _BEGIN + row * _ROW

    def note(self, source: Endpoint, target: Endpoint) -> None:
        """Record a connection that is being made, or has just been made."""
        index = self._own + source[1] % ENTRIES * _ENTRY_WORDS
        self._words[index + 1] = _hash(source, target)
        self._words[index] = int(monotonic() * 1000) << _TAG_BITS | _tag(source)

    def may_have(self, source: Endpoint) -> bool:
        """Return whether a recent connection may have this source, without a false no."""
        oldest, tag = int((monotonic() - NOTED_S) * 1000), _tag(source)
        for index in self._indices(source[1]):
            entry = self._words[index]
            if entry & _TAG == tag and entry >> _TAG_BITS > oldest:
                return True
        return False

    def has(self, source: Endpoint, target: Endpoint) -> bool:
        """Return whether any worker has recently made the connection with these addresses."""
        ends = _hash(source, target)
        return self.may_have(source) and any(
            self._words[index + 1] == ends for index in self._indices(source[1])
        )

    def _indices(self, port: int) -> range:
        rows = max(self._head[0], self._row + 1)
        first = _BEGIN + port % ENTRIES * _ENTRY_WORDS
        return range(first, first + rows * _ROW, _ROW)


def _tag(source: Endpoint) -> int:
    """Return bits by which nearly all other sources differ, even with the same index."""
    return crc32(source[0].encode(), source[1]) & _TAG


def _hash(source: Endpoint, target: Endpoint) -> int:
    ends = f"{source} {target}".encode()
    return int.from_bytes(blake2b(ends, digest_size=8).digest(), "big")


_shared = OwnConnections()


def share(descriptor: int, row: int) -> None:
    """Share the records with the other workers.

    Args:
        descriptor: The descriptor of the shared counters.
        row: The row that this worker writes.
    """
    global _shared
    _shared = OwnConnections(descriptor, row)


def note(made: asyncio.BaseTransport) -> bool:
    """Record a connection that has been made to a server; return whether it is one by IP."""
    source = endpoint(made.get_extra_info("sockname"))
    target = endpoint(made.get_extra_info("peername"))
    if source is None or target is None:
        return False
    _shared.note(source, target)
    return True


def is_one(client: asyncio.BaseTransport) -> bool:
    """Return whether a client connection is one of the service's own connections."""
    source = endpoint(client.get_extra_info("peername"))
    if source is None or not _shared.may_have(source):
        return False
    target = endpoint(client.get_extra_info("sockname"))
    opened = client.get_extra_info("socket")
    wanted = redirected_from(opened, is_6=":" in source[0]) if opened else None
    return any(end is not None and _shared.has(source, end) for end in (target, wanted))


class Outgoing(socket.socket):
    """A socket that records its connection before a listener can have accepted it."""

    def connect(self, address: Any) -> None:
        """Connect as `socket.connect`, and record the connection."""
        try:
            super().connect(address)
        finally:
            source, target = endpoint(self.getsockname()), endpoint(address)
            if source is not None and target is not None:
                _shared.note(source, target)
