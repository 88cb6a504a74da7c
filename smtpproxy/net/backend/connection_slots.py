"""Connection slots: limit the connections to a backend, and queue the clients that wait for one.

Old MTAs fail under too many connections.  The slots of a backend are shared fairly among client
addresses, as limits count them (`Admission.address_of`):

- The queue serves addresses in turn, and the sessions of one address in order.
- An address that holds its share (half of the slots, at least one) gets no more while an address
  below its share waits.  Without others it may hold all slots.
- When an address has waited for part of `max_wait`, a slot is reclaimed from an address that holds
  more slots: the session that has held its slot longest, if long enough, ends after its
  transaction.  One session is asked at a time, the next one a while later.

With leases, the slots are those of several replicas: `SlotQueue` keeps the order of its clients,
and somebody else decides how many of them are served.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

SHARE = 0.5
"""The share of one address, as a fraction of all slots."""
PATIENCE = 0.25
"""The fraction of `max_wait` that must pass, in the queue and with the slot, before a reclaim."""
LOOKS = 8
"""How often a slot may be reclaimed within `max_wait`."""


class SlotHolder(Protocol):
    """A session, or its representative, that waits for a slot or holds one."""

    def slot_answered(self, *, granted: bool) -> None:
        """Process the answer to `ask`: called once, maybe during `ask`, unless `leave` is first."""

    def reclaim_slot(self) -> None:
        """Release the slot as soon as no transaction is open; called at most once."""


class ConnectionSlots(Protocol):
    """The connection slots of a backend."""

    def ask(self, holder: SlotHolder, address: bytes) -> None:
        """Request a slot for a client of this address, as `Admission.address_of` returns it."""

    def leave(self, holder: SlotHolder) -> None:
        """Release the slot, or cancel the request for one."""


class _Wait(NamedTuple):
    address: bytes
    patient_until: float
    deadline: float


class _Hold(NamedTuple):
    address: bytes
    since: float


class SlotQueue:
    """The slots of one backend, and the clients that wait for one.

    Args:
        limit: The number of slots.
        max_wait: After how many seconds a waiting client is refused.
    """

    def __init__(self, limit: int, max_wait: float) -> None:
        self.limit = limit
        self.max_wait = max_wait
        self._taken: dict[SlotHolder, _Hold] = {}  # the oldest first
        self._held: dict[bytes, int] = {}  # the number of slots by address
        self._reclaimed: set[SlotHolder] = set()
        self._waiting: dict[SlotHolder, _Wait] = {}  # the oldest first
        self._turns: dict[bytes, dict[SlotHolder, None]] = {}  # the next address first
        self._timer: asyncio.TimerHandle | None = None
        self._changed: Callable[[], None] | None = None  # with leases
        self._allowed = limit  # clients are served while fewer slots are in use

    @property
    def taken(self) -> int:
        """The number of slots in use."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """The number of clients that wait."""
        return len(self._waiting)

    def ask(self, holder: SlotHolder, address: bytes) -> None:
        """Request a slot for a client of this address, as `Admission.address_of` returns it."""
        if len(self._taken) < self._allowed and not self._waiting:
            self._grant(holder, address)
            self._note_change()
            return
        now = monotonic()
        patient_until, deadline = now + PATIENCE * self.max_wait, now + self.max_wait
        self._waiting[holder] = _Wait(address, patient_until, deadline)
        self._turns.setdefault(address, {})[holder] = None
        self._arm(now)
        self._note_change()

    def leave(self, holder: SlotHolder) -> None:
        """Release the slot, or cancel the request for one."""
        if holder in self._waiting:
            self._wait_no_more(holder)
        elif holder in self._taken:
            address = self._taken.pop(holder).address
            self._reclaimed.discard(holder)
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]
            self._serve()
        self._note_change()

    def resize(self, limit: int, max_wait: float) -> None:
        """Change the settings, and grant the slots that this adds; none in use is taken away."""
        self.limit, self.max_wait = limit, max_wait
        if self._changed is None:
            self.allow(limit)
        else:
            self._changed()

    # --- leases -------------------------------------------------------------------------------

    def lease(self, changed: Callable[[], None]) -> None:
        """Grant no slot until `allow` or `serve` is called; call `changed` at each change."""
        self._changed = changed
        self._allowed = 0

    def release(self) -> None:
        """Grant all slots again, without leases."""
        self._changed = None
        self.allow(self.limit)

    def allow(self, slots: int) -> None:
        """Grant slots while fewer than this are in use."""
        self._allowed = slots
        self._serve()

    def serve(self, clients: int) -> int:
        """Grant slots to so many clients that wait, and return to how many."""
        before = len(self._taken)
        self.allow(before + clients)
        self._allowed = 0
        return len(self._taken) - before

    def reclaim(self) -> None:
        """Reclaim a slot for a client of another replica, if one has been held long enough."""
        self._reclaim_from_most(monotonic(), 0)

    def _note_change(self) -> None:
        if self._changed is not None:
            self._changed()

    # --- the queue ----------------------------------------------------------------------------

    def _serve(self) -> None:
        """Grant the free slots."""
        while self._waiting and len(self._taken) < self._allowed:
            address = self._next_address()
            holder = next(iter(self._turns[address]))
            self._wait_no_more(holder)
            if address in self._turns:  # moves to the end, so that another address is next
                self._turns[address] = self._turns.pop(address)
            self._grant(holder, address)

    def _next_address(self) -> bytes:
        """Return the first address in turn that is below its share, or the first one if none is.

        It skips few addresses, since only two can hold a share.
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
        """Refuse clients that have waited for `max_wait`, and reclaim a slot if one is due."""
        now = monotonic()
        while self._waiting:  # all have the same limit, so the oldest are first
            holder, wait = next(iter(self._waiting.items()))
            if wait.deadline > now:
                break
            self._wait_no_more(holder)
            holder.slot_answered(granted=False)
            self._note_change()
        if self._waiting:
            self._reclaim(now)

    def _reclaim(self, now: float) -> None:
        address = self._next_address()
        if self._waiting[next(iter(self._turns[address]))].patient_until > now:
            return
        self._reclaim_from_most(now, self._held.get(address, 0))

    def _reclaim_from_most(self, now: float, least: int) -> None:
        """Reclaim a slot from the address that holds most, if it holds more than `least`."""
        held: dict[bytes, int] = {}  # the number of slots by address, without reclaimed ones
        longest: dict[bytes, SlotHolder] = {}
        for holder, hold in self._taken.items():
            if holder not in self._reclaimed:
                held[hold.address] = held.get(hold.address, 0) + 1
                if hold.since + PATIENCE * self.max_wait <= now:
                    longest.setdefault(hold.address, holder)
        if longest:
            most = max(longest, key=held.__getitem__)
            if held[most] > least:
                self._reclaimed.add(longest[most])
                longest[most].reclaim_slot()
