"""The program as an operator runs it: its log, its workers, its signals."""

import json
import os
import signal
import smtplib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.catalogue import faults
from tests.support.processes import PreloadedProcess, Process, eventually

SMTPPROXY = (sys.executable, "-m", "smtpproxy")


class Program:
    """`smtpproxy run`, until the end of the block; it may have ended before.

    Args:
        directory: Where it runs, with its log and its control socket.
        arguments: Those of the command.
        env: Variables of its environment beside those of the tests.
        argv: The command line that starts it, such as `SMTPPROXY`; by default its modules are
            loaded already.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        argv: Sequence[str] = (),
    ) -> None:
        assert argv or not any(name.startswith("PYTHON") for name in env or ())  # it runs already
        # Each has its control socket in its own directory.
        env = {"RUNTIME_DIRECTORY": str(directory), **(env or {})}
        start = Process if argv else PreloadedProcess
        self._process = start([*argv, "run", *arguments], directory / "log", env)
        self._octets = 0
        self._logged: list[dict[str, Any]] = []
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self._process._popen.pid

    def log(self) -> list[dict[str, Any]]:
        """Return all log lines so far, after a check against the catalogue."""
        with self._process.output.open("rb") as file:
            file.seek(self._octets)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._octets += len(new)
        logged = [json.loads(line) for line in new.splitlines() if line.endswith(b"}")]
        assert [fault for line in logged for fault in faults(line)] == []
        self._logged += logged
        return list(self._logged)

    def event(self, name: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """Wait for the next log line of an event after the last one."""

        def look() -> dict[str, Any] | None:
            for index, fields in enumerate(self.log()[self._read :], self._read + 1):
                if fields["event"] == name:
                    self._read = index
                    return fields
            return None

        return eventually(look, f"event {name}; log:\n{self._process.printed()}", timeout_s)

    def port(self) -> int:
        """Wait for a listener, and return its port."""
        return int(self.event("listening")["address"].rpartition(":")[2])

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return [
            worker for each in children(self.pid) for worker in children(each) if is_worker(worker)
        ]

    def signal(self, number: signal.Signals) -> None:
        """Send the supervisor a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        return self._process._popen.wait(20)


ENDED = (FileNotFoundError, ProcessLookupError)
"""What reading /proc/PID raises if the process has ended, before or after the file was opened."""


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except ENDED:
        return []


def is_worker(pid: int) -> bool:
    """Return whether a process is a worker, as `ps` shows it."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "smtp-worker\n"
    except ENDED:
        return False


def send(port: int, host: str = "127.0.0.1") -> bytes:
    """Send a message; return the server's EHLO reply."""
    with smtplib.SMTP(host, port, timeout=10) as client:
        _, said = client.ehlo()
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\ntext\r\n")
        return said


def is_alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ENDED:
        return False
    return state != "Z"
