"""The running watches: passes each request to the workers, and their records to its client.

A watch is one running `smtpproxy trace watch`; its client is that command.

A client that reads too slowly loses records, which are counted; nothing waits for it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from time import monotonic

from smtpproxy.log import events, log
from smtpproxy.supervisor.worker_process import WorkerProcess
from smtpproxy.trace.watch import RecordsLost, Watching, WatchRequest, encode_line
from smtpproxy.worker.control_messages import Unwatch, Watch, Watched

WATCHES = 8
"""The most watches at once."""
UNREAD_BYTES = 4 * 1024 * 1024
"""The size of unsent data to a client at which records are dropped."""
REPORT_S = 0.5
"""How long after a loss it is reported, if no record comes before; the time between attempts."""
BEGIN_LIMIT_S = 2.0
"""How long a watch waits for the workers to begin: one of them may hang."""


class WatchRelay:
    """Passes watches to the workers, and the records to the clients."""

    def __init__(self) -> None:
        self._workers: set[WorkerProcess] = set()
        self._active: dict[int, _ActiveWatch] = {}
        self._numbers = count(1)

    @property
    def watches(self) -> int:
        """How many watches are running."""
        return len(self._active)

    def joined(self, worker: WorkerProcess) -> None:
        """Begin all watches in a worker that was started."""
        self._workers.add(worker)
        for number, each in self._active.items():
            worker.send(Watch(number, each.request))

    def left(self, worker: WorkerProcess) -> None:
        """Forget a worker that has ended."""
        self._workers.discard(worker)
        for each in self._active.values():
            each.begun_by(worker)

    def take(self, worker: WorkerProcess, message: Watched) -> None:
        """Pass on records of a worker."""
        watch = self._active.get(message.watch)
        if watch is not None:
            watch.begun_by(worker)
            watch.take(message)

    @contextlib.asynccontextmanager
    async def watch(
        self, request: WatchRequest, uid: int, pid: int, writer: asyncio.StreamWriter
    ) -> AsyncIterator[None]:
        """Let the workers record until the end of the block.

        Args:
            request: What they record.
            uid: The user id of the client, for the log.
            pid: Its process id.
            writer: Gets the lines.
        """
        number, logger, began = next(self._numbers), log.get(), monotonic()
        watch = self._active[number] = _ActiveWatch(request, writer, self._workers)
        fields = {
            "uid": uid,
            "pid": pid,
            "networks": list(request.networks),
            "content": request.content,
            "only_problems": request.only_problems,
        }
        events.TRACE_WATCH_STARTED.log(logger, **fields)
        try:
            for worker in self._workers:
                worker.send(Watch(number, request))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_LIMIT_S):
                    await watch.begun.wait()
            watch.put(encode_line(Watching()) + b"\n")
            yield
        finally:
            del self._active[number]
            watch.end()
            for worker in self._workers:
                worker.send(Unwatch(number))
            events.TRACE_WATCH_ENDED.log(
                log.get(),
                **fields,
                duration_s=round(monotonic() - began, 3),
                records_sent=watch.sent,
                records_lost=watch.lost,
            )


class _ActiveWatch:
    def __init__(
        self, request: WatchRequest, writer: asyncio.StreamWriter, workers: set[WorkerProcess]
    ) -> None:
        self.request = request
        self.begun = asyncio.Event()
        self.sent = self.lost = 0
        self._reported = 0  # of those that were lost
        self._timer: asyncio.TimerHandle | None = None
        self._writer = writer
        self._waiting = set(workers)
        self._set_if_begun()

    def begun_by(self, worker: WorkerProcess) -> None:
        """Note that a worker records, or has ended."""
        self._waiting.discard(worker)
        self._set_if_begun()

    def _set_if_begun(self) -> None:
        if not self._waiting:
            self.begun.set()

    def take(self, message: Watched) -> None:
        """Write records, or count them as lost."""
        self.lost += message.lost
        if self._is_full():
            self.lost += len(message.records)
        else:
            self._report_lost()
            if message.records:
                self.put(b"\n".join((*message.records, b"")))
                self.sent += len(message.records)
        if self.lost > self._reported and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPORT_S, self._try_to_report)

    def _is_full(self) -> bool:
        return self._writer.transport.get_write_buffer_size() > UNREAD_BYTES

    def _try_to_report(self) -> None:
        """Report a loss after which no record has come."""
        self._timer = None
        if not self._is_full():
            self._report_lost()
        else:
            self._timer = asyncio.get_running_loop().call_later(REPORT_S, self._try_to_report)

    def _report_lost(self) -> None:
        if self.lost > self._reported:
            self.put(encode_line(RecordsLost(self.lost - self._reported)) + b"\n")
            self._reported = self.lost

    def end(self) -> None:
        """Write what is left: how many records were lost last."""
        if self._timer is not None:
            self._timer.cancel()
        self._report_lost()

    def put(self, octets: bytes) -> None:
        """Write whole lines."""
        if not self._writer.transport.is_closing():
            self._writer.write(octets)
