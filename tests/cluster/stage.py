"""Three replicas under load in front of a strict MTA, and a real store, each in its own network.

The store is in one namespace and each replica in another; clients and MTA reach the replicas by
Unix sockets, which network faults leave alone.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic

from tests.interop.networks import Machine, make_namespace
from tests.support.other_clock import OtherClock
from tests.support.program import Program
from tests.support.redis_server import RedisServer

LIMIT = 12
REPLICAS = 3
SHARE = LIMIT // REPLICAS
LEASE_S = 2.0
SESSION_S = 0.8
"""How long a session lasts."""
CLIENTS = 8
"""The clients of each replica at any time: twice as many as it can serve."""
MAX_WAIT_S = 10.0

_SETTINGS = """\
[listeners.smtp]
address = "unix:{directory}/smtp"
[backends.mx]
servers = ["unix:{directory}/mx"]
max_connections = {limit}
max_wait = {max_wait}
[limits]
sessions_per_address = 0
[cluster]
url = "{url}"
replicas = {replicas}
lease = {lease}
"""


class Sink:
    """The MTA: it counts its connections, by replica and over time."""

    def __init__(self) -> None:
        self.open = [0] * REPLICAS
        self.peak = 0
        self.early = 0
        """Commands that came before the reply to the one before."""
        self._area, self._at = 0.0, monotonic()

    def change(self, replica: int, by: int) -> None:
        now = monotonic()
        self._area += sum(self.open) * (now - self._at)
        self._at = now
        self.open[replica] += by
        if by > 0:  # ends that the loop has yet to read come first
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._count)

    def _count(self) -> None:
        self.peak = max(self.peak, sum(self.open))

    @property
    def area(self) -> float:
        """Connections times seconds so far."""
        self.change(0, 0)
        return self._area


class SinkConnection(asyncio.Protocol):
    """A connection to the MTA."""

    def __init__(self, sink: Sink, replica: int) -> None:
        self._sink, self._replica = sink, replica
        self._is_open = False
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._is_open = True
        self._sink.change(self._replica, 1)
        self._say(b"220 mx\r\n")

    def _say(self, octets: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(octets)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        *lines, self._unread = self._unread.split(b"\r\n")
        self._sink.early += max(len(lines) - 1, 0)
        for line in lines:
            self._say(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")

    def eof_received(self) -> None:
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._sink.change(self._replica, -1)


class Load:
    """Clients of one replica, one after the other, so that some always wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.served = [0] * CLIENTS
        self.refused = 0
        self.longest_wait = 0.0
        self._tasks = [asyncio.create_task(self._clients(number)) for number in range(CLIENTS)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _clients(self, number: int) -> None:
        while True:
            try:
                await self._session(number)
            except OSError:
                await asyncio.sleep(0.1)  # the replica has been killed

    async def _session(self, number: int) -> None:
        began = monotonic()
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            greeting = await reader.readline()
            if greeting.startswith(b"220"):
                self.longest_wait = max(self.longest_wait, monotonic() - began)
                writer.write(b"EHLO x\r\n")
                await reader.readline()
                await asyncio.sleep(SESSION_S)
                writer.write(b"QUIT\r\n")
                await reader.read()
                self.served[number] += 1
            else:
                self.refused += greeting.startswith(b"421")
                await asyncio.sleep(0.1)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Replica:
    """One replica, its clients, and its way to the MTA."""

    def __init__(self, directory: Path, machine: Machine, link: Callable[[str], None]) -> None:
        self.directory = directory
        self._machine = machine
        self._link = link
        self._runs = 0
        self.program: Program
        self.load: Load

    def start(self, url: str) -> None:
        settings = self.directory / "settings"
        settings.write_text(
            _SETTINGS.format(
                directory=self.directory,
                limit=LIMIT,
                max_wait=MAX_WAIT_S,
                url=url,
                replicas=REPLICAS,
                lease=LEASE_S,
            )
        )
        self._runs += 1
        directory = self.directory / f"run{self._runs}"
        directory.mkdir()
        argv = (*self._machine.inside, sys.executable, "-m", "smtpproxy")
        self.program = Program(directory, "-c", settings, argv=argv)

    def kill(self) -> None:
        """Kill the whole replica."""
        self.program.__exit__()

    def kill_supervisor(self) -> None:
        """Kill the supervisor only; its workers go on."""
        os.kill(self.program.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop all of its processes, as a machine that hangs."""
        os.killpg(self.program.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.program.pid, signal.SIGCONT)

    def cut(self) -> None:
        """Cut it off from the store, silently."""
        self._link("down")

    def join(self) -> None:
        self._link("up")

    def degraded(self) -> int:
        """Return how often it has found the store away."""
        return sum(each["event"] == "cluster_degraded" for each in self.program.log())


class Stage:
    """The replicas, the store and the MTA."""

    def __init__(
        self, replicas: list[Replica], store: RedisServer, clock: OtherClock, sink: Sink
    ) -> None:
        self.replicas = replicas
        self.store = store
        self.clock = clock
        self.sink = sink

    def above_share(self) -> int:
        """Return how many connections replicas have above their shares now."""
        return sum(max(each - SHARE, 0) for each in self.sink.open)

    async def settled(self) -> None:
        """Wait until all slots are used, by all replicas."""
        async with asyncio.timeout(30):
            while sum(self.sink.open) != LIMIT or min(self.sink.open) == 0:
                await asyncio.sleep(0.05)

    async def calm(self, seconds: float = 2.0) -> float:
        """Return how much of the slots is used, without a fault."""
        self.sink.peak = 0
        before, began = self.sink.area, monotonic()
        await asyncio.sleep(seconds)
        assert self.sink.peak <= LIMIT
        return (self.sink.area - before) / (monotonic() - began) / LIMIT


@asynccontextmanager
async def stage(directory: Path) -> AsyncIterator[Stage]:
    """Start everything, and wait until leases are granted."""
    with ExitStack() as stack:
        hub, machines = _networks(stack, "smtpproxy-cluster")
        clock = OtherClock(directory)
        clock.skew(0)
        store = RedisServer(
            directory, "--protected-mode", "no", env=clock.environment, inside=hub.inside,
            host="10.92.0.1",
        )  # fmt: skip
        stack.enter_context(store)
        sink = Sink()
        loop = asyncio.get_running_loop()
        found = []
        servers = []
        for number, machine in enumerate(machines):
            place = directory / str(number)
            place.mkdir()
            servers.append(
                await loop.create_unix_server(
                    lambda number=number: SinkConnection(sink, number), place / "mx"
                )
            )
            link = f"to{number}"
            replica = Replica(place, machine, lambda to, link=link: _set(hub, link, to))
            replica.start(store.url)
            stack.callback(replica.kill)
            found.append(replica)
        for replica in found:
            async with asyncio.timeout(30):
                while not (replica.directory / "smtp").exists():
                    await asyncio.sleep(0.05)
            replica.load = Load(replica.directory / "smtp")
        try:
            yield Stage(found, store, clock, sink)
        finally:
            for replica in found:
                await replica.load.stop()
                with contextlib.suppress(ProcessLookupError):
                    replica.go_on()
            for server in servers:
                server.close()


def _networks(stack: ExitStack, name: str) -> tuple[Machine, list[Machine]]:
    hub = stack.enter_context(make_namespace(f"{name}-store"))
    hub.run("ip", "link", "add", "bridge", "type", "bridge")
    hub.run("ip", "addr", "add", "10.92.0.1/24", "dev", "bridge")
    hub.run("ip", "link", "set", "bridge", "up")
    machines = []
    for number in range(REPLICAS):
        machine = stack.enter_context(make_namespace(f"{name}-{number}"))
        ends = ("type", "veth", "peer", "name", "lan0", "netns", machine.name)
        hub.run("ip", "link", "add", f"to{number}", *ends)
        hub.run("ip", "link", "set", f"to{number}", "master", "bridge", "up")
        machine.run("ip", "addr", "add", f"10.92.0.{10 + number}/24", "dev", "lan0")
        machine.run("ip", "link", "set", "lan0", "up")
        machines.append(machine)
    return hub, machines


def _set(machine: Machine, link: str, to: str) -> None:
    machine.run("ip", "link", "set", link, to)
