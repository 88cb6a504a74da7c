"""Admission: decides whether a new client gets a session.

A refused client gets 421 at once; a client with a session is never affected.  The limits count the
sessions of all workers (`smtpproxy.net.shared_counters`), those by address also of all replicas.
An IPv6 /64 counts as one address, since a host usually has all of its addresses; in a NAT64 network
each embedded IPv4 address counts.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from time import monotonic
from typing import Protocol

from smtpproxy.config.address import ipv4_in_nat64
from smtpproxy.core import replies
from smtpproxy.core.observer import ServiceObserver
from smtpproxy.net.fd_limits import FdLimits
from smtpproxy.net.shared_counters import CounterSlots, SharedCounters

Network = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address

TICK_S = 0.25
"""The interval at which the lag of the event loop is measured."""
LOG_INTERVAL_S = 1.0
"""The shortest interval of log lines about clients refused for the same reason."""
ADDRESSES_KNOWN = 4096
"""The number of addresses whose counter slots are cached; finding them costs as much as logging."""
ROUNDING_S = 1e-6
"""The tolerance for rounding in times of the token bucket."""

_REPLIES = {
    "sessions": replies.TOO_MANY_SESSIONS,
    "file_descriptors": replies.TOO_MANY_SESSIONS,
    "event_loop_lag": replies.TOO_MANY_SESSIONS,
    "sessions_per_address": replies.TOO_MANY_FROM_ADDRESS,
    "new_sessions_per_minute": replies.TOO_MANY_FROM_ADDRESS,
}
LOST = "client_lost"
"""The reason if a client resets its connection before its address can be read."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The limits of the service; 0 means no limit."""

    sessions: int = 0
    """The number of sessions of all workers."""
    sessions_per_address: int = 0
    """The number of sessions of one client address, in all workers."""
    new_sessions_per_minute: int = 0
    """The rate of new sessions of one client address, which is also the size of its bucket."""
    event_loop_lag: float = 0.0
    """The lag of this worker's event loop, in seconds."""
    nat64: tuple[Network, ...] = ()
    """The NAT64 networks, in addition to the well-known one (RFC 6052)."""
    exempt: tuple[Network, ...] = ()
    """The networks whose clients are not counted by address."""


class Pausable(Protocol):
    """A listener that can pause."""

    def pause(self, paused: bool) -> None:
        """Pause or resume accepting clients."""


class Admission:
    """The admission of a worker.

    Args:
        bounds: The limits.
        shared_counters: The counters that all workers share.
        hostname: The proxy's name in its replies.
        observer: Gets the refused clients.
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
        self._uncounted = shared_counters.slots(b"")
        self._slots_of = lru_cache(ADDRESSES_KNOWN)(self._find_slots)
        self._address_of = lru_cache(ADDRESSES_KNOWN)(self._find_address)
        self.lag = 0.0
        """The lag of the event loop when last measured, in seconds."""
        self._fd_limits = FdLimits()
        self._exhausted = False
        self._listeners: Sequence[Pausable] = ()
        self._timer: asyncio.TimerHandle | None = None
        # By reason: the time of the last log line, and the total by then.
        self._last_logged: dict[str, tuple[float, int]] = {}
        self.refused = dict.fromkeys((*_REPLIES, LOST), 0)
        """The number of refused clients by reason."""
        self.refusal = b""
        """The reply to the client that was refused last."""

    def start(self, listeners: "Sequence[Pausable]" = ()) -> None:
        """Start to measure the event loop's lag and to watch the file descriptors.

        Args:
            listeners: The listeners to pause while no descriptor is left.
        """
        self._listeners = listeners
        self._watch(monotonic())

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, due: float) -> None:
        now = monotonic()
        self.lag = now - due
        self._watch_descriptors()
        due = now + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._watch, due)

    def _watch_descriptors(self) -> None:
        """Pause the listeners while no descriptor is left, and log that once."""
        self._fd_limits.look()
        exhausted = self._fd_limits.exhausted
        if exhausted and not self._exhausted:
            self._refuse("file_descriptors", "")
        self._exhausted = exhausted
        for listener in self._listeners:
            listener.pause(exhausted)

    def lacks_descriptors(self, descriptor: int, host: str) -> bool:
        """Refuse a client if file descriptors are short; return whether it was refused.

        Args:
            descriptor: The descriptor of the client's connection, which shows how many are in use.
            host: The client's IP address, or empty.
        """
        if not self._fd_limits.short_at(descriptor, self._shared_counters.own_sessions):
            return False
        self._refuse("file_descriptors", host)
        return True

    def enter(self, host: str, descriptor: int = -1) -> CounterSlots | None:
        """Admit and count a new client, or refuse it.

        Args:
            host: Its IP address; empty for a Unix socket.
            descriptor: The descriptor of its connection; -1 to not check descriptors.

        Returns:
            Its counter slots, to be passed to `leave`; None if it is refused with `refusal`.
        """
        if self.lacks_descriptors(descriptor, host):
            return None
        bounds, shared_counters = self._bounds, self._shared_counters
        full_again = 0.0
        by_address = self._slots_of(host, shared_counters.key_changes)
        slots = self._uncounted if by_address is None else by_address
        reason = ""
        if bounds.sessions and shared_counters.sessions() >= bounds.sessions:
            reason = "sessions"
        elif self.lag > bounds.event_loop_lag > 0:
            reason = "event_loop_lag"
        elif by_address is None:
            pass
        elif (
            bounds.sessions_per_address
            and shared_counters.open(slots) >= bounds.sessions_per_address
        ):
            reason = "sessions_per_address"
        elif bounds.new_sessions_per_minute:
            # A token bucket as GCRA; see `smtpproxy.net.shared_counters`.
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
        """Stop counting a client whose session has ended."""
        self._shared_counters.remove(slots)

    def address_of(self, host: str) -> bytes:
        """Return the address that a client counts as, an IPv4 address or IPv6 /64; else empty."""
        return self._address_of(host)

    def lost(self) -> None:
        """Count a client that reset its connection before its address could be read."""
        self._count(LOST, "")

    def _find_slots(self, host: str, _key_changes: int) -> CounterSlots | None:
        """Return the slots of a client's address; None if it is not counted by address."""
        bounds = self._bounds
        if not host or not (bounds.sessions_per_address or bounds.new_sessions_per_minute):
            return None
        address, counted = self._addresses(host)
        if any(address in network or counted in network for network in bounds.exempt):
            return None
        return self._shared_counters.slots(counted.packed[:8])

    def _find_address(self, host: str) -> bytes:
        return self._addresses(host)[1].packed[:8] if host else b""

    def _addresses(self, host: str) -> tuple[IPAddress, IPAddress]:
        """Return a client's address, and the one that it counts as."""
        address = ip_address(host.partition("%")[0])
        return address, ipv4_in_nat64(address, self._bounds.nat64)

    def _refuse(self, reason: str, host: str) -> None:
        self.refusal = _REPLIES[reason] % self._hostname
        self._count(reason, host)

    def _count(self, reason: str, host: str) -> None:
        self.refused[reason] += 1
        now = monotonic()
        when, before = self._last_logged.get(reason, (-LOG_INTERVAL_S, 0))
        if now - when >= LOG_INTERVAL_S:
            self._last_logged[reason] = (now, self.refused[reason])
            self._observer.refused(reason, host, self.refused[reason] - before)
