"""Memory of a worker, whatever its peers do.

Idle sessions: as many as descriptors and ten seconds allow, 10000 at most; a session takes two of
the worker's and two of the test's, so that 10000 need `ulimit -n 20400`.  $SMTPPROXY_IDLE_SESSIONS
sets how many are needed, however long it takes; $SMTPPROXY_MESSAGES, how many messages are sent.
The full test, which prints its figures and takes a quarter of an hour:

    SMTPPROXY_IDLE_SESSIONS=10000 SMTPPROXY_MESSAGES=1000000 pytest -s tests/bounds
"""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest

from tests.support.processes import free_port
from tests.support.program import SMTPPROXY, Program

IDLE = int(os.environ.get("SMTPPROXY_IDLE_SESSIONS", "0"))
IDLE_MOST, IDLE_LEAST, IDLE_S = 10_000, 1000, 10.0
"""Without $SMTPPROXY_IDLE_SESSIONS: how many sessions at most and at least, in which time."""
SPARE_DESCRIPTORS = 400
"""What the test and the worker need besides those of the sessions."""
MESSAGES = int(os.environ.get("SMTPPROXY_MESSAGES", "3000"))
MIB = 1024 * 1024
FLOOD = 64 * MIB
"""What a flooding peer would send if it were read."""
QUEUES = 6 * MIB
"""The extra memory allowed for one flooding session: queue, transport, allocator."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Running:
    """The program in front of a backend that the test plays."""

    def __init__(self, program: Program, port: int) -> None:
        self.program = program
        self.port = port

    def memory(self) -> int:
        """Return the private memory of the only worker, in bytes."""
        (worker,) = self.program.workers()
        lines = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
        fields = dict(line.split(":") for line in lines[1:])
        return sum(int(fields[name].split()[0]) * 1024 for name in fields if "Private" in name)


@asynccontextmanager
async def running(tmp_path: Path, serve: Serve, more: str = "") -> AsyncIterator[Running]:
    path = tmp_path / "mta"
    serving: set[asyncio.Task[object]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            pass  # the test is over, or the session is
        finally:
            serving.discard(task)
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(serve_one, path, limit=MIB)
    file = tmp_path / "p"
    file.write_text(
        f'[listeners.smtp]\naddress = "127.0.0.1:0"\n'
        f'[backends.b]\nservers = ["unix:{path}"]\n{more}\n[limits]\nsessions = 20000\n'
        f'[log]\nlevel = "warning"\n'
    )
    port = free_port()  # the event `listening` is info, so it is not logged
    with Program(tmp_path, "-c", file, "-l", f"127.0.0.1:{port}", argv=SMTPPROXY) as program:
        await _greeted(port)
        try:
            yield Running(program, port)
        finally:
            server.close()
            for task in serving:
                task.cancel()
            if serving:
                await asyncio.wait(serving)


async def _greeted(port: int) -> None:
    """Wait until a session completes, so that the worker has loaded everything."""
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            assert await reader.readline() == b"220 mx\r\n"
            writer.close()
            await writer.wait_closed()
            return


async def obliging(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve as an MTA that accepts everything and stores nothing."""
    writer.write(b"220 mx\r\n")
    while line := await reader.readline():
        verb = line[:4].upper()
        if verb == b"DATA":
            writer.write(b"354 go\r\n")
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 taken\r\n")
        elif verb == b"QUIT":
            writer.write(b"221 bye\r\n")
            await writer.drain()
            await reader.read()
        else:
            writer.write(b"250 ok\r\n")
            await writer.drain()


@pytest.mark.long
async def test_idle_sessions_are_small(tmp_path: Path) -> None:
    """And all are served when they become active at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        async with running(tmp_path, obliging) as proxy:
            before = proxy.memory()
            clients = await _open_idle(proxy.port, (hard - SPARE_DESCRIPTORS) // 2)
            each = (proxy.memory() - before) / len(clients)
            print(f"{len(clients)} idle sessions, {each:.0f} octets each")
            assert len(clients) >= (IDLE or IDLE_LEAST)
            assert each < 8192
            for _, writer in clients:
                writer.write(b"NOOP\r\n")
            async with asyncio.timeout(60):
                for reader, writer in clients:
                    assert await reader.readline() == b"250 ok\r\n"
                    writer.transport.abort()
            await asyncio.gather(*(each.wait_closed() for _, each in clients))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _open_idle(port: int, allowed: int) -> list[Streams]:
    """Open sessions up to their greeting; see the module's docstring for how many."""

    async def open_one() -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=512)
        assert await reader.readline() == b"220 mx\r\n"
        return reader, writer

    clients: list[Streams] = []
    until = monotonic() + IDLE_S
    wanted = IDLE or min(IDLE_MOST, allowed)
    while len(clients) < wanted and (IDLE or len(clients) < IDLE_LEAST or monotonic() < until):
        many = min(50, wanted - len(clients))
        clients += await asyncio.gather(*(open_one() for _ in range(many)))
    return clients


@pytest.mark.long
async def test_memory_stays_flat_over_many_messages(tmp_path: Path) -> None:
    async with running(tmp_path, obliging) as proxy:
        snapshot = []
        for _ in range(10):
            await _send(proxy.port, MESSAGES // 10)
            snapshot.append(proxy.memory())
            print(f"{len(snapshot)} tenths of {MESSAGES} messages: {snapshot[-1]} octets")
        assert snapshot[-1] - snapshot[2] < MIB


async def _send(port: int, messages: int) -> None:
    """Send messages, at most 50 per session, each in one group with the end of the last one."""
    group = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
    content = b"Subject: x\r\n\r\ntext\r\n.\r\n"
    while messages > 0:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(group)
        for _ in range(min(messages, 50) - 1):
            await reader.readuntil(b"354 go\r\n")
            writer.write(content + group)
        messages -= 50
        await reader.readuntil(b"354 go\r\n")
        writer.write(content + b"QUIT\r\n")
        assert (await reader.read()).startswith(b"250 taken\r\n221 bye\r\n")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("command", [b"NOOP\r\n", b"RCPT TO:<a@example.org>\r\n", b"x"])
async def test_a_client_that_only_sends_is_not_read_for_ever(
    tmp_path: Path, command: bytes
) -> None:
    """It sends and never reads: first its replies stall, then its commands."""
    async with running(tmp_path, obliging) as proxy:
        before = proxy.memory()
        sent = await asyncio.to_thread(_flood, proxy.port, command * (65536 // len(command)))
        # A line without end is thrown away as it comes, so that it may go on; it takes no room.
        assert command == b"x" or sent < FLOOD
        assert proxy.memory() - before < QUEUES


async def test_a_backend_that_never_reads_stops_the_client(tmp_path: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mx\r\n")
        for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            if not await reader.readline():
                break
            writer.write(reply)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()  # until the end cancels it

    async with running(tmp_path, deaf) as proxy:
        before = proxy.memory()
        content = b"MAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\nDATA\r\n"
        sent = await asyncio.to_thread(_flood, proxy.port, b"line of text\r\n" * 5000, content)
        assert sent < FLOOD
        assert proxy.memory() - before < QUEUES


def _flood(port: int, octets: bytes, first: bytes = b"") -> int:
    """Send without reading until nothing is accepted for a second; return the bytes sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        try:
            if first:
                connection.sendall(first)
                while not connection.recv(1000).endswith(b"354 go\r\n"):
                    pass
            while sent < FLOOD:
                sent += connection.send(octets)
        except (TimeoutError, ConnectionError):
            pass
    return sent
