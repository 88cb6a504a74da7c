"""The process of one worker, on the supervisor's side."""

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
"""How long a worker may take to exit after it has closed its channel."""


class WorkerProcess(asyncio.Protocol):
    """A worker process, made by the fork server.

    Args:
        fork_server: Forks the process.
        start: The first message.
        descriptors: The descriptors to send before it, as described at `Start`.
        on_message: Called with each message of the worker.
        ended: Called once after the process has ended, for whatever reason.
    """

    def __init__(
        self,
        fork_server: ForkServer,
        start: Start,
        descriptors: Sequence[int],
        on_message: Callable[["WorkerProcess", FromWorker], None],
        ended: Callable[["WorkerProcess"], None],
    ) -> None:
        self.row = start.row
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it accepts clients, or ended before that."""
        self.retired = asyncio.Event()
        """Set when it has stopped accepting."""
        self.started = self.last_message_at = monotonic()
        """When it was started, and when its last message arrived."""
        self.code: int | None = None
        """Its exit code, negative for a signal; None while it runs or if unknown."""
        self.pid = 0
        """Its process id, once it is started."""
        self._gone = False
        self._fork_server = fork_server
        self._start = start
        self._descriptors = descriptors
        self._on_message = on_message
        self._ended = ended
        self._lines = MessageReader()
        self._transport: asyncio.Transport | None = None
        self._reaping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Fork it and send its settings; `ready` is set later.

        Raises:
            OSError: The process cannot be created.
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
        self.send(self._start)

    def send(self, message: ToWorker) -> None:
        """Send a message to the worker."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def kill(self) -> None:
        """Kill the worker."""
        if self.pid and not self._gone:
            self._fork_server.kill(self.pid)

    def extend_limits(self, seconds: float) -> None:
        """Do not count a time during which the supervisor itself was stopped."""
        self.last_message_at = min(self.last_message_at + seconds, monotonic())

    # --- callbacks of the event loop ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the control channel."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Process messages of the worker."""
        self.last_message_at = monotonic()
        try:
            for message in self._lines.from_worker(data):
                if isinstance(message, Ready) and not self.ready.done():
                    self.ready.set_result(True)
                elif isinstance(message, Retired):
                    self.retired.set()
                self._on_message(self, message)
        except msgspec.MsgspecError:
            self.kill()  # an invalid message

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Wait for the exit of the worker, which has closed its channel."""
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
