"""Admission: whether a new client is served.

Who is turned away gets 421 at once and takes nothing else; who is in stays in.  Bounds count the
sessions of the whole service, over all workers (`smtpproxy.net.shared_counters`).  An IPv6 network
of 64 bits counts as one address, since whoever has one of its addresses has them all; but those of
a NAT64 are as many clients as there are IPv4 addresses in them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from time import monotonic
from typing import Protocol

from smtpproxy.config.address import behind_nat64
from smtpproxy.core import replies
from smtpproxy.core.observer import ServiceObserver
from smtpproxy.net.fd_limits import FdLimits
from smtpproxy.net.shared_counters import CounterSlots, SharedCounters

Network = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address

TICK_S = 0.25
"""How often the loop's lag is looked at."""
TOLD_EVERY_S = 1.0
"""Of clients turned away for the same reason one line is logged in this time, with their number."""
ADDRESSES_KNOWN = 4096
"""Of so many addresses it is kept in mind where they are counted: finding it costs a log line."""
ROUNDING_S = 1e-6

_REPLIES = {
    "sessions": replies.TOO_MANY_SESSIONS,
    "file_descriptors": replies.TOO_MANY_SESSIONS,
    "event_loop_lag": replies.TOO_MANY_SESSIONS,
    "sessions_per_address": replies.TOO_MANY_FROM_ADDRESS,
    "new_sessions_per_minute": replies.TOO_MANY_FROM_ADDRESS,
}
LOST = "client_lost"
"""The reason of those who have reset their connection before their address could be read."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What is admitted; 0 is no bound.

    sessions, sessions_per_address, new_sessions_per_minute (and address): of the whole service.
    So many new sessions may come at once, and then one each time that part of a minute is over.
    event_loop_lag: how late this worker's loop may be, in seconds.
    nat64: networks from which IPv4 clients come through a NAT64, beside the well-known one.
    exempt: networks whose clients are not counted by address.
    """

    sessions: int = 0
    sessions_per_address: int = 0
    new_sessions_per_minute: int = 0
    event_loop_lag: float = 0.0
    nat64: tuple[Network, ...] = ()
    exempt: tuple[Network, ...] = ()


class Pausable(Protocol):
    """A listener."""

    def pause(self, paused: bool) -> None:
        """Accept nobody for now, or go on."""


class Admission:
    """Made once for a worker.

    refused: how many clients were turned away, by reason.
    refusal: what the last of them was to be told.
    lag: how late the loop was when last looked at, in seconds.
    """

    def __init__(
        self,
        bounds: AdmissionLimits,
        shared_counters: SharedCounters,
        hostname: bytes,
        observer: ServiceObserver,
    ) -> None:
        self._bounds = bounds
        self._shared_counters = shared_counters
        self._hostname = hostname
        self._observer = observer
        self._nobody = shared_counters.slots(b"")
        self._slots_of = lru_cache(ADDRESSES_KNOWN)(self._find_slots)
        self._address_of = lru_cache(ADDRESSES_KNOWN)(self._find_address)
        self.lag = 0.0
        self._fd_limits = FdLimits()
        self._exhausted = False
        self._listeners: Sequence[Pausable] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._told: dict[str, tuple[float, int]] = {}  # when last, and of how many all in all
        self.refused = dict.fromkeys((*_REPLIES, LOST), 0)
        self.refusal = b""

    def start(self, listeners: "Sequence[Pausable]" = ()) -> None:
        """Begin to watch the loop and the descriptors; without any `listeners` do not accept."""
        self._listeners = listeners
        self._watch(monotonic())

    def stop(self) -> None:
        """Watch the loop no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, due: float) -> None:
        now = monotonic()
        self.lag = now - due
        self._watch_descriptors()
        due = now + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._watch, due)

    def _watch_descriptors(self) -> None:
        """Accept nobody while there is no descriptor left; tell of it once."""
        self._fd_limits.look()
        exhausted = self._fd_limits.exhausted
        if exhausted and not self._exhausted:
            self._refuse("file_descriptors", "")
        self._exhausted = exhausted
        for listener in self._listeners:
            listener.pause(exhausted)

    def lacks_descriptors(self, descriptor: int, host: str) -> bool:
        """Tell whether descriptors are short, as that of this client's connection shows."""
        if not self._fd_limits.short_at(descriptor, self._shared_counters.own_sessions):
            return False
        self._refuse("file_descriptors", host)
        return True

    def enter(self, host: str, descriptor: int = -1) -> CounterSlots | None:
        """Count a new client in, or return None: then it is to be told `refusal`.

        `host` is its IP address, or empty; `descriptor` that of its connection.  What is returned
        is to be given to `leave`.
        """
        if self.lacks_descriptors(descriptor, host):
            return None
        bounds, shared_counters = self._bounds, self._shared_counters
        full_again = 0.0
        slots = self._slots_of(host)
        reason = ""
        if bounds.sessions and shared_counters.sessions() >= bounds.sessions:
            reason = "sessions"
        elif self.lag > bounds.event_loop_lag > 0:
            reason = "event_loop_lag"
        elif slots is self._nobody:
            pass
        elif (
            bounds.sessions_per_address
            and shared_counters.open(slots) >= bounds.sessions_per_address
        ):
            reason = "sessions_per_address"
        elif bounds.new_sessions_per_minute:
            # A token bucket: so many at once, and one more each time this part of a minute is over.
            now = monotonic()
            full_again = max(shared_counters.full_again(slots), now)
            full_again += 60 / bounds.new_sessions_per_minute
            if full_again > now + 60 + ROUNDING_S:
                reason = "new_sessions_per_minute"
        if reason:
            self._refuse(reason, host)
            return None
        shared_counters.add(slots)
        if full_again:
            shared_counters.drain(slots, full_again)
        return slots

    def leave(self, slots: CounterSlots) -> None:
        """Count a client out."""
        self._shared_counters.remove(slots)

    def address_of(self, host: str) -> bytes:
        """Return what a client counts as one of: its address, an IPv6 network; empty if none."""
        return self._address_of(host)

    def lost(self) -> None:
        """Note a client that is gone before it is known who it was: nobody is there to be told."""
        self._count(LOST, "")

    def _find_slots(self, host: str) -> CounterSlots:
        bounds = self._bounds
        if not host or not (bounds.sessions_per_address or bounds.new_sessions_per_minute):
            return self._nobody
        address, counted = self._addresses(host)
        if any(address in network or counted in network for network in bounds.exempt):
            return self._nobody
        return self._shared_counters.slots(counted.packed[:8])

    def _find_address(self, host: str) -> bytes:
        return self._addresses(host)[1].packed[:8] if host else b""

    def _addresses(self, host: str) -> tuple[IPAddress, IPAddress]:
        """Return a client's address, and the one that it counts as."""
        address = ip_address(host.partition("%")[0])
        return address, behind_nat64(address, self._bounds.nat64)

    def _refuse(self, reason: str, host: str) -> None:
        self.refusal = _REPLIES[reason] % self._hostname
        self._count(reason, host)

    def _count(self, reason: str, host: str) -> None:
        self.refused[reason] += 1
        now = monotonic()
        when, before = self._told.get(reason, (-TOLD_EVERY_S, 0))
        if now - when >= TOLD_EVERY_S:
            self._told[reason] = (now, self.refused[reason])
            self._observer.refused(reason, host, self.refused[reason] - before)
