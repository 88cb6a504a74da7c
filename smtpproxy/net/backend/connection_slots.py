"""Connection slots: old MTAs die of too many connections, so clients wait for their turn.

The slots of a backend are shared by client address, as limits count it (`Admission.address_of`):

- The waiting line serves addresses in turns, and the sessions of one address in their order.
- An address that holds its share (half of the slots, at least one) gets no other one while an
  address below its share waits.  Who is alone may have them all.
- For an address that has waited for a part of `max_wait`, the one that holds more slots gives one
  back: of its sessions the one that has had its slot longest, if for long enough.  The session ends
  when its transaction is over.  One session at a time is asked, and the next one a while later.
"""

import asyncio
from time import monotonic
from typing import NamedTuple, Protocol

SHARE = 0.5
"""So much of all slots is the share of one address."""
PATIENCE = 0.25
"""So much of `max_wait` an address waits, and a session keeps its slot, before one is reclaimed."""
LOOKS = 8
"""So often in `max_wait` a slot may be reclaimed."""


class SlotHolder(Protocol):
    """A session, or what stands for it: it waits for a slot, or has one."""

    def slot_answered(self, *, granted: bool) -> None:
        """Take the answer to `ask`; called once, maybe at once, unless `leave` comes first."""

    def reclaim_slot(self) -> None:
        """Make room for another address, as soon as no transaction is open; called once at most."""


class ConnectionSlots(Protocol):
    """Where a session asks for a slot at its backend."""

    def ask(self, holder: SlotHolder, address: bytes) -> None:
        """Ask for a slot, for a client of this address as limits count it."""

    def leave(self, holder: SlotHolder) -> None:
        """Give the slot back, or wait for one no more."""


class _Wait(NamedTuple):
    address: bytes
    patient_until: float
    deadline: float


class _Hold(NamedTuple):
    address: bytes
    since: float


class SlotQueue:
    """Gives out a number of slots.

    limit: how many there are.  max_wait: the seconds after which who waits is refused.
    taken, waiting: how many have a slot, and how many wait for one.
    """

    def __init__(self, limit: int, max_wait: float) -> None:
        self.limit = limit
        self.max_wait = max_wait
        self._taken: dict[SlotHolder, _Hold] = {}  # the longest first
        self._held: dict[bytes, int] = {}  # by address
        self._reclaimed: set[SlotHolder] = set()
        self._waiting: dict[SlotHolder, _Wait] = {}  # the longest first
        self._turns: dict[bytes, dict[SlotHolder, None]] = {}  # the next address first
        self._timer: asyncio.TimerHandle | None = None

    @property
    def taken(self) -> int:
        return len(self._taken)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def ask(self, holder: SlotHolder, address: bytes) -> None:
        """Ask for a slot, for a client of this address."""
        if len(self._taken) < self.limit and not self._waiting:
            self._grant(holder, address)
            return
        now = monotonic()
        patient_until, deadline = now + PATIENCE * self.max_wait, now + self.max_wait
        self._waiting[holder] = _Wait(address, patient_until, deadline)
        self._turns.setdefault(address, {})[holder] = None
        self._arm(now)

    def leave(self, holder: SlotHolder) -> None:
        """Give the slot back, or wait for one no more."""
        if holder in self._waiting:
            self._wait_no_more(holder)
        elif holder in self._taken:
            address = self._taken.pop(holder).address
            self._reclaimed.discard(holder)
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]
            self.serve()

    def serve(self) -> None:
        """Let in those whose turn it is; call it when `limit` has changed."""
        while self._waiting and len(self._taken) < self.limit:
            address = self._next_address()
            holder = next(iter(self._turns[address]))
            self._wait_no_more(holder)
            if address in self._turns:  # the next turn is that of another one
                self._turns[address] = self._turns.pop(address)
            self._grant(holder, address)

    def _next_address(self) -> bytes:
        """Return the first in turn that is below its share; the first one if none is.

        A few at most are passed over: so many as can hold a share.
        """
        share = max(int(self.limit * SHARE), 1)
        below = (each for each in self._turns if self._held.get(each, 0) < share)
        return next(below, None) or next(iter(self._turns))

    def _grant(self, holder: SlotHolder, address: bytes) -> None:
        self._taken[holder] = _Hold(address, monotonic())
        self._held[address] = self._held.get(address, 0) + 1
        holder.slot_answered(granted=True)

    def _wait_no_more(self, holder: SlotHolder) -> None:
        address = self._waiting.pop(holder).address
        del self._turns[address][holder]
        if not self._turns[address]:
            del self._turns[address]

    def _arm(self, now: float) -> None:
        if self._timer is None and self._waiting:
            first = next(iter(self._waiting.values()))
            delay = min(first.deadline - now, self.max_wait / LOOKS)
            self._timer = asyncio.get_running_loop().call_later(max(delay, 0.01), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.look()
        self._arm(monotonic())

    def look(self) -> None:
        """Refuse who has waited for too long, and reclaim a slot for who has waited for long."""
        now = monotonic()
        while self._waiting:  # all wait equally long, so the first come first
            holder, wait = next(iter(self._waiting.items()))
            if wait.deadline > now:
                break
            self._wait_no_more(holder)
            holder.slot_answered(granted=False)
        if self._waiting:
            self._reclaim(now)

    def _reclaim(self, now: float) -> None:
        address = self._next_address()
        if self._waiting[next(iter(self._turns[address]))].patient_until > now:
            return
        held: dict[bytes, int] = {}  # by address, without those that are reclaimed already
        longest: dict[bytes, SlotHolder] = {}
        for holder, hold in self._taken.items():
            if holder not in self._reclaimed:
                held[hold.address] = held.get(hold.address, 0) + 1
                if hold.since + PATIENCE * self.max_wait <= now:
                    longest.setdefault(hold.address, holder)
        if longest:
            most = max(longest, key=held.__getitem__)
            if held[most] > self._held.get(address, 0):
                self._reclaimed.add(longest[most])
                longest[most].reclaim_slot()
