"""Two replicas of the program with one Redis server."""

import asyncio
import contextlib
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from smtpproxy.config.loader import from_flags
from smtpproxy.config.schema import ClusterSettings, Settings
from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.metrics import definitions
from smtpproxy.supervisor.coordinator import Coordinator
from tests.probe.server import Server, Session
from tests.supervisor.conftest import mta, run
from tests.support.processes import eventually
from tests.support.program import Program, send
from tests.support.redis_server import RedisServer

__all__ = ["mta", "run"]

Start = Callable[..., Program]


@pytest.fixture
def start(run: Callable[..., Program], tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a replica."""

    def replica(name: str, servers: list[str], limits: str = "") -> Program:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f'instance = "{name}"\n[listeners.smtp]\naddress = "127.0.0.1:0"\n'
            f"[backends.old]\nservers = {servers}\nretry_after = 0.1\n"
            f"[limits]\nexempt = []\n{limits}\n[timeouts]\ngreeting = 4\n"
            f'[cluster]\nurl = "{server.url}"\nreplicas = 2\n'
        )
        return run("-c", file)

    with RedisServer(tmp_path) as server:
        yield replica


async def test_a_reload_joins_changes_and_leaves_a_cluster(tmp_path: Path) -> None:
    def settings(name: str) -> Settings:
        cluster = ClusterSettings(url=server.url, replicas=2, name=name)
        return replace(alone, cluster=cluster, instance=f"in {name}")

    async def until_heard(*numbers: int) -> None:
        async with asyncio.timeout(20):
            while [heard(each) for each in (one, two)] != [*numbers]:
                await asyncio.sleep(0.02)

    def heard(coordinator: Coordinator) -> float | None:
        found = coordinator.snapshot().samples_of(definitions.CLUSTER_REPLICAS_HEARD)
        return found[0].value if found else None

    alone = from_flags(None, ["127.0.0.1:0"], ["192.0.2.1:25"])
    one, two = (Coordinator(lambda *_: None) for _ in range(2))
    with RedisServer(tmp_path) as server:
        one.apply(settings("a"))
        two.apply(settings("a"))
        await until_heard(1, 1)
        two.apply(settings("b"))
        await until_heard(0, 0)
        two.apply(settings("a"))
        await until_heard(1, 1)
        two.apply(alone)
        await until_heard(0, None)
        await two.close()
        await one.close()


def greeting(port: int) -> bytes:
    """Return the first line that a client gets."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        return client.recv(1000)


def test_sessions_of_an_address_count_at_both_replicas(start: Start, mta: LegacyMTA) -> None:
    ports = [
        start(name, [mta.address], "sessions_per_address = 2").port() for name in ("one", "two")
    ]
    with contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(smtplib.SMTP("127.0.0.1", ports[0], timeout=20))
        eventually(lambda: greeting(ports[1])[:9] == b"421 4.7.0" or None, "a refusal at the other")
    eventually(lambda: greeting(ports[1])[:3] == b"220" or None, "sessions that are gone")


def test_what_one_replica_finds_down_the_other_tries_last(start: Start, mta: LegacyMTA) -> None:
    """Its clients do not wait for the greeting of a server that sends none."""

    def say_nothing(session: Session) -> None:
        session.line()

    with Server(script=say_nothing) as silent:
        servers = [str(silent.address), mta.address]
        one, two = start("one", servers), start("two", servers)
        ports = one.port(), two.port()
        send(ports[0])  # after the time limit of the greeting
        assert one.event("server_down")["server"] == servers[0]
        heard = two.event("server_down_elsewhere")
        assert (heard["backend"], heard["server"], heard["replica"]) == ("old", servers[0], "one")
        for _ in range(5):
            send(ports[1])
            time.sleep(0.2)  # longer than retry_after, and shorter than the check
        eventually(lambda: len(silent.sessions) == 2 or None, "the check")
    assert len(mta.messages) == 6
    assert two.event("server_down")["server"] == servers[0]  # found by its own check


def test_a_replica_that_is_wrong_about_a_server_changes_nothing_at_the_other(
    start: Start, mta: LegacyMTA
) -> None:
    """Such as one whose own network is down: here the server refuses its first client only."""

    def refuse_the_first(session: Session) -> None:
        session.say(b"421 not now\r\n" if session is moody.sessions[0] else b"220 mx\r\n")
        while session.line():
            session.say(b"250 fine\r\n")

    with Server(script=refuse_the_first) as moody:
        servers = [str(moody.address), mta.address]
        one, two = start("one", servers), start("two", servers)
        ports = one.port(), two.port()
        send(ports[0])
        assert one.event("server_down")["server"] == servers[0]
        two.event("server_down_elsewhere")
        eventually(lambda: greeting(ports[1]) == b"220 mx\r\n" or None, "the first server again")
        assert "server_down" not in {each["event"] for each in two.log()}
