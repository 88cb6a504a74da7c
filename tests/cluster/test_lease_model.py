"""The lease protocol under any sequence of events, in a real server whose clock stands still.

A replica that can reach the store reports each change; one that is cut off goes by its share.  The
store may only grant what keeps those it hears, and the shares of the others, within the limit.
"""

from dataclasses import dataclass
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis import Redis

from tests.cluster.test_lease_script import LEASE_S, LEAVE, Backend
from tests.support.effort import QUICK
from tests.support.other_clock import OtherClock
from tests.support.redis_server import RedisServer

LIMIT, REPLICAS = 7, 3
SHARE = LIMIT // REPLICAS
_NAMES = count(1)
EXAMPLES = settings(QUICK, max_examples=QUICK.max_examples // 2, stateful_step_count=25)
NUMBERS = st.integers(0, REPLICAS - 1)


@dataclass
class Replica:
    name: str
    held: int = 0
    is_cut: bool = False
    by_share: bool = True
    """Whether it goes by its share: it is cut off, or the store recovers."""
    silent_s: float = 0.0


class Model(RuleBasedStateMachine):
    server: RedisServer
    clock: OtherClock

    @initialize()
    def start(self) -> None:
        self.redis = Redis(port=self.server.port, protocol=2)
        self.backend = Backend(self.redis, LIMIT, REPLICAS)
        self.last: dict[str, int] = {}
        self.replicas = [Replica(f"r{next(_NAMES)}") for _ in range(REPLICAS)]
        for replica in self.replicas:
            self.call(replica)
        self.wait(1.1 * LEASE_S)

    def call(self, replica: Replica, wanted: int = 0) -> None:
        number = next(_NAMES)
        answer = self.backend.call(replica.name, replica.held, wanted, number)
        self.last[replica.name] = number
        replica.silent_s = 0.0
        replica.held += answer.given
        replica.by_share = answer.recovering_ms > 0
        if answer.given:
            assert answer.given <= wanted
            heard = sum(each.held for each in self.replicas if not each.is_cut)
            shares = sum(
                SHARE for each in self.replicas if each.is_cut and each.silent_s > LEASE_S / 2
            )
            assert heard + shares <= LIMIT

    def wait(self, seconds: float) -> None:
        while seconds > 0:
            self.pass_time(min(seconds / LEASE_S, 0.33))
            seconds -= 0.33 * LEASE_S

    @rule(fraction=st.sampled_from((0.02, 0.2, 0.33)))
    def pass_time(self, fraction: float) -> None:
        self.clock.advance(fraction * LEASE_S)
        for replica in self.replicas:
            replica.silent_s += fraction * LEASE_S
        for replica in self.replicas:
            if not replica.is_cut:
                self.call(replica)

    @rule(number=NUMBERS, clients=st.sampled_from((1, 3, LIMIT)))
    def clients_come(self, number: int, clients: int) -> None:
        replica = self.replicas[number]
        if replica.by_share:
            replica.held = max(replica.held, min(replica.held + clients, SHARE))
        if not replica.is_cut:
            self.call(replica, 0 if replica.by_share else clients)

    @rule(number=NUMBERS, clients=st.integers(1, LIMIT))
    def clients_go(self, number: int, clients: int) -> None:
        replica = self.replicas[number]
        replica.held = max(replica.held - clients, 0)
        if not replica.is_cut:
            self.call(replica)

    @rule(number=NUMBERS, leases=st.sampled_from((0.1, 0.7, 1.3)))
    def replica_is_cut_off(self, number: int, leases: float) -> None:
        self.replicas[number].is_cut = self.replicas[number].by_share = True
        self.wait(leases * LEASE_S)

    @rule(number=NUMBERS)
    def replica_is_heard_again(self, number: int) -> None:
        replica = self.replicas[number]
        if replica.is_cut:
            replica.is_cut = False
            self.call(replica)

    @rule(number=NUMBERS, leaves=st.booleans())
    def another_replica_takes_its_place(self, number: int, leaves: bool) -> None:
        replica = self.replicas[number]
        if leaves and not replica.is_cut:
            replica.held = 0
            self.call(replica, LEAVE)
        new = self.replicas[number] = Replica(f"r{next(_NAMES)}")
        self.call(new)

    @rule(number=NUMBERS, wanted=st.integers(0, LIMIT))
    def late_call_arrives(self, number: int, wanted: int) -> None:
        replica = self.replicas[number]
        before = self.redis.hgetall(self.backend.key)
        if replica.name.encode() in before:
            answer = self.backend.call(replica.name, 1, wanted, self.last[replica.name] - 1)
            assert answer.given == 0
            assert self.redis.hgetall(self.backend.key) == before

    @rule()
    def store_is_emptied(self) -> None:
        self.redis.delete(self.backend.key)

    @rule(leases=st.sampled_from((-20, -0.6, -0.1, 0.1, 0.6, 20)))
    def clock_jumps(self, leases: float) -> None:
        self.clock.advance(leases * LEASE_S)

    def teardown(self) -> None:
        """In the end all are heard, and every connection can be used."""
        if not hasattr(self, "replicas"):
            return
        for replica in self.replicas:
            replica.is_cut = False
            self.call(replica)
        self.wait(1.2 * LEASE_S)
        before = sum(replica.held for replica in self.replicas)
        for replica in 3 * self.replicas:
            self.call(replica, LIMIT)
        assert sum(replica.held for replica in self.replicas) == max(before, LIMIT)
        self.redis.delete(self.backend.key)
        self.redis.close()


def test_any_sequence_of_events(timed_server: RedisServer, clock: OtherClock) -> None:
    Model.server, Model.clock = timed_server, clock
    run_state_machine_as_test(Model, settings=EXAMPLES)
