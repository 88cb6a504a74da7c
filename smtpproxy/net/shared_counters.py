"""Counts the sessions of all workers, in all and by client address, in shared memory.

All workers map the same memory.  Each worker writes only its own row, and a count is the sum over
the rows.  So no messages or locks are needed, and it costs microseconds per session.  If two
workers read a count at the same time, both may admit the last client.

An address has two slots in a row, chosen by a hash with a secret key, and is counted in both; the
smaller sum is its count.  The count is never too low.  It is too high only if both slots are shared
with addresses that have many sessions: with 10,000 sessions of 10,000 addresses no count reaches
12.

The rate of new sessions is limited by a token bucket in each slot, which all workers write (GCRA,
the generic cell rate algorithm: a bucket is stored as the time at which it is full again).  So it
does not depend on a worker that ends.
"""

import fcntl
import mmap
import os
import tempfile
from hashlib import blake2b

SLOTS = 16384
"""The number of counters of addresses; each address hashes to two of them."""
ROWS = 256
"""The limit of workers, including those of older settings or versions that drain."""

# In 32-bit words.  The head: the number of rows used so far; the key of the hash.
_KEY, _HEAD = 4, 8
# A row: its sessions; the sessions in each slot.
_SESSIONS, _OPEN, _ROW = 0, 1, 1 + SLOTS
_BUCKETS = 4 * (_HEAD + ROWS * _ROW)
"""The offset of the buckets, after the rows: a 64-bit time in seconds for each slot."""
OCTETS = _BUCKETS + 8 * SLOTS
"""The size of the mapping; only pages that were written use memory."""
_EMPTY = memoryview(bytes(4 * _ROW)).cast("I")

CounterSlots = tuple[int, int]


class SharedCounters:
    """The counters; a worker writes one row and reads all.

    Args:
        descriptor: The descriptor of the shared memory; -1 for new memory, for a single worker.
        row: The row that this worker writes.
    """

    def __init__(self, descriptor: int = -1, row: int = 0) -> None:
        memory = memoryview(mmap.mmap(descriptor, OCTETS))
        words = self._words = memory[:_BUCKETS].cast("I")
        self._full_again = memory[_BUCKETS:].cast("d")
        if descriptor < 0:
            words[_KEY:_HEAD] = memoryview(_new_key()).cast("I")
        self._key = bytes(words[_KEY:_HEAD])
        self._base = _HEAD + row * _ROW
        if words[0] <= row:  # written by the supervisor before the worker starts, so no race
            words[0] = row + 1

    def sessions(self) -> int:
        """Return the number of sessions of all workers."""
        return self._sum(_SESSIONS)

    @property
    def own_sessions(self) -> int:
        """The number of sessions of this worker."""
        return self._words[self._base + _SESSIONS]

    def slots(self, address: bytes) -> CounterSlots:
        """Return the slots of an address, as `Admission.address_of` returns it."""
        found = int.from_bytes(blake2b(address, digest_size=8, key=self._key).digest(), "big")
        return found % SLOTS, (found >> 32) % SLOTS

    def add(self, slots: CounterSlots) -> None:
        """Count a session of this worker."""
        words, base = self._words, self._base
        words[base + _SESSIONS] += 1
        for slot in set(slots):
            words[base + _OPEN + slot] += 1

    def remove(self, slots: CounterSlots) -> None:
        """Stop counting a session of this worker."""
        words, base = self._words, self._base
        words[base + _SESSIONS] -= 1
        for slot in set(slots):
            words[base + _OPEN + slot] -= 1

    def open(self, slots: CounterSlots) -> int:
        """Return the number of sessions of an address."""
        return min(self._sum(slot + _OPEN) for slot in slots)

    def full_again(self, slots: CounterSlots) -> float:
        """Return when the bucket of an address is full again, on the caller's clock."""
        return min(self._full_again[slot] for slot in slots)

    def drain(self, slots: CounterSlots, full_again: float) -> None:
        """Take from the bucket of an address, so that it is full again at the given time."""
        for slot in slots:
            self._full_again[slot] = max(self._full_again[slot], full_again)

    def _sum(self, offset: int) -> int:
        words = self._words
        return sum(words[base + offset] for base in range(_HEAD, _HEAD + words[0] * _ROW, _ROW))

    def clear(self) -> None:
        """Clear the row of a worker that has ended."""
        self._words[self._base : self._base + _ROW] = _EMPTY


def create() -> int:
    """Create the shared memory with a new key, and return its descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("smtpproxy-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile(prefix="smtpproxy-") as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, OCTETS)
    os.pwrite(descriptor, _new_key(), 4 * _KEY)
    if hasattr(os, "memfd_create"):
        # If it were truncated, reading the mapping would kill a process.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _new_key() -> bytes:
    return os.urandom(4 * (_HEAD - _KEY))
