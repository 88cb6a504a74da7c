"""Fakes for the tests of net: connections that record, and a clock that tests set."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import SessionEnds, SessionSummary
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.net.admission import Admission
from smtpproxy.net.backend.connection_slots import ConnectionSlots
from smtpproxy.net.backend.server_pool import ServerPool
from smtpproxy.net.client_connection import ClientConnection
from smtpproxy.net.fault_injection import FaultInjection
from smtpproxy.net.listener_context import ListenerContext
from smtpproxy.net.peer import Peer
from smtpproxy.net.timeouts import SessionTimeouts
from smtpproxy.net.write_batching import WriteBatcher
from smtpproxy.tls.error_text import NotForThisClient

LIMITS = {
    "slot_queue": inf,
    "connection_slot": 10.0,
    "connect": 30.0,
    "greeting": 300.0,
    "command": 300.0,
    "data": 120.0,
    "content": 180.0,
    "backend": 180.0,
    "message": 3600.0,
    "end_of_data": 600.0,
    "client": 300.0,
    "close": 30.0,
}


class Clock:
    """Replaces time.monotonic."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Transport(asyncio.Transport):
    """A connection that records what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.write_batcher = WriteBatcher()
        self.written: list[bytes] = []
        self.reading = True
        self.state = "open"
        self.eof_sent = False
        self.protocol: Any = None

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        assert self.state == "open"
        self.written.append(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_sent = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.state != "open"

    def close(self) -> None:
        self.state = "closed"

    def abort(self) -> None:
        self.state = "aborted"

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        ends = {"peername": ("192.0.2.1", 4711), "sockname": ("198.51.100.1", 25)}
        return ends.get(name, default)

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        self.write_batcher.flush()
        octets = b"".join(self.written)
        self.written.clear()
        return octets


class Server:
    """A server that can be reached, cannot be reached, or never answers.

    reported: whether it gets the client's address before its greeting.
    """

    def __init__(self, name: str, behaviour: str = "reachable", *, reported: bool = False) -> None:
        self.name = name
        self.sessions = 0
        self.left_alone_until = 0.0
        self.seen_at = self.offer_changed_at = -inf
        self.offer: bytes | None = None
        self.is_one = True
        self.reported = reported
        self.behaviour = behaviour
        self.transport = Transport()
        self.protocol: Any = None

    def gets_address_of(self, peer: Peer) -> bool:  # noqa: ARG002
        return self.reported

    def address_for(self, peer: Peer) -> str:  # noqa: ARG002
        return self.name

    def name_for(self, peer: Peer) -> str:  # noqa: ARG002
        return self.name

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], peer: Peer, *_: object
    ) -> None:
        self.peer = peer
        if self.behaviour == "late":
            self.protocol = factory()
        if self.behaviour in ("silent", "late"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.behaviour = "cancelled"
                raise
        if self.behaviour == "unreachable":
            raise ConnectionRefusedError(111, "Connection refused")
        if self.behaviour == "not for this client":
            raise NotForThisClient(0, "no address of the client's family")
        if self.behaviour in errno.__dict__:
            number = getattr(errno, self.behaviour)
            raise OSError(number, os.strerror(number))
        self.protocol = factory()
        self.protocol.connection_made(self.transport)

    def says(self, octets: bytes) -> None:
        """Send octets as the server."""
        (self.transport.protocol or self.protocol).data_received(octets)

    def heard(self) -> bytes:
        """Return the octets that it got since the last call."""
        return self.transport.taken()


@dataclass
class Watcher:
    """An observer of the worker and of each session that records all calls."""

    down: list[tuple[str, str]] = field(default_factory=list)
    turned_away: list[tuple[str, str, int]] = field(default_factory=list)
    slowdowns: int = 0
    up: list[str] = field(default_factory=list)
    given_up: list[tuple[str, str]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    summaries: list[SessionSummary] = field(default_factory=list)
    notes: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def session(self, listener: str, backend: str, client: str) -> "Watcher":
        assert (listener, backend, client) == ("listener", "backend", "192.0.2.1:4711")
        return self

    content: Callable[[Exchange, bytes, bytes], None] | None = None
    id: str = "session-1"
    stalls: int = 0

    def connected(self, server: str, ends: SessionEnds) -> None:
        self.servers.append(server)
        self.ends = ends

    def stalled(self) -> None:
        self.stalls += 1

    def settled(self, exchanges: list[Exchange]) -> None:
        self.exchanges += exchanges

    def slowed(self) -> None:
        self.slowdowns += 1

    def noted(self, event: str, **values: str) -> None:
        self.notes.append((event, values))

    def closed(self, summary: SessionSummary) -> None:
        self.summaries.append(summary)

    def gave_up(self, server: str, reason: str) -> None:
        self.given_up.append((server, reason))

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        assert backend == "backend"
        if up:
            self.up.append(server)
        else:
            self.down.append((server, reason))

    def refused(self, reason: str, client: str, clients: int) -> None:
        self.turned_away.append((reason, client, clients))

    def broken(self, error: Exception) -> None:
        self.errors.append(error)


class Stage:
    """A client and its servers, with a session between them."""

    def __init__(
        self,
        servers: list[Server],
        policy: SessionPolicy,
        clock: Clock,
        content: Callable[[Exchange, bytes, bytes], None] | None = None,
        commands_per_second: float = 0,
        admission: Admission | None = None,
        connection_slots: ConnectionSlots | None = None,
        faults: FaultInjection | None = None,
    ) -> None:
        self.clock = clock
        self.servers = servers
        self.watcher = Watcher(content=content)
        self.timeouts = SessionTimeouts(LIMITS, reply_hold=0.2)
        self.client = Transport()
        self.write_batcher = WriteBatcher()
        for server in servers:
            server.transport.write_batcher = self.write_batcher
        self.client.write_batcher = self.write_batcher
        group = ServerPool(
            servers,  # type: ignore[arg-type]  # stand-ins for net's Server
            changed=partial(self.watcher.server_changed, "backend"),
        )
        listener_context = ListenerContext(
            "listener",
            "backend",
            policy,
            group,
            self.timeouts,
            self.write_batcher,
            self.watcher,
            commands_per_second=commands_per_second,
            admission=admission,
            connection_slots=connection_slots,
            faults=faults,
        )
        self.connection = ClientConnection(listener_context)
        self.connection.connection_made(self.client)
        (self.session,) = self.timeouts.sessions

    async def settle(self) -> None:
        """Run the tasks that are ready."""
        for _ in range(5):
            await asyncio.sleep(0)

    def sends(self, octets: bytes) -> None:
        """Send octets as the client."""
        self.connection.data_received(octets)

    def gets(self) -> bytes:
        """Return the octets that the client got since the last call."""
        return self.client.taken()

    def wait(self, seconds: float) -> None:
        """Advance the clock, and check the time limits."""
        self.clock.now += seconds
        self.timeouts.sweep()

    @property
    def ended(self) -> str:
        """Why the session ended; empty while it is active."""
        return self.watcher.summaries[0].reason if self.watcher.summaries else ""


Opener = Callable[..., Awaitable[Stage]]

GROUP = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n"


async def greeted(opened: Opener, *servers: Server, **options: object) -> Stage:
    """Open a stage whose first server has sent its greeting."""
    stage = await opened(*servers, **options)
    stage.servers[0].says(b"220 mx ready\r\n")
    assert stage.gets() == b"220 mx ready\r\n"
    return stage


async def in_content(opened: Opener, **options: object) -> Stage:
    """Open a stage up to message content."""
    stage = await greeted(opened, **options)
    stage.sends(GROUP)
    for reply in (b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"):
        stage.servers[0].says(reply)
    assert stage.gets() == b"250 a\r\n250 b\r\n354 go\r\n"
    stage.servers[0].heard()
    return stage
