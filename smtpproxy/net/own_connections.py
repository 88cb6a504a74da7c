"""Own connections: those that the service has made to servers, so that none is served as a client.

A client that is one of them has come round in a loop, and would go round for ever.  Both know the
same two ends of the connection, whatever a PROXY header or an identity says of the client.

All workers map the same memory, in which each has a row that it alone writes: the ends of the
connections that it makes, each in a place that follows from the port at its own end, for as long as
it takes until it has been accepted.  So nothing is asked, locked or taken back.
"""

import asyncio
import mmap
import os
import socket
from hashlib import blake2b
from time import monotonic
from typing import Any

from smtpproxy.core.observer import Endpoint
from smtpproxy.net import shared_counters
from smtpproxy.net.peer import endpoint
from smtpproxy.net.tproxy import redirected_from

PLACES = 4096
NOTED_S = 30.0
"""How long a connection is known, in seconds: it is accepted and served at once, if at all."""

# In words of 64 bits, behind the tally.  A place: when, in milliseconds; a hash of both ends.
_PLACE = 2
_ROW = PLACES * _PLACE
_BEGIN = -(-shared_counters.OCTETS // 8)
OCTETS = 8 * (_BEGIN + shared_counters.ROWS * _ROW)


class OwnConnections:
    """One row of the memory to write, all of them to read.

    descriptor: of the tally's memory; -1 makes memory of our own, for a worker that is alone.
    """

    def __init__(self, descriptor: int = -1, row: int = 0) -> None:
        if descriptor >= 0 and os.fstat(descriptor).st_size < OCTETS:
            os.ftruncate(descriptor, OCTETS)
        memory = memoryview(mmap.mmap(descriptor, OCTETS))
        self._words = memory.cast("Q")
        self._head = memory.cast("I")  # of the tally: how many rows were ever used
        self._row = row
        self._own = _BEGIN + row * _ROW

    def note(self, source: Endpoint, target: Endpoint) -> None:
        """Note a connection that is on its way, or has just been made."""
        place = self._own + source[1] % PLACES * _PLACE
        self._words[place + 1] = _hash(source, target)
        self._words[place] = int(monotonic() * 1000)

    def may_have(self, port: int) -> bool:
        """Tell whether one may have been made from a port just now."""
        oldest = int((monotonic() - NOTED_S) * 1000)
        return any(self._words[place] > oldest for place in self._places(port))

    def has(self, source: Endpoint, target: Endpoint) -> bool:
        """Tell whether such a connection was made just now, by any worker."""
        ends = _hash(source, target)
        return self.may_have(source[1]) and any(
            self._words[place + 1] == ends for place in self._places(source[1])
        )

    def _places(self, port: int) -> range:
        rows = max(self._head[0], self._row + 1)
        first = _BEGIN + port % PLACES * _PLACE
        return range(first, first + rows * _ROW, _ROW)


def _hash(source: Endpoint, target: Endpoint) -> int:
    ends = f"{source} {target}".encode()
    return int.from_bytes(blake2b(ends, digest_size=8).digest(), "big")


_shared = OwnConnections()


def share(descriptor: int, row: int) -> None:
    """Share what is known of connections with the workers that have this tally."""
    global _shared
    _shared = OwnConnections(descriptor, row)


def note(made: asyncio.BaseTransport) -> None:
    """Note a connection that has been made to a server."""
    source = endpoint(made.get_extra_info("sockname"))
    target = endpoint(made.get_extra_info("peername"))
    if source is not None and target is not None:
        _shared.note(source, target)


def is_one(client: asyncio.BaseTransport) -> bool:
    """Tell whether a client's connection is one of the service's own."""
    source = endpoint(client.get_extra_info("peername"))
    if source is None or not _shared.may_have(source[1]):
        return False
    target = endpoint(client.get_extra_info("sockname"))
    opened = client.get_extra_info("socket")
    wanted = redirected_from(opened, is_6=":" in source[0]) if opened else None
    return any(end is not None and _shared.has(source, end) for end in (target, wanted))


class Outgoing(socket.socket):
    """A socket whose connection is noted before anybody can have accepted it."""

    def connect(self, address: Any) -> None:
        """Begin to connect, or try to."""
        try:
            super().connect(address)
        finally:
            source, target = endpoint(self.getsockname()), endpoint(address)
            if source is not None and target is not None:
                _shared.note(source, target)
