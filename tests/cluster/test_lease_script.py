"""The lease protocol alone: its script in a real server whose clock stands still."""

from dataclasses import dataclass, field
from itertools import count

import pytest
from redis import Redis
from redis.exceptions import NoScriptError

from smtpproxy.cluster import leases
from tests.support.other_clock import OtherClock
from tests.support.redis_server import RedisServer

LEASE_S = 30.0
LEAVE = -1
_NUMBERS, _NAMES = count(1), count(1)


@dataclass
class Answer:
    given: int
    recovering_ms: int
    used: int
    reclaim: int


@dataclass
class Backend:
    """A backend, as replicas see it."""

    redis: "Redis"
    limit: int = 12
    replicas: int = 3
    key: str = field(default_factory=lambda: f"leases {next(_NAMES)}")

    @property
    def share(self) -> int:
        return max(self.limit // self.replicas, 1)

    def call(self, replica: str, held: int, wanted: int = 0, number: int = 0) -> Answer:
        words = [replica, number or next(_NUMBERS), held, wanted, self.limit, self.share]
        words += [self.replicas, int(LEASE_S * 1000), 7500, "wake:", "mx"]
        script = leases._SCRIPT
        try:
            answer = self.redis.evalsha(script.sha, 1, self.key, *words)
        except NoScriptError:
            answer = self.redis.eval(script.text, 1, self.key, *words)
        return Answer(*answer)  # type: ignore[misc]


@pytest.fixture
def backend(timed_server: RedisServer, clock: OtherClock) -> Backend:
    """A backend of three replicas, all of them heard, after the recovery."""
    backend = Backend(Redis(port=timed_server.port, protocol=2))
    for replica in 5 * "abc":
        backend.call(replica, 0)
        clock.advance(LEASE_S / 9)
    for replica in "abc":
        backend.call(replica, 0)
    return backend


def test_leases_are_granted_up_to_the_limit(backend: Backend) -> None:
    assert backend.call("a", 0, 5).given == 5
    assert backend.call("b", 0, 9).given == 7
    assert backend.call("c", 0, 1).given == 0


def test_a_given_back_lease_goes_to_another_replica(backend: Backend) -> None:
    assert backend.call("a", 0, 12).given == 12
    assert backend.call("b", 0, 1).given == 0
    assert backend.call("a", 11).given == 0
    assert backend.call("b", 0, 1).given == 1


def test_a_lost_answer_costs_nothing_but_the_time_until_the_next_call(backend: Backend) -> None:
    assert backend.call("a", 0, 12).given == 12  # which "a" never gets
    assert backend.call("b", 0, 1).given == 0
    assert backend.call("a", 0, 3).given == 3
    assert backend.call("b", 0, 12).given == 9


def test_a_late_call_changes_nothing(backend: Backend) -> None:
    late = next(_NUMBERS)
    assert backend.call("a", 0, 5).given == 5
    assert backend.call("a", 0, 3, number=late).given == 0
    assert backend.call("b", 0, 12).given == 7


def test_the_replica_with_fewest_comes_first(backend: Backend) -> None:
    assert backend.call("a", 0, 12).given == 12
    assert backend.call("b", 0, 3).given == 0
    for held in (11, 10, 9):
        assert backend.call("a", held, 5).given == 0  # left for "b"
    assert backend.call("b", 0, 3).given == 3
    assert backend.call("a", 8, 5).given == 1  # nobody else waits


def test_replicas_with_equally_many_take_turns(backend: Backend) -> None:
    backend.limit = 1
    served = ""
    for _ in range(30):
        for replica in "abc":
            if backend.call(replica, 0, 1).given:
                served += replica
                backend.call(replica, 0, 1)  # given back, and its next client waits
    assert len(served) > 10
    counts = [served.count(replica) for replica in "abc"]
    assert max(counts) - min(counts) <= 1


def test_a_replica_that_no_longer_asks_keeps_nobody_waiting(
    backend: Backend, clock: OtherClock
) -> None:
    assert backend.call("a", 0, 12).given == 12
    assert backend.call("b", 0, 3).given == 0
    clock.advance(1.1)
    assert backend.call("a", 10, 5).given == 2


def test_a_waiting_replica_is_woken_when_a_lease_is_free(backend: Backend) -> None:
    messages = backend.redis.pubsub(ignore_subscribe_messages=True)
    messages.subscribe("wake:b", "wake:c")
    assert messages.get_message(timeout=5) is None
    assert messages.get_message(timeout=5) is None
    assert backend.call("a", 0, 12).given == 12
    backend.call("b", 0, 1)
    backend.call("a", 11)
    message = messages.get_message(timeout=5)
    assert message is not None
    assert (message["channel"], message["data"]) == (b"wake:b", b"mx")
    messages.close()


def test_a_replica_that_is_killed_keeps_its_leases_for_one_lease_and_then_its_share(
    backend: Backend, clock: OtherClock
) -> None:
    assert backend.call("a", 0, 6).given == 6
    clock.advance(LEASE_S * 0.4)
    backend.call("c", 0)
    assert backend.call("b", 0, 12).given == 6
    clock.advance(LEASE_S * 0.4)
    backend.call("c", 0)
    assert backend.call("b", 6, 12).given == 0
    clock.advance(LEASE_S * 0.3)
    backend.call("c", 0)
    assert backend.call("b", 6, 12).given == 2
    assert backend.call("d", 0, 12).given == 4  # takes its place


def test_a_replica_that_leaves_keeps_nothing(backend: Backend) -> None:
    assert backend.call("a", 0, 6).given == 6
    backend.call("a", 0, LEAVE)
    backend.call("c", 0, LEAVE)
    assert backend.call("b", 0, 20).given == 12


def test_a_replica_that_is_not_heard_for_half_a_lease_counts_with_its_share(
    backend: Backend, clock: OtherClock
) -> None:
    """It may open as many connections without asking."""
    clock.advance(LEASE_S * 0.4)
    backend.call("b", 0)
    clock.advance(LEASE_S * 0.2)
    backend.call("c", 0)
    assert backend.call("b", 0, 20).given == 8  # 4 for "a"


def test_a_replica_that_was_stopped_enters_what_it_holds(
    backend: Backend, clock: OtherClock
) -> None:
    assert backend.call("a", 0, 12).given == 12
    for _ in range(4):
        clock.advance(LEASE_S / 3)
        backend.call("b", 0)
        backend.call("c", 0)
    assert backend.call("b", 0, 12).given == 8
    answer = backend.call("a", 12, 5)
    assert (answer.given, answer.used) == (0, 20)
    assert backend.call("b", 7, 12).given == 0
    backend.call("a", 0)
    assert backend.call("b", 7, 12).given == 5


def test_an_empty_server_grants_nothing_for_one_lease(backend: Backend, clock: OtherClock) -> None:
    assert backend.call("a", 0, 12).given == 12
    backend.redis.delete(backend.key)
    answer = backend.call("b", 0, 5)
    assert (answer.given, answer.recovering_ms) == (0, 30000)
    clock.advance(LEASE_S / 3)
    assert backend.call("a", 12, 5).given == 0
    clock.advance(LEASE_S / 3)
    backend.call("a", 11)
    assert backend.call("b", 1, 5).recovering_ms == 10000
    clock.advance(LEASE_S / 3)
    assert (backend.call("a", 7).given, backend.call("c", 0).given) == (0, 0)
    answer = backend.call("b", 1, 5)
    assert (answer.given, answer.recovering_ms) == (0, 0)  # others may just have used their share
    clock.advance(0.3)
    assert backend.call("b", 1, 5).given == 4


def test_an_empty_server_keeps_the_share_of_replicas_that_it_has_not_heard(
    backend: Backend, clock: OtherClock
) -> None:
    backend.redis.delete(backend.key)
    for _ in range(4):
        backend.call("a", 0)
        clock.advance(LEASE_S / 3)
    assert backend.call("a", 0, 20).given == 4
    assert backend.call("b", 0, 20).given == 4
    assert backend.call("c", 0, 20).given == 4


def test_what_an_older_server_had_saved_is_not_trusted(backend: Backend) -> None:
    saved = backend.redis.hget(backend.key, "=")
    assert isinstance(saved, bytes)
    _, rest = saved.split(b" ", 1)
    backend.redis.hset(backend.key, "=", b"r0123456789 " + rest)
    answer = backend.call("a", 0, 1)
    assert (answer.given, answer.recovering_ms) == (0, 30000)


@pytest.mark.parametrize("jump_s", [LEASE_S * 10, -LEASE_S * 10, LEASE_S * 0.6])
def test_after_a_jump_of_its_clock_the_server_grants_nothing_for_one_lease(
    backend: Backend, clock: OtherClock, jump_s: float
) -> None:
    assert backend.call("a", 0, 12).given == 12
    clock.advance(jump_s)
    answer = backend.call("b", 0, 5)
    assert (answer.given, answer.recovering_ms) == (0, 30000)
    for _ in range(4):
        clock.advance(LEASE_S / 3)
        assert backend.call("a", 12).given == backend.call("c", 0).given == 0
        assert backend.call("b", 0, 5).given == 0
    backend.call("a", 10)
    assert backend.call("b", 0, 5).given == 2


def test_a_killed_replica_is_lost_one_lease_after_the_clock_went_back(
    backend: Backend, clock: OtherClock
) -> None:
    assert backend.call("a", 0, 12).given == 12
    clock.advance(-LEASE_S * 100)
    for _ in range(4):
        assert backend.call("b", 0, 12).given == 0
        backend.call("c", 0)
        clock.advance(LEASE_S / 3)
    assert backend.call("b", 0, 12).given == 8


@pytest.mark.parametrize("jump_s", [0.5, -0.5, -10])
def test_a_small_step_of_its_clock_is_nothing(
    backend: Backend, clock: OtherClock, jump_s: float
) -> None:
    assert backend.call("a", 0, 11).given == 11
    clock.advance(jump_s)
    assert backend.call("b", 0, 5).given == 1


def test_the_replica_with_most_gives_back_to_one_that_waits_for_long(
    backend: Backend, clock: OtherClock
) -> None:
    assert backend.call("a", 0, 8).given == 8
    assert backend.call("b", 0, 4).given == 4
    for _ in range(9):
        assert backend.call("c", 0, 1).given == 0
        assert not backend.call("a", 8).reclaim
        clock.advance(0.8)
    assert backend.call("c", 0, 1).given == 0
    clock.advance(0.8)
    assert not backend.call("b", 4).reclaim
    assert backend.call("a", 8).reclaim


@pytest.mark.parametrize(
    "text", ["", "x", "1 2", "a b c d e f", "1 2 3 4 5", "inf nan 1 1 1 1", "1 1 1 nan 0 0"]
)
def test_what_no_replica_has_written_is_removed(backend: Backend, text: str) -> None:
    backend.redis.hset(backend.key, "x", text)
    assert backend.call("a", 0, wanted=12) == Answer(12, 0, 12, 0)
    assert not backend.redis.hexists(backend.key, "x")


@pytest.mark.parametrize("text", ["", "x", "{run}", "{run} 1", "{run} nan nan nan"])
def test_a_state_that_no_replica_has_written_is_that_of_an_empty_server(
    backend: Backend, clock: OtherClock, text: str
) -> None:
    run = "r" + backend.redis.info("server")["run_id"]  # type: ignore[index]
    backend.redis.hset(backend.key, "=", text.format(run=run))
    assert backend.call("a", 0, wanted=1).given == 0
    for _ in range(4):
        clock.advance(LEASE_S / 3)
        for replica in "abc":
            backend.call(replica, 0)
    assert backend.call("a", 0, wanted=1).given == 1
