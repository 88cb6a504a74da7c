"""The supervisor: keeps the listening sockets open, runs worker groups, and handles signals.

It is used for any number of workers.  SIGHUP reads the settings again: new workers start, and when
they are ready, the old ones stop accepting and end with their sessions.  Both accept from the same
sockets, so that no client is refused and no session is interrupted.  If anything fails, nothing
changes.  If the code on disk has changed, a supervisor of that version takes over instead (see
`smtpproxy.supervisor.upgrade`).  SIGTERM and SIGINT drain; a second one, or the time limit of the
drain, ends the remaining sessions.
"""

import asyncio
import gc
import os
import resource
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from time import monotonic, time

from smtpproxy import __version__
from smtpproxy.config.address import Address
from smtpproxy.config.certificate_validation import (
    certificate_problems,
    doubtful_certificates,
    expiries,
)
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.fault_flag import NO_FAULTS, Faults
from smtpproxy.config.schema import Settings
from smtpproxy.config.tls_validation import exposed_listeners, weak_backends, weak_listeners
from smtpproxy.control_socket.control_server import ControlServer
from smtpproxy.control_socket.service_status import InstanceStatus, ServiceStatus, State
from smtpproxy.log import events, log
from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.supervisor import status_report, upgrade
from smtpproxy.supervisor.admin_endpoint import AdminEndpoint
from smtpproxy.supervisor.coordinator import Coordinator
from smtpproxy.supervisor.fork_server import ForkServer
from smtpproxy.supervisor.health_monitor import HealthMonitor
from smtpproxy.supervisor.listen_sockets import ListenSockets
from smtpproxy.supervisor.sd_notify import Notifier
from smtpproxy.supervisor.upgrade import Inherited, InstalledCode, Predecessor, Successor
from smtpproxy.supervisor.watch_relay import WATCHES
from smtpproxy.supervisor.worker_group import WorkerGroup
from smtpproxy.supervisor.worker_process import WorkerProcess
from smtpproxy.trace import watch
from smtpproxy.trace.watch import WatchRequest
from smtpproxy.worker.certificate_snapshot import Files, read_files
from smtpproxy.worker.control_messages import Look, ToWorker

CHECK_INTERVAL_S = 1.0
"""The interval of checks of the workers' heartbeats."""
CERTIFICATE_INTERVAL_S = 20.0
"""How often certificate files are read; a change is used after two intervals."""
_NO_ADDRESS, _NO_WORKERS = "cannot listen on an address", "the new workers did not start"

Read = Callable[[], Settings]
"""Reads the settings again; raises `ConfigError`."""


class Supervisor:
    """The running service.

    Args:
        settings: The initial settings.
        read: Reads them again for a reload.
        fork_server: Forks the workers.
        inherited: What the supervisor of an older version has passed, if any.
        control: The address of the control socket; None for the default one.
        faults: The faults to inject, which a reload keeps.
    """

    def __init__(
        self,
        settings: Settings,
        read: Read,
        fork_server: ForkServer,
        inherited: Inherited | None = None,
        control: Address | None = None,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self._faults = faults
        self.serving_since = monotonic()
        """When this process started, on the monotonic clock."""
        self._settings = settings
        self._control = control
        self._control_server = ControlServer(self, self)
        self._read = read
        self._fork_server = fork_server
        self._log = log.get()
        self._notifier = Notifier()
        self._listen_sockets = ListenSockets(inherited)
        self._installed_code = InstalledCode()
        self._predecessor = Predecessor(inherited.channel) if inherited else None
        self._successor: Successor | None = None  # only while it starts
        self._handed_over = asyncio.Event()
        self._changing = asyncio.Lock()
        self._refused_files: Files | None = None
        self._expiries: list[tuple[str, str, float]] = []
        self._coordinator = Coordinator(self._send_to_all)
        self._health_monitor = HealthMonitor(self._coordinator.change, self._coordinator.is_down)
        self._coordinator.check_with(self._health_monitor.check_once)
        self._admin_endpoint = AdminEndpoint(self)
        self._worker_group: WorkerGroup | None = None
        self._leaving: set[WorkerGroup] = set()
        self._started = False
        self._reload_wanted = asyncio.Event()
        self._end_wanted, self._insisted = asyncio.Event(), asyncio.Event()

    def snapshot(self) -> MetricsSnapshot:
        """Return the metrics of all workers, and of the service itself."""
        snapshot = self._coordinator.snapshot()
        snapshot.put(definitions.WORKERS, self._workers)
        snapshot.put(definitions.FAULTS, len(self._faults.flags))
        for listener, name, end in self._expiries:
            snapshot.put(definitions.CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS, end, listener, name)
        self._admin_endpoint.add_metrics(snapshot)
        return snapshot

    @property
    def instance(self) -> str:
        """The name of this instance."""
        return self._settings.instance

    def listeners(self) -> list[str]:
        """Return the addresses of the listeners."""
        return self._listen_sockets.addresses

    def faults(self) -> list[str]:
        """Return the faults that are injected."""
        return self._faults.flags

    def look(self, *, full: bool = False) -> None:
        """Make the workers report sessions for a while, since the live page is open.

        Args:
            full: Whether to report all sessions once, not only those that changed.
        """
        self._send_to_all(Look(full), None)

    def why_not_ready(self, backend: str = "") -> str:
        """Return why the service, or one backend, is not ready; empty if it is.

        Raises:
            KeyError: There is no such backend.
        """
        match self._state():
            case "serving":
                return self._health_monitor.why_not_ready(backend)
            case "no worker":
                return "no worker is ready"
            case state:
                return state

    def _state(self) -> State:
        if self._end_wanted.is_set():
            return "draining"
        if self._handed_over.is_set():
            return "handed over"
        if not self._started:
            return "starting"
        if self._worker_group is None or not self._worker_group.serves:
            return "no worker"
        return "serving"

    async def status(self) -> ServiceStatus:
        """Return the status of this instance, and of the replicas of its cluster."""
        own, store = self._own_status(), self._coordinator.store
        return (
            status_report.alone(own)
            if store is None
            else await status_report.in_cluster(own, store)
        )

    def _share(self, settings: Settings) -> None:
        """Apply new settings to what workers and replicas share."""
        self._coordinator.apply(settings)
        store = self._coordinator.store
        if store is not None:
            store.publish(status_report.PART, lambda: status_report.publish(self._own_status()))

    def _own_status(self) -> InstanceStatus:
        return InstanceStatus(
            instance=self._settings.instance,
            version=__version__,
            state=self._state(),
            uptime_s=round(monotonic() - self.serving_since, 3),
            workers=self._workers,
            sessions=self._coordinator.sessions(),
            backends=self._coordinator.backends(self._settings),
            replicas=self._settings.cluster.replicas,
            lease_s=self._settings.cluster.lease if self._settings.cluster.url else 0.0,
        )

    async def wait_for_checks(self) -> None:
        """Wait until each server has been checked once, at most `health_monitor.WAIT_S`."""
        if self._started:
            await self._health_monitor.wait()

    def why_no_watch(self, request: WatchRequest) -> tuple[int, str]:
        """Return the HTTP status and the line that refuse a watch; 200 and nothing if it may be."""
        if self._coordinator.watches.watches >= WATCHES:
            return 503, f"{WATCHES} watches are on already"
        settings = self._settings.trace
        networks = [network.parsed() for network in settings.networks]
        why = watch.why_not(request, settings.content, networks)
        return (403, why) if why else (200, "")

    def watch(
        self, request: WatchRequest, uid: int, pid: int, writer: asyncio.StreamWriter
    ) -> AbstractAsyncContextManager[None]:
        """Return the block in which sessions are watched; see `WatchRelay.watch`."""
        return self._coordinator.watches.watch(request, uid, pid, writer)

    @property
    def _worker_groups(self) -> set[WorkerGroup]:
        return self._leaving | ({self._worker_group} if self._worker_group else set())

    @property
    def _workers(self) -> int:
        return sum(worker_group.workers for worker_group in self._worker_groups)

    async def run(self) -> int:
        """Run until a signal or an upgrade ends the service; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        self._fork_server.start(self._on_fork_server_lost)
        tasks = [
            loop.create_task(self._check(), name="check"),
            loop.create_task(self._reload_on_signal(), name="reload"),
            loop.create_task(self._follow_certificates(), name="certificates"),
        ]
        if self._notifier.watchdog_s:
            tasks.append(loop.create_task(self._feed_watchdog(), name="watchdog"))
        try:
            if problem := await self._start():
                if self._predecessor is not None:
                    self._predecessor.failed(problem)
                return 1
            await self._until_the_end()
        finally:
            for task in tasks:
                task.cancel()
            self._health_monitor.stop()
            worker_groups = self._worker_groups
            for worker_group in worker_groups:
                worker_group.stop()
            await _wait_for(worker_groups)
            await self._coordinator.close()
            await self._admin_endpoint.close()
            await self._control_server.stop()
            self._listen_sockets.close()
            self._fork_server.close()
        events.STOPPED.log(self._log, version=__version__)
        return 0

    async def _start(self) -> str:
        """Open the sockets and start the first workers; return the problem, empty if none."""
        settings = self._settings
        try:
            control = self._listen_sockets.open_control(self._control)
            if self._predecessor is None:  # else the predecessor still answers
                await self._control_server.start(control)
            opened = self._listen_sockets.open(settings)
        except OSError:
            return _NO_ADDRESS
        self._share(settings)
        worker_group = self._worker_group = self._make_worker_group(settings)
        if not await worker_group.start():
            return _NO_WORKERS
        if self._installed_code.changed():
            return "the code on disk changed while it was loaded"
        self._health_monitor.apply(settings)
        self._started = True
        if self._predecessor is not None:
            await self._control_server.start(control)
        await self._admin_endpoint.apply(settings.admin, self._listen_sockets.admin(settings))
        for name, address in opened:
            self._log_listening(name, address)
        self._warn(settings)
        if self._predecessor is not None:
            await self._take_over(self._predecessor)
        self._notifier.ready(self._status())
        return ""

    def _log_listening(self, name: str, address: str) -> None:
        events.LISTENING.log(self._log, listener=name, address=address, version=__version__)

    async def _take_over(self, predecessor: Predecessor) -> None:
        """Take over from the supervisor of an older version."""
        self._notifier.become_standby()
        await predecessor.take_over()
        self._notifier.become_main()
        self._listen_sockets.keep_to_ourselves(self._settings)
        self._log_reloaded()

    def _warn(self, settings: Settings) -> None:
        """Log settings that are valid but weak, and certificates that clients may reject."""
        if self._faults.flags:
            faults, seed = self._faults.flags, self._faults.seed
            events.FAULTS_WANTED.log(self._log, faults=faults, seed=seed)
        for name, how in weak_listeners(settings):
            events.WEAK_TLS.log(self._log, listener=name, backend=None, reason=how)
        for name, how in weak_backends(settings):
            events.WEAK_TLS.log(self._log, listener=None, backend=name, reason=how)
        for name in exposed_listeners(settings):
            backend = settings.listeners[name].backend
            events.OPEN_RELAY_RISK.log(self._log, listener=name, backend=backend)
        for listener, name, why in doubtful_certificates(settings, time()):
            events.DOUBTFUL_CERTIFICATE.log(self._log, listener=listener, name=name, reason=why)
        self._expiries = list(expiries(settings))

    def _send_to_all(self, message: ToWorker, but: WorkerProcess | None) -> None:
        for worker_group in self._worker_groups:
            worker_group.send(message, but)

    def _make_worker_group(self, settings: Settings) -> WorkerGroup:
        size = settings.workers or len(os.sched_getaffinity(0))
        return WorkerGroup(
            settings,
            self._listen_sockets.descriptors(settings),
            size,
            self._coordinator,
            self._fork_server,
            self._faults,
        )

    # --- reload -------------------------------------------------------------------------------

    async def _reload_on_signal(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            if self._worker_group is not None and not self._end_wanted.is_set():
                async with self._changing:
                    self._notifier.reloading()
                    if self._fork_server.lost or self._installed_code.changed():
                        await self._upgrade()
                    else:
                        await self._reload()
                    if not self._end_wanted.is_set():
                        self._notifier.ready(self._status())

    async def _follow_certificates(self) -> None:
        """Use certificate files that have changed on disk, once they are valid.

        A change is used after one more interval without a change, since a file may be incomplete
        or its key not yet written.
        """
        seen: Files | None = None
        while True:
            await asyncio.sleep(CERTIFICATE_INTERVAL_S)  # until the next look
            if self._worker_group is None:
                continue
            last, seen = seen, read_files(self._settings)
            if seen == self._worker_group.files or seen != last or seen == self._refused_files:
                continue
            async with self._changing:
                problems = certificate_problems(self._settings)
                if problems:
                    self._refused_files = seen
                    events.CERTIFICATES_REFUSED.log(self._log, problems=problems)
                elif not self._end_wanted.is_set():
                    events.CERTIFICATES_CHANGED.log(self._log)
                    await self._change_to(self._settings)

    async def _upgrade(self) -> None:
        """Hand over to the version on disk; if that fails, change nothing."""
        if os.getpid() == 1:  # the container would end with this process
            self._reload_failed("the code on disk has changed: restart the container")
            return
        successor = self._successor = Successor()
        sockets, given = self._listen_sockets.pass_on()
        problems = await successor.start(sockets, given, self._notifier.environment)
        if self._end_wanted.is_set():
            successor.kill()
            return
        if problems:
            self._successor = None
            self._reload_failed(*problems)
            return
        self._successor = None
        self._listen_sockets.share()
        self._notifier.hand_over(successor.pid)
        self._health_monitor.stop()
        await self._admin_endpoint.close()
        await self._control_server.stop()
        assert self._worker_group is not None
        await self._leave(self._worker_group)
        self._listen_sockets.close()
        events.HANDED_OVER.log(
            self._log,
            pid=successor.pid,
            version=__version__,
            new_version=successor.version,
            sessions=self._coordinator.sessions(),
        )
        successor.over()
        self._handed_over.set()
        await successor.wait_until_it_drains()
        self._end_wanted.set()

    async def _reload(self) -> None:
        """Read and apply the settings; if that fails, change nothing."""
        try:
            settings = self._read()
        except ConfigError as error:
            self._reload_failed(*map(str, error.problems))
            return
        await self._change_to(settings)

    async def _change_to(self, settings: Settings) -> None:
        """Start workers with these settings; if that fails, change nothing."""
        old = self._worker_group
        assert old is not None
        try:
            added = self._listen_sockets.open(settings)
        except OSError:
            self._listen_sockets.keep_for(self._settings)
            self._reload_failed(_NO_ADDRESS)
            return
        worker_group = self._make_worker_group(settings)
        self._leaving.add(worker_group)  # until it becomes the current one
        started = await worker_group.start()
        if not started:
            self._leaving.remove(worker_group)
        if not started or self._end_wanted.is_set():
            self._listen_sockets.keep_for(self._settings)
            if not self._end_wanted.is_set():
                self._reload_failed(_NO_WORKERS)
            return
        self._leaving.remove(worker_group)
        log.configure(settings.log.level, settings.log.format, instance=settings.instance)
        self._log = log.get()
        self._settings, self._worker_group = settings, worker_group
        self._share(settings)
        self._health_monitor.apply(settings)
        for name, address in added:
            self._log_listening(name, address)
        self._warn(settings)
        await self._leave(old)
        await self._admin_endpoint.apply(settings.admin, self._listen_sockets.admin(settings))
        self._listen_sockets.keep_for(settings)
        self._log_reloaded()

    def _log_reloaded(self) -> None:
        assert self._worker_group is not None
        events.RELOADED.log(
            self._log,
            workers=self._worker_group.workers,
            sessions=self._coordinator.sessions(),
            version=__version__,
        )

    def _reload_failed(self, *problems: str) -> None:
        self._admin_endpoint.reload_failed()
        events.RELOAD_FAILED.log(self._log, problems=problems)

    async def _leave(self, worker_group: WorkerGroup) -> None:
        """Retire a worker group; return when it accepts no more clients."""
        self._leaving.add(worker_group)
        task = asyncio.get_running_loop().create_task(
            worker_group.empty.wait(), name="leaving workers"
        )
        task.add_done_callback(lambda _: self._leaving.discard(worker_group))
        await worker_group.retire()

    # --- the end ------------------------------------------------------------------------------

    def _on_end(self) -> None:
        (self._insisted if self._end_wanted.is_set() else self._end_wanted).set()

    async def _until_the_end(self) -> None:
        """Serve until a signal ends the service, or until no session is left after a hand-over."""
        tasks = [
            asyncio.create_task(self._end_wanted.wait(), name="end"),
            asyncio.create_task(self._until_no_session_is_left(), name="no session left"),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        if self._end_wanted.is_set():
            await self._drain()

    async def _until_no_session_is_left(self) -> None:
        await self._handed_over.wait()
        await self._wait_for_all()

    async def _wait_for_all(self) -> None:
        """Wait until all workers have ended, also those of an older version."""
        await _wait_for(self._worker_groups)
        if self._predecessor is not None:
            await self._predecessor.wait_until_it_is_gone()

    async def _drain(self) -> None:
        """Drain all sessions, until a second signal or the time limit."""
        self._notifier.stopping()
        if self._successor is not None:
            self._successor.kill()
        if self._predecessor is not None:
            self._predecessor.drain()
        self._listen_sockets.close_listeners()
        worker_groups = self._worker_groups
        for worker_group in worker_groups:
            worker_group.drain()
        events.DRAINING.log(self._log, sessions=self._coordinator.sessions())
        drained = asyncio.create_task(self._wait_for_all(), name="drain")
        insisted = asyncio.create_task(self._insisted.wait(), name="second signal")
        await asyncio.wait((drained, insisted), return_when=asyncio.FIRST_COMPLETED)
        insisted.cancel()
        drained.cancel()

    def _on_fork_server_lost(self) -> None:
        """Reload after the loss of the fork server: only a new supervisor can fork workers."""
        events.FORK_SERVER_LOST.log(self._log)
        self._reload_wanted.set()

    # --- watching -----------------------------------------------------------------------------

    async def _check(self) -> None:
        """Check the workers' heartbeats regularly."""
        looked = monotonic()
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)  # until the next check
            now = monotonic()
            passed, looked = now - looked, now
            for worker_group in self._worker_groups:
                if passed > 2 * CHECK_INTERVAL_S:
                    worker_group.extend_limits(passed)
                worker_group.check(now)
            if self._notifier.wanted:
                self._notifier.status(self._status())

    async def _feed_watchdog(self) -> None:
        """Notify systemd, in time for its watchdog (sd_notify(3) advises half of it)."""
        while True:
            self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog_s / 3)  # until the next notification

    def _status(self) -> str:
        sessions = self._coordinator.sessions()
        return f"smtpproxy {__version__}: {sessions} sessions, {self._workers} workers"


async def _wait_for(worker_groups: set[WorkerGroup]) -> None:
    """Wait until all workers of these groups have ended."""
    for worker_group in worker_groups:
        await worker_group.empty.wait()


def main(
    settings: Settings, read: Read, control: Address | None = None, faults: Faults = NO_FAULTS
) -> int:
    """Run the service in this process, and return its exit code.

    Args:
        settings: The initial settings.
        read: Reads them again for a reload.
        control: The address of the control socket; None for the default one.
        faults: The faults to inject.
    """
    inherited = upgrade.take()
    log.configure(settings.log.level, settings.log.format, instance=settings.instance)
    log.adopt_uncaught()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a session needs two
    gc.freeze()  # what is loaded stays, and the workers' collections do not touch what they share
    fork_server = ForkServer()
    with asyncio.Runner() as runner:
        log.gather(runner.get_loop().call_later)
        try:
            supervisor = Supervisor(settings, read, fork_server, inherited, control, faults)
            return runner.run(supervisor.run())
        finally:
            log.gather(None)
