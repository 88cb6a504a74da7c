"""The desk: what workers are told of one another, and what is left when one is gone."""

from typing import Any

import pytest
from msgspec.structs import replace

from smtpproxy.config.loader import from_flags
from smtpproxy.config.schema import Settings
from smtpproxy.net.shared_counters import Tally
from smtpproxy.supervisor.coordinator import Desk
from smtpproxy.supervisor.worker_group import Crew
from smtpproxy.worker.control_messages import Ask, Granted, Health


class Worker:
    """Stands for a process; remembers what it was told."""

    def __init__(self, desk: Desk, pid: int) -> None:
        self.row = desk.take_row()
        self.pid = pid
        self.told: list[Any] = []

    def tell(self, message: object) -> None:
        self.told.append(message)


@pytest.fixture
def desk() -> Desk:
    desk = Desk(_tell_nobody)
    desk.settle(settings("192.0.2.1:25", "192.0.2.2:25"))
    return desk


def _tell_nobody(*_: object) -> None:
    """Stand for the other workers."""


def settings(*servers: str) -> Settings:
    return from_flags(None, ["127.0.0.1:0"], list(servers))


def test_a_new_worker_is_told_which_servers_are_down(desk: Desk) -> None:
    """Else, with a server that swallows connects, its first clients wait for the time limit."""
    (backend,) = settings("192.0.2.1:25").backends
    desk.change(Health(backend, "192.0.2.1:25", up=False, why="why"))
    worker: Any = Worker(desk, 1)
    desk.brief(worker)
    assert worker.told == [Health(backend, "192.0.2.1:25", up=False)]


def test_a_server_that_is_named_no_more_is_not_counted_as_down(desk: Desk) -> None:
    """A worker of before the reload may find it down, and nobody would ever find it up."""
    (backend,) = settings("192.0.2.1:25").backends
    desk.settle(settings("192.0.2.2:25"))
    desk.change(Health(backend, "192.0.2.1:25", up=False, why="why"))
    assert desk.figures().gauges["servers_down"] == 0


def test_all_rows_are_read_whichever_worker_comes_first(desk: Desk) -> None:
    """Workers that start at the same time must not take one another's row out of the sum."""
    rows = [desk.take_row() for _ in range(3)]
    first = Tally(desk.memory, rows[0])
    last = Tally(desk.memory, rows[2])
    last.add(last.slots(b"a"), 1)
    Tally(desk.memory, rows[1])
    assert first.sessions() == desk.sessions() == 1


async def test_what_a_worker_had_is_free_when_it_is_gone(desk: Desk) -> None:
    one: Any = Worker(desk, 1)
    two: Any = Worker(desk, 2)
    plenty = settings("192.0.2.1:25")
    ((name, backend),) = plenty.backends.items()
    desk.settle(replace(plenty, backends={name: replace(backend, max_connections=1)}))
    desk.said(one, Ask(name, 1))
    desk.said(two, Ask(name, 1))
    assert (one.told, two.told) == ([Granted(1, granted=True)], [])
    row = Tally(desk.memory, one.row)
    row.add(row.slots(b"a"), 1)
    desk.ended(one)
    assert two.told == [Granted(1, granted=True)]
    assert desk.sessions() == 0
    desk.ended(two)
    assert desk.figures().gauges[f'places_taken{{backend="{name}"}}'] == 0


async def test_a_crew_that_is_let_go_while_it_starts_starts_nobody(desk: Desk) -> None:
    """The sockets may be closed by then, and their numbers somebody else's."""
    crew = Crew(settings("192.0.2.1:25"), [[-1]], 2, desk)
    crew.drain()
    assert await crew.start()
    assert crew.workers == 0
    assert crew.empty.is_set()
