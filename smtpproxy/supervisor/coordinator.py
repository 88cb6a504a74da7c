"""The coordinator: shares counters, connection slots and server health among the workers."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smtpproxy.config.schema import BackendSettings, ClusterSettings, Settings
from smtpproxy.control_socket.service_status import BackendStatus
from smtpproxy.log import events, log
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot, SnapshotTotals
from smtpproxy.net import shared_counters
from smtpproxy.net.backend.connection_slots import SlotQueue
from smtpproxy.net.backend.health_check import LONGEST_S
from smtpproxy.supervisor.watch_relay import WatchRelay
from smtpproxy.supervisor.worker_process import WorkerProcess
from smtpproxy.worker.control_messages import (
    Ask,
    Beat,
    FromWorker,
    Granted,
    Health,
    Leave,
    Reclaim,
    ToWorker,
    Watched,
)

if TYPE_CHECKING:
    from smtpproxy.cluster.leases import Leases
    from smtpproxy.cluster.state_exchange import StateExchange
    from smtpproxy.cluster.store import Store

SendToAll = Callable[[ToWorker, WorkerProcess | None], None]
"""Sends a message to all workers except the given one."""


class Coordinator:
    """What the workers of all worker groups share.

    Args:
        send_to_all: Sends a message to the workers.
    """

    def __init__(self, send_to_all: SendToAll) -> None:
        self.memory = shared_counters.create()
        """The descriptor of the shared counters."""
        self._shared_counters = shared_counters.SharedCounters(self.memory)
        self._lost = 0  # workers
        self._send_to_all = send_to_all
        self._totals = SnapshotTotals()
        self._free_rows = list(reversed(range(shared_counters.ROWS)))
        self._connection_slots: dict[str, SlotQueue] = {}
        self._tickets: dict[WorkerProcess, set[tuple[str, int]]] = {}
        self._down: set[tuple[str, str]] = set()
        self._doubted: set[tuple[str, str]] = set()  # down elsewhere, and not checked here yet
        self._named: set[tuple[str, str]] = set()
        self._observer = ServiceLog()
        self.watches = WatchRelay()
        """The watches of `smtpproxy trace watch`."""
        self.store: Store | None = None
        """The store of the cluster; None without a cluster."""
        self._leases: Leases | None = None
        self._check: Callable[[str, str], None] = lambda *_: None
        self._exchange: StateExchange | None = None
        self._others: shared_counters.SharedCounters | None = None  # the sessions of other replicas
        self._stopping: set[asyncio.Task[None]] = set()

    def check_with(self, check: Callable[[str, str], None]) -> None:
        """Use a function that starts a check of a server, which ends in a call of `change`.

        Args:
            check: Gets the name of the backend and the address of the server.
        """
        self._check = check

    def apply(self, settings: Settings) -> None:
        """Apply new settings; sessions keep their connection slots."""
        for name, backend in settings.backends.items():
            limit = backend.max_connections
            if limit:
                queue = self._connection_slots.setdefault(name, SlotQueue(limit, backend.max_wait))
                queue.resize(limit, backend.max_wait)
        named = {
            (name, str(server))
            for name, backend in settings.backends.items()
            for server in backend.servers
        }
        self._down &= named
        self._doubted &= named
        self._named = named
        self._observer = ServiceLog()  # the log may have been configured again
        self._apply_cluster(settings)

    def _apply_cluster(self, settings: Settings) -> None:
        """Join the cluster, or leave it, or change it; and lease the slots of new backends."""
        if settings.cluster != (self.store.settings if self.store else ClusterSettings()):
            replica = self.store.replica if self.store else ""
            # The leases go on in another cluster: its URL may lead to the same data.
            self._leave_cluster(gives_back=not settings.cluster.url)
            if settings.cluster.url:
                self._join_cluster(settings, replica)
            else:
                for queue in self._connection_slots.values():
                    queue.release()
        if self._exchange is not None:
            self._exchange.limit(settings.limits.new_sessions_per_minute)
        if self.store is not None and self._leases is not None:
            self.store.rename(settings.instance)
            for name, queue in self._connection_slots.items():
                self._leases.add(name, queue)

    def _join_cluster(self, settings: Settings, replica: str) -> None:
        # They need the packages of the extra.
        from smtpproxy.cluster.leases import Leases
        from smtpproxy.cluster.state_exchange import StateExchange
        from smtpproxy.cluster.store import Store

        self.store = Store(settings.cluster, settings.instance, replica)
        self._leases = Leases(self.store)
        if self._others is None:
            self._others = shared_counters.SharedCounters(self.memory, self.take_row())
        self._exchange = StateExchange(self.store, self._others, lambda: self._down, self._doubt)
        self.store.start()
        self._exchange.start()

    def _leave_cluster(self, *, gives_back: bool) -> None:
        """Leave the cluster, if any; `gives_back`: remove what this replica has in the store."""
        store, leases, exchange = self.store, self._leases, self._exchange
        if store is None or leases is None or exchange is None:
            return
        self.store = self._leases = self._exchange = None
        leases.stop()
        exchange.stop()

        async def leave() -> None:
            if gives_back:
                await exchange.leave()
                await leases.leave()
                await store.leave()
            await store.stop()

        task = asyncio.get_running_loop().create_task(leave(), name="leave cluster")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def close(self) -> None:
        """Leave the cluster; called after the last worker has ended."""
        self._leave_cluster(gives_back=True)
        if self._stopping:
            await asyncio.wait(self._stopping)

    def sessions(self) -> int:
        """Return the current number of sessions; snapshots may be a second old."""
        return self._shared_counters.sessions()

    def snapshot(self) -> MetricsSnapshot:
        """Return the metrics of all workers, and of what they share."""
        snapshot = self._totals.sum()
        snapshot.put(definitions.WORKERS_LOST, self._lost)
        for backend, server in sorted(self._named):
            up = (backend, server) not in self._down
            snapshot.put(definitions.SERVER_UP, int(up), backend, server)
        snapshot.put(definitions.TRACE_WATCHES, self.watches.watches)
        if self.store is not None:
            snapshot.put(definitions.CLUSTER_STORE_UP, int(self.store.is_up))
            snapshot.put(definitions.CLUSTER_STORE_FAILURES, self.store.failures)
        if self._leases is not None:
            for name, used in self._leases.used():
                snapshot.put(definitions.CLUSTER_CONNECTIONS, used, name)
        if self._exchange is not None:
            snapshot.put(definitions.CLUSTER_REPLICAS_HEARD, self._exchange.heard)
        for name, queue in self._connection_slots.items():
            snapshot.put(definitions.BACKEND_CONNECTIONS, queue.taken, name)
            snapshot.put(definitions.BACKEND_MAX_CONNECTIONS, queue.limit, name)
            snapshot.put(definitions.BACKEND_WAITING_CLIENTS, queue.waiting, name)
        return snapshot

    def backends(self, settings: Settings) -> list[BackendStatus]:
        """Return the state of each backend of these settings."""
        return [self._backend(name, backend) for name, backend in settings.backends.items()]

    def _backend(self, name: str, backend: BackendSettings) -> BackendStatus:
        servers = list(map(str, backend.servers))
        down = [server for server in servers if self.is_down(name, server)]
        most = backend.max_connections
        # A queue outlives its limit; before the start there is none.
        queue = self._connection_slots.get(name) if most else None
        return BackendStatus(
            name,
            connections=queue.taken if queue else 0,
            max_connections=most,
            waiting=queue.waiting if queue else 0,
            servers=len(servers),
            servers_down=down,
        )

    def is_down(self, backend: str, server: str) -> bool:
        """Return whether a server is considered down."""
        return (backend, server) in self._down

    def take_row(self) -> int:
        """Reserve a row of the shared counters for a worker.

        Raises:
            OSError: All rows are in use, since hundreds of workers are still draining.
        """
        if not self._free_rows:
            raise OSError("too many workers are still draining")
        row = self._free_rows.pop()
        shared_counters.SharedCounters(self.memory, row).clear()
        return row

    def free_row(self, row: int) -> None:
        """Free the row of a worker that has ended."""
        shared_counters.SharedCounters(self.memory, row).clear()
        self._free_rows.append(row)

    def started(self, worker: WorkerProcess) -> None:
        """Send a new worker the servers that are down, and the watches that are on."""
        self.watches.joined(worker)
        for backend, server in sorted(self._down):
            worker.send(Health(backend, server, up=False))

    def take_message(self, worker: WorkerProcess, message: FromWorker) -> None:
        """Process a message of a worker."""
        match message:
            case Beat():
                self._totals.take(worker.pid, message.snapshot)
            case Ask():
                self._ask(_RemoteHolder(worker, message.ticket), message)
            case Leave():
                self._leave(worker, message.backend, message.ticket)
            case Health():
                self.change(message, worker)
            case Watched():
                self.watches.take(worker, message)

    def _ask(self, holder: "_RemoteHolder", message: Ask) -> None:
        # A worker with older settings may ask for a slot after a reload removed the limit.
        if message.backend not in self._connection_slots:
            holder.slot_answered(granted=True)
            return
        tickets = self._tickets.setdefault(holder.worker, set())
        tickets.add((message.backend, message.ticket))
        self._connection_slots[message.backend].ask(holder, message.address)

    def _leave(self, worker: WorkerProcess, backend: str, ticket: int) -> None:
        self._tickets.get(worker, set()).discard((backend, ticket))
        if backend in self._connection_slots:
            self._connection_slots[backend].leave(_RemoteHolder(worker, ticket))

    def change(self, health: Health, worker: WorkerProcess | None = None) -> None:
        """Log a change of a server's health, and report it to the other workers.

        Args:
            health: The change; ignored if it is already known.
            worker: The worker that reported it; None for the health monitor.
        """
        server = (health.backend, health.server)
        doubted = server in self._doubted
        self._doubted.discard(server)
        if health.up != (server in self._down):  # already reported
            if doubted:
                self._send_to_all(health, worker)
            return
        (self._down.discard if health.up else self._down.add)(server)
        self._observer.server_changed(health.backend, health.server, health.up, health.reason)
        self._send_to_all(health, worker)

    def _doubt(self, server: tuple[str, str], up: bool, replica: str) -> None:
        """Have a server checked that another replica found down, or up again.

        Its finding is no more than that: its own network may be what is down.  Until the check
        ends, the workers try such a server last, as if one of them had found it down.
        """
        if server not in self._named or up != (server in self._down):
            return
        backend, name = server
        if not up:
            events.SERVER_DOWN_ELSEWHERE.log(
                log.get(), backend=backend, server=name, replica=replica
            )
            self._doubted.add(server)
            self._send_to_all(Health(backend, name, up=False, alone_s=LONGEST_S), None)
        self._check(backend, name)

    def count_lost(self) -> None:
        """Count a worker that has crashed, or was killed because it hung."""
        self._lost += 1

    def ended(self, worker: WorkerProcess) -> None:
        """Free the row and the connection slots of a worker that has ended."""
        self.watches.left(worker)
        self._totals.forget(worker.pid)
        self.free_row(worker.row)
        for backend, ticket in self._tickets.pop(worker, set()):
            self._connection_slots[backend].leave(_RemoteHolder(worker, ticket))


@dataclass(frozen=True, slots=True)
class _RemoteHolder:
    """A session of a worker that waits for a connection slot or holds one."""

    worker: WorkerProcess
    ticket: int

    def slot_answered(self, *, granted: bool) -> None:
        self.worker.send(Granted(self.ticket, granted))

    def reclaim_slot(self) -> None:
        self.worker.send(Reclaim(self.ticket))
