"""The state that replicas exchange: sessions by client address, and the servers that are down.

Twice a second each replica stores its state, and reads that of the others.  No session waits for
it: `sessions_per_address` and `new_sessions_per_minute` count what the others last reported, which
is at most a second old while the store answers.  So an address that comes to several replicas at
once may exceed a limit by what it opens at the others within that second; what it has taken too
much from the bucket of the rate delays its next sessions.

The sessions of the others are one row of the shared counters.  A state has a count for each counter
slot instead of addresses, so its size is bounded whatever clients do; it needs a key of the hash
that all replicas use, which is in the store.

While the store is away, the last counts are used for `STALE_S`; then each replica counts for
itself. The state of a replica that is not heard for `STALE_S` is dropped as well.
"""

import asyncio
import contextlib
import sys
import zlib
from collections.abc import Callable, Mapping
from time import monotonic

import msgspec
from msgspec import Struct

from smtpproxy.cluster.store import (
    MOST_REPLICAS,
    Script,
    Store,
    StoreAway,
    run_until_cancelled,
)
from smtpproxy.net.shared_counters import COUNTS_OCTETS, SharedCounters

EVERY_S = 0.5
"""The interval of the exchanges."""
STALE_S = 5.0
"""How long a state is used."""
STATE_BYTES = 1 << 20
"""How long a state may be that is read; others can write what they like."""
_KEY_KEPT_S = 7 * 24 * 3600
"""How long the store keeps the key of the hash without any replica."""

ServerName = tuple[str, str]
"""A backend, and the address of one of its servers."""
Found = Callable[[ServerName, bool, str], None]
"""Called with a server, whether another replica found it up, and the name of that replica."""

_EXCHANGE = Script(
    """\
local states, times, key = KEYS[1], KEYS[2], KEYS[3]
local replica, state, own, stale, kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local most, longest = tonumber(ARGV[6]), tonumber(ARGV[7])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local common = redis.call('GET', key)
if not common or #common ~= #own or string.find(common, '%X') then common = own end
redis.call('SET', key, common, 'EX', kept)
local found = {}
local function drop(least, most)
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', times, least, most)) do
    redis.call('ZREM', times, gone)
    redis.call('HDEL', states, gone)
  end
end
drop('-inf', now - stale)
drop(now + stale, '+inf')  -- the clock was set back
if common == own then
  redis.call('ZADD', times, now, replica)
  redis.call('HSET', states, replica, state)
  redis.call('PEXPIRE', times, stale * 2)
  redis.call('PEXPIRE', states, stale * 2)
end
for _, each in ipairs(redis.call('ZRANGE', times, 0, most)) do
  local other = each ~= replica and redis.call('HSTRLEN', states, each) <= longest
    and redis.call('HGET', states, each)
  if other then
    found[#found + 1] = {each, other}
  end
end
return {common, found}
""",
    tuple[bytes, list[tuple[bytes, bytes]]],
)
_LEAVE = Script(
    """\
redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('ZREM', KEYS[2], ARGV[1])
""",
    int,
)


class ReplicaState(Struct):
    """What a replica reports."""

    instance: str
    """Its name."""
    down: list[ServerName]
    """The servers that it found down itself."""
    counts: bytes
    """Two counts for each counter slot, compressed: its sessions; those it has ever admitted."""


class StateExchange:
    """The exchange of a replica with the others.

    Args:
        store: The store.
        others: The row of the shared counters for the sessions of the other replicas.
        down: Returns the servers that this replica found down.
        found: Called when another replica has found a server down, or up again.
    """

    def __init__(
        self,
        store: Store,
        others: SharedCounters,
        down: Callable[[], set[ServerName]],
        found: Found,
    ) -> None:
        self.heard = 0
        """How many other replicas are heard."""
        self._new_sessions_per_minute = 0
        self.store = store
        """The store."""
        self._others = others
        self._down = down
        self._found = found
        self._keys = [
            store.key(f"states:{COUNTS_OCTETS}{sys.byteorder}", name)
            for name in ("states", "times", "key")
        ]
        self._read_at = -STALE_S
        self._admitted: dict[str, bytes] = {}  # by replica
        self._down_elsewhere: dict[str, set[ServerName]] = {}  # by replica
        self._running: asyncio.Task[None] | None = None

    def limit(self, new_sessions_per_minute: int) -> None:
        """Take sessions that others admit from the buckets of this limit; 0 for none."""
        self._new_sessions_per_minute = new_sessions_per_minute

    def start(self) -> None:
        """Begin."""
        self._running = run_until_cancelled(self._run(), "state exchange", self._forget)

    def stop(self) -> None:
        """End, and count the sessions of the others no longer."""
        if self._running is not None:
            self._running.cancel()
        self._forget()

    async def leave(self) -> None:
        """Remove the state of this replica from the store."""
        with contextlib.suppress(StoreAway):  # it is dropped after STALE_S
            await self.store.run(_LEAVE, self._keys[:2], [self.store.replica])

    async def _run(self) -> None:
        while True:
            try:
                await self.exchange()
            except StoreAway:
                if monotonic() - self._read_at > STALE_S:
                    self._forget()
            await asyncio.sleep(EVERY_S)  # until the next exchange

    async def exchange(self) -> None:
        """Store the state of this replica, and use that of the others.

        Raises:
            StoreAway: The store is away, or has a key that cannot be used.
        """
        key = self._others.key.hex()
        counts = zlib.compress(self._others.open_elsewhere() + self._others.admitted(), 1)
        state = ReplicaState(self.store.instance, sorted(self._down()), counts)
        common, found = await self.store.run(
            _EXCHANGE,
            self._keys,
            [
                self.store.replica,
                msgspec.json.encode(state).decode(),
                key,
                int(STALE_S * 1000),
                _KEY_KEPT_S,
                MOST_REPLICAS,
                STATE_BYTES,
            ],
        )
        if common != key.encode():  # of replicas that were here first
            try:
                self._others.change_key(bytes.fromhex(common.decode()))
            except (ValueError, TypeError):
                raise StoreAway("unexpected key") from None
            self._read_at = monotonic()
            self._forget()
            return
        self._read_at = monotonic()
        decoded = ((replica.decode(errors="replace"), _decoded(state)) for replica, state in found)
        self._use({replica: state for replica, state in decoded if state is not None})

    def _use(self, states: Mapping[str, ReplicaState]) -> None:
        self.heard = len(states)
        self._others.count_replicas(state.counts[:COUNTS_OCTETS] for state in states.values())
        self._take_admitted(
            {replica: state.counts[COUNTS_OCTETS:] for replica, state in states.items()}
        )
        self._take_findings(states)

    def _take_admitted(self, admitted: dict[str, bytes]) -> None:
        limit = self._new_sessions_per_minute
        for replica, after in admitted.items():
            before = self._admitted.get(replica)
            if limit and before is not None:
                self._others.drain_for_replica(before, after, 60 / limit, monotonic())
        self._admitted = admitted

    def _take_findings(self, states: Mapping[str, ReplicaState]) -> None:
        before, self._down_elsewhere = self._down_elsewhere, {}
        for replica, state in states.items():
            down = self._down_elsewhere[replica] = set(state.down)
            for server in sorted(down ^ before.get(replica, set())):
                self._found(server, server not in down, state.instance)

    def _forget(self) -> None:
        self._use({})


def _decoded(text: bytes) -> ReplicaState | None:
    """Return a state with its counts uncompressed; None if it is not one of this version."""
    try:
        state = msgspec.json.decode(text, type=ReplicaState)
        state.counts = zlib.decompressobj().decompress(state.counts, 2 * COUNTS_OCTETS + 1)
    except (msgspec.MsgspecError, zlib.error, UnicodeDecodeError, RecursionError):
        return None
    return state if len(state.counts) == 2 * COUNTS_OCTETS else None
