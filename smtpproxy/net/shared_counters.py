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

In a cluster (`smtpproxy.cluster.state_exchange`) one row has the sessions of the other replicas.
All replicas use one key, so that an address has the same slots everywhere.
"""

import fcntl
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

SLOTS = 16384
"""The number of counters of addresses; each address hashes to two of them."""
ROWS = 256
"""The limit of workers, including those of older settings or versions that drain."""

DEBT_S = 3600.0
"""The longest time until a bucket is full again, whatever other replicas report."""

# In 32-bit words.  The head: the number of rows used so far; how often the key has changed; the key
# of the hash.
_CHANGES, _KEY, _HEAD = 1, 4, 8
# A row: its sessions; the sessions in each slot.
_SESSIONS, _OPEN, _ROW = 0, 1, 1 + SLOTS
_BUCKETS = 4 * (_HEAD + ROWS * _ROW)
"""The offset of the buckets, after the rows: a 64-bit time in seconds for each slot."""
_ADMITTED = _BUCKETS + 8 * SLOTS
"""The offset of the counts of sessions taken from each bucket; all workers write them."""
OCTETS = _ADMITTED + 4 * SLOTS
"""The size of the mapping; only pages that were written use memory."""
_EMPTY = memoryview(bytes(4 * _ROW)).cast("I")
_WRAP = 1 << 32
COUNTS_OCTETS = 4 * SLOTS
"""The size of what replicas exchange: a 32-bit count for each slot."""


class CounterSlots(NamedTuple):
    """The two slots of an address; a class, as mypyc would copy a tuple for each session."""

    first: int
    second: int


class SharedCounters:
    """The counters; a worker writes one row and reads all.

    Args:
        descriptor: The descriptor of the shared memory; -1 for new memory, for a single worker.
        row: The row that this worker writes.
    """

    def __init__(self, descriptor: int = -1, row: int = 0) -> None:
        memory = memoryview(mmap.mmap(descriptor, OCTETS))
        words = self._words = memory[:_BUCKETS].cast("I")
        self._full_again = memory[_BUCKETS:_ADMITTED].cast("d")
        self._admitted = memory[_ADMITTED:OCTETS].cast("I")
        if descriptor < 0:
            words[_KEY:_HEAD] = memoryview(_new_key()).cast("I")
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

    @property
    def key_changes(self) -> int:
        """How often the key has changed, so that addresses have other slots than before."""
        return self._words[_CHANGES]

    def slots(self, address: bytes) -> CounterSlots:
        """Return the slots of an address, as `Admission.address_of` returns it."""
        found = int.from_bytes(blake2b(address, digest_size=8, key=self.key).digest(), "big")
        return CounterSlots(found % SLOTS, (found >> 32) % SLOTS)

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
        for slot in set(slots):
            self._full_again[slot] = max(self._full_again[slot], full_again)
            self._admitted[slot] = (self._admitted[slot] + 1) % _WRAP

    # --- for the other replicas of a cluster --------------------------------------------------

    @property
    def key(self) -> bytes:
        """The key of the hash."""
        return bytes(self._words[_KEY:_HEAD])

    def change_key(self, key: bytes) -> None:
        """Use another key, in all processes; called by the supervisor only.

        Sessions that are open when it changes stay counted in their old slots.
        """
        self._words[_KEY:_HEAD] = memoryview(key).cast("I")
        self._words[_CHANGES] = (self._words[_CHANGES] + 1) % _WRAP

    def open_elsewhere(self) -> bytes:
        """Return the sessions in each slot, of all rows but this one."""
        bases = range(_HEAD, _HEAD + self._words[0] * _ROW, _ROW)
        return _sum(
            self._words[base + _OPEN : base + _ROW].tobytes()
            for base in bases
            if base != self._base
        )

    def count_replicas(self, found: Iterable[bytes]) -> None:
        """Make this row the sum of what `open_elsewhere` returned at other replicas."""
        row = memoryview(_sum(found)).cast("I")
        self._words[self._base + _OPEN : self._base + _ROW] = row

    def admitted(self) -> bytes:
        """Return how many sessions were taken from the bucket of each slot."""
        return self._admitted.tobytes()

    def drain_for_replica(self, before: bytes, after: bytes, each_s: float, now: float) -> None:
        """Take from the buckets what another replica has admitted meanwhile.

        Args:
            before, after: What its `admitted` returned.
            each_s: How much longer a session makes it until the bucket is full again.
            now: The time of the caller's clock.
        """
        if before == after:
            return
        for slot, (old, new) in enumerate(zip(_words(before), _words(after), strict=True)):
            admitted = (new - old) % _WRAP
            if 0 < admitted < _WRAP // 2:  # else nothing, or two workers wrote at the same time
                seconds = each_s * admitted
                full_again = max(self._full_again[slot], now) + seconds
                self._full_again[slot] = min(full_again, now + DEBT_S)

    def _sum(self, offset: int) -> int:
        words = self._words
        return sum(words[base + offset] for base in range(_HEAD, _HEAD + words[0] * _ROW, _ROW))

    def clear(self) -> None:
        """Clear the row of a worker that has ended."""
        self._words[self._base : self._base + _ROW] = _EMPTY


def _words(counts: bytes) -> memoryview:
    return memoryview(counts).cast("I")


def _sum(counts: Iterable[bytes]) -> bytes:
    """Add 32-bit counts as parts of one long number, which takes microseconds."""
    total = sum(int.from_bytes(each, sys.byteorder) for each in counts)
    return (total % (1 << 8 * COUNTS_OCTETS)).to_bytes(COUNTS_OCTETS, sys.byteorder)


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
