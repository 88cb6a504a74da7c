"""The connection to the store of a cluster, with a real Redis server."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trustme
from redis.asyncio import Redis

from smtpproxy.cluster.store import LIMIT_S, Script, Store, StoreAway
from smtpproxy.config.schema import ClusterSettings
from tests.support.catalogue import faults
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer, silent_port

T = TypeVar("T")

ECHO = Script("return ARGV[1]", bytes)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def running(url: str, instance: str = "one", name: str = "c") -> AsyncIterator[Store]:
    store = Store(ClusterSettings(url=url, name=name, replicas=2), instance)
    store.start()
    try:
        yield store
        await store.leave()
    finally:
        await store.stop()


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.01)


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Return the answer of the server, also if this machine is too busy for the first one."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except StoreAway:
                await asyncio.sleep(0.05)


async def echo(store: Store, text: str) -> object:
    return await insist(lambda: store.run(ECHO, [], [text]))


async def test_a_script_runs_and_its_answer_comes_back(server: RedisServer) -> None:
    async with running(server.url) as store:
        with pytest.raises(StoreAway):  # not connected yet
            await store.run(ECHO, [], ["x"])
        await until(lambda: store.is_up)
        assert await echo(store, "x") == b"x"


async def test_a_server_that_forgot_its_scripts_gets_them_again(server: RedisServer) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        await echo(store, "x")
        server.command("SCRIPT", "FLUSH")
        assert await echo(store, "y") == b"y"


async def test_mail_waits_50_ms_for_a_stopped_server_and_then_not_at_all(
    server: RedisServer,
) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        changes: list[bool] = []
        store.watch(lambda: changes.append(store.is_up))
        server.stop()
        began = time.monotonic()
        with pytest.raises(StoreAway):
            await store.run(ECHO, [], ["x"])
        assert time.monotonic() - began < 5  # on a busy machine
        with pytest.raises(StoreAway):  # at the first step, without a wait
            store.run(ECHO, [], ["x"]).send(None)
        server.go_on()
        await until(lambda: store.is_up)
        assert await echo(store, "x") == b"x"
        assert changes[:2] == [False, True]


async def test_degraded_is_logged_once_and_recovered_once(
    server: RedisServer, stream: io.BytesIO
) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        server.kill()
        await until(lambda: store.failures > 2)
        server.start()
        await until(lambda: b"cluster_recovered" in stream.getvalue())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["cluster_degraded", "cluster_recovered"] * (len(events) // 2)
    assert 0 < len(events) // 2 < store.failures
    assert [fault for line in lines for fault in faults(line)] == []


async def test_an_error_of_the_server_makes_it_away(server: RedisServer) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        script = Script("return redis.error_reply('ERR no such thing')", bytes)
        with pytest.raises(StoreAway, match="no such thing"):
            await store.run(script, [], [], 0.45)
        assert not store.is_up


async def test_an_answer_of_another_shape_makes_it_away(server: RedisServer) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        with pytest.raises(StoreAway, match="unexpected answer"):
            await store.run(Script("return {1, 2, 3}", tuple[int, int]), [], [], 0.45)
        assert not store.is_up


async def test_a_server_that_never_answers_is_away() -> None:
    listening, port = silent_port()
    with listening:
        async with running(f"redis://127.0.0.1:{port}") as store:
            await until(lambda: store.failures > 0)
            assert not store.is_up


async def test_messages_reach_all_replicas_also_after_a_restart(server: RedisServer) -> None:
    received: list[tuple[str, str]] = []
    settings = ClusterSettings(url=server.url, name="c", replicas=2)
    stores = [Store(settings, name) for name in ("one", "two")]
    for store in stores:
        store.subscribe("news", lambda text, name=store.instance: received.append((name, text)))
        store.start()
    try:
        for text in ("first", "second"):
            both = {("one", text), ("two", text)}
            async with asyncio.timeout(20):
                while not both <= set(received):  # a subscription takes a moment
                    await asyncio.sleep(0.05)
                    await insist(lambda text=text: stores[0].send("news", text))
            server.kill()
            server.start()
            await until(lambda: not stores[0].is_up)
            await until(lambda: stores[0].is_up)
    finally:
        for store in stores:
            await store.stop()


async def test_each_replica_reads_what_all_publish(server: RedisServer) -> None:
    async with running(server.url, "one") as one, running(server.url, "two") as two:
        one.publish("sessions", lambda: 3)
        two.publish("sessions", lambda: {"open": 4})
        async with running(server.url, "three", name="other"):
            await until(lambda: one.is_up and two.is_up)
            async with asyncio.timeout(20):
                while len(records := await insist(one.replicas)) < 2:
                    await asyncio.sleep(0.01)
    assert [(each.instance, each.parts) for each in records] == [
        ("one", {"sessions": 3}),
        ("two", {"sessions": {"open": 4}}),
    ]
    assert {each.replica for each in records} == {one.replica, two.replica}
    assert all(each.age_s < 10 for each in records)


async def test_a_replica_that_leaves_is_no_longer_listed(server: RedisServer) -> None:
    async with running(server.url, "one") as one:
        async with running(server.url, "two") as two:
            await until(lambda: one.is_up and two.is_up)
            async with asyncio.timeout(20):
                while len(await insist(one.replicas)) < 2:
                    await asyncio.sleep(0.01)
        await until(lambda: one.is_up)
        assert [each.instance for each in await insist(one.replicas)] == ["one"]


async def test_an_acl_user_and_a_password_are_used(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        rights = ("~smtpproxy:*", "&smtpproxy:*", "+@all", "-@dangerous", "+info")
        assert server.command("ACL", "SETUSER", "mail", "on", ">secret", *rights) == "OK\n"
        assert server.command("ACL", "SETUSER", "default", "off") == "OK\n"
        wrong, right = (
            f"redis://mail:{word}@127.0.0.1:{server.port}" for word in ("wrong", "secret")
        )
        async with running(right) as store:
            await until(lambda: store.is_up)
            assert await echo(store, "x") == b"x"
        async with running(wrong) as store:
            await until(lambda: store.failures > 0)
            assert not store.is_up


async def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = {"cert": issued.cert_chain_pems[0], "key": issued.private_key_pem}
    for name, pem in {**files, "ca-cert": authority.cert_pem}.items():
        pem.write_to_path(tmp_path / name)
    tls_port = free_port()
    options = ("--tls-port", str(tls_port), "--tls-auth-clients", "no")
    for name in ("cert", "key", "ca-cert"):
        options += (f"--tls-{name}-file", str(tmp_path / name))
    with RedisServer(tmp_path, *options):
        async with running(f"rediss://localhost:{tls_port}") as store:
            await until(lambda: store.failures > 0)
            assert not store.is_up
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca-cert"))
        async with running(f"rediss://localhost:{tls_port}") as store:
            await until(lambda: store.is_up)
            assert await echo(store, "x") == b"x"


async def test_a_fault_that_lasts_is_logged_once(tmp_path: Path, stream: io.BytesIO) -> None:
    """The server answers each connection, and then refuses what a replica needs."""
    users = {
        "no-scripts": ("&smtpproxy:*", "-@scripting"),
        "no-channels": ("resetchannels",),
    }
    with RedisServer(tmp_path) as server:
        for user, rights in users.items():
            server.command("ACL", "SETUSER", user, "on", ">secret", "~*", "+@all", *rights)
        for user in users:
            stream.seek(0)
            stream.truncate()
            url = f"redis://{user}:secret@127.0.0.1:{server.port}"
            store = Store(ClusterSettings(url=url, name="c", replicas=2), "one")
            store.subscribe("news", lambda _: None)
            store.start()
            await until(lambda store=store: store.failures > 3)
            await store.stop()
            with pytest.raises(StoreAway, match="permissions"):  # as status shows it
                await store.replicas()
            (line,) = map(json.loads, stream.getvalue().splitlines())
            assert line["event"] == "cluster_degraded"
            assert "permissions" in line["reason"]
            assert "secret" not in line["reason"]


async def test_a_server_that_does_not_accept_writes_is_away(server: RedisServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", "1")
    async with running(server.url) as store:
        changes: list[bool] = []
        store.watch(lambda: changes.append(store.is_up))
        await until(lambda: store.failures > 2)
        assert changes == []
        server.command("REPLICAOF", "NO", "ONE")
        await until(lambda: store.is_up)


@pytest.mark.parametrize(
    "answer", [b":x\r\n", b"$x\r\n", b"*1\r\n" * 5000, b"220 mx ESMTP\r\n", b"-\xff\r\n"]
)
async def test_a_server_of_another_protocol_is_away(answer: bytes, stream: io.BytesIO) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        async with running(f"redis://127.0.0.1:{port}") as store:
            await until(lambda: store.failures > 1)
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["event"] == "cluster_degraded"


async def test_a_server_that_sends_other_messages_is_away() -> None:
    """Else no waiting replica would be woken any more."""
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.read(65536):
            writer.write(message if b"SUBSCRIBE" in command else b":1\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        store = Store(ClusterSettings(url=f"redis://127.0.0.1:{port}", name="c", replicas=2), "one")
        store.subscribe("news", lambda _: None)
        store.start()
        try:
            await until(lambda: store.failures > 1)
        finally:
            await store.stop()


async def test_a_slow_list_of_replicas_does_not_concern_mail(server: RedisServer) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        await insist(store.replicas)  # the connection and the script are there
        failures = store.failures
        server.stop()
        listing = asyncio.ensure_future(store.replicas())
        await asyncio.wait((listing,), timeout=2 * LIMIT_S)
        was_done = listing.done()
        server.go_on()
        (record,) = await listing
        assert (was_done, record.instance) == (False, "one")
        assert (store.is_up, store.failures) == (True, failures)


async def test_records_of_others_are_read_with_care(server: RedisServer) -> None:
    async with running(server.url) as store:
        await until(lambda: store.is_up)
        await insist(store.replicas)
        now = int(server.command("TIME").split()[0]) * 1000
        deep = "[" * 100_000
        texts = ["", "x", '{"replica": 1}', deep, f'{{"parts": {{"x": {deep}']
        for number, text in enumerate(texts):
            server.command("ZADD", store.key("replicas"), str(now), str(number))
            server.command("HSET", store.key("records"), str(number), text)
        big = '{"replica": "x", "instance": "x", "parts": {"x": "' + "x" * 100_000 + '"}}'
        server.command("ZADD", store.key("replicas"), str(now), "big")
        server.command("HSET", store.key("records"), "big", big)
        assert [each.instance for each in await insist(store.replicas)] == ["one"]


@pytest.mark.parametrize("turns", range(4))
async def test_a_stop_while_connections_are_closed_leaves_none_open(
    server: RedisServer, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a server that does not run scripts, which is asked again and again."""
    server.command("ACL", "SETUSER", "default", "-@scripting")
    store = Store(ClusterSettings(url=server.url, name="c", replicas=2), "one")
    clients: list[Redis] = []
    make = store._make_client
    monkeypatch.setattr(store, "_make_client", lambda: clients.append(make()) or clients[-1])
    store.start()
    while not store.failures:
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    await store.stop()
    pool = clients[0].connection_pool
    (connection,) = (*pool._available_connections, *pool._in_use_connections)
    assert not connection.is_connected
