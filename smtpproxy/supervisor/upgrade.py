"""The upgrade of a running service: one supervisor takes over from another, whole or not at all.

When the code on the disk is no longer the code that runs, a reload starts the new version as a
process of its own, with the same arguments.  It inherits the listening sockets, reads the settings
and starts its own workers.  Once they serve, it says `ready VERSION`; the old supervisor retires
its workers, says `over`, and stays until their sessions have ended.  If either one drains or dies,
the other sees the channel's end.  A new version that does not come so far has changed nothing.

What the new process writes to standard error before it has taken over the log is what it has to say
if it fails.
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
"""The environment variable that says what a process has inherited."""
START_LIMIT_S = 75.0
"""How long the new version may take: longer than its workers may."""
OVER_LIMIT_S = 30.0
"""How long the old workers may take to accept nobody any more."""
_MOST_WORDS = 65536
_MOST_LINES = 50


class Inherited(Struct):
    """What one version passes to the next, all numbers being descriptors.

    Both versions read it, so fields are only ever added, and with a default.

    channel, stderr: the end of the channel, and the standard error to go on with.
    sockets: address as the settings have it, position among equal ones, and its sockets.
    given: the sockets that systemd has passed, by name.
    """

    channel: int
    stderr: int
    sockets: list[tuple[str, int, list[int]]] = []
    given: dict[str, list[int]] = {}


def take() -> Inherited | None:
    """Return what this process has inherited from an older version; None if there is none.

    Standard error is the service's from here on.
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
    """The files that the running code was read from, as they were."""

    def __init__(self) -> None:
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        self._files = {file: _state(file) for file in files if file}

    def changed(self) -> bool:
        """Tell whether any of them has been replaced, changed or removed since."""
        return any(_state(file) != state for file, state in self._files.items())


def _state(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116  there are hundreds
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class Successor:
    """The process of the new version, as the old one sees it.

    pid, version: of the process, once it is ready.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.version = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(
        self,
        sockets: list[tuple[str, int, list[int]]],
        given: dict[str, list[int]],
        environment: Mapping[str, str],
    ) -> list[str]:
        """Start it, and wait until it serves; return what it says if it does not, else nothing."""
        ours, its = socket.socketpair()
        words, its_words = socket.socketpair()
        with its, its_words:
            error = os.dup(2)
            inherited = Inherited(its.fileno(), error, sockets, given)
            text = msgspec.json.encode(inherited).decode()
            try:
                self._process = subprocess.Popen(  # noqa: S603  this program itself
                    [sys.executable, *sys.orig_argv[1:]],
                    pass_fds=_descriptors(inherited),
                    stderr=its_words.fileno(),
                    env={**os.environ, **environment, VARIABLE: text},
                )
            except OSError as problem:
                ours.close()
                words.close()
                return [str(problem)]
            finally:
                os.close(error)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        said = asyncio.create_task(_read_words(words), name="words of the new version")
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
            _say(await said)
            return []
        self.kill()
        code = await asyncio.to_thread(self._process.wait)
        lines = [
            line for line in (await said).decode(errors="replace").splitlines() if line.strip()
        ]
        return [*lines[-_MOST_LINES:], rest or f"the new version ended with exit code {code}"]

    def over(self) -> None:
        """Tell it that all clients are its own."""
        assert self._writer is not None
        self._writer.write(b"over\n")

    async def wait_until_it_drains(self) -> None:
        """Wait until it drains, or is gone."""
        assert self._reader is not None
        await _end_of(self._reader)

    def kill(self) -> None:
        """End it at once, with its workers."""
        if self._process is not None:
            self._process.kill()
        if self._writer is not None:
            self._writer.close()


class Predecessor:
    """The supervisor of the old version, as the new one sees it."""

    def __init__(self, channel: int) -> None:
        self._socket = socket.socket(fileno=channel)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def failed(self, problem: str) -> None:
        """Say why this version can't take over."""
        self._socket.sendall(f"failed {problem}\n".encode())

    async def take_over(self) -> None:
        """Say that this version serves; return when no new client is served by the old one."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket)
        self._writer.write(f"ready {__version__}\n".encode())
        try:
            async with asyncio.timeout(OVER_LIMIT_S):
                await self._reader.readline()
        except (OSError, TimeoutError):
            return  # it hangs or is gone: nobody else serves

    def drain(self) -> None:
        """Have it end with its sessions' transactions."""
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


async def _read_words(words: socket.socket) -> bytes:
    """Read to the end; return the last of it."""
    found = b""
    reader, writer = await asyncio.open_connection(sock=words)
    try:
        while octets := await reader.read(4096):
            found = (found + octets)[-_MOST_WORDS:]
    except OSError:
        pass
    finally:
        writer.close()
    return found


def _say(words: bytes) -> None:
    """Pass on what the new version has written before it took over the log: its warnings."""
    if words and sys.stderr is not None:
        sys.stderr.write(words.decode(errors="replace"))
        sys.stderr.flush()
