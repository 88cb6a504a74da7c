"""Leases in replicas: their clients, their queue, and a real server."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from smtpproxy.cluster import leases, store
from smtpproxy.cluster.leases import Leases
from smtpproxy.cluster.store import Script, Store
from smtpproxy.config.schema import ClusterSettings
from smtpproxy.net.backend.connection_slots import SlotQueue
from tests.support.catalogue import faults
from tests.support.redis_server import RedisServer

LEASE_S = 1.0


class Client:
    """A client, which holds its slot until `end`."""

    def __init__(self, queue: SlotQueue, address: bytes = b"A") -> None:
        self._queue = queue
        self.began = time.monotonic()
        self.waited = 0.0
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.asked_back = False
        queue.ask(self, address)

    def slot_answered(self, *, granted: bool) -> None:
        self.waited = time.monotonic() - self.began
        self.granted.set_result(granted)

    def reclaim_slot(self) -> None:
        self.asked_back = True
        self.end()

    def end(self) -> None:
        self._queue.leave(self)

    @property
    def is_served(self) -> bool:
        return self.granted.done() and self.granted.result()


class Replica:
    """One replica with a backend `mx`."""

    def __init__(self, url: str, limit: int, lease_s: float, max_wait: float) -> None:
        settings = ClusterSettings(url=url, replicas=3, lease=lease_s)
        self.store = Store(settings, "one")
        self.leases = Leases(self.store)
        self.queue = SlotQueue(limit, max_wait)
        self.leases.add("mx", self.queue)
        self.store.start()

    def client(self, address: bytes = b"A") -> Client:
        return Client(self.queue, address)

    async def stop(self) -> None:
        self.leases.stop()
        await self.leases.leave()
        await self.store.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine this process is slow, and not the server.

    A replica whose call or heartbeat is late connects again, and counts as lost if that takes long.
    """
    monkeypatch.setattr(leases, "CALL_S", 4.0)
    monkeypatch.setattr(leases, "LIMIT_S", 4.5)
    for name in ("LIMIT_S", "VALID_S", "CONNECT_LIMIT_S"):
        monkeypatch.setattr(store, name, 5.0)
    monkeypatch.setattr(store, "LONGEST_DELAY_S", 0.1)
    monkeypatch.setattr(store.Store.run, "__defaults__", (5.0,))


@asynccontextmanager
async def replicas(
    server: RedisServer,
    limit: int = 6,
    lease_s: float = LEASE_S,
    max_wait: float = 30.0,
    count: int = 3,
    wait: bool = True,
) -> AsyncIterator[list[Replica]]:
    found = [Replica(server.url, limit, lease_s, max_wait) for _ in range(count)]
    try:
        if wait:
            await until(lambda: all(each.store.is_up for each in found))
            await recovered(found)
        yield found
    finally:
        for each in found:
            await each.stop()


async def recovered(found: list[Replica]) -> None:
    """Wait until the server grants leases."""
    await until(lambda: all(each.leases._backends["mx"].recovers is False for each in found))
    client = found[0].client()
    await until(lambda: client.is_served)
    client.end()


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.01)


def taken(found: list[Replica]) -> list[int]:
    return [each.queue.taken for each in found]


async def test_one_replica_may_use_all_connections_and_others_wait(server: RedisServer) -> None:
    async with replicas(server) as (one, two, three):
        first = [one.client() for _ in range(6)]
        await until(lambda: all(each.is_served for each in first))
        waiting = [two.client(), three.client()]
        await asyncio.sleep(0.3)
        assert not any(each.granted.done() for each in waiting)
        first[0].end()
        first[1].end()
        await until(lambda: all(each.is_served for each in waiting))
        assert taken([one, two, three]) == [4, 1, 1]


async def test_waiting_clients_of_all_replicas_are_served_fairly(server: RedisServer) -> None:
    async with replicas(server) as found:
        first = [found[0].client() for _ in range(6)]
        await until(lambda: all(each.is_served for each in first))
        for _ in range(10):
            for each in found:
                each.client()
        await until(lambda: all(each.queue.waiting for each in found))
        for client in first:
            client.end()
            await until(lambda: sum(taken(found)) == 6)
        assert taken(found) == [2, 2, 2]


async def test_a_free_slot_is_used_at_once(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica that waits is woken, and does not have to ask again for it."""
    async with replicas(server, limit=3) as (one, two, _):
        first = [one.client() for _ in range(3)]
        await until(lambda: all(each.is_served for each in first))
        run, topic = two.store.run, two.store.key(f"wake:{two.store.replica}")
        received = two.store._subscribed[topic]
        answers = woken = 0

        async def count_answers(*call: Any) -> Any:
            nonlocal answers
            answer = await run(*call)
            answers += 1
            return answer

        def count_messages(backend: str) -> None:
            nonlocal woken
            received(backend)
            woken += two.leases._backends[backend]._changed.is_set()

        monkeypatch.setattr(two.store, "run", count_answers)
        monkeypatch.setitem(two.store._subscribed, topic, count_messages)
        for number, client in enumerate(first, 1):
            other, asked = two.client(), answers
            await until(lambda asked=asked: answers > asked + 1)  # one of them was for this client
            client.end()
            await until(lambda other=other, number=number: other.is_served and woken >= number)


async def test_without_the_server_each_replica_uses_its_share(server: RedisServer) -> None:
    async with replicas(server) as found:
        server.stop()
        clients = [[each.client() for _ in range(4)] for each in found]
        await until(lambda: taken(found) == [2, 2, 2])
        assert all(client.waited < 5 for each in clients for client in each[:2])
        assert [each.queue.waiting for each in found] == [2, 2, 2]
        late = found[0].client()
        clients[0][0].end()
        await until(lambda: clients[0][2].is_served)
        assert not late.granted.done()
        server.go_on()
        await until(lambda: all(each.store.is_up for each in found))
        assert taken(found) == [2, 2, 2]


async def test_a_limit_that_is_changed_without_the_server_changes_the_share(
    server: RedisServer,
) -> None:
    async with replicas(server, count=1) as (one,):
        server.kill()
        clients = [one.client() for _ in range(9)]
        await until(lambda: one.queue.taken == 2)
        one.queue.resize(12, 30.0)
        await until(lambda: one.queue.taken == 4)
        one.queue.resize(3, 30.0)
        await asyncio.sleep(0.05)
        for client in clients[:4]:
            client.end()
        await asyncio.sleep(0.05)
        assert one.queue.taken == 1


async def test_an_answer_of_a_server_that_is_away_by_then_keeps_nobody_waiting(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicas(server, count=1) as (one,):
        evaluate = store._evaluate

        async def overtaken(client: Redis, script: Script, *rest: Any) -> Any:
            answer = await evaluate(client, script, *rest)
            if script is leases._SCRIPT:
                server.kill()
                one.store._lost(client, "killed")
            return answer

        monkeypatch.setattr(store, "_evaluate", overtaken)
        one.leases._backends["mx"].wake()
        await until(lambda: not one.store.is_up)
        await asyncio.sleep(0)
        client = one.client()
        await until(lambda: client.is_served)


@pytest.mark.parametrize("answer", [1, [6, -1, 0, 0]])
async def test_a_server_that_answers_something_else_is_away(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    evaluate = Redis.evalsha

    async def answered(client: Redis, sha: str, *rest: Any) -> Any:
        found = await evaluate(client, sha, *rest)
        return answer if sha == leases._SCRIPT.sha else found

    async with replicas(server) as (one, _, _):
        failures = one.store.failures
        with monkeypatch.context() as patched:
            patched.setattr(Redis, "evalsha", answered)
            clients = [one.client() for _ in range(6)]
            await until(lambda: one.store.failures > failures)
            await until(lambda: one.queue.taken == 2)
        await until(lambda: all(client.is_served for client in clients))


async def test_what_a_replica_holds_above_its_share_stays_and_is_not_replaced(
    server: RedisServer,
) -> None:
    async with replicas(server) as (one, two, three):
        first = [one.client() for _ in range(6)]
        await until(lambda: all(each.is_served for each in first))
        server.kill()
        await until(lambda: not one.store.is_up)
        other = two.client()
        await until(lambda: other.is_served)
        assert taken([one, two, three]) == [6, 1, 0]
        again = one.client()
        for client in first[:4]:
            client.end()
        await asyncio.sleep(0.1)
        assert not again.granted.done()
        first[4].end()
        await until(lambda: again.is_served)


async def test_a_server_that_comes_back_empty_learns_first_what_is_held(
    server: RedisServer,
) -> None:
    async with replicas(server) as (one, two, three):
        first = [one.client() for _ in range(6)]
        await until(lambda: all(each.is_served for each in first))
        server.kill()
        server.start()
        others = [two.client() for _ in range(4)]
        await until(lambda: all(each.store.is_up for each in (one, two, three)))
        await asyncio.sleep(2 * LEASE_S)
        assert taken([one, two, three]) == [6, 2, 0]  # its share meanwhile, and no more after
        for client in first[:2]:
            client.end()
        await asyncio.sleep(2 * LEASE_S)
        assert [each.is_served for each in others] == [True, True, False, False]
        first[2].end()
        await until(lambda: others[2].is_served)


async def test_a_new_replica_serves_its_share_at_once(server: RedisServer) -> None:
    """Nobody waits for a lease when the first replica starts."""
    async with replicas(server, lease_s=60, wait=False) as (one, _, _):
        clients = [one.client() for _ in range(3)]
        await until(lambda: clients[1].is_served)
        assert not clients[2].granted.done()


async def test_clients_of_a_replica_are_served_in_their_order(server: RedisServer) -> None:
    async with replicas(server, limit=1) as (one, _, _):
        first = one.client()
        await until(lambda: first.is_served)
        waiting = [one.client() for _ in range(3)]
        served = []
        first.end()
        for client in waiting:
            await until(lambda client=client: client.is_served)
            served.append([each.granted.done() for each in waiting])
            client.end()
        assert served == [[True, False, False], [True, True, False], [True, True, True]]


async def test_a_replica_with_many_gives_one_back_to_another_that_waits(
    server: RedisServer,
) -> None:
    async with replicas(server, max_wait=8.0) as (one, two, _):
        first = [one.client() for _ in range(6)]
        await until(lambda: all(each.is_served for each in first))
        other = two.client()
        await until(lambda: other.granted.done())
        assert other.granted.result()
        assert [each.asked_back for each in first] == [True] + 5 * [False]


async def test_a_client_that_waits_too_long_is_refused(server: RedisServer) -> None:
    async with replicas(server, limit=1, max_wait=2.0) as (one, two, _):
        first = one.client()
        first.reclaim_slot = lambda: None  # type: ignore[method-assign]
        await until(lambda: first.is_served)
        other = two.client()
        await until(lambda: other.granted.done())
        assert not other.granted.result()


async def test_leases_of_a_replica_that_leaves_are_free_at_once(server: RedisServer) -> None:
    async with replicas(server) as (one, two, _):
        first = [one.client() for _ in range(6)]
        await until(lambda: all(each.is_served for each in first))
        waiting = [two.client() for _ in range(6)]
        await asyncio.sleep(0.05)
        await one.stop()
        assert one.store.replica not in server.command("HKEYS", one.store.key("leases", "mx"))
        await until(lambda: all(each.is_served for each in waiting))


async def test_while_the_server_is_asked_no_client_is_served_by_share(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would grant others what it does not know of."""
    async with replicas(server, wait=False) as (one, _, _):
        run = one.store.run
        found: list[Client] = []
        served: list[bool] = []

        async def slowly(script: Script, *rest: Any, **named: Any) -> Any:
            answer = await run(script, *rest, **named)
            if not found:
                found.extend(one.client() for _ in range(2))
                served.extend(client.granted.done() for client in found)
            return answer

        monkeypatch.setattr(one.store, "run", slowly)
        await until(lambda: bool(found))
        await until(lambda: all(client.is_served for client in found))
        assert served == [False, False]


async def test_leases_are_given_back_after_a_moment_without_the_server(server: RedisServer) -> None:
    """Else the share of a replica that has ended would stay reserved."""
    async with replicas(server, lease_s=60, wait=False, count=1) as (one,):
        await until(lambda: one.store.is_up)
        key = one.store.key("leases", "mx")
        await until(lambda: one.store.replica in server.command("HKEYS", key))
        server.stop()
        one.client()  # finds out
        await until(lambda: not one.store.is_up)
        ending = asyncio.create_task(one.stop())
        await asyncio.sleep(0.1)
        server.go_on()
        await ending
        assert one.store.replica not in server.command("HKEYS", key)


async def test_a_server_that_has_lost_its_data_is_logged_once_by_each_replica(
    server: RedisServer, stream: io.BytesIO
) -> None:
    async with replicas(server, count=2) as found:
        for _ in range(2):
            stream.seek(0)
            stream.truncate()
            server.command("FLUSHALL")
            found[0].client().end()
            await until(lambda: all(each.leases._backends["mx"].recovers for each in found))
            await recovered(found)
            lines = [json.loads(line) for line in stream.getvalue().splitlines()]
            lines = [line for line in lines if line["event"] == "cluster_counts_again"]
            assert [(line["backend"], faults(line)) for line in lines] == 2 * [("mx", [])]
            assert all(0 < line["duration_s"] <= LEASE_S for line in lines)
