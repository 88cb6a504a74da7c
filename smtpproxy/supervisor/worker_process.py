"""The process of one worker, as the supervisor sees it."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import cast

import msgspec

from smtpproxy.supervisor.fork_server import ForkServer
from smtpproxy.worker.control_messages import (
    FromWorker,
    MessageReader,
    Ready,
    Retired,
    Start,
    ToWorker,
    encode,
    send_descriptors,
)

EXIT_LIMIT_S = 2.0
"""How long a worker that has closed its channel may take to be gone."""


class WorkerProcess(asyncio.Protocol):
    """A worker: a process of the fork server that accepts from the service's sockets.

    It ends when it was told to, dies, or is killed because its heartbeat has stopped; whatever it
    was, `ended` is called once.

    descriptors: what it is to have, as `Start` tells.
    pid: the process id, once it is started.
    retired: set when it accepts nobody any more.
    heard: when it said something last.  code: the exit code, negative for a signal; None before.
    """

    def __init__(
        self,
        fork_server: ForkServer,
        start: Start,
        descriptors: Sequence[int],
        said: Callable[["WorkerProcess", FromWorker], None],
        ended: Callable[["WorkerProcess"], None],
    ) -> None:
        self.row = start.row
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.retired = asyncio.Event()
        self.started = self.heard = monotonic()
        self.code: int | None = None
        self.pid = 0
        self._gone = False
        self._fork_server = fork_server
        self._start = start
        self._descriptors = descriptors
        self._said = said
        self._ended = ended
        self._lines = MessageReader()
        self._transport: asyncio.Transport | None = None
        self._reaping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; `ready` tells later whether it has come so far as to accept clients.

        Raises OSError if the system has no process for us.
        """
        ours, its = socket.socketpair()
        try:
            self.pid = await self._fork_server.fork(its)
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        send_descriptors(ours, self._descriptors)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        self.tell(self._start)

    def tell(self, message: ToWorker) -> None:
        """Send it a message."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def kill(self) -> None:
        """End it at once, hung or not."""
        if self.pid and not self._gone:
            self._fork_server.kill(self.pid)

    # --- what the loop calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the control channel."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what the worker says."""
        self.heard = monotonic()
        try:
            for message in self._lines.from_worker(data):
                if isinstance(message, Ready) and not self.ready.done():
                    self.ready.set_result(True)
                elif isinstance(message, Retired):
                    self.retired.set()
                self._said(self, message)
        except msgspec.MsgspecError:
            self.kill()  # it has lost its mind

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Follow the end of the channel: the worker is gone, or will be at once."""
        self._reaping = asyncio.get_running_loop().create_task(self._reap(), name="reap")

    async def _reap(self) -> None:
        exited = asyncio.ensure_future(self._fork_server.exit_code(self.pid))
        await asyncio.wait((exited,), timeout=EXIT_LIMIT_S)
        if not exited.done():
            self.kill()
        self.code = await exited
        self._gone = True
        if not self.ready.done():
            self.ready.set_result(False)
        self.retired.set()
        self._ended(self)
