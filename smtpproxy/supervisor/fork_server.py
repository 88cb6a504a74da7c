"""The fork server: a process that forks the workers, so that each runs the supervisor's own code.

It is forked from the supervisor before the event loop starts, with all modules that a worker needs
imported.  So a worker that replaces a crashed one never loads code that an upgrade has put on disk
since.  It has one thread, no event loop, and no open file except its channel.

The channel carries records of a kind and two numbers.  `fork` carries one descriptor, the worker's
end of its control channel, and is answered by `forked` or `failed`.  `kill` has no answer.
`exited` reports the end of a worker.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from select import select
from typing import NoReturn

from smtpproxy.worker import main as worker_main

_RECORD = struct.Struct("=cii")
_FORK, _KILL, _FORKED, _FAILED, _EXITED = b"f", b"k", b"F", b"E", b"X"
_FIRST = 3
"""The descriptor of the channel, after the standard three."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ForkServer:
    """The supervisor's side; create it before the event loop and before any other thread."""

    def __init__(self) -> None:
        self.lost = False
        """Whether the process has ended, so that no worker can be started any more."""
        self._on_lost: Callable[[], None] | None = None
        self._forks: deque[asyncio.Future[int]] = deque()
        self._exits: dict[int, asyncio.Future[int | None]] = {}
        self._unread = b""
        self._channel, its = socket.socketpair()
        # Blocks signals until it ignores them, since Ctrl-C goes to all processes of a terminal.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.pid = os.fork()
        if not self.pid:
            _end_with(_serve, its.detach())
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        its.close()

    def start(self, on_lost: Callable[[], None]) -> None:
        """Read from its channel on the running event loop.

        Args:
            on_lost: Called if the fork server ends unexpectedly.
        """
        self._on_lost = on_lost
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._read)

    def close(self) -> None:
        """End it, after all workers have ended."""
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    async def fork(self, control: socket.socket) -> int:
        """Fork a worker, and return its process id.

        Args:
            control: The worker's end of its control channel.

        Raises:
            OSError: The process cannot be created.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            if self.lost:
                raise BrokenPipeError
            socket.send_fds(self._channel, [_RECORD.pack(_FORK, 0, 0)], [control.fileno()])
        except ConnectionError:
            raise OSError("the fork server has ended") from None
        self._forks.append(answer)
        return await answer

    async def exit_code(self, pid: int) -> int | None:
        """Wait for the end of a worker.

        Returns:
            Its exit code, negative for a signal; None if unknown.
        """
        if pid not in self._exits:
            return None
        code = await self._exits[pid]
        del self._exits[pid]
        return code

    def kill(self, pid: int) -> None:
        """Kill a worker; the fork server ensures that the process id is still the worker's."""
        with contextlib.suppress(OSError):
            if self.lost:
                os.kill(pid, signal.SIGKILL)
            else:
                self._channel.send(_RECORD.pack(_KILL, pid, 0))

    def _read(self) -> None:
        try:
            octets = self._channel.recv(65536)
        except ConnectionError:
            octets = b""
        if not octets:
            self._lose()
            return
        self._unread += octets
        while len(self._unread) >= _RECORD.size:
            record, self._unread = self._unread[: _RECORD.size], self._unread[_RECORD.size :]
            self._take(*_RECORD.unpack(record))

    def _take(self, kind: bytes, pid: int, code: int) -> None:
        if kind == _EXITED:
            if not self._exits[pid].done():
                self._exits[pid].set_result(code)
            return
        answer = self._forks.popleft()
        if kind == _FORKED:
            self._exits[pid] = asyncio.get_running_loop().create_future()
        if answer.done():
            return  # the caller was cancelled; the worker ends, since its channel is closed
        if kind == _FORKED:
            answer.set_result(pid)
        else:
            answer.set_exception(OSError(code, os.strerror(code)))

    def _lose(self) -> None:
        self.lost = True
        asyncio.get_running_loop().remove_reader(self._channel)
        for answer in self._forks:
            if not answer.done():
                answer.set_exception(OSError("the fork server has ended"))
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(None)
        if self._on_lost is not None:
            self._on_lost()


class _Server:
    """The fork server's side."""

    def __init__(self, descriptor: int) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _name_process("smtp-forks")
        # Closes all other descriptors, so that no worker inherits them.
        self._channel = socket.socket(fileno=os.dup2(descriptor, _FIRST, inheritable=False))
        os.closerange(_FIRST + 1, os.sysconf("SC_OPEN_MAX"))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._ended, self._ending = os.pipe()
        for each in (self._ended, self._ending):
            os.set_blocking(each, False)
        signal.signal(signal.SIGCHLD, _take_note)
        signal.set_wakeup_fd(self._ending, warn_on_full_buffer=False)
        self._workers: set[int] = set()

    def serve(self) -> None:
        """Fork workers until the supervisor has ended."""
        while True:
            ready, _, _ = select((_FIRST, self._ended), (), ())
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._reap()
            if _FIRST in ready:
                octets, descriptors, _, _ = socket.recv_fds(self._channel, _RECORD.size, 1)
                if not octets:
                    return
                kind, pid, _ = _RECORD.unpack(octets)
                if kind == _FORK:
                    self._fork(*descriptors)
                elif pid in self._workers:  # not reaped, so the id is not reused
                    os.kill(pid, signal.SIGKILL)

    def _fork(self, control: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._channel.sendall(_RECORD.pack(_FAILED, 0, error.errno or 0))
        else:
            if not pid:
                self._work(control)
            self._workers.add(pid)
            self._channel.sendall(_RECORD.pack(_FORKED, pid, 0))
        os.close(control)

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._workers.discard(pid)
            self._channel.sendall(_RECORD.pack(_EXITED, pid, os.waitstatus_to_exitcode(status)))

    def _work(self, control: int) -> NoReturn:
        """Run the worker's main function, in the forked process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._channel.close()
        os.close(self._ended)
        os.close(self._ending)
        _name_process("smtp-worker")
        _end_with(worker_main.main, control)


def _serve(descriptor: int) -> int:
    with contextlib.suppress(ConnectionError):  # the supervisor has ended
        _Server(descriptor).serve()
    return 0


def _end_with(run: Callable[[int], int], descriptor: int) -> NoReturn:
    """Run a function and exit, without the cleanup that the parent process has registered."""
    code = 1
    try:
        code = run(descriptor)
    except BaseException:  # noqa: BLE001  the outermost frame of a process
        sys.excepthook(*sys.exc_info())  # set by the log
    finally:
        os._exit(code)


def _take_note(number: int, frame: object) -> None:
    """Handle a signal; the wake-up descriptor reports it."""


def _name_process(name: str) -> None:
    """Set the process name that `ps` and `top` show."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
