"""Starts `smtpproxy` in processes that have its modules loaded, which saves most of the CPU.

A process loads the program once and forks for each start, so that hundreds of starts do not load
it hundreds of times.  From there on it is the same as `python -m smtpproxy`: the same main
function, in a session of its own, with its own arguments, environment, directory and files.  What
loads the program, or measures what that takes, starts it by its command line instead.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_SERVER = """
import ctypes, json, os, signal, socket, struct, sys

from smtpproxy import __main__ as program
import smtpproxy.cli
import smtpproxy.control_socket.watch_command
import smtpproxy.supervisor.supervisor
import smtpproxy.trace.trace_commands

STANDARD = (0, 1, 2)
NEW_NETWORK = 0x40000000  # CLONE_NEWNET
LIBC = ctypes.CDLL(None)


def end_with_parent():
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG, as in tests.support.processes


def start(request, files):
    # The program reports its process id, and this process, which waits for it, its exit code.
    *standard, report = files
    pid = os.fork()
    if pid:
        os.closerange(0, report)  # so that nothing else is held open for as long as it runs
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(report, struct.pack("=i", code))
        finally:
            os._exit(0)
    end_with_parent()
    os.setsid()
    os.write(report, struct.pack("=i", os.getpid()))  # from now on it is a process group
    if request["network"]:
        network = os.open(request["network"], os.O_RDONLY)
        assert LIBC.setns(network, NEW_NETWORK) == 0
    for number, file in zip(STANDARD, standard):
        os.dup2(file, number)
    os.closerange(3, 256)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["smtpproxy", *request["arguments"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]


def served():
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        octets, files, _, _ = socket.recv_fds(channel, 1 << 20, 4)
        if not octets:
            return False
        if not os.fork():
            end_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            start(json.loads(octets), files)
            return True
        for file in files:
            os.close(file)


if served():
    program.main()
"""

_NUMBER_OCTETS = 4


@cache
def _server() -> socket.socket:
    """Start the process that forks, once, and return the channel to it, whose end ends it."""
    channel, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-c", _SERVER, str(its.fileno())]
    process = subprocess.Popen(argv, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    its.close()

    def end() -> None:
        channel.close()
        process.wait()

    atexit.register(end)
    return channel


class Preloaded:
    """A started program, with the methods of `subprocess.Popen` that the tests use.

    Args:
        arguments: Those of `smtpproxy`.
        output: The files of its standard output and error.
        directory: The directory in which it runs.
        environment: All of its environment.
        network: The file of the network namespace in which it runs, if it is another one.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        output: tuple[int, int],
        directory: Path,
        environment: Mapping[str, str],
        network: Path | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._reports, report = os.pipe()
        request = {
            "arguments": arguments,
            "directory": str(directory),
            "environment": dict(environment),
            "network": str(network or ""),
        }
        with Path(os.devnull).open("rb") as nothing:
            files = [nothing.fileno(), *output, report]
            socket.send_fds(_server(), [json.dumps(request).encode()], files)
        os.close(report)
        self.pid = self._number()

    def __del__(self) -> None:
        os.close(self._reports)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; raises ChildProcessError as `wait`."""
        if self.returncode is None and select.select([self._reports], (), (), 0)[0]:
            self.returncode = self._number()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended in so many seconds.
            ChildProcessError: What waits for it has ended, so its exit code is unknown.
        """
        if self.returncode is None and not select.select([self._reports], (), (), timeout)[0]:
            raise subprocess.TimeoutExpired("smtpproxy", timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def _number(self) -> int:
        octets = os.read(self._reports, _NUMBER_OCTETS)
        if not octets:
            raise ChildProcessError("the process that waits for smtpproxy has ended before it")
        return int.from_bytes(octets, sys.byteorder, signed=True)


def completed(
    *arguments: str | Path, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run a command of `smtpproxy` to its end, and return its exit code and what it printed.

    Args:
        arguments: Those of `smtpproxy`.
        env: All of its environment; by default that of the tests.
        timeout_s: The longest that it may take.
    """
    words = [str(word) for word in arguments]
    environment = os.environ if env is None else env
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        files = (output.fileno(), errors.fileno())
        started = Preloaded(words, files, Path.cwd(), environment)
        try:
            code = started.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.kill(started.pid, signal.SIGKILL)
            raise
        for each in (output, errors):
            each.seek(0)
        printed = (each.read().decode() for each in (output, errors))
        return subprocess.CompletedProcess(words, code, *printed)
