"""The worker group: the workers that were started with the same settings."""

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import chain
from math import inf
from time import monotonic

from smtpproxy.config.fault_flag import NO_FAULTS, Faults
from smtpproxy.config.schema import Settings
from smtpproxy.log import events, log
from smtpproxy.supervisor.coordinator import Coordinator
from smtpproxy.supervisor.fork_server import ForkServer
from smtpproxy.supervisor.worker_process import WorkerProcess
from smtpproxy.worker.certificate_snapshot import read_files
from smtpproxy.worker.control_messages import Drain, FromWorker, Retire, Start, Stop, ToWorker

LONG_LIFE_S = 60.0
"""The run time after which a lost worker is replaced at once."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
"""The delay before a lost worker is replaced, which doubles each time up to the longest."""
START_LIMIT_S = 60.0
"""The time limit for a worker to become ready."""
RETIRE_LIMIT_S = 5.0
"""How long `retire` waits for a worker to stop accepting."""
STOP_LIMIT_S = 5.0
"""The time limit for a worker to end after `Stop`, or after the limit of its drain."""


class WorkerGroup:
    """Starts workers, replaces those that crash or hang, and ends them.

    Args:
        settings: The settings of its workers.
        sockets: The descriptors of each listener, in the order of the settings.
        size: The number of workers.
        coordinator: What the workers share.
        fork_server: Forks the workers.
        faults: The faults that they inject.
    """

    def __init__(
        self,
        settings: Settings,
        sockets: list[list[int]],
        size: int,
        coordinator: Coordinator,
        fork_server: ForkServer,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.settings = settings
        self._faults = faults
        self.empty = asyncio.Event()
        """Set when it was retired, drained or stopped, and no worker is left."""
        self.files = read_files(settings)
        """The certificate files of its workers."""
        self._sockets = sockets
        self._size = size
        self._coordinator = coordinator
        self._fork_server = fork_server
        self._workers: set[WorkerProcess] = set()
        self._delay = 0.0
        self._replacing: set[asyncio.Task[None]] = set()
        self._deadline = 0.0  # by when all workers must have ended; 0 while the group serves
        self._log = log.get()

    @property
    def workers(self) -> int:
        """The number of its workers."""
        return len(self._workers)

    @property
    def serves(self) -> bool:
        """Whether any of its workers accepts clients."""
        return any(worker.ready.done() and worker.ready.result() for worker in self._workers)

    async def start(self) -> bool:
        """Start all workers, and wait until they are ready.

        Returns:
            Whether all are; if not, the others have been stopped.
        """
        try:
            for _ in range(self._size):
                if self._deadline:  # ended meanwhile, so the sockets may be closed
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
        """Start one worker.

        Raises:
            OSError: The process cannot be created.
        """
        row = self._coordinator.take_row()
        worker = WorkerProcess(
            self._fork_server,
            Start(
                settings=self.settings,
                files=self.files,
                sockets=[len(listener) for listener in self._sockets],
                row=row,
                faults=self._faults,
            ),
            [self._coordinator.memory, *chain.from_iterable(self._sockets)],
            self._received,
            self._ended,
        )
        try:
            await worker.start()
        except OSError:
            self._coordinator.free_row(row)
            raise
        self._coordinator.started(worker)
        self._workers.add(worker)
        if self._deadline:  # ended meanwhile
            worker.send(Stop())

    def _received(self, worker: WorkerProcess, message: FromWorker) -> None:
        self._coordinator.take_message(worker, message)

    def _ended(self, worker: WorkerProcess) -> None:
        self._workers.discard(worker)
        self._coordinator.ended(worker)
        if self._deadline:
            self._set_if_empty()
            return
        lived = monotonic() - worker.started
        # If the worker group was never ready, `start` fails as a whole.
        delay = 0.0 if lived > LONG_LIFE_S else self._delay
        self._delay = min(max(FIRST_DELAY_S, 2 * delay), LONGEST_DELAY_S)
        self._coordinator.count_lost()
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
        """Start another worker after a delay, in seconds."""
        await asyncio.sleep(delay)  # so that one that cannot run does not loop
        if self._deadline:
            return
        try:
            await self._start_worker()
        except OSError as error:
            events.CANNOT_START_WORKERS.log(self._log, reason=str(error))
            await self._replace(LONGEST_DELAY_S)

    def extend_limits(self, seconds: float) -> None:
        """Extend all time limits, since the supervisor itself was stopped for so long.

        Workers and supervisor stop together when the machine is suspended, or by Ctrl-Z.
        """
        for worker in self._workers:
            worker.extend_limits(seconds)
        if self._deadline:
            self._deadline += seconds

    def check(self, now: float) -> None:
        """Kill the workers that hang, or that have not ended in time."""
        silent = self.settings.timeouts.heartbeat
        for worker in self._workers:
            limit = silent if worker.ready.done() else START_LIMIT_S
            if self._deadline and now > self._deadline:
                worker.kill()
            elif now - worker.last_message_at > limit:
                silent_s = round(now - worker.last_message_at, 1)
                events.WORKER_HANGS.log(self._log, pid=worker.pid, silent_s=silent_s)
                worker.kill()

    def send(self, message: ToWorker, other_than: WorkerProcess | None = None) -> None:
        """Send a message to all workers except `other_than`."""
        for worker in self._workers - {other_than}:
            worker.send(message)

    async def retire(self) -> None:
        """Make the workers stop accepting, and end with their sessions.

        Returns when they have stopped accepting, or after `RETIRE_LIMIT_S`.
        """
        self._end_by(Retire(), inf)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETIRE_LIMIT_S):
                for worker in list(self._workers):
                    await worker.retired.wait()

    def drain(self) -> None:
        """Make the workers stop accepting, and end their sessions after the transactions."""
        self._end_by(Drain(), self.settings.timeouts.drain + STOP_LIMIT_S)

    def stop(self) -> None:
        """Make the workers end at once."""
        self._end_by(Stop(), STOP_LIMIT_S)

    def _end_by(self, message: Retire | Drain | Stop, limit: float) -> None:
        self._deadline = monotonic() + limit
        self.send(message)
        self._set_if_empty()

    def _set_if_empty(self) -> None:
        if not self._workers:
            self.empty.set()

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(self._workers)
