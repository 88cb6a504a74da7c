"""Limits by client address and server findings over several replicas, with a real Redis server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from smtpproxy.cluster import state_exchange
from smtpproxy.cluster.state_exchange import ServerName, StateExchange
from smtpproxy.cluster.store import Store, StoreAway
from smtpproxy.config.schema import ClusterSettings
from smtpproxy.net import admission as admission_module
from smtpproxy.net import shared_counters
from smtpproxy.net.admission import Admission, AdmissionLimits
from smtpproxy.net.shared_counters import CounterSlots, SharedCounters
from tests.net.fakes import Watcher
from tests.support.redis_server import RedisServer

HOST = "192.0.2.1"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


class Replica:
    """A replica with two workers that exchanges its state only when a test asks it to."""

    def __init__(self, server: RedisServer, instance: str, **limits: int) -> None:
        self.store = Store(ClusterSettings(url=server.url, name="c", replicas=2), instance)
        memory = shared_counters.create()
        bounds = AdmissionLimits(**limits)
        rows = [SharedCounters(memory, row) for row in range(3)]
        self.workers = [Admission(bounds, row, b"mx", Watcher()) for row in rows[1:]]
        self.down: set[ServerName] = set()
        self.found: list[tuple[ServerName, bool, str]] = []
        self.exchange = StateExchange(
            self.store, rows[0], lambda: self.down, lambda *found: self.found.append(found)
        )
        self.exchange.limit(limits.get("new_sessions_per_minute", 0))
        self.open: list[tuple[Admission, CounterSlots]] = []

    def enter(self, host: str = HOST) -> bool:
        """Return whether a client is admitted, by one worker after the other."""
        worker = self.workers[len(self.open) % 2]
        slots = worker.enter(host)
        if slots is not None:
            self.open.append((worker, slots))
        return slots is not None

    def leave(self) -> None:
        """End the oldest session."""
        worker, slots = self.open.pop(0)
        worker.leave(slots)


class Replicas:
    """Replicas of one cluster."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        self._server = server
        self._stack = stack
        self.all: list[Replica] = []

    async def add(self, instance: str, **limits: int) -> Replica:
        replica = Replica(self._server, instance, **limits)
        self.all.append(replica)
        replica.store.start()
        self._stack.push_async_callback(replica.store.stop)
        return replica

    async def add_two(self) -> tuple[Replica, Replica]:
        """Add two that know of the only session an address may have, which the first has."""
        one = await self.add("one", sessions_per_address=1)
        two = await self.add("two", sessions_per_address=1)
        await self.exchange()
        assert one.enter()
        await self.exchange()
        return one, two

    async def exchange(self) -> None:
        """Let all replicas exchange their states, twice, as within a second."""
        for replica in self.all * 2:
            await exchanged(replica)


async def exchanged(replica: Replica) -> None:
    """Exchange, as soon as the store is there."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await replica.exchange.exchange()
            except StoreAway:
                await asyncio.sleep(0.01)


@pytest.fixture
async def replicas(server: RedisServer) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(server, stack)


async def test_the_sessions_of_an_address_count_at_all_replicas(replicas: Replicas) -> None:
    one = await replicas.add("one", sessions_per_address=3)
    two = await replicas.add("two", sessions_per_address=3)
    await replicas.exchange()
    assert [one.enter(), one.enter()] == [True, True]
    await replicas.exchange()
    assert [two.enter(), two.enter()] == [True, False]
    assert two.enter("192.0.2.2")
    await replicas.exchange()
    assert [one.enter(), two.enter()] == [False, False]
    one.leave()
    await replicas.exchange()
    assert [two.enter(), two.enter()] == [True, False]
    assert (one.exchange.heard, two.exchange.heard) == (1, 1)


async def test_an_ipv6_network_of_64_bits_counts_as_one_address(replicas: Replicas) -> None:
    one = await replicas.add("one", sessions_per_address=1)
    two = await replicas.add("two", sessions_per_address=1)
    await replicas.exchange()
    assert one.enter("2001:db8::1")
    await replicas.exchange()
    assert not two.enter("2001:db8::2")
    assert two.enter("2001:db8:0:1::1")


async def test_between_two_exchanges_each_replica_admits_at_most_its_limit(
    replicas: Replicas,
) -> None:
    """The documented bound: no session is cut, and none is added until there is room."""
    for name in ("one", "two", "three"):
        await replicas.add(name, sessions_per_address=4)
    await replicas.exchange()
    admitted = [[replica.enter() for _ in range(9)].count(True) for replica in replicas.all]
    assert admitted == [4, 4, 4]
    await replicas.exchange()
    for replica in replicas.all:
        replica.leave()
        replica.leave()
    await replicas.exchange()  # 6 are left
    assert not any(replica.enter() for replica in replicas.all)
    for replica in replicas.all:
        replica.leave()
    await replicas.exchange()  # 3 are left
    assert replicas.all[0].enter()


async def test_new_sessions_at_all_replicas_come_out_of_one_bucket(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for module in (admission_module, state_exchange):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    one = await replicas.add("one", new_sessions_per_minute=6)
    two = await replicas.add("two", new_sessions_per_minute=6)
    await replicas.exchange()
    assert [one.enter() for _ in range(4)] == [True] * 4
    await replicas.exchange()
    assert [two.enter() for _ in range(3)] == [True, True, False]
    await replicas.exchange()
    assert not one.enter()
    now += 10  # one more in 10 seconds, wherever it comes
    assert two.enter()
    await replicas.exchange()
    assert [one.enter(), two.enter()] == [False, False]


async def test_what_all_replicas_admit_at_once_delays_the_next_sessions(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    for module in (admission_module, state_exchange):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    for name in ("one", "two"):
        await replicas.add(name, new_sessions_per_minute=6)
    await replicas.exchange()
    admitted = sum(replica.enter() for replica in replicas.all for _ in range(9))
    assert admitted == 12
    await replicas.exchange()
    for _ in range(60):
        now += 2
        admitted += sum(replica.enter() for replica in replicas.all)
        await replicas.exchange()
    assert admitted == 6 + 2 * 6  # a full bucket, and two minutes


async def test_the_key_of_the_first_replica_is_used_by_all(
    replicas: Replicas, server: RedisServer
) -> None:
    """Otherwise an address would have other counter slots at each replica."""
    one = await replicas.add("one", sessions_per_address=2)
    await replicas.exchange()
    two = await replicas.add("two", sessions_per_address=2)
    assert two.enter()  # before it has the key
    await replicas.exchange()
    assert two.exchange._others.key == one.exchange._others.key
    two.leave()
    assert one.enter()
    server.kill()
    server.start()  # empty
    await replicas.exchange()
    assert [two.enter(), two.enter()] == [True, False]


async def test_while_the_store_is_away_each_replica_counts_for_itself_soon(
    replicas: Replicas, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_exchange, "EVERY_S", 0.01)
    now = 1000.0
    monkeypatch.setattr(state_exchange, "monotonic", lambda: now)
    _, two = await replicas.add_two()
    server.kill()
    two.exchange.start()
    async with asyncio.timeout(20):
        while two.store.is_up:
            await asyncio.sleep(0.01)
    assert not two.enter()
    now += state_exchange.STALE_S + 1
    async with asyncio.timeout(20):
        while two.exchange.heard:
            await asyncio.sleep(0.01)
    assert two.enter()
    two.exchange.stop()


async def test_a_replica_that_was_killed_counts_no_longer(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_exchange, "STALE_S", 0.3)
    one = await replicas.add("one", sessions_per_address=1)
    two = await replicas.add("two", sessions_per_address=1)
    await replicas.exchange()
    assert one.enter()
    async with asyncio.timeout(20):
        await exchanged(two)
        while two.exchange.heard:
            await asyncio.sleep(0.02)
            await exchanged(two)
    assert two.enter()


async def test_a_replica_that_was_killed_before_the_clock_was_set_back_counts_no_longer(
    replicas: Replicas, server: RedisServer
) -> None:
    one, two = await replicas.add_two()
    server.command("ZADD", one.exchange._keys[1], "99999999999999", one.store.replica)
    await exchanged(two)
    assert two.enter()


async def test_a_replica_that_stops_counts_no_longer_at_once(replicas: Replicas) -> None:
    one, two = await replicas.add_two()
    await one.exchange.leave()
    await exchanged(two)
    assert two.enter()


@pytest.mark.parametrize(
    "state",
    [
        *("", "[]", '{"instance": "x"}', '{"instance": "x", "down": [], "counts": "AAAA"}'),
        '{"instance": "x", "down": [], "counts": "eJwDAAAAAAE="}',  # too few
        '{"x": ' + "[" * 50_000,
    ],
)
async def test_a_state_that_cannot_be_read_counts_nothing(
    replicas: Replicas, server: RedisServer, state: str
) -> None:
    one = await replicas.add("one", sessions_per_address=1)
    await replicas.exchange()
    states, times, _ = one.exchange._keys
    server.command("HSET", states, "x", state)
    now = int(server.command("TIME").split()[0])
    server.command("ZADD", times, str(now * 1000), "x")
    await replicas.exchange()
    assert one.exchange.heard == 0
    assert [one.enter(), one.enter()] == [True, False]


async def test_a_key_that_no_replica_can_use_is_replaced(
    replicas: Replicas, server: RedisServer
) -> None:
    one = await replicas.add("one")
    await replicas.exchange()
    for key in ("", "00", "x" * 2 * len(one.exchange._others.key)):
        server.command("SET", one.exchange._keys[2], key)
        await replicas.exchange()
        assert (
            server.command("GET", one.exchange._keys[2]).strip() == one.exchange._others.key.hex()
        )


async def test_a_state_has_a_bounded_size_whatever_clients_do(
    replicas: Replicas, server: RedisServer
) -> None:
    one = await replicas.add("one", sessions_per_address=9, new_sessions_per_minute=9)
    for number in range(20_000):
        one.enter(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1")
    await replicas.exchange()
    stored = server.command("HSTRLEN", one.exchange._keys[0], one.store.replica)
    assert 1000 < int(stored) < 200_000


async def test_a_finding_reaches_the_other_replicas_once(replicas: Replicas) -> None:
    one = await replicas.add("one")
    two = await replicas.add("two")
    await replicas.exchange()
    one.down.add(("old", "192.0.2.9:25"))
    await replicas.exchange()
    await replicas.exchange()
    assert two.found == [(("old", "192.0.2.9:25"), False, "one")]
    one.down.clear()
    await replicas.exchange()
    assert two.found[1:] == [(("old", "192.0.2.9:25"), True, "one")]
    assert one.found == []


async def test_after_a_bug_a_replica_counts_for_itself(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the sessions elsewhere would count for ever."""
    one, two = await replicas.add_two()
    assert not two.enter()
    reported: list[BaseException] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    monkeypatch.setattr(two.exchange, "_found", None)
    one.down.add(("old", "192.0.2.9:25"))
    await exchanged(one)
    two.exchange.start()
    async with asyncio.timeout(20):
        while not reported:
            await asyncio.sleep(0.01)
    assert [type(error) for error in reported] == [TypeError]
    assert two.enter()


@pytest.mark.parametrize(
    "answer", [1, [], [b""], [b"\xff", []], [b"00", [[b"x", b"y"]]], [b"x", 1]]
)
async def test_a_store_that_answers_something_else_is_away(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    one = await replicas.add("one")
    await replicas.exchange()
    key = one.exchange._others.key
    evaluate = Redis.evalsha

    async def answered(client: Redis, sha: str, *rest: Any) -> Any:
        found = await evaluate(client, sha, *rest)
        return answer if sha == state_exchange._EXCHANGE.sha else found

    with monkeypatch.context() as patched:
        patched.setattr(Redis, "evalsha", answered)
        why = ""
        async with asyncio.timeout(20):
            while "unexpected" not in why:  # a busy machine may be slow first
                with pytest.raises(StoreAway) as raised:
                    await one.exchange.exchange()
                why = str(raised.value)
                await asyncio.sleep(0.01)
    assert one.exchange._others.key == key
    await exchanged(one)


async def test_a_replica_that_leaves_says_nothing_about_its_servers(replicas: Replicas) -> None:
    one = await replicas.add("one")
    two = await replicas.add("two")
    one.down.add(("old", "192.0.2.9:25"))
    await replicas.exchange()
    await one.exchange.leave()
    await exchanged(two)
    assert [up for _, up, _ in two.found] == [False]


async def test_a_state_that_is_too_long_is_not_read(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await replicas.add("one"), await replicas.add("two")
    await replicas.exchange()
    await replicas.exchange()
    assert (one.exchange.heard, two.exchange.heard) == (1, 1)
    monkeypatch.setattr(state_exchange, "STATE_BYTES", 10)
    await replicas.exchange()
    assert (one.exchange.heard, two.exchange.heard) == (0, 0)
