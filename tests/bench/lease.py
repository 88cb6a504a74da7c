"""What a lease of the cluster costs, measured; and how far one store goes, simulated.

Needs redis-py (the extra `cluster`) and the Redis server of Debian's package redis-tools.
"""

import asyncio
import contextlib
import os
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, repeat
from pathlib import Path

from rich.console import Console

from smtpproxy.cluster.leases import Leases
from smtpproxy.cluster.store import Store
from smtpproxy.config.schema import ClusterSettings
from smtpproxy.net.backend.connection_slots import SlotQueue
from tests.bench import markdown
from tests.bench.campaign import Step
from tests.bench.contenders import Argv, Contender, Site
from tests.bench.measure import RunError
from tests.bench.results import CPU_US, SESSION_MS, Results
from tests.bench.scenarios import Scenario, named
from tests.bench.store_simulation import CallCost, simulate
from tests.bench.tables import measured_on, written
from tests.support.redis_server import RedisServer

PART = "lease"
SCENARIOS: tuple[Scenario, ...] = (named("alone"), named("small"))
LEASE_S = 2.0
SETTLE_S = LEASE_S + 1.0
"""A store that is empty grants nothing for a lease and a quarter of a second."""
LIMIT = 1000
REPLICAS = (2, 5, 20)
RATES = (100, 1_000, 5_000, 10_000, 20_000)
PAUSE_S = 0.005
"""Between the calls of a session, so that each is one of its own."""
ACTIVE, AT_ONCE = 2, 2
"""The replicas that have sessions, and how many each at once, while CPU is measured."""
SIMULATED_S, SIMULATED_SESSIONS = 0.4, 1000
"""How long a simulation is, and how many sessions it has at least."""
MOST_WAIT_MS = 50
"""How long mail waits for the store."""
CALLS = 2
"""The calls of a session, if none speaks for two."""


@dataclass(frozen=True)
class Cost:
    """What leases cost with so many replicas."""

    replicas: int
    wait_ms: float
    """The median of how long a session waits for its lease, alone."""
    wait_p99_ms: float
    call: CallCost


class _Session:
    """A session that asks for a slot."""

    def __init__(self) -> None:
        self.granted = asyncio.get_running_loop().create_future()

    def slot_answered(self, *, granted: bool) -> None:
        assert granted
        self.granted.set_result(None)

    def reclaim_slot(self) -> None:
        """Do nothing: it is over soon."""


def measure(cpus: Sequence[int], seconds: float) -> list[Cost]:
    """Measure leases with each number of replicas; they share the first CPU, the store the last."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus[:1])
    try:
        return [_cost(cpus, replicas, seconds) for replicas in REPLICAS]
    finally:
        os.sched_setaffinity(0, before)


def _cost(cpus: Sequence[int], replicas: int, seconds: float) -> Cost:
    with tempfile.TemporaryDirectory() as directory, server(Path(directory), cpus) as store:
        return asyncio.run(_measure(store, replicas, seconds))


def server(directory: Path, cpus: Sequence[int]) -> RedisServer:
    """Return a store that runs on the last CPU."""
    return RedisServer(directory, inside=("taskset", "-c", str(cpus[-1])))


async def _measure(server: RedisServer, replicas: int, seconds: float) -> Cost:
    async with _replicas(server, replicas) as queues:
        waits: list[float] = []
        await _sessions(cycle(queues[:ACTIVE]), seconds, PAUSE_S, waits)
        calls, store_s, own_s = _calls(server), _cpu_s(server), time.process_time()
        active = queues[:ACTIVE] * AT_ONCE
        busy = (_sessions(repeat(queue), seconds, 0.0, []) for queue in active)
        await asyncio.gather(*busy)
        own_s = time.process_time() - own_s
        store_s, calls = _cpu_s(server) - store_s, _calls(server) - calls
    *_, p99 = statistics.quantiles(waits, n=100)
    wait_us = statistics.median(waits) * 1e6
    store_us, supervisor_us = store_s * 1e6 / calls, own_s * 1e6 / calls
    network_us = max(wait_us - store_us - supervisor_us, 0.0)
    call = CallCost(store_us, supervisor_us, network_us)
    return Cost(replicas, wait_us / 1e3, p99 * 1e3, call)


@contextlib.asynccontextmanager
async def _replicas(server: RedisServer, replicas: int) -> AsyncIterator[list[SlotQueue]]:
    """Let so many replicas lease the slots of one backend, from this process."""
    settings = ClusterSettings(url=server.url, name="bench", replicas=replicas, lease=LEASE_S)
    stores = [Store(settings, f"mx{number}") for number in range(replicas)]
    leases = [Leases(store) for store in stores]
    queues = [SlotQueue(LIMIT, 30.0) for _ in stores]
    for store, lease, queue in zip(stores, leases, queues, strict=True):
        lease.add("mta", queue)
        store.start()
        await asyncio.sleep(0.1)  # one after the other, as they are all in this process
    try:
        await asyncio.sleep(SETTLE_S)
        yield queues
        if not all(store.failures == 0 for store in stores):
            raise RunError("the store did not answer in time: this machine is too busy")
    finally:
        for store, lease in zip(stores, leases, strict=True):
            lease.stop()
            await lease.leave()
            await store.stop()


async def _sessions(
    queues: Iterable[SlotQueue], seconds: float, pause_s: float, waits: list[float]
) -> None:
    """Let one session after another hold a slot of the next queue; add how long each waits."""
    until = time.monotonic() + seconds
    for queue in queues:
        session, began = _Session(), time.monotonic()
        queue.ask(session, b"client")
        await session.granted
        waits.append(time.monotonic() - began)
        await asyncio.sleep(pause_s)
        queue.leave(session)
        await asyncio.sleep(pause_s)
        if began > until:
            break


def _calls(server: RedisServer) -> int:
    found = re.search(r"cmdstat_evalsha:calls=(\d+)", server.command("INFO", "commandstats"))
    return int(found[1]) if found else 0


def _cpu_s(server: RedisServer) -> float:
    """Return the seconds of CPU that the store has used."""
    used = re.findall(r"used_cpu_(?:sys|user):([\d.]+)", server.command("INFO", "cpu"))
    return sum(map(float, used))


# --- the whole proxy ------------------------------------------------------------------------------


def step(ours: Contender, store: RedisServer, repetitions: int) -> Step:
    """Return what is to be measured of the proxy: with `max_connections` alone, and with leases.

    Args:
        ours: The contender whose program is used.
        store: The store, which runs meanwhile.
        repetitions: How often.
    """

    def settings(site: Site, cluster: str) -> Argv:
        text = (
            f'[listeners.bench]\naddress = "127.0.0.1:{site.port}"\n'
            f'[backends.mta]\nservers = ["127.0.0.1:{site.backend}"]\nmax_connections = {LIMIT}\n'
        )
        file = site.work.write("bench.toml", text + cluster)
        assert ours.start is not None
        program = list(ours.start(site))[:4]  # ... -m smtpproxy run
        return [*program, "--config", file]

    cluster = f'[cluster]\nurl = "{store.url}"\nreplicas = 1\nlease = {LEASE_S:g}\n'
    alone = replace(ours, name="slots", label="alone", start=lambda site: settings(site, ""))
    leased = replace(
        ours,
        name="leases",
        label="with leases",
        start=lambda site: settings(site, cluster),
        settle_s=SETTLE_S,
    )
    return Step(SCENARIOS, [alone, leased], repetitions)


# --- the page -------------------------------------------------------------------------------------


_COSTS = (
    "How long a session waits for its lease if nothing else happens, and the CPU of a call while "
    f"sessions come one after another. A session makes {CALLS} calls: one takes the lease, one "
    "gives it back."
)
_SESSIONS = (
    "The whole proxy, with `max_connections` alone and with leases of a store on the same machine:"
)
_RATES = (
    "A simulation with these costs, one backend, and sessions that come at random. Wait: of 99 in "
    "100 sessions at most."
)


def write(results: Results, costs: Sequence[Cost], page: Path) -> Path:
    """Write the part of the page, and return it."""
    parts = [
        "#### What a lease costs",
        _COSTS,
        _costs(costs),
        _SESSIONS,
        _sessions_table(results),
        "#### When the store is full",
        _full(costs),
        _RATES,
        _rates(costs),
        f"Measured by `{results.command}` on {measured_on(results)}.",
    ]
    markdown.replace_part(page, PART, "\n\n".join(parts))
    return page


def _costs(costs: Sequence[Cost]) -> str:
    head = [
        *("replicas", "wait, ms", "wait of 99 in 100, ms"),
        *("CPU of a call: supervisor, µs", "store, µs"),
    ]
    rows = [
        [
            str(each.replicas),
            *map(written, (each.wait_ms, each.wait_p99_ms)),
            *map(written, (each.call.supervisor_us, each.call.store_us)),
        ]
        for each in costs
    ]
    return markdown.table(head, rows)


def _sessions_table(results: Results) -> str:
    head = ["", "session alone, ms", "with leases, ms", "CPU per message alone, µs"]
    head.append("with leases, µs")
    rows = []
    for scenario in SCENARIOS:
        spreads = [
            results.spread(scenario, name, figure)
            for figure in (SESSION_MS, CPU_US)
            for name in ("slots", "leases")
        ]
        medians = [spread.median if spread else None for spread in spreads]
        rows.append([scenario.sentence, *map(written, medians)])
    return markdown.table(head, rows)


def _full(costs: Sequence[Cost]) -> str:
    """Return at which rate the store's core is full, and how long calls then are."""
    rates = [f"{full_rate(each.call):,.0f} with {each.replicas} replicas" for each in costs]
    most = costs[-1]
    backends = MOST_WAIT_MS * 1e3 / 2 / most.call.store_us / most.replicas
    return (
        f"The store uses one core. It is full at so many sessions a second of all replicas: "
        f"{', '.join(rates)}. Then nothing breaks: a replica makes one call at a time for each "
        f"backend, and a call speaks for all sessions that came during the one before. So sessions "
        f"wait longer, at most for two calls of each replica for each backend. That becomes "
        f"{MOST_WAIT_MS} ms, from which on the store counts as away, with {most.replicas} replicas "
        f"of {max(backends, 1):.0f} backends each. A supervisor, which has one core as well, makes "
        f"at most {1e6 / most.call.supervisor_us:,.0f} calls a second."
    )


def full_rate(call: CallCost) -> float:
    """Return the sessions a second that fill the store's core, if each makes its own calls."""
    return 1e6 / (CALLS * call.store_us)


def _rates(costs: Sequence[Cost]) -> str:
    head = ["sessions a second"]
    for cost in costs:
        head += [f"{cost.replicas} replicas: store's core", "calls a session", "wait, ms"]
    rows = []
    for rate in RATES:
        row = [f"{rate:,}"]
        for cost in costs:
            found = simulate(
                cost.call,
                replicas=cost.replicas,
                backends=1,
                rate=rate,
                seconds=max(SIMULATED_S, SIMULATED_SESSIONS / rate),
            )
            row += [f"{found.store_use:.0%}", written(found.calls), written(found.wait_p99_ms)]
        rows.append(row)
    return markdown.table(head, rows)


def show(costs: Sequence[Cost], console: Console) -> None:
    """Print what was measured."""
    for each in costs:
        console.print(each, highlight=False)
