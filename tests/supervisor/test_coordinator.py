"""The coordinator: what workers get about each other, and what remains of one that has ended."""

from typing import Any, cast

import pytest
from msgspec.structs import replace

from smtpproxy.config.loader import from_flags
from smtpproxy.config.schema import Settings
from smtpproxy.metrics import definitions
from smtpproxy.net.backend.health_check import LONGEST_S
from smtpproxy.net.shared_counters import SharedCounters
from smtpproxy.supervisor.coordinator import Coordinator
from smtpproxy.supervisor.fork_server import ForkServer
from smtpproxy.supervisor.worker_group import WorkerGroup
from smtpproxy.worker.control_messages import Ask, Granted, Health


class Worker:
    """Replaces a process, and records the messages to it."""

    def __init__(self, coordinator: Coordinator, pid: int) -> None:
        self.row = coordinator.take_row()
        self.pid = pid
        self.reported: list[Any] = []

    def send(self, message: object) -> None:
        self.reported.append(message)


@pytest.fixture
def coordinator() -> Coordinator:
    coordinator = Coordinator(_send_to_none)
    coordinator.apply(settings("192.0.2.1:25", "192.0.2.2:25"))
    return coordinator


def _send_to_none(*_: object) -> None:
    """Replace the other workers."""


def settings(*servers: str) -> Settings:
    return from_flags(None, ["127.0.0.1:0"], list(servers))


def test_a_new_worker_gets_the_servers_that_are_down(coordinator: Coordinator) -> None:
    """Otherwise its first clients would wait for the limit of a server that does not answer."""
    (backend,) = settings("192.0.2.1:25").backends
    coordinator.change(Health(backend, "192.0.2.1:25", up=False, reason="refused"))
    worker: Any = Worker(coordinator, 1)
    coordinator.started(worker)
    assert worker.reported == [Health(backend, "192.0.2.1:25", up=False)]


def test_a_removed_server_is_not_counted_as_down(coordinator: Coordinator) -> None:
    """A worker from before the reload may find it down, and none would ever find it up."""
    (backend,) = settings("192.0.2.1:25").backends
    coordinator.apply(settings("192.0.2.2:25"))
    coordinator.change(Health(backend, "192.0.2.1:25", up=False, reason="refused"))
    (up,) = coordinator.snapshot().samples_of(definitions.SERVER_UP)
    assert (up.labels, up.value) == ((backend, "192.0.2.2:25"), 1)


class TestOtherReplicas:
    """What another replica found is checked here, and no more than that."""

    NAME = "192.0.2.1:25"

    @pytest.fixture
    def sent(self) -> list[object]:
        return []

    @pytest.fixture
    def checked(self) -> list[tuple[str, str]]:
        return []

    @pytest.fixture
    def coordinator(self, sent: list[object], checked: list[tuple[str, str]]) -> Coordinator:
        coordinator = Coordinator(lambda message, _: sent.append(message))
        coordinator.apply(settings(self.NAME, "192.0.2.2:25"))
        coordinator.check_with(lambda *server: checked.append(server))
        return coordinator

    @pytest.fixture
    def backend(self) -> str:
        (backend,) = settings(self.NAME).backends
        return backend

    def test_a_server_down_elsewhere_is_last_until_it_is_checked(
        self,
        coordinator: Coordinator,
        backend: str,
        sent: list[object],
        checked: list[tuple[str, str]],
    ) -> None:
        coordinator._doubt((backend, self.NAME), False, "two")
        assert sent == [Health(backend, self.NAME, up=False, alone_s=LONGEST_S)]
        assert checked == [(backend, self.NAME)]
        assert not coordinator.is_down(backend, self.NAME)

    def test_the_other_replica_may_be_wrong(
        self, coordinator: Coordinator, backend: str, sent: list[object]
    ) -> None:
        coordinator._doubt((backend, self.NAME), False, "two")
        coordinator.change(Health(backend, self.NAME, up=True))
        assert sent[1:] == [Health(backend, self.NAME, up=True)]
        coordinator.change(Health(backend, self.NAME, up=True))
        assert len(sent) == 2

    def test_what_the_check_finds_is_this_replicas_own_finding(
        self, coordinator: Coordinator, backend: str, sent: list[object]
    ) -> None:
        coordinator._doubt((backend, self.NAME), False, "two")
        coordinator.change(Health(backend, self.NAME, up=False, reason="refused"))
        assert sent[1:] == [Health(backend, self.NAME, up=False, reason="refused")]
        assert coordinator.is_down(backend, self.NAME)

    def test_a_server_up_elsewhere_is_checked_if_it_is_down_here(
        self, coordinator: Coordinator, backend: str, checked: list[tuple[str, str]]
    ) -> None:
        coordinator._doubt((backend, self.NAME), True, "two")
        assert checked == []
        coordinator.change(Health(backend, self.NAME, up=False, reason="refused"))
        coordinator._doubt((backend, self.NAME), True, "two")
        assert checked == [(backend, self.NAME)]
        assert coordinator.is_down(backend, self.NAME)

    def test_what_is_known_or_not_in_the_settings_is_ignored(
        self,
        coordinator: Coordinator,
        backend: str,
        sent: list[object],
        checked: list[tuple[str, str]],
    ) -> None:
        coordinator.change(Health(backend, self.NAME, up=False, reason="refused"))
        sent.clear()
        coordinator._doubt((backend, self.NAME), False, "two")
        coordinator._doubt((backend, "192.0.2.3:25"), False, "two")
        coordinator._doubt(("other", self.NAME), False, "two")
        assert (sent, checked) == ([], [])


def test_all_rows_are_read_whichever_worker_comes_first(coordinator: Coordinator) -> None:
    """Workers that start together must not remove each other's row from the sum."""
    rows = [coordinator.take_row() for _ in range(3)]
    first = SharedCounters(coordinator.memory, rows[0])
    last = SharedCounters(coordinator.memory, rows[2])
    last.add(last.slots(b"a"))
    SharedCounters(coordinator.memory, rows[1])
    assert first.sessions() == coordinator.sessions() == 1


async def test_the_resources_of_a_worker_are_free_after_its_end(coordinator: Coordinator) -> None:
    one: Any = Worker(coordinator, 1)
    two: Any = Worker(coordinator, 2)
    plenty = settings("192.0.2.1:25")
    ((name, backend),) = plenty.backends.items()
    coordinator.apply(replace(plenty, backends={name: replace(backend, max_connections=1)}))
    coordinator.take_message(one, Ask(name, 1, b"A"))
    coordinator.take_message(two, Ask(name, 1, b"B"))
    assert (one.reported, two.reported) == ([Granted(1, granted=True)], [])
    row = SharedCounters(coordinator.memory, one.row)
    row.add(row.slots(b"a"))
    coordinator.ended(one)
    assert two.reported == [Granted(1, granted=True)]
    assert coordinator.sessions() == 0
    coordinator.ended(two)
    (connections,) = coordinator.snapshot().samples_of(definitions.BACKEND_CONNECTIONS)
    assert (connections.labels, connections.value) == ((name,), 0)


async def test_a_worker_group_stopped_while_it_starts_starts_no_worker(
    coordinator: Coordinator,
) -> None:
    """The sockets may be closed by then, and their numbers reused."""
    asked_nothing = cast("ForkServer", object())  # to ask it for a worker would raise
    worker_group = WorkerGroup(settings("192.0.2.1:25"), [[-1]], 2, coordinator, asked_nothing)
    worker_group.drain()
    assert await worker_group.start()
    assert worker_group.workers == 0
    assert worker_group.empty.is_set()
