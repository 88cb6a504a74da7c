"""Starts programs in separate directories and process groups, and stops only those."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from tests.support.preloaded import Preloaded

START_S = 20.0
STOP_S = 20.0
POLL_S = 0.01

T = TypeVar("T")

_SETPRIV = shutil.which("setpriv")  # of util-linux
ENDS_WITH_THE_TESTS = (_SETPRIV, "--pdeathsig", "TERM") if _SETPRIV else ()
"""The start of a command line whose program gets SIGTERM when its parent ends, even if killed.

After Ctrl-C pytest-xdist kills its workers, which then stop nothing.
"""


def eventually(attempt: Callable[[], T | None], what: str, timeout_s: float = START_S) -> T:
    """Return the first result of `attempt` that is not None, or fail at the deadline."""
    deadline = time.monotonic() + timeout_s
    while (result := attempt()) is None:
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)
    return result


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_OWN = range(20_000 + _WORKER, 32_000, _WORKERS)
_PORTS = cycle(random.sample(_OWN, len(_OWN)))


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no process listens.

    For programs that cannot choose one themselves. It lies below the range from which the kernel
    takes the ports of outgoing connections, and each of several processes that run the tests has
    its own ports, of which each is returned once before any is again: so nothing else picks it
    before the program does.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


_ACTIVATE = """\
import os, socket, sys
host, port, program = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
both = {"family": socket.AF_INET6, "dualstack_ipv6": True} if host == "::" else {}
listening = socket.create_server((host, port), **both)
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "smtp"}
os.execv(program[0], program)
"""


def activated(host: str, port: int) -> tuple[str, ...]:
    """Return the start of a command line whose program gets a socket as from systemd.

    It listens there, at `::` for both families, and its name is `smtp`.
    """
    return (sys.executable, "-c", _ACTIVATE, host, str(port))


class Workplace:
    """A temporary directory, deleted on exit.

    Other accounts may enter it: daemons that drop root still need their files.
    """

    def __init__(self, name: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"smtpproxy-{name}-"))
        self.path.chmod(0o755)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file of the program's configuration and return its path.

        It is dated back: Postfix does not read a file that is less than a second old.
        """
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        os.utime(file, (0, 0))
        return file

    def directory(self, name: str, owner: str | None = None, mode: int = 0o755) -> Path:
        """Make a directory, owned by `owner`, and return its path."""
        directory = self.path / name
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
        if owner is not None:
            shutil.chown(directory, owner)
        return directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Process:
    """A program that runs until `stop`; its output is in the file `output`."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        output: Path,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.argv = [str(word) for word in argv]
        self.output = output
        account = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        with output.open("ab") as log:
            self._popen = self._start(log, {**os.environ, **(env or {})}, account)

    def _start(
        self, log: IO[bytes], env: dict[str, str], account: dict[str, Any]
    ) -> subprocess.Popen[bytes] | Preloaded:
        return subprocess.Popen(
            [*ENDS_WITH_THE_TESTS, *self.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.output.parent,
            env=env,
            start_new_session=True,
            **account,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._popen.pid

    def kill(self) -> None:
        """Kill the program and everything in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(STOP_S)

    def terminate(self) -> int:
        """Terminate the program, and return its exit code."""
        self._popen.terminate()
        return self.wait(STOP_S)

    def wait(self, timeout_s: float = START_S) -> int:
        """Wait until the program has ended, and return its exit code."""
        return self._popen.wait(timeout_s)

    def hang_up(self) -> None:
        """Make the program read its settings again."""
        self._popen.send_signal(signal.SIGHUP)

    def check_alive(self) -> None:
        """Fail, showing what it printed, if the program has ended."""
        code = self._popen.poll()
        assert code is None, f"{self.argv} ended with {code}:\n{self.printed()}"

    def printed(self) -> str:
        """Return what the program has printed so far."""
        return self.output.read_text(errors="replace")

    def await_greeting(self, port: int) -> None:
        """Wait until the program greets SMTP clients on this port."""
        eventually(lambda: self._greets(port), f"greeting of {self.argv[0]}\n{self.printed()}")

    def await_open(self, port: int) -> None:
        """Wait until the program accepts connections on this port."""
        eventually(lambda: self._accepts(port), f"{self.argv[0]} at its port\n{self.printed()}")

    def _accepts(self, port: int) -> bool | None:
        self.check_alive()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_S):
                return True
        except OSError:
            return None

    def _greets(self, port: int) -> bool | None:
        self.check_alive()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=START_S) as connection:
                greeting = connection.recv(512)
                connection.sendall(b"QUIT\r\n")
                connection.recv(512)
        except OSError:
            return None
        return greeting.startswith(b"220") or None


class PreloadedProcess(Process):
    """`smtpproxy` with these arguments, started with its modules loaded.

    Args:
        arguments: The arguments.
        output: The file of its output.
        env: Variables of its environment beside those of the tests.
        network: The file of the network namespace in which it runs, if it is another one.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        output: Path,
        env: Mapping[str, str] | None = None,
        network: Path | None = None,
    ) -> None:
        self._network = network
        super().__init__(arguments, output, env)

    def _start(
        self, log: IO[bytes], env: dict[str, str], account: dict[str, Any]
    ) -> subprocess.Popen[bytes] | Preloaded:
        assert not account
        files = (log.fileno(), log.fileno())
        return Preloaded(self.argv, files, self.output.parent, env, self._network)
