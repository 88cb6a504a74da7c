"""The control socket: its server, its client, and what each thinks of a bad peer."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from smtpproxy.control_socket import control_client, control_server
from smtpproxy.control_socket.control_client import NoAnswer
from smtpproxy.control_socket.control_server import ControlServer
from smtpproxy.control_socket.service_status import InstanceStatus, ServiceStatus
from smtpproxy.trace.records import HEADER
from smtpproxy.trace.watch import WatchRequest
from tests.support.programs import require_root


class Source:
    """A fake of the service."""

    why_not = ""

    def why_not_ready(self, backend: str = "") -> str:
        return {"": self.why_not, "old": "no server of old is up"}[backend]

    async def wait_for_checks(self) -> None:
        """Return at once."""

    async def status(self) -> ServiceStatus:
        return ServiceStatus([InstanceStatus("mx\x1b", "1.0", "serving")])


class Watches:
    """A fake of the sessions of the service."""

    refusal = (200, "")
    active = 0

    def why_no_watch(self, _request: WatchRequest) -> tuple[int, str]:
        return self.refusal

    @asynccontextmanager
    async def watch(
        self, request: WatchRequest, uid: int, pid: int, writer: asyncio.StreamWriter
    ) -> AsyncIterator[None]:
        self.active += 1
        writer.write(f"{uid} {pid} {request.clients()} {request.content}\n".encode())
        yield
        self.active -= 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def watches() -> Watches:
    return Watches()


@pytest.fixture
async def served(path: Path, source: Source, watches: Watches) -> AsyncIterator[ControlServer]:
    server = ControlServer(source, watches)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        await server.start([listening])
    yield server
    await server.stop()


async def ask(path: Path, what: str, deadline_s: float = 5.0) -> tuple[int, str]:
    return await asyncio.to_thread(control_client.ask, what, [path], deadline_s)


async def exchange(path: Path, request: bytes) -> bytes:
    """Send octets, and return all that comes back."""
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


@pytest.mark.usefixtures("served")
class TestServer:
    async def test_it_says_how_the_service_is(self, path: Path, source: Source) -> None:
        assert await ask(path, "/healthz") == (200, "ok")
        assert await ask(path, "/readyz") == (200, "ready")
        source.why_not = "draining"
        assert await ask(path, "/readyz") == (503, "not ready: draining")
        assert await ask(path, "/readyz/old") == (503, "not ready: no server of old is up")
        assert await ask(path, "/readyz/older") == (404, "there is no such backend")

    async def test_a_client_of_http_1_1_is_answered_too(self, path: Path) -> None:
        answer = await exchange(path, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n" in answer

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"GET /metrics HTTP/1.0\r\n\r\n", b"404"),
            (b"POST /healthz HTTP/1.0\r\n\r\n", b"400"),
            (b"GET /healthz\r\n\r\n", b"400"),
            (b"\xff\r\n\r\n", b"400"),
            (b"\r\n\r\n", b"400"),
        ],
    )
    async def test_what_it_does_not_know_gets_an_error(
        self, path: Path, request_: bytes, status: bytes
    ) -> None:
        assert (await exchange(path, request_)).split()[1] == status

    async def test_a_request_without_end_is_cut(self, path: Path) -> None:
        assert await exchange(path, b"GET /" + b"x" * 100_000) == b""

    async def test_a_connection_without_a_request_is_closed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_server, "DEADLINE_S", 0.05)
        assert await exchange(path, b"") == b""

    async def test_a_connection_over_the_limit_is_closed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_server, "CONNECTIONS", 1)
        _, waits = await asyncio.open_unix_connection(path)
        assert await exchange(path, b"") == b""
        waits.close()
        await waits.wait_closed()
        assert await ask(path, "/healthz") == (200, "ok")


WATCH = b"GET /trace/watch?client=192.0.2.0/24&content=headers HTTP/1.0\r\n\r\n"


class TestWatch:
    """A request that lasts as long as its connection."""

    async def begin(self, path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(WATCH)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: application/jsonl;")
            assert await reader.readline() == HEADER
            line = await reader.readline()
        own = f"{os.getuid()} {os.getpid()}"
        assert line.decode() == f"{own} [IPv4Network('192.0.2.0/24')] headers\n"
        return reader, writer

    async def ended(self, watches: Watches) -> None:
        async with asyncio.timeout(5):
            while watches.active:
                await asyncio.sleep(0)

    @pytest.mark.parametrize("how", ["close", "abort", "half", "more"])
    @pytest.mark.usefixtures("served")
    async def test_it_ends_when_the_client_leaves(
        self, path: Path, watches: Watches, how: str
    ) -> None:
        _, writer = await self.begin(path)
        assert watches.active == 1
        match how:
            case "close":
                writer.close()
            case "abort":
                writer.transport.abort()
            case "half":
                writer.write_eof()
            case "more":
                writer.write(b"more")
        await self.ended(watches)
        writer.close()

    async def test_it_ends_when_the_service_stops(
        self, path: Path, watches: Watches, served: ControlServer
    ) -> None:
        reader, writer = await self.begin(path)
        await served.stop()
        assert watches.active == 0
        assert await reader.read() == b""
        writer.close()

    async def test_a_client_that_reads_nothing_does_not_keep_the_service_from_stopping(
        self, path: Path, served: ControlServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_server, "CLOSE_LIMIT_S", 0.05)
        monkeypatch.setattr(control_server, "HEADER", b"x" * 10_000_000)
        _, writer = await asyncio.open_unix_connection(path, limit=1)
        writer.write(WATCH)
        while not served._watching:
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await served.stop()
        writer.close()

    async def test_none_begins_once_the_service_stops(
        self, path: Path, watches: Watches, served: ControlServer
    ) -> None:
        """Its connection was accepted before, and would keep the watch on."""
        reader, writer = await asyncio.open_unix_connection(path)
        while not served._open:
            await asyncio.sleep(0)
        await served.stop()
        writer.write(WATCH)
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.0 503 ")
        assert watches.active == 0
        writer.close()

    @pytest.mark.usefixtures("served")
    async def test_it_has_no_time_limit(
        self, path: Path, watches: Watches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_server, "DEADLINE_S", 1.0)  # which a request must keep
        _, writer = await self.begin(path)
        await asyncio.sleep(1.1)
        assert watches.active == 1
        writer.close()
        await self.ended(watches)

    @pytest.mark.parametrize(
        ("query", "answer"),
        [
            ("", "a watch needs 1 to 32 networks of clients"),
            ("?client=192.0.2.1/24", "is an address inside a network"),
            ("?client=all", "is not a network"),
            ("?client=192.0.2.1&content=some", "content must be none, headers or full"),
            ("?client=192.0.2.1&number=1", "number is no parameter of a watch"),
            ("?" + "&".join(["client=192.0.2.1"] * 33), "a watch needs 1 to 32"),
        ],
    )
    @pytest.mark.usefixtures("served")
    async def test_a_request_that_is_not_valid_is_refused(
        self, path: Path, query: str, answer: str
    ) -> None:
        status, text = await ask(path, f"/trace/watch{query}")
        assert status == 400
        assert answer in text

    @pytest.mark.usefixtures("served")
    async def test_the_service_may_refuse_it(self, path: Path, watches: Watches) -> None:
        watches.refusal = 503, "8 watches are on already"
        answer = (503, "8 watches are on already")
        assert await ask(path, "/trace/watch?client=192.0.2.1") == answer
        assert watches.active == 0

    @pytest.mark.usefixtures("served")
    async def test_another_user_may_not_watch(
        self, path: Path, watches: Watches, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_server, "_peer", lambda _: (1, os.geteuid() + 1))
        answer = (403, "no permission to watch: be root, or the service's user")
        assert await ask(path, "/trace/watch?client=192.0.2.1") == answer
        assert watches.active == 0


@contextmanager
def peer(path: Path, *answers: bytes | None) -> Iterator[None]:
    """Answer each connection in turn with these octets and the end, or not at all."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1000)
                    if answer is None:
                        connection.recv(1000)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


class TestClient:
    def test_the_first_place_that_is_served_is_asked(self, path: Path, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "dead"))
        socket_paths = [tmp_path / "nothing", tmp_path / "dead", path, tmp_path / "other"]
        with peer(path, b"HTTP/1.0 200 OK\r\n\r\nok\n"):
            assert control_client.ask("/healthz", socket_paths) == (200, "ok")

    def test_no_service_is_said_with_the_places(self, tmp_path: Path) -> None:
        with pytest.raises(NoAnswer, match=f"^no service answers at {tmp_path}/a or {tmp_path}/b$"):
            control_client.ask("/healthz", [tmp_path / "a", tmp_path / "b"])

    def test_a_path_that_no_socket_can_have_is_no_service(self, tmp_path: Path) -> None:
        with pytest.raises(NoAnswer, match=r"^no service answers at "):
            control_client.ask("/healthz", [tmp_path / ("x" * 200)])

    @pytest.mark.parametrize(
        "answer", [b"", b"220 mx\r\n", b"HTTP/1.0 ok\r\n\r\n", b"\xff" * 70_000]
    )
    def test_another_program_is_no_service(self, path: Path, answer: bytes) -> None:
        with peer(path, answer), pytest.raises(NoAnswer, match=r"is not smtpproxy$|^no answer"):
            control_client.ask("/healthz", [path], deadline_s=0.5)

    def test_a_request_that_a_hand_over_drops_is_repeated(self, path: Path) -> None:
        """The loop of Python drops what it has accepted in the turn in which a server closes."""
        with peer(path, b"", b"HTTP/1.0 200 OK\r\n\r\nok\n"):
            assert control_client.ask("/healthz", [path]) == (200, "ok")

    def test_it_does_not_wait_for_ever(self, path: Path) -> None:
        with peer(path, None), pytest.raises(NoAnswer, match=r"^no answer in time at "):
            control_client.ask("/healthz", [path], deadline_s=0.05)

    def test_a_request_without_permission_is_an_error(self, path: Path) -> None:
        require_root("another account")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            path.chmod(0o600)
            for directory in path.parents:
                if not directory.stat().st_mode & 0o001:
                    directory.chmod(directory.stat().st_mode | 0o011)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.setuid(65534)
                    control_client.ask("/healthz", [path])
                except NoAnswer as error:
                    code = 0 if f"no permission to ask at {path}" in str(error) else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
