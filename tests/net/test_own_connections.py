"""Own connections: a record of one worker is known to all others."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from smtpproxy.net import own_connections, shared_counters
from smtpproxy.net.own_connections import ENTRIES, NOTED_S, Outgoing, OwnConnections
from tests.net.fakes import Clock

HERE, THERE = ("10.0.0.1", 40000), ("10.0.0.5", 25)
OTHERS = [
    (("10.0.0.1", 40001), THERE),
    (("10.0.0.2", 40000), THERE),
    (("10.0.0.1", 40000 - ENTRIES), THERE),
    (HERE, ("10.0.0.5", 26)),
    (HERE, ("10.0.0.6", 25)),
    (THERE, HERE),
]


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = shared_counters.create()
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(own_connections, "monotonic", made)
    return made


def test_connections_of_one_worker_are_known_to_all(memory: int) -> None:
    for row in range(3):
        shared_counters.SharedCounters(memory, row)  # as the supervisor does
    rows = [OwnConnections(memory, row) for row in range(3)]
    for number, row in enumerate(rows):
        ends = (HERE[0], HERE[1] + number), THERE
        assert not any(each.has(*ends) for each in rows)
        row.note(*ends)
        assert all(each.has(*ends) for each in rows)


def test_a_single_worker_knows_its_own_connections() -> None:
    alone = OwnConnections()
    alone.note(HERE, THERE)
    assert alone.has(HERE, THERE)
    assert not OwnConnections().has(HERE, THERE)


def test_no_other_connection_is_taken_for_it() -> None:
    alone = OwnConnections()
    alone.note(HERE, THERE)
    for source, target in OTHERS:
        assert not alone.has(source, target)


def test_a_client_whose_port_has_the_place_of_another_is_not_looked_at_closely() -> None:
    """A busy service has an entry at every index; the second comparison costs a session 5 %."""
    alone = OwnConnections()
    alone.note(HERE, THERE)
    assert alone.may_have(HERE)
    clients = [(f"192.0.2.{host}", port) for host in range(250) for port in (40000, 35904)]
    assert not any(alone.may_have(client) for client in clients)


def test_it_is_known_for_a_limited_time(clock: Clock) -> None:
    """Its port may later be that of a connection of another program."""
    alone = OwnConnections()
    alone.note(HERE, THERE)
    clock.now += NOTED_S - 0.1
    assert alone.has(HERE, THERE)
    clock.now += 0.2
    assert not alone.has(HERE, THERE)


def test_the_shared_session_counters_are_not_changed(memory: int) -> None:
    row = shared_counters.SharedCounters(memory, shared_counters.ROWS - 1)
    slots = row.slots(b"x")
    row.add(slots)
    OwnConnections(memory, 0).note(HERE, THERE)
    OwnConnections(memory, shared_counters.ROWS - 1).note(HERE, THERE)
    assert (row.sessions(), row.open(slots)) == (1, 1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("dual_stack", [False, True])
async def test_a_connection_is_known_before_it_can_be_accepted(host: str, dual_stack: bool) -> None:
    family = socket.AF_INET6 if dual_stack or ":" in host else socket.AF_INET
    with socket.create_server(
        ("::" if dual_stack else host, 0), family=family, dualstack_ipv6=dual_stack
    ) as listening:
        loop = asyncio.get_running_loop()
        address = (host, listening.getsockname()[1])
        with Outgoing(socket.AF_INET6 if ":" in host else socket.AF_INET) as opened:
            opened.setblocking(False)
            connecting = loop.create_task(loop.sock_connect(opened, address))
            await asyncio.sleep(0)
            accepted, _ = listening.accept()
            made, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
            assert own_connections.is_one(made)
            await connecting
            made.abort()
        with socket.create_connection(address):
            accepted, _ = listening.accept()
            made, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
            assert not own_connections.is_one(made)
            made.abort()


async def test_a_client_of_a_unix_socket_is_no_own_connection() -> None:
    ends = socket.socketpair()
    made, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, ends[0])
    own_connections.note(made)
    assert not own_connections.is_one(made)
    made.abort()
    ends[1].close()
