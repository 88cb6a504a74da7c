"""The proxy on uvloop between raw sockets: peers that reset, half-close or stall on request.

Client and MTA are in the proxy's loop, and a client's calls don't wait: what it sends before it
resets is all in the kernel before the proxy accepts it, or not, as the test has it.
"""

import asyncio
import contextlib
import gc
import io
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, cast

import trustme
import uvloop

from smtpproxy.config.loader import load
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.log import log
from smtpproxy.net.backend.backend_connection import BackendConnection, QuittingConnection
from smtpproxy.net.backend.connection_slots import SlotQueue
from smtpproxy.net.client_connection import ClientConnection
from smtpproxy.net.pre_session import PreSession
from smtpproxy.net.proxy_protocol import read_header
from smtpproxy.net.session import Session
from smtpproxy.net.shared_counters import SharedCounters
from smtpproxy.net.tunnel import Tunnel
from smtpproxy.worker.app import App

CLIENT = "127.0.0.9"
"""The clients' address; the proxy's own is 127.0.0.1."""
GREETING, CONTENT, HANDSHAKE = b"greeting", b"content", b"handshake"
"""What an MTA may be silent about, besides commands: its greeting, the end of data, its part of a
TLS handshake."""
_OURS = (
    Session,
    Pipeline,
    PreSession,
    ClientConnection,
    BackendConnection,
    QuittingConnection,
    Tunnel,
)

Parameters = ParamSpec("Parameters")


def on_uvloop(
    test: Callable[Parameters, Coroutine[Any, Any, None]],
) -> Callable[Parameters, None]:
    """Run tests on the event loop that the proxy uses."""

    @wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        met: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: met.append(context))
            runner.run(test(*args, **kwargs))
        assert met == []

    return run


@cache
def authority() -> trustme.CA:
    """Return the authority of all certificates."""
    return trustme.CA()


@cache
def client_context() -> ssl.SSLContext:
    """Return the TLS context of clients."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@cache
def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    return context


class Connection(asyncio.Protocol):
    """One connection of the proxy to the MTA.

    header: the PROXY header that it began with.  lines: what was said, PROXY header and content not
    included.  messages: those that came whole.  lost: it is over.
    """

    transport: asyncio.Transport

    def __init__(self, mta: "Mta") -> None:
        self._mta = mta
        self._unread = b""
        self._owed: list[bytes] = []
        self._in_content = self._deaf = False
        self._payload = 0
        self.header = b""
        self.lines: list[bytes] = []
        self.messages: list[bytes] = []
        self.source = ""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.source = transport.get_extra_info("peername")[0]
        self._mta.connections.append(self)
        self._deaf = {GREETING, HANDSHAKE} <= self._mta.silent
        if not self._mta.expects_header:
            self._answer(GREETING, b"220 mx\r\n")
        if not self._mta.reads:
            transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True

    def eof_received(self) -> None:
        """Close, since the proxy has closed."""

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unread += data
        if self._mta.expects_header and not self.header:
            self._take_header()
        while self._take():
            pass

    def _take_header(self) -> None:
        _, end = read_header(self._unread)
        if end:
            self.header, self._unread = self._unread[:end], self._unread[end:]
            self._answer(GREETING, b"220 mx\r\n")

    def _take(self) -> bool:
        """Process the first unit; return whether there was one."""
        if self._mta.expects_header and not self.header:
            return False
        if self._in_content:
            return self._take_content()
        if self._payload:
            if len(self._unread) < self._payload:
                return False
            payload, self._unread = self._unread[: self._payload], self._unread[self._payload :]
            self._payload = 0
            if self.lines[-1].endswith(b"LAST"):
                self.messages.append(payload)
            self._answer(CONTENT, b"250 taken\r\n")
            return True
        line, end, rest = self._unread.partition(b"\n")
        if end:
            self._unread = rest
            self._command(line.rstrip())
        return bool(end)

    def _take_content(self) -> bool:
        content, end, rest = self._unread.partition(b"\r\n.\r\n")
        if end:
            self._in_content = False
            self._unread = rest
            self.messages.append(content)
            self._answer(CONTENT, b"250 taken\r\n")
        return bool(end)

    def _command(self, line: bytes) -> None:
        self.lines.append(line)
        verb = line[:4].upper()
        if verb == b"BDAT":
            self._payload = int(line.split()[1])
        elif verb == b"DATA":
            self._in_content = True
            self._answer(verb, b"354 go\r\n")
        elif verb == b"STAR":
            self._answer(verb, b"220 go\r\n")
            self._deaf = HANDSHAKE in self._mta.silent
            if not self._deaf:
                task = asyncio.get_running_loop().create_task(self._secure())
                self._mta.tasks.append(task)
        else:
            self._answer(verb, self._mta.replies.get(verb, b"250 ok\r\n"))

    async def _secure(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            inside = await loop.start_tls(self.transport, self, _server_context(), server_side=True)
            assert inside is not None
            self.transport = inside

    def _answer(self, to: bytes, reply: bytes) -> None:
        if to in self._mta.silent:
            self._owed.append(reply)
        elif not self.transport.is_closing():
            self.transport.write(reply)

    def pay(self) -> None:
        """Send the replies that are owed."""
        self.transport.resume_reading()
        owed, self._owed = self._owed, []
        if not self.lost:
            self.transport.write(b"".join(owed))

    def reset(self) -> None:
        """Reset the connection."""
        opened = self.transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def half_close(self) -> None:
        """Half-close, and send no more replies."""
        self._deaf = True
        self.transport.write_eof()


class Mta:
    """A scripted MTA that accepts everything.

    silent: what it leaves unanswered: a verb's four letters, GREETING, CONTENT or HANDSHAKE.
    replies: other ones than 250, by verb.  reads: it does.  expects_header: a PROXY
    header comes first.
    """

    def __init__(self, connection: "type[Connection]" = Connection) -> None:
        self._connection = connection
        self.silent: set[bytes] = set()
        self.replies = {
            b"QUIT": b"221 bye\r\n",
            b"AUTH": b"334 \r\n",
            b"EHLO": b"250-mx\r\n250-AUTH PLAIN\r\n250 CHUNKING\r\n",
        }
        self.reads = True
        self.expects_header = False
        self.connections: list[Connection] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.address = ""
        self._server: asyncio.Server | None = None
        self._sockets: list[socket.socket] = []

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: self._connection(self), "127.0.0.1", 0)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    def start_as_black_hole(self) -> None:
        """Do not answer connection attempts."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.address = "{}:{}".format(*listening.getsockname())
        self._sockets = [listening, socket.create_connection(listening.getsockname())]

    def stop(self) -> None:
        for connection in self.open:
            connection.transport.abort()
        if self._server is not None:
            self._server.close()
        for each in self._sockets:
            each.close()

    @property
    def open(self) -> list[Connection]:
        return [each for each in self.connections if not each.lost]

    def listen(self) -> None:
        """Read what has arrived, to detect a closed connection."""
        for connection in self.open:
            connection.transport.resume_reading()

    def release(self) -> None:
        """Read and answer everything from now on, including earlier commands."""
        self.silent.clear()
        self.reads = True
        for connection in self.open:
            connection.pay()


class Client:
    """A client of the proxy."""

    def __init__(self, port: int, source: str = CLIENT) -> None:
        self._socket = socket.create_connection(
            ("127.0.0.1", port), timeout=5, source_address=(source, 0)
        )
        self._socket.setblocking(False)
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.heard = b""

    def send(self, *octets: bytes) -> None:
        """Send octets in one segment."""
        joined = b"".join(octets)
        if self._tls is not None:
            self._tls.write(joined)
            joined = self._outgoing.read()
        self._socket.send(joined)

    def flood(self, octets: bytes) -> None:
        """Send the same octets repeatedly until no more are accepted."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.send(octets)

    async def hear(self, end: bytes, seconds: float = 5.0) -> bytes:
        """Read until these octets; return everything since the last call."""
        async with asyncio.timeout(seconds):
            while end not in self.heard:
                octets = await self._read()
                assert octets, f"closed after {self.heard!r}"
                self.heard += octets
        heard, self.heard = self.heard, b""
        return heard

    async def some(self, seconds: float = 5.0) -> None:
        """Wait until something has arrived, without reading it."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._socket, ready.set_result, None)
        async with asyncio.timeout(seconds):
            await ready
        loop.remove_reader(self._socket)

    async def rest(self, seconds: float = 5.0) -> bytes:
        """Read to the end, which may be a reset."""
        heard, self.heard = self.heard, b""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(seconds):
                while octets := await self._read():
                    heard += octets
        return heard

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        if self._tls is None:
            return await loop.sock_recv(self._socket, 65536)
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                octets = await loop.sock_recv(self._socket, 65536)
                if not octets:
                    return b""
                self._incoming.write(octets)
            except ssl.SSLZeroReturnError:
                return b""

    def say_client_hello(self) -> None:
        """Send the first message of a TLS handshake."""
        self._tls = client_context().wrap_bio(
            self._incoming, self._outgoing, server_hostname="mx.example"
        )
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._socket.send(self._outgoing.read())

    async def secure(self) -> None:
        """Make the TLS handshake."""
        self.say_client_hello()
        assert self._tls is not None
        loop = asyncio.get_running_loop()
        while True:
            self._incoming.write(await loop.sock_recv(self._socket, 65536))
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            self._socket.send(self._outgoing.read())
            return

    def send_close_notify(self) -> None:
        """Send close_notify."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._socket.send(self._outgoing.read())

    def reset(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def half_close(self) -> None:
        """Half-close."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()


class Proxy:
    """The proxy with its MTA, and what it holds.

    port: where it listens.  app: it itself, once started.
    """

    def __init__(self, work: Path, mta: Mta) -> None:
        self._work = work
        self.mta = mta
        self._log = io.BytesIO()
        self._shared_counters = SharedCounters()
        self._queues: list[SlotQueue] = []
        self._clients: list[Client] = []
        self._earlier: Counter[str] = Counter()
        self._descriptors = 0
        self.port = 0
        self.app: App | None = None

    async def start(
        self,
        *,
        listener: str = "",
        backend: str = "",
        timeouts: str = "",
        limits: str = "",
        address: str = "127.0.0.1:0",
    ) -> None:
        """Start with these settings, in which `@` is the path of the certificate."""
        gc.collect()
        gc.freeze()  # what earlier tests keep is not looked at again
        if not self.mta.address:
            await self.mta.start()
        certificate = authority().issue_cert("mx.example")
        certificate.private_key_and_cert_chain_pem.write_to_path(self._work / "mx.pem")
        authority().cert_pem.write_to_path(self._work / "ca.pem")
        file = self._work / "smtpproxy.toml"
        slots = "" if "max_connections" in backend else "max_connections = 1000"
        text = (
            f'[listeners.smtp]\naddress = "{address}"\n{listener}\n'
            f'[backends.mx]\nservers = ["{self.mta.address}"]\n{slots}\n{backend}\n'
            f"[timeouts]\n{timeouts}\n[limits]\nexempt = []\n{limits}\n"
            '[log]\nlevel = "debug"\n'
        )
        file.write_text(text.replace("@", str(self._work)))
        self.app = App(
            load(file), shared_counters=self._shared_counters, connection_slots=self._make_queue
        )
        await self.app.start()
        self.port = int(self.app.addresses[0].rpartition(":")[2])
        self._earlier = _alive()  # the traceback of a failed test keeps what it used
        self._descriptors = _descriptors()

    def _make_queue(self, _: str, backend: Any) -> SlotQueue:
        queue = SlotQueue(backend.max_connections, backend.max_wait)
        self._queues.append(queue)
        return queue

    async def stop(self) -> None:
        for client in self._clients:
            client.close()
        if self.app is not None:
            await self.app.stop()

    def client(self, source: str = CLIENT) -> Client:
        """Connect a client."""
        client = Client(self.port, source)
        self._clients.append(client)
        return client

    def held(self) -> dict[str, int]:
        """Return what the proxy holds for its sessions, by kind; empty if nothing."""
        assert self.app is not None
        slots = self._shared_counters.slots(bytes(map(int, CLIENT.split("."))))
        counts = {
            "sessions": len(self.app._timeouts.sessions),
            "sessions counted": self._shared_counters.own_sessions,
            "sessions of the address": self._shared_counters.open(slots),
            "slots": sum(queue.taken + queue.waiting for queue in self._queues),
            "sessions of a server": sum(
                server.sessions
                for servers in self.app._servers.values()
                for server in servers._servers
            ),
            "MTA connections": len(self.mta.open),
        }
        return {name: count for name, count in counts.items() if count}

    def kept(self) -> dict[str, int]:
        """Return what is left of sessions in memory and descriptors; empty if nothing.

        Where the garbage collector is off, counting references must have freed what was a session.
        """
        if gc.isenabled():
            gc.collect()
        more = _descriptors() - self._descriptors
        return dict(_alive() - self._earlier) | ({"descriptors": more} if more else {})

    def expect_closing_within(self, seconds: float) -> None:
        """Stop waiting for a client to close after its last reply."""
        assert self.app is not None
        self.app._timeouts.limits["close"] = seconds

    @property
    def session(self) -> Session:
        """The only session."""
        assert self.app is not None
        (session,) = self.app._timeouts.sessions
        assert isinstance(session, Session)
        return session

    async def lets_go(self) -> None:
        """Check that nothing is held within a second."""
        await within_a_second(lambda: not self.held(), self.held)
        for client in self._clients:
            client.close()
        self._clients.clear()
        await within_a_second(lambda: not self.kept(), self.kept)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        lines = map(json.loads, self._log.getvalue().splitlines())
        return [line for line in lines if line["event"] == event]

    def reasons(self) -> list[str]:
        """Return the reasons of closed sessions, in order, including those without data."""
        lines = map(json.loads, self._log.getvalue().splitlines())
        closed = ("session_closed", "probe_closed")
        return [line["reason"] for line in lines if line["event"] in closed]


@contextlib.asynccontextmanager
async def proxy(work: Path, connection: type[Connection] = Connection) -> AsyncIterator[Proxy]:
    """Yield a proxy that is not started, with a running MTA."""
    mta = Mta(connection)
    made = Proxy(work, mta)
    log.configure("debug", "json", made._log)
    try:
        yield made
    finally:
        await made.stop()
        mta.stop()
        await asyncio.gather(*mta.tasks)
        log.configure("info", "json")
    assert made.logged("internal_error") == []
    assert made.logged("library_message") == []


async def within_a_second(
    holds: Callable[[], object], found: Callable[[], object] = lambda: ""
) -> None:
    """Wait up to a second of the loop's time until `found` is empty.

    A hundred sleeps: a loop that gets no CPU for a while is given as much more time.
    """
    for _ in range(100):
        if holds():
            return
        await asyncio.sleep(0.01)
    assert holds(), found()


def _alive() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in _OURS)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
