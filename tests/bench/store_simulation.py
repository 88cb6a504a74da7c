"""A simulation of the store of a cluster: how full its core is, and how long sessions wait for it.

As `smtpproxy.cluster.leases` does it: for each backend a replica makes one call at a time.  A
session needs one call for its connection, and one after its end.  What happens while a call is on
its way waits for the next one, which speaks for all of it.  The store and each supervisor have one
core; calls queue for both.
"""

import heapq
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

HOLD_S = 0.05
"""How long a session keeps its connection, on average."""
WARM_UP_S = 5 * HOLD_S
"""How long the simulation runs before anything is counted."""


@dataclass(frozen=True)
class CallCost:
    """What a call costs, in microseconds."""

    store_us: float
    """CPU of the store."""
    supervisor_us: float
    """CPU of the replica's supervisor."""
    network_us: float
    """The time between them, both ways together."""


@dataclass(frozen=True)
class Simulated:
    """What came out."""

    store_use: float
    """The share of the store's core that is used."""
    calls: float
    """Calls for each session."""
    wait_ms: float
    """The median of how long a session waits for its connection."""
    wait_p99_ms: float


@dataclass
class _Link:
    """A replica's calls for one backend."""

    replica: int
    asking: list[float] = field(default_factory=list)
    """When the sessions came that no call speaks for yet."""
    has_news: bool = False
    is_calling: bool = False


def simulate(
    cost: CallCost, *, replicas: int, backends: int, rate: float, seconds: float
) -> Simulated:
    """Simulate sessions that come at random, the same for each run.

    Args:
        cost: What a call costs.
        replicas: How many replicas share the store.
        backends: How many backends with `max_connections` each of them has.
        rate: Sessions a second, of all replicas together.
        seconds: How long, after the warm-up.
    """
    simulation = _Simulation(cost, replicas, backends, rate)
    simulation.run(WARM_UP_S + seconds)
    waits, calls = simulation.waits, simulation.calls
    *_, p99 = statistics.quantiles(waits, n=100)
    return Simulated(
        store_use=min(calls * cost.store_us / 1e6 / seconds, 1.0),
        calls=calls / len(waits),
        wait_ms=statistics.median(waits) * 1e3,
        wait_p99_ms=p99 * 1e3,
    )


class _Simulation:
    """Events in the order of their time, in seconds."""

    def __init__(self, cost: CallCost, replicas: int, backends: int, rate: float) -> None:
        self.waits: list[float] = []
        self.calls = 0
        self._cost = cost
        self._rate = rate
        self._chance = random.Random(1)
        self._links = [_Link(replica) for replica in range(replicas) for _ in range(backends)]
        self._supervisors_free_at = [0.0] * replicas
        self._store_free_at = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def run(self, until: float) -> None:
        """Run until this time."""
        self._at(0.0, self._arrive)
        while self._events[0][0] < until:
            now, _, event = heapq.heappop(self._events)
            event(now)

    def _at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _arrive(self, now: float) -> None:
        """A session comes, and the next one later."""
        self._at(now + self._chance.expovariate(self._rate), self._arrive)
        link = self._chance.choice(self._links)
        link.asking.append(now)
        self._note(link, now)

    def _note(self, link: _Link, now: float) -> None:
        """Make a call about a session that asks or has ended, or leave it to the next one."""
        link.has_news = True
        if not link.is_calling:
            self._call(link, now)

    def _call(self, link: _Link, now: float) -> None:
        link.is_calling = True
        begun = max(now, self._supervisors_free_at[link.replica])
        sent = self._supervisors_free_at[link.replica] = begun + self._cost.supervisor_us / 1e6
        self._at(sent, lambda time: self._send(link, time))

    def _send(self, link: _Link, now: float) -> None:
        asked, link.asking, link.has_news = link.asking, [], False
        self.calls += now >= WARM_UP_S
        there = now + self._cost.network_us / 2e6
        self._store_free_at = max(self._store_free_at, there) + self._cost.store_us / 1e6
        back = self._store_free_at + self._cost.network_us / 2e6
        self._at(back, lambda time: self._receive(link, asked, time))

    def _receive(self, link: _Link, asked: list[float], now: float) -> None:
        link.is_calling = False
        for came in asked:
            if now >= WARM_UP_S:
                self.waits.append(now - came)
            end = now + self._chance.expovariate(1 / HOLD_S)
            self._at(end, lambda time: self._note(link, time))
        if link.has_news:
            self._call(link, now)
