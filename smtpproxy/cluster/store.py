"""The store: the one connection of a replica to the Redis or Valkey server of its cluster.

It belongs to the supervisor and runs on its event loop.  Mail never waits for the server longer
than `LIMIT_S`: a call that takes longer, or fails, makes the store `away`, and calls fail at once
until the server answers in time again.  What a replica may do meanwhile is decided by the caller.

How other parts use it:

- `run` evaluates a `Script` (Lua) and returns its answer; it raises `StoreAway`.  Its keys come
  from `key`.  Scripts read the server's own clock (`TIME`), never the caller's.  The server may
  evaluate a script whose answer came too late, so each script must be safe to repeat: send absolute
  numbers, such as "I hold 5", not changes.
- `watch` gets a call at each change between up and away.
- `subscribe` gets the messages of a topic, from all replicas, this one included; `send` sends one.
  A message may be lost, so there must be a slower way to the same result.
- `publish` adds a part to the record of this replica, which is sent every `BEAT_S`; `replicas`
  returns the records of all replicas that were heard within a lease.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec import Struct
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from smtpproxy.config.schema import ClusterSettings
from smtpproxy.log import events, log

LIMIT_S = 0.05
"""How long mail waits for an answer of the server."""
BEAT_S = 2.0
"""The interval of this replica's record, which also checks the server while there is no mail."""
CONNECT_LIMIT_S = 1.0
"""How long a new connection may take; no mail waits for it."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 2.0
"""The delay before the next attempt to connect, which doubles each time up to the longest."""
CALM_S = 10.0
"""How long the server must have answered before the delay begins with the first one again."""
STEADY_S = 1.0
"""How long it must have answered before that is logged: it may refuse what is asked next."""
VALID_S = 0.5
"""After how many seconds an answer is not used, although this process was stopped meanwhile."""
MOST_REPLICAS, RECORD_BYTES = 1000, 65536
"""How many records are read, and how long one may be; others can write what they like."""
_CONNECTIONS = 8
_ROUNDS = 4
"""Rounds of the event loop that bring an answer from the socket to its caller."""
_FAULTS = (RedisError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What redis-py raises if the server is away, or if it speaks another protocol."""
_IN_SCRIPT = re.compile(r" script: [0-9a-f]{40},.*", re.DOTALL)

Answer = TypeVar("Answer")


class StoreAway(Exception):
    """The server did not answer in time, or not with what was asked for."""


class Script(Generic[Answer]):
    """A Lua script.

    Args:
        text: Its text.
        answer: The type of its answer, made of `int`, `bytes`, `tuple` and `list`.
    """

    def __init__(self, text: str, answer: type[Answer]) -> None:
        self.text = text
        self.answer = answer
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class ReplicaRecord(Struct):
    """What a replica publishes about itself."""

    replica: str
    """Its unique id; another one after each start."""
    instance: str
    """Its name."""
    parts: dict[str, Any]
    """What the parts of the program have published, by name."""
    age_s: float = 0.0
    """The seconds since it was sent, by the server's clock."""


_BEAT = Script(
    """\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local replica, lease, record = ARGV[1], tonumber(ARGV[2]), ARGV[3]
redis.call('ZADD', KEYS[1], now, replica)
redis.call('HSET', KEYS[2], replica, record)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - lease)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('PEXPIRE', KEYS[1], lease * 2)
redis.call('PEXPIRE', KEYS[2], lease * 2)
return 1
""",
    int,
)
_READ = Script(
    """\
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
local since, most, longest = now - tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
for _, replica in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], since, '+inf', 'LIMIT', 0, most)) do
  local record = redis.call('HSTRLEN', KEYS[2], replica) <= longest
    and redis.call('HGET', KEYS[2], replica)
  if record then
    found[#found + 1] = {now - redis.call('ZSCORE', KEYS[1], replica), record}
  end
end
return found
""",
    list[tuple[int, bytes]],
)
_LEAVE = Script(
    """\
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('HDEL', KEYS[2], ARGV[1])
""",
    int,
)


class Store:
    """The connection to the server; `start` must be called on a running event loop.

    Args:
        settings: The settings of the cluster, with a URL.
        instance: The name of this replica.
        replica: Its unique id, if it had another store before.
    """

    def __init__(self, settings: ClusterSettings, instance: str, replica: str = "") -> None:
        self.settings = settings
        self.instance = instance
        self.replica = replica or f"{instance}:{os.getpid()}:{secrets.token_hex(4)}"
        """The unique id of this replica."""
        self.failures = 0
        """How often the server was found to be away."""
        self._client: Redis | None = None  # None while the server is away
        self._reason = ""  # why it is away, once that has been logged
        self._last_reason = "not connected yet"
        self._since = monotonic()
        self._away_now = asyncio.Event()
        self._stopped = False
        self._subscribed: dict[str, Callable[[str], None]] = {}
        self._watching: list[Callable[[], None]] = []
        self._parts: dict[str, Callable[[], object]] = {}
        self._keeping: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[Any]] = set()
        self._records = [self.key("replicas"), self.key("records")]

    def rename(self, instance: str) -> None:
        """Give this replica another name; its id stays."""
        self.instance = instance

    @property
    def is_up(self) -> bool:
        """Whether the server answers in time."""
        return self._client is not None

    def key(self, *names: str) -> str:
        """Return the name of a key; all keys of a cluster are in one slot of Redis Cluster."""
        return ":".join((f"smtpproxy:{{{self.settings.name}}}", *names))

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` at each change of `is_up`."""
        self._watching.append(changed)

    def subscribe(self, topic: str, received: Callable[[str], None]) -> None:
        """Call `received` with each message of a topic; must be called before `start`."""
        self._subscribed[self.key(topic)] = received

    async def send(self, topic: str, text: str) -> None:
        """Send a message to all replicas.

        Raises:
            StoreAway: The server is away.
        """
        await self._answer(lambda client: client.publish(self.key(topic), text), LIMIT_S)

    def publish(self, part: str, make: Callable[[], object]) -> None:
        """Add a part to the record of this replica.

        Args:
            part: Its name.
            make: Returns its value now, small and fit for JSON.
        """
        self._parts[part] = make

    async def replicas(self) -> list[ReplicaRecord]:
        """Return the records of all replicas, this one included.

        It may take longer than mail may wait; if it fails, mail is not concerned.

        Raises:
            StoreAway: The server is away, or did not answer within about a second.
        """
        client = self._client
        if client is None:
            raise StoreAway(self._last_reason)
        arguments = [self._lease_ms, MOST_REPLICAS, RECORD_BYTES]
        try:
            found = await _evaluate(client, _READ, self._records, arguments)
        except _FAULTS as error:
            raise StoreAway(_text(error)) from None
        records = []
        for age, text in found:
            # of another version, or by somebody else
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                record = msgspec.json.decode(text, type=ReplicaRecord)
                record.age_s = age / 1000
                records.append(record)
        return sorted(records, key=lambda each: (each.instance, each.replica))

    async def run(
        self,
        script: Script[Answer],
        keys: Sequence[str],
        arguments: Sequence[str | int],
        limit_s: float = LIMIT_S,
    ) -> Answer:
        """Evaluate a script, and return its answer.

        Args:
            script: The script.
            keys: All keys that it uses.
            arguments: Its other arguments.
            limit_s: How long it may take.

        Raises:
            StoreAway: The server is away, also if it is found to be so now.
        """
        return await self._answer(
            lambda client: _evaluate(client, script, keys, arguments), limit_s
        )

    # --- calls --------------------------------------------------------------------------------

    async def _answer(self, call: Callable[[Redis], Awaitable[Answer]], limit_s: float) -> Answer:
        client = self._client
        if client is None:
            raise StoreAway(self._last_reason)
        began = monotonic()
        task = asyncio.ensure_future(_wait_for(call(client)))
        self._calls.add(task)
        task.add_done_callback(self._finished)
        await asyncio.wait((task,), timeout=limit_s)
        for _ in range(_ROUNDS):  # this loop may be late, not the server
            if task.done():
                break
            await asyncio.sleep(0)  # one round
        took = monotonic() - began
        if not task.done() or took > VALID_S:
            self._lost(client, f"no answer within {limit_s * 1000:.0f} ms")
            raise StoreAway("no answer in time")
        try:
            answer: Answer = task.result()
        except _FAULTS as error:
            self._lost(client, _text(error))
            raise StoreAway(_text(error)) from None
        if client is not self._client:  # lost since it answered, and the callers know
            raise StoreAway(self._last_reason)
        return answer

    def _finished(self, task: "asyncio.Task[Any]") -> None:
        """Forget a call; its caller may have gone."""
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()

    def _lost(self, client: Redis, reason: str) -> None:
        """Note that the server is away, unless that is known."""
        if client is self._client:
            self._client = None
            self._away_now.set()
            self._report_away(reason)
            self._changed()

    def _report_away(self, reason: str) -> None:
        self.failures += 1
        self._last_reason = reason
        if not self._reason:
            self._reason, self._since = reason, monotonic()
            events.CLUSTER_DEGRADED.log(log.get(), cluster=self.settings.name, reason=reason)

    def _changed(self) -> None:
        for changed in self._watching:
            changed()

    # --- the connection -----------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and stay connected; the store is away until the first connection is open."""
        self._keeping = run_until_cancelled(self._keep(), "cluster store", self._changed)

    async def leave(self) -> None:
        """Remove the record of this replica."""
        with contextlib.suppress(StoreAway):  # it is dropped after a lease
            await self.run(_LEAVE, self._records, [self.replica])

    async def stop(self) -> None:
        """Close the connection."""
        self._stopped = True
        self._client = None
        self._away_now.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))

    async def _keep(self) -> None:
        """Connect whenever the server is away.

        A cancellation may get lost in redis-py while it connects.
        """
        delay = FIRST_DELAY_S
        while not self._stopped:
            client = self._make_client()
            try:
                connected = await self._connect(client)
                if connected and not self._stopped:
                    since = monotonic()
                    await self._use(client)
                    delay = FIRST_DELAY_S if monotonic() - since > CALM_S else delay
            finally:
                self._away_now.clear()
                await _close(client)
            await asyncio.sleep(delay)  # do not flood a server that refuses
            delay = min(2 * delay, LONGEST_DELAY_S)

    def _make_client(self) -> Redis:
        pool = BlockingConnectionPool.from_url(
            self.settings.url,
            max_connections=_CONNECTIONS,
            timeout=CONNECT_LIMIT_S,
            socket_timeout=CONNECT_LIMIT_S,
            socket_connect_timeout=CONNECT_LIMIT_S,
            protocol=2,
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
        )
        return Redis.from_pool(pool)

    async def _connect(self, client: Redis) -> bool:
        """Return whether the server runs scripts and stores, and in time once it is connected."""
        try:
            for limit_s in (CONNECT_LIMIT_S, LIMIT_S):
                async with asyncio.timeout(limit_s):
                    await _evaluate(client, _BEAT, self._records, self._record())
        except _FAULTS as error:
            self._report_away(_text(error))
            return False
        return True

    async def _use(self, client: Redis) -> None:
        """Serve calls until the server is away."""
        self._client = client
        away_s = round(monotonic() - self._since, 1)
        tasks = [
            asyncio.create_task(self._listen(client), name="cluster messages"),
            asyncio.create_task(self._beat(client), name="cluster heartbeat"),
        ]
        try:
            self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEADY_S):
                    await self._away_now.wait()
            if client is self._client and self._reason:
                self._reason = ""
                events.CLUSTER_RECOVERED.log(
                    log.get(), cluster=self.settings.name, duration_s=away_s
                )
            await self._away_now.wait()
        finally:
            self._client = None
            for task in tasks:
                task.cancel()
            await _close(client)
            await asyncio.wait(tasks, timeout=CONNECT_LIMIT_S)

    async def _listen(self, client: Redis) -> None:
        """Pass on messages until the server is away."""
        if not self._subscribed:
            return
        try:
            async with client.pubsub(ignore_subscribe_messages=True) as messages:
                await messages.subscribe(*self._subscribed)
                while client is self._client:
                    message = await messages.get_message(timeout=60.0)
                    if message is not None:
                        received = self._subscribed[message["channel"].decode()]
                        received(message["data"].decode(errors="replace"))
        except _FAULTS as error:
            self._lost(client, _text(error))

    async def _beat(self, client: Redis) -> None:
        while True:
            await asyncio.sleep(BEAT_S)  # until the next record
            if client is not self._client:
                return
            with contextlib.suppress(StoreAway):
                await self.run(_BEAT, self._records, self._record())

    def _record(self) -> Sequence[str | int]:
        """Return the arguments of `_BEAT`."""
        parts = {part: make() for part, make in self._parts.items()}
        record = msgspec.json.encode(ReplicaRecord(self.replica, self.instance, parts))
        return [self.replica, self._lease_ms, record.decode()]

    @property
    def _lease_ms(self) -> int:
        return max(int(self.settings.lease * 1000), int(2 * BEAT_S * 1000))


def run_until_cancelled(
    work: Coroutine[Any, Any, None], name: str, after_bug: Callable[[], None]
) -> "asyncio.Task[None]":
    """Start a task that runs until it is cancelled.

    Args:
        work: What it does.
        name: Its name.
        after_bug: Called if an exception ends it, which the loop's exception handler logs.
    """

    def ended(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            after_bug()
            context = {"message": f"{name} ended", "exception": error}
            task.get_loop().call_exception_handler(context)

    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(ended)
    return task


async def _evaluate(
    client: Redis, script: Script[Answer], keys: Sequence[str], arguments: Sequence[str | int]
) -> Answer:
    words = (*keys, *map(str, arguments))
    try:
        answer = await _wait_for(client.evalsha(script.sha, len(keys), *words))
    except NoScriptError:  # a server that was started again
        answer = await _wait_for(client.eval(script.text, len(keys), *words))
    try:
        return msgspec.convert(answer, script.answer)
    except msgspec.ValidationError as error:
        raise ValueError(f"unexpected answer: {error}") from None


async def _wait_for(answer: object) -> Any:
    return await cast("Awaitable[Any]", answer)


async def _close(client: Redis) -> None:
    """Close all connections; a cancellation waits for that, as redis-py would leave some open."""
    closing = asyncio.ensure_future(client.connection_pool.disconnect())
    with contextlib.suppress(RedisError, OSError):
        try:
            await asyncio.shield(closing)
        finally:
            await asyncio.wait((closing,))


def _text(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return _IN_SCRIPT.sub("", str(error))[:200] or type(error).__name__
