"""The admin address: which clients it serves, and its answers."""

import asyncio
import contextlib
import io
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, ClientTimeout, UnixConnector

from smtpproxy.admin import http_server as server_module
from smtpproxy.admin import live_feed as board_module
from smtpproxy.admin.http_server import STATIC, AdminServer
from smtpproxy.admin.live_feed import MAX_VIEWERS
from smtpproxy.admin.recent_sessions import RecentSessions
from smtpproxy.log import log
from smtpproxy.metrics import definitions
from smtpproxy.metrics.counters import MetricCounters
from smtpproxy.metrics.snapshot import MetricsSnapshot
from tests.support.observed_session import Watched

TOKEN = "0123456789abcdef"


class Source:
    """A fake of the service."""

    def __init__(self) -> None:
        self.metrics = MetricCounters()
        self.recent = RecentSessions()
        self.why_not = ""
        self.serving_since = 0.0
        self.instance = "mx1"
        self.looks = self.waits = 0

    def snapshot(self) -> MetricsSnapshot:
        snapshot = MetricsSnapshot(lists={"sessions": self.recent.changed()})
        self.metrics.put_into(snapshot)
        snapshot.put(definitions.SERVER_UP, 1, "old", "10.0.0.5:25")
        return snapshot

    def look(self, *, full: bool = False) -> None:
        self.looks += 1
        self.recent.look(full=full)

    def faults(self) -> list[str]:
        return []

    def listeners(self) -> list[str]:
        return ["127.0.0.1:2525"]

    def why_not_ready(self, backend: str = "") -> str:
        return {"": self.why_not, "old": "", "older": "no server of older is up"}[backend]

    async def wait_for_checks(self) -> None:
        self.waits += 1


async def start(admin: AdminServer) -> str:
    """Let it serve at a free port, and return its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await admin.start([listening])
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def client() -> AsyncIterator[ClientSession]:
    async with ClientSession(timeout=ClientTimeout(5)) as session:
        yield session


class TestPaths:
    @pytest.fixture
    async def url(self, source: Source) -> AsyncIterator[str]:
        admin = AdminServer("", source)
        yield await start(admin)
        await admin.stop()

    async def test_metrics_are_prometheus_own(
        self, url: str, source: Source, client: ClientSession
    ) -> None:
        session = Watched(source.metrics)
        session.relay("a\nb")
        session.relay("x", reply="550 no")
        session.observer.stalled()
        session.close("quit")
        async with client.get(f"{url}/metrics") as response:
            text = await response.text()
        labelled = [each for each in text.splitlines() if not each.startswith("#")]
        assert not [each for each in labelled if 'smtpproxy_instance="mx1"' not in each]
        lines = set(re.sub(r'(,)?smtpproxy_instance="mx1"(?(1)|,?)', "", text).splitlines())
        names = 'backend="old",listener="smtp"'
        side, verb = 'listener="smtp",side="client"', 'listener="smtp",verb="MAIL"'
        assert {
            "# TYPE smtpproxy_commands_total counter",
            f'smtpproxy_commands_total{{{names},reply="2xx",verb="RCPT"}} 2.0',
            f'smtpproxy_commands_total{{{names},reply="5xx",verb="end_of_data"}} 1.0',
            f'smtpproxy_messages_total{{{names},outcome="relayed"}} 1.0',
            f'smtpproxy_messages_total{{{names},outcome="refused"}} 1.0',
            f"smtpproxy_round_trips_saved_total{{{names}}} 4.0",
            f"smtpproxy_held_replies_total{{{names}}} 4.0",
            f"smtpproxy_client_stalls_total{{{names}}} 1.0",
            f'smtpproxy_violations_total{{backend="old",kind="bare_lf",{side}}} 1.0',
            "# TYPE smtpproxy_backend_reply_seconds histogram",
            f'smtpproxy_backend_reply_seconds_bucket{{backend="old",le="0.25",{verb}}} 2.0',
            f'smtpproxy_backend_reply_seconds_bucket{{backend="old",le="+Inf",{verb}}} 2.0',
            f'smtpproxy_backend_reply_seconds_sum{{backend="old",{verb}}} 0.5',
            f'smtpproxy_backend_reply_seconds_count{{backend="old",{verb}}} 2.0',
            'smtpproxy_pipeline_group_size_bucket{backend="old",le="3",listener="smtp"} 4.0',
            'smtpproxy_pipeline_group_size_bucket{backend="old",le="+Inf",listener="smtp"} 4.0',
            'smtpproxy_server_up{backend="old",server="10.0.0.5:25"} 1.0',
            f"smtpproxy_sessions{{{names}}} 0.0",
            f'smtpproxy_sessions_closed_total{{{names},reason="quit"}} 1.0',
            f'smtpproxy_bytes_total{{backend="old",direction="in",{side}}} 80.0',
        } <= lines
        assert "process_resident_memory_bytes" in text

    async def test_health_and_readiness(
        self, url: str, source: Source, client: ClientSession
    ) -> None:
        for why, path, status, text in (
            ("", "/readyz", 200, "ready\n"),
            ("no server of old is up", "/readyz", 503, "not ready: no server of old is up\n"),
            ("no server of old is up", "/healthz", 200, "ok\n"),
            ("", "/readyz/old", 200, "ready\n"),
            ("", "/readyz/older", 503, "not ready: no server of older is up\n"),
            ("", "/readyz/oldest", 404, "there is no such backend\n"),
        ):
            source.why_not = why
            async with client.get(url + path) as response:
                assert (response.status, await response.text()) == (status, text)
                assert response.headers["Connection"] == "close"
        assert source.waits == 2, "only a request that says so waits for the first checks"

    async def test_nothing_foreign_is_loaded(self, url: str, client: ClientSession) -> None:
        for name in STATIC:
            async with client.get(f"{url}/{name}") as response:
                assert response.status == 200
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
                text = await response.text()
            assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
            inline = r"<style|<script(?! src)|\sstyle=|\son\w+=|javascript:|setAttribute\(.style"
            assert not re.search(inline, text), "the policy would stop it"
        async with client.get(f"{url}/nothing") as response:
            assert response.status == 404

    async def test_a_name_that_was_made_to_mean_it_is_refused(
        self, url: str, client: ClientSession
    ) -> None:
        for host, status in (
            ("evil.example", 403),
            ("evil.example:8025", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost:8025", 200),
            ("[::1]:1", 200),
        ):
            async with client.get(f"{url}/", headers={"Host": host}) as response:
                assert response.status == status

    async def test_a_probe_that_speaks_http_1_0_needs_no_host(self, url: str) -> None:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert b" 200 OK\r\n" in await asyncio.wait_for(reader.read(), 5)
        writer.close()

    async def test_a_page_of_another_site_cannot_make_a_browser_ask(
        self, url: str, source: Source, client: ClientSession
    ) -> None:
        for path, site, mode, status in (
            ("/events", "cross-site", "no-cors", 403),
            ("/events", "same-site", "cors", 403),
            ("/metrics", "cross-site", "navigate", 403),
            ("/", "cross-site", "no-cors", 403),
            ("/", "cross-site", "navigate", 200),  # a link to the page
            ("/page.js", "same-origin", "no-cors", 200),
            ("/metrics", "none", "navigate", 200),
        ):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
            async with client.get(url + path, headers=headers) as response:
                assert response.status == status, (path, site, mode)
                assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert "Access-Control-Allow-Origin" not in response.headers
        assert source.looks == 0

    async def test_one_that_never_reads_is_let_go_and_its_place_is_free(
        self, url: str, source: Source, client: ClientSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(board_module, "INTERVAL_S", 0.001)
        monkeypatch.setattr(server_module, "UNREAD_S", 0.05)
        snapshot = source.snapshot()
        snapshot.lists["sessions"] = [
            {"session": "s", "reason": "x", "text": "x" * 100_000, "at": 0}
        ]
        monkeypatch.setattr(source, "snapshot", lambda: _newer(snapshot))
        stuck = [
            await asyncio.open_connection(*url.removeprefix("http://").split(":"), limit=1)
            for _ in range(MAX_VIEWERS)
        ]
        for _, writer in stuck:
            writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):  # seen from outside only, so asked for again and again
            while source.looks < MAX_VIEWERS:
                await asyncio.sleep(0.001)
            while True:
                async with client.get(f"{url}/events") as response:
                    if response.status == 200:
                        break
                    assert (response.status, await response.text()) == (
                        *(503, "too many viewers\n"),
                    )
                await asyncio.sleep(0.01)
        for _, writer in stuck:
            writer.close()

    async def test_a_connection_over_the_limit_gets_503_but_health_is_answered(
        self, url: str, client: ClientSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "AUTHORIZED", 2)
        address = url.removeprefix("http://").split(":")
        authorized = [await asyncio.open_connection(*address) for _ in range(2)]
        for reader, writer in authorized:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for path, status in (("/metrics", 503), ("/events", 503), ("/healthz", 200)):
            async with client.get(url + path) as response:
                assert response.status == status
                assert response.headers["Connection"] == "close"
        authorized[0][1].close()
        async with asyncio.timeout(5):  # seen from outside only, so asked for again and again
            while True:
                async with client.get(f"{url}/metrics") as response:
                    if response.status == 200:
                        break
        authorized[1][1].close()

    async def test_events_report_sessions(
        self, url: str, source: Source, client: ClientSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(board_module, "INTERVAL_S", 0.01)
        session = Watched(source.recent)
        session.relay("text")
        async with client.get(f"{url}/events") as response:
            assert response.content_type == "text/event-stream"
            while True:
                line = await response.content.readline()
                event = msgspec.json.decode(line.removeprefix(b"data: ")) if line.strip() else {}
                if event.get("sessions"):
                    break
        (session,) = event["sessions"]
        names = ("client_ip", "client_port", "listener", "backend", "round_trips_saved", "reason")
        assert [session[name] for name in names] == ["192.0.2.1", 4711, "smtp", "old", 2, ""]
        assert session["transactions"][0]["sender"] == "a@x"
        assert [each.get("verb") for each in session["records"]][1:] == [
            *("greeting", "MAIL", "RCPT", "DATA", "end_of_data")
        ]

    @pytest.mark.parametrize(
        "said",
        [b"", b"GET / HTTP/1.1\r\nHost: ", b"POST /readyz HTTP/1.1\r\nContent-Length: 9\r\n\r\n"],
    )
    async def test_a_slow_request_is_closed(
        self, url: str, said: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = url.removeprefix("http://").split(":")
        asks, asks_writer = await asyncio.open_connection(*address)
        asks_writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await asks.readline()).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(server_module, "PENDING_S", 0.05)
        silent, silent_writer = await asyncio.open_connection(*address)
        silent_writer.write(said)
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(silent.read(), 5)
        await asyncio.wait_for(asks.readuntil(b"data: "), 5)
        assert not asks.at_eof()
        for each in (asks_writer, silent_writer):
            each.close()


class TestTokens:
    async def test_without_the_token_access_is_refused(
        self, source: Source, client: ClientSession
    ) -> None:
        admin = AdminServer(TOKEN, source)
        url = await start(admin)
        try:
            for path in ("/", "/metrics", "/events", "/readyzz", "/?token=wrong", "/?token=%C3%A9"):
                async with client.get(url + path) as response:
                    assert response.status == 401
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                    assert response.headers["Connection"] == "close"
            for name in ("Authorization", "Cookie"):
                odd = {name: f"Bearer {TOKEN[:-1]}\udcff", "X": "smtpproxy=\udcff"}
                async with client.get(f"{url}/metrics", headers=odd) as response:
                    assert response.status == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            async with client.get(f"{url}/metrics", headers=bearer) as response:
                assert response.status == 200
            async with client.get(f"{url}/?token={TOKEN}", allow_redirects=False) as response:
                cookie = response.headers["Set-Cookie"]
                assert (response.status, response.headers["Location"]) == (303, "/")
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            async with client.get(url, headers={"Cookie": cookie.split(";")[0]}) as response:
                assert response.status == 200
        finally:
            await admin.stop()

    async def test_health_and_readiness_need_none(
        self, source: Source, client: ClientSession
    ) -> None:
        """Nor the address's own name, which a kubelet or a load balancer may not know."""
        source.why_not = "no server of old is up"
        admin = AdminServer(TOKEN, source)
        url = await start(admin)
        for path, status in (("/healthz", 200), ("/readyz", 503), ("/readyz/old", 200)):
            async with client.get(url + path, headers={"Host": "mx.example"}) as response:
                assert response.status == status
                assert "10.0.0.5" not in await response.text()
        await admin.stop()

    @pytest.mark.parametrize(
        "said", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n", b"GET /?token=x HTTP/1.1\r\n\r\n"]
    )
    async def test_unauthenticated_connections_do_not_block_others(
        self, source: Source, said: bytes
    ) -> None:
        """However many: health is answered, and a client with the token is served."""
        admin = AdminServer(TOKEN, source)
        address = (await start(admin)).removeprefix("http://").split(":")
        strangers = []
        for _ in range(2 * server_module.PENDING):
            strangers.append(await asyncio.open_connection(*address))
            strangers[-1][1].write(said)
        bearer = f"Authorization: Bearer {TOKEN}\r\n".encode()
        for path, header in ((b"/healthz", b""), (b"/metrics", bearer), (b"/events", bearer)):
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, header))
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 "), path
            writer.close()
        for _, writer in strangers:
            writer.close()
        await admin.stop()

    async def test_the_oldest_pending_connection_is_closed_for_a_new_one(
        self, source: Source, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "PENDING", 2)
        monkeypatch.setattr(server_module, "PENDING_S", 60.0)
        admin = AdminServer(TOKEN, source)
        address = (await start(admin)).removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(*address)
        others = [await asyncio.open_connection(*address) for _ in range(2)]
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        for _, each in [(reader, writer), *others]:
            each.close()
        await admin.stop()


@pytest.mark.parametrize(
    "odd",
    [
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {TOKEN}\r\n\r\n",
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nCookie: smtpproxy={TOKEN}\r\nodd\r\n\r\n",
        f"GET /?token={TOKEN} HTTP/9\r\n\r\n",
        f"GET /?token={TOKEN}\x01 HTTP/1.1\r\n\r\n",
        f"{TOKEN}\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}{'x' * 9000}\r\n\r\n",
    ],
)
async def test_a_malformed_request_leaves_nothing_of_it_in_the_log(
    odd: str, source: Source, capfd: pytest.CaptureFixture[str]
) -> None:
    """However often: one line a second, with the number of all of them."""
    stream = io.BytesIO()
    log.configure("debug", "json", stream)
    admin = AdminServer(TOKEN, source)
    url = await start(admin)
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        writer.write(odd.encode())
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.0 400 ")
        writer.close()
    await admin.stop()
    log.configure("info", "json")
    (line,) = map(msgspec.json.decode, stream.getvalue().splitlines())
    assert (line["event"], line["requests"]) == ("admin_bad_request", 3)
    assert TOKEN not in stream.getvalue().decode() + "".join(capfd.readouterr())


async def test_a_unix_socket_serves_too(source: Source, tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    admin = AdminServer("", source)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        await admin.start([listening])
    async with (
        ClientSession(connector=UnixConnector(path)) as client,
        client.get("http://smtpproxy/healthz") as response,
    ):
        assert response.status == 200
    await admin.stop()


def _newer(snapshot: MetricsSnapshot) -> MetricsSnapshot:
    """Return figures in which something has changed."""
    session = snapshot.lists["sessions"][0]
    assert isinstance(session, dict)
    snapshot.lists["sessions"] = [{**session, "at": session["at"] + 1}]
    return snapshot
