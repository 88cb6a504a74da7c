"""Leases: the connections of all replicas to a backend together stay within `max_connections`.

The clients of a replica wait in its `SlotQueue`, which serves them in turns.  A replica asks the
store for a lease for each of them, and gives it back when the connection has ended; `leases.lua`
decides which replica gets the next one.  Waiting replicas are woken by a message, and also ask
again every `POLL_S`.

While the store is away or recovers, clients are served while the replica has fewer connections than
its share.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import count
from math import inf
from pathlib import Path
from time import monotonic
from typing import Annotated, Protocol

from msgspec import Meta

from smtpproxy.cluster.store import (
    LIMIT_S,
    Script,
    Store,
    StoreAway,
    run_until_cancelled,
)
from smtpproxy.log import events, log

POLL_S = 0.25
"""How often a replica asks again while its clients wait; also within WAITS of the script."""
CALL_S = 0.04
"""How long a call may take; a client that comes during one waits for the next one, too."""
LEAVE_ATTEMPTS, LEAVE_LIMIT_S, LEAVE_PAUSE_S = 5, 0.5, 0.3
"""How often leases are given back at the end, how long a call may take, and the pause between."""
PATIENCE = 0.25
"""The fraction of `max_wait` after which the replica with most gives one back to one that waits."""
LOOKS = 8
"""How often a replica may give one back within `max_wait`."""
_LEAVE = -1
_NUMBERS = count(1)
"""The numbers of calls; they go on when a reload changes the store."""
_Count = Annotated[int, Meta(ge=0)]
_SCRIPT = Script(
    Path(__file__).with_name("leases.lua").read_text(), tuple[_Count, _Count, _Count, _Count]
)


class LeasedQueue(Protocol):
    """The clients of this replica that wait for a connection to a backend, or have one."""

    @property
    def limit(self) -> int:
        """The connections of all replicas together."""

    @property
    def max_wait(self) -> float:
        """After how many seconds a waiting client is refused."""

    @property
    def taken(self) -> int:
        """The number of connections of this replica."""

    @property
    def waiting(self) -> int:
        """The number of clients that wait."""

    def lease(self, changed: Callable[[], None]) -> None:
        """Serve no client until `allow` or `serve` is called; call `changed` at each change."""

    def allow(self, slots: int) -> None:
        """Serve clients while fewer connections than this are open."""

    def serve(self, clients: int) -> int:
        """Serve so many clients that wait, and return how many did."""

    def reclaim(self) -> None:
        """Make a client give its connection back after its transaction."""


class Leases:
    """The leases of this replica.

    Args:
        store: The store, not yet started.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._backends: dict[str, _BackendLeases] = {}
        store.subscribe(f"wake:{store.replica}", self._wake)
        store.watch(self._store_changed)

    def add(self, backend: str, queue: LeasedQueue) -> None:
        """Let leases decide when the clients of a queue are served; once for each backend."""
        if backend not in self._backends:
            self._backends[backend] = _BackendLeases(self._store, backend, queue)

    def used(self) -> Iterable[tuple[str, int]]:
        """Yield each backend with the connections of all replicas, as last heard."""
        for backend, leases in self._backends.items():
            yield backend, leases.used

    def stop(self) -> None:
        """Decide no more when clients are served."""
        for leases in self._backends.values():
            leases.stop()

    async def leave(self) -> None:
        """Give all leases back, after `stop`; their connections must have ended."""
        await asyncio.gather(*(leases.leave() for leases in self._backends.values()))

    def _wake(self, backend: str) -> None:
        if backend in self._backends:
            self._backends[backend].wake()

    def _store_changed(self) -> None:
        for leases in self._backends.values():
            leases.wake()


class _BackendLeases:
    """The leases of one backend: one call at a time, which speaks for all clients."""

    def __init__(self, store: Store, backend: str, queue: LeasedQueue) -> None:
        self.used = 0
        """The connections of all replicas, as last heard."""
        self.recovers: bool | None = None
        """Whether the store last answered that it recovers; None before its first answer."""
        self._store = store
        self._backend = backend
        self._queue = queue
        self._changed = asyncio.Event()
        self._changed_at = inf  # when the first change came that no call has told yet
        self._next_reclaim = 0.0
        queue.lease(self._on_change)
        self._use_share()
        self._task = run_until_cancelled(self._run(), f"leases {backend}", self._use_share)

    @property
    def _share(self) -> int:
        return max(self._queue.limit // self._store.settings.replicas, 1)

    def _use_share(self) -> None:
        self._queue.allow(self._share)

    def _on_change(self) -> None:
        self._changed_at = min(self._changed_at, monotonic())
        self._changed.set()

    def wake(self) -> None:
        """Ask now, since a connection may be free; use the share if the store is away."""
        self._changed.set()

    async def _run(self) -> None:
        pause = 0.0
        while True:
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            if self._store.is_up:
                pause = await self._ask()
            else:
                self._use_share()
                pause = self._store.settings.lease

    async def _ask(self) -> float:
        """Renew, give back and take leases; return when to do so again, in seconds."""
        began = monotonic()
        limit_s = min(CALL_S, max(LIMIT_S - (began - self._changed_at), LIMIT_S - CALL_S))
        self._changed_at = inf
        self._queue.allow(0)  # else the server would learn of what is opened meanwhile too late
        try:
            given, recovering, used, reclaim = await self._call(self._queue.waiting, limit_s)
        except StoreAway:
            self._use_share()
            return self._store.settings.lease
        self.used = used
        if recovering and not self.recovers:
            events.CLUSTER_COUNTS_AGAIN.log(
                log.get(),
                cluster=self._store.settings.name,
                backend=self._backend,
                duration_s=recovering / 1000,
            )
        self.recovers = recovering > 0
        if recovering:
            self._use_share()
            return min(began + recovering / 1000 - monotonic(), POLL_S)
        if self._queue.serve(given) < given:
            self._changed.set()  # they have left meanwhile: give back
        if reclaim and self._next_reclaim <= began:
            self._next_reclaim = began + self._queue.max_wait / LOOKS
            self._queue.reclaim()
        return POLL_S if self._queue.waiting else self._store.settings.lease / 3

    async def _call(self, wanted: int, limit_s: float) -> tuple[int, int, int, int]:
        settings = self._store.settings
        return await self._store.run(
            _SCRIPT,
            [self._store.key("leases", self._backend)],
            [
                self._store.replica,
                next(_NUMBERS),
                self._queue.taken,
                min(wanted, self._queue.limit),
                self._queue.limit,
                self._share,
                settings.replicas,
                int(settings.lease * 1000),
                int(self._queue.max_wait * PATIENCE * 1000),
                f"{self._store.key('wake')}:",
                self._backend,
            ],
            limit_s,
        )

    def stop(self) -> None:
        """Decide no more when clients are served."""
        self._task.cancel()

    async def leave(self) -> None:
        """Give all leases back; else this replica would count as lost, with its share."""
        await asyncio.wait((self._task,))
        for _ in range(LEAVE_ATTEMPTS):
            try:
                await self._call(_LEAVE, LEAVE_LIMIT_S)
            except StoreAway:
                await asyncio.sleep(LEAVE_PAUSE_S)  # the store may be back by then
            else:
                return
