"""The process of one worker, as the supervisor sees it."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import cast

import msgspec

from smtpproxy.worker.control_messages import (
    FromWorker,
    MessageReader,
    Ready,
    Retired,
    Start,
    ToWorker,
    encode,
)

EXIT_LIMIT_S = 2.0
"""How long a worker that has closed its channel may take to be gone."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WorkerProcess(asyncio.Protocol):
    """A worker: a fresh interpreter that accepts from the service's sockets.

    It ends when it was told to, dies, or is killed because its heartbeat has stopped; whatever it
    was, `ended` is called once.

    snapshot_fds: descriptors of files that the settings of `start` name.
    retired: set when it accepts nobody any more.
    heard: when it said something last.  code: the exit code, negative for a signal; None before.
    """

    def __init__(
        self,
        start: Start,
        snapshot_fds: Iterable[int],
        said: Callable[["WorkerProcess", FromWorker], None],
        ended: Callable[["WorkerProcess"], None],
    ) -> None:
        self.row = start.row
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.retired = asyncio.Event()
        self.started = self.heard = monotonic()
        self.code: int | None = None
        self._start = start
        self._snapshot_fds = snapshot_fds
        self._said = said
        self._ended = ended
        self._lines = MessageReader()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reaping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it; `ready` tells later whether it has come so far as to accept clients.

        Raises OSError if the system has no process for us.
        """
        ours, its = socket.socketpair()
        passed = [its.fileno(), self._start.shared_counters, *self._snapshot_fds]
        passed += [each for listener in self._start.sockets for each in listener]
        # Signals wait until it ignores them: Ctrl-C reaches all processes of a terminal.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process = subprocess.Popen(  # noqa: S603  this program itself
                _command(its.fileno()), pass_fds=passed, stdin=subprocess.DEVNULL
            )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            its.close()
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        self.tell(self._start)

    def tell(self, message: ToWorker) -> None:
        """Send it a message."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def kill(self) -> None:
        """End it at once, hung or not."""
        if self._process is not None and self.code is None:
            self._process.kill()

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
        assert self._process is not None
        deadline = monotonic() + EXIT_LIMIT_S
        while (code := self._process.poll()) is None:
            if monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(0.005)  # its channel is closed, so there are few turns of this
        self.code = code
        if not self.ready.done():
            self.ready.set_result(False)
        self.retired.set()
        self._ended(self)


def _command(control: int) -> list[str]:
    # -P: the directory we were started in is a place for its modules only if it was one for ours.
    distrust = [] if Path.cwd() in map(Path.absolute, map(Path, sys.path)) else ["-P"]
    return [sys.executable, *distrust, "-m", "smtpproxy.worker.main", str(control)]
