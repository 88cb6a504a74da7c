"""The worker group: the workers that run on one version of the settings."""

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import chain
from math import inf
from time import monotonic

from smtpproxy.config.schema import Settings
from smtpproxy.log import events, log
from smtpproxy.supervisor.coordinator import Coordinator
from smtpproxy.supervisor.fork_server import ForkServer
from smtpproxy.supervisor.worker_process import WorkerProcess
from smtpproxy.worker.certificate_snapshot import read_files
from smtpproxy.worker.control_messages import Drain, FromWorker, Retire, Start, Stop, ToWorker

LONG_LIFE_S = 60.0
"""A worker that has lived so long is replaced at once."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
"""How long a place stays empty when its workers die young: the delay doubles each time."""
START_LIMIT_S = 60.0
"""How long a worker may take to be ready."""
RETIRE_LIMIT_S = 5.0
"""How long a worker may take to accept nobody any more, for others to wait for it."""
STOP_LIMIT_S = 5.0
"""How long a worker may take to end that was told to stop, or whose drain is over."""


class WorkerGroup:
    """Starts the workers, replaces one that dies or hangs, and lets them go.

    sockets: for each listener of the settings, the descriptors that workers accept from.
    files: the certificate files that its workers have.
    empty: set when it was let go and no worker is left.
    """

    def __init__(
        self,
        settings: Settings,
        sockets: list[list[int]],
        size: int,
        coordinator: Coordinator,
        fork_server: ForkServer,
    ) -> None:
        self.settings = settings
        self.empty = asyncio.Event()
        self.files = read_files(settings)
        self._sockets = sockets
        self._size = size
        self._coordinator = coordinator
        self._fork_server = fork_server
        self._workers: set[WorkerProcess] = set()
        self._delay = 0.0
        self._replacing: set[asyncio.Task[None]] = set()
        self._deadline = 0.0  # by when all are to be gone; 0 while they are to stay
        self._log = log.get()

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def serves(self) -> bool:
        """Whether a worker of it accepts clients."""
        return any(worker.ready.done() and worker.ready.result() for worker in self._workers)

    async def start(self) -> bool:
        """Start all workers; False, with none left, if one of them did not come to be ready."""
        try:
            for _ in range(self._size):
                if self._deadline:  # let go meanwhile: the sockets may be closed
                    break
                await self._start_worker()
            ready = asyncio.gather(*(worker.ready for worker in self._workers))
            fine = all(await asyncio.wait_for(ready, START_LIMIT_S))
        except (OSError, TimeoutError) as error:
            reason = str(error) or "time limit"
            events.CANNOT_START_WORKERS.log(self._log, reason=reason)
            fine = False
        if not fine:
            self.stop()
            await self.empty.wait()
        return fine

    async def _start_worker(self) -> None:
        """Start one; raises OSError if there can't be another process."""
        row = self._coordinator.take_row()
        worker = WorkerProcess(
            self._fork_server,
            Start(
                settings=self.settings,
                files=self.files,
                sockets=[len(listener) for listener in self._sockets],
                row=row,
            ),
            [self._coordinator.memory, *chain.from_iterable(self._sockets)],
            self._said,
            self._ended,
        )
        try:
            await worker.start()
        except OSError:
            self._coordinator.free_row(row)
            raise
        self._coordinator.send_servers_down(worker)
        self._workers.add(worker)
        if self._deadline:  # let go meanwhile
            worker.tell(Stop())

    def _said(self, worker: WorkerProcess, message: FromWorker) -> None:
        self._coordinator.take_message(worker, message)

    def _ended(self, worker: WorkerProcess) -> None:
        self._workers.discard(worker)
        self._coordinator.ended(worker)
        if self._deadline:
            self._tell_if_empty()
            return
        lived = monotonic() - worker.started
        # Before the worker group has ever been ready its start fails as a whole.
        delay = 0.0 if lived > LONG_LIFE_S else self._delay
        self._delay = min(max(FIRST_DELAY_S, 2 * delay), LONGEST_DELAY_S)
        self._coordinator.lost += 1
        events.WORKER_LOST.log(
            self._log,
            pid=worker.pid,
            exit_code=worker.code,
            duration_s=round(lived, 1),
            restart_delay_s=delay,
        )
        task = asyncio.get_running_loop().create_task(self._replace(delay), name="replace worker")
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, delay: float) -> None:
        await asyncio.sleep(delay)
        if self._deadline:
            return
        try:
            await self._start_worker()
        except OSError as error:
            events.CANNOT_START_WORKERS.log(self._log, reason=str(error))
            await self._replace(LONGEST_DELAY_S)

    def excuse(self, seconds: float) -> None:
        """Do not count a time in which the supervisor stood still: it has heard nobody then.

        So it is when all were stopped, with their machine or by Ctrl-Z.
        """
        for worker in self._workers:
            worker.heard = min(worker.heard + seconds, monotonic())
        if self._deadline:
            self._deadline += seconds

    def check(self, now: float) -> None:
        """Kill what hangs, and what has not ended in time."""
        silent = self.settings.timeouts.heartbeat
        for worker in self._workers:
            limit = silent if worker.ready.done() else START_LIMIT_S
            if self._deadline and now > self._deadline:
                worker.kill()
            elif now - worker.heard > limit:
                silent_s = round(now - worker.heard, 1)
                events.WORKER_HANGS.log(self._log, pid=worker.pid, silent_s=silent_s)
                worker.kill()

    def tell(self, message: ToWorker, but: WorkerProcess | None = None) -> None:
        """Send a message to all workers, or to all but one."""
        for worker in self._workers - {but}:
            worker.tell(message)

    async def retire(self) -> None:
        """Let the workers accept nobody any more, and end when their sessions have.

        Return when they do accept nobody, but do not wait for one that hangs.
        """
        self._let_go(Retire(), inf)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETIRE_LIMIT_S):
                for worker in list(self._workers):
                    await worker.retired.wait()

    def drain(self) -> None:
        """Let the sessions finish their transactions, and the workers end."""
        self._let_go(Drain(), self.settings.timeouts.drain + STOP_LIMIT_S)

    def stop(self) -> None:
        """Let the workers end at once."""
        self._let_go(Stop(), STOP_LIMIT_S)

    def _let_go(self, message: Retire | Drain | Stop, limit: float) -> None:
        self._deadline = monotonic() + limit
        self.tell(message)
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if not self._workers:
            self.empty.set()

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(self._workers)
