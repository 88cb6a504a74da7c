"""The upgrade of a running service: a new supervisor takes over completely, or not at all.

If the code on disk has changed, a reload starts it as a new process with the same arguments.  The
process inherits the listening sockets, reads the settings, and starts its own workers.  When they
are ready, it sends `ready VERSION`; the old supervisor retires its workers, sends `over`, and stays
until their sessions have ended.  If either supervisor drains or crashes, the other one sees the end
of the channel.  If the new version fails before it is ready, nothing has changed.

What the new process writes to standard error before it is ready is logged as the reason if it
fails.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from smtpproxy import __version__

VARIABLE = "SMTPPROXY_UPGRADE"
"""The environment variable with what a process inherits, as JSON."""
START_LIMIT_S = 75.0
"""The time limit of the new version's start; longer than that of its workers."""
OVER_LIMIT_S = 30.0
"""The time limit for the old workers to stop accepting."""
_OUTPUT_BYTES = 65536
_OUTPUT_LINES = 50


class Inherited(Struct):
    """The descriptors that one version passes to the next.

    Both versions must understand it, so fields may only be added, with a default.
    """

    channel: int
    """The end of the channel."""
    stderr: int
    """The standard error of the service."""
    sockets: list[tuple[str, int, list[int]]] = []
    """The address as in the settings, its position among equal ones, and its sockets."""
    given: dict[str, list[int]] = {}
    """The sockets from systemd, by name."""


def take() -> Inherited | None:
    """Return what this process inherits from an older version; None if nothing.

    Standard error becomes that of the service.
    """
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return None
    inherited = msgspec.json.decode(text, type=Inherited)
    for each in _descriptors(inherited):
        os.set_inheritable(each, False)
    os.dup2(inherited.stderr, 2)
    os.close(inherited.stderr)
    return inherited


def _descriptors(inherited: Inherited) -> list[int]:
    of_addresses = [each for _, _, found in inherited.sockets for each in found]
    of_systemd = [each for found in inherited.given.values() for each in found]
    return [*{inherited.channel, inherited.stderr, *of_addresses, *of_systemd}]


class InstalledCode:
    """The state of the files that the running code was loaded from."""

    def __init__(self) -> None:
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        self._files = {file: _state(file) for file in files if file}

    def changed(self) -> bool:
        """Return whether any file has been replaced, changed or removed since."""
        return any(_state(file) != state for file, state in self._files.items())


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116  faster, for hundreds of files
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class Successor:
    """The process of the new version, on the side of the old one."""

    def __init__(self) -> None:
        self.pid = 0
        """Its process id, once it is ready."""
        self.version = ""
        """Its version, once it is ready."""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(
        self,
        sockets: list[tuple[str, int, list[int]]],
        given: dict[str, list[int]],
        environment: Mapping[str, str],
    ) -> list[str]:
        """Start it, and wait until it is ready.

        Args:
            sockets: As `Inherited.sockets`.
            given: As `Inherited.given`.
            environment: Variables to add to its environment.

        Returns:
            The problems, as lines, if it failed; else empty.
        """
        ours, its = socket.socketpair()
        output, its_output = socket.socketpair()
        with its, its_output:
            error = os.dup(2)
            inherited = Inherited(its.fileno(), error, sockets, given)
            text = msgspec.json.encode(inherited).decode()
            try:
                self._process = subprocess.Popen(  # noqa: S603  this program itself
                    [sys.executable, *sys.orig_argv[1:]],
                    pass_fds=_descriptors(inherited),
                    stderr=its_output.fileno(),
                    env={**os.environ, **environment, VARIABLE: text},
                )
            except OSError as problem:
                ours.close()
                output.close()
                return [str(problem)]
            finally:
                os.close(error)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        written = asyncio.create_task(_read_output(output), name="output of the new version")
        try:
            async with asyncio.timeout(START_LIMIT_S):
                first = (await self._reader.readline()).decode(errors="replace").strip()
        except TimeoutError:
            first = f"failed not ready within {START_LIMIT_S:g} s"
        except (OSError, ValueError):
            first = ""
        kind, _, rest = first.partition(" ")
        if kind == "ready":
            self.pid, self.version = self._process.pid, rest
            _print_output(await written)
            return []
        self.kill()
        code = await asyncio.to_thread(self._process.wait)
        lines = [
            line for line in (await written).decode(errors="replace").splitlines() if line.strip()
        ]
        return [*lines[-_OUTPUT_LINES:], rest or f"the new version ended with exit code {code}"]

    def over(self) -> None:
        """Report that the old workers have stopped accepting."""
        assert self._writer is not None
        self._writer.write(b"over\n")

    async def wait_until_it_drains(self) -> None:
        """Wait until it drains or ends."""
        assert self._reader is not None
        await _end_of(self._reader)

    def kill(self) -> None:
        """Kill it; its workers then drain."""
        if self._process is not None:
            self._process.kill()
        if self._writer is not None:
            self._writer.close()


class Predecessor:
    """The supervisor of the old version, on the side of the new one.

    Args:
        channel: The descriptor of the channel.
    """

    def __init__(self, channel: int) -> None:
        self._socket = socket.socket(fileno=channel)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def failed(self, problem: str) -> None:
        """Report why this version cannot take over."""
        self._socket.sendall(f"failed {problem}\n".encode())

    async def take_over(self) -> None:
        """Report that this version is ready; return when the old workers have stopped accepting."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        self._writer.write(f"ready {__version__}\n".encode())
        try:
            async with asyncio.timeout(OVER_LIMIT_S):
                await self._reader.readline()
        except (OSError, TimeoutError):
            return  # it hangs or has ended

    def drain(self) -> None:
        """Make it drain."""
        if self._writer is not None:
            self._writer.write_eof()

    async def wait_until_it_is_gone(self) -> None:
        """Wait for its end."""
        if self._reader is not None:
            await _end_of(self._reader)


async def _end_of(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4096):
            pass
    except OSError:
        return


async def _read_output(output: socket.socket) -> bytes:
    """Read to the end, and return the last `_OUTPUT_BYTES` bytes."""
    found = b""
    reader, writer = await asyncio.open_connection(sock=output)
    try:
        while octets := await reader.read(4096):
            found = (found + octets)[-_OUTPUT_BYTES:]
    except OSError:
        pass
    finally:
        writer.close()
    return found


def _print_output(output: bytes) -> None:
    """Print what the new version wrote before it was ready, such as warnings."""
    if output and sys.stderr is not None:
        sys.stderr.write(output.decode(errors="replace"))
        sys.stderr.flush()
