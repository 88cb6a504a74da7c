"""A real Redis server for tests: it can be killed, stopped, paused, and started again, empty."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support.processes import Process, eventually, free_port
from tests.support.programs import root_of

_PROGRAM = "usr/bin/redis-check-rdb"
"""The server and its tools are one program, which looks at its name."""


class RedisServer:
    """A server at 127.0.0.1 that keeps nothing on disk; stopped at the end of the block.

    Args:
        directory: Where it writes its log.
        options: Further options, such as `--requirepass x`.
        env: Variables to add to its environment.
        inside: The start of a command line that runs it elsewhere, such as in a namespace.
        host: The address to listen at.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self._tools = root_of("redis-tools", _PROGRAM) / "usr/bin"
        self.port = free_port()
        self.host = host
        self._directory = directory
        program = directory / "redis-server"
        if not program.is_symlink():
            program.symlink_to(self._tools / "redis-check-rdb")
        words = ("--port", str(self.port), "--bind", host, "--save", "", "--loglevel", "warning")
        self._argv = (*inside, program, *words, *options)
        self._inside = inside
        self._env = env
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"redis://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._process = Process(self._argv, self._directory / "redis.log", self._env)
        eventually(lambda: self._answers() or None, "an answer of redis-server")

    def _answers(self) -> bool:
        assert self._process is not None
        self._process.check_alive()
        return self.command("PING").strip() in ("PONG", "NOAUTH Authentication required.")

    def kill(self) -> None:
        """Kill it; it forgets everything."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        """Stop the process, as a machine that hangs."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue the process."""
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *words: str) -> str:
        """Send it a command, and return the answer as redis-cli prints it."""
        argv = [*self._inside, self._tools / "redis-cli", "-h", self.host, "-p", str(self.port)]
        done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=10)
        return done.stdout or done.stderr


def silent_port() -> tuple[socket.socket, int]:
    """Return a socket that accepts connections and never answers, and its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    return listening, listening.getsockname()[1]
