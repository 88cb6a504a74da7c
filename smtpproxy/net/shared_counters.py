"""How many sessions there are, and how many each address has, over all workers.

All workers map the same memory, in which each has a row that it alone writes; whoever wants to know
adds up the rows.  So nobody asks anybody and nothing is locked: it costs microseconds per session.
Two workers that look at the same moment may both let the last one in; that is all there is to it.

An address has two places in a row, by a hash whose key no client knows, and counts at both; the
smaller sum is its count.  It is never too low, and too high only if other addresses with many
sessions have met both places: with 10000 sessions of 10000 addresses none counts for a dozen.

How fast an address begins sessions is limited by a token bucket at each of its places, which all
workers write (GCRA, the generic cell rate algorithm: all that is kept of a bucket is the time at
which it is full again).  A worker that is gone takes nothing of it along.
"""

import fcntl
import mmap
import os
import tempfile
from hashlib import blake2b

SLOTS = 16384
ROWS = 256
"""More than workers there can be, for those of an older version drain beside the new ones."""

# In words of 32 bits.  A head: how many rows were ever used; the key of the hash.
_KEY, _HEAD = 4, 8
# A row: its sessions; the sessions at each place.
_SESSIONS, _OPEN, _ROW = 0, 1, 1 + SLOTS
_BUCKETS = 4 * (_HEAD + ROWS * _ROW)
"""Where the buckets begin, after the rows: for each place a time in seconds, 64 bits."""
OCTETS = _BUCKETS + 8 * SLOTS
"""How much is mapped; of it only what was written takes room."""
_EMPTY = memoryview(bytes(4 * _ROW)).cast("I")

CounterSlots = tuple[int, int]


class SharedCounters:
    """One row of the memory to write, all of them to read.

    descriptor: of the shared memory; -1 makes memory of our own, for a worker that is alone.
    """

    def __init__(self, descriptor: int = -1, row: int = 0) -> None:
        memory = memoryview(mmap.mmap(descriptor, OCTETS))
        words = self._words = memory[:_BUCKETS].cast("I")
        self._full_again = memory[_BUCKETS:].cast("d")
        if descriptor < 0:
            words[_KEY:_HEAD] = memoryview(_new_key()).cast("I")
        self._key = bytes(words[_KEY:_HEAD])
        self._base = _HEAD + row * _ROW
        if words[0] <= row:  # written by the supervisor alone, ahead of the worker: no race
            words[0] = row + 1

    def sessions(self) -> int:
        """Return how many sessions there are."""
        return self._sum(_SESSIONS)

    @property
    def own_sessions(self) -> int:
        """How many there are in this worker."""
        return self._words[self._base + _SESSIONS]

    def slots(self, address: bytes) -> CounterSlots:
        """Return the places of an address."""
        found = int.from_bytes(blake2b(address, digest_size=8, key=self._key).digest(), "big")
        return found % SLOTS, (found >> 32) % SLOTS

    def add(self, slots: CounterSlots) -> None:
        """Count a session of this worker."""
        words, base = self._words, self._base
        words[base + _SESSIONS] += 1
        for slot in set(slots):
            words[base + _OPEN + slot] += 1

    def remove(self, slots: CounterSlots) -> None:
        """Count a session of this worker no more."""
        words, base = self._words, self._base
        words[base + _SESSIONS] -= 1
        for slot in set(slots):
            words[base + _OPEN + slot] -= 1

    def open(self, slots: CounterSlots) -> int:
        """Return how many sessions an address has."""
        return min(self._sum(slot + _OPEN) for slot in slots)

    def full_again(self, slots: CounterSlots) -> float:
        """Return when the bucket of an address is full again, on the clock of `drain`."""
        return min(self._full_again[slot] for slot in slots)

    def drain(self, slots: CounterSlots, full_again: float) -> None:
        """Take from the bucket of an address, so that it is full again at this time only."""
        for slot in slots:
            self._full_again[slot] = max(self._full_again[slot], full_again)

    def _sum(self, offset: int) -> int:
        words = self._words
        return sum(words[base + offset] for base in range(_HEAD, _HEAD + words[0] * _ROW, _ROW))

    def clear(self) -> None:
        """Forget what the row says: whoever wrote it is gone."""
        self._words[self._base : self._base + _ROW] = _EMPTY


def create() -> int:
    """Make memory for all workers, with a key of its own; return its descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("smtpproxy-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile(prefix="smtpproxy-") as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, OCTETS)
    os.pwrite(descriptor, _new_key(), 4 * _KEY)
    if hasattr(os, "memfd_create"):
        # Shorter, it would kill whoever reads what it maps.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _new_key() -> bytes:
    return os.urandom(4 * (_HEAD - _KEY))
