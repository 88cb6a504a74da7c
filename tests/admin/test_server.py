"""The admin address: who gets in, and what it says."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, ClientTimeout, UnixConnector

from smtpproxy.address import Address
from smtpproxy.admin import board as board_module
from smtpproxy.admin.board import LOOKERS, Board
from smtpproxy.admin.server import STATIC, Admin
from smtpproxy.figures import Figures
from smtpproxy.observe.metrics import Metrics
from smtpproxy.observe.recent import KEPT_EXCHANGES, KEPT_SESSIONS, PER_SECOND, Recent
from tests.observe.stage import Watched

TOKEN = "0123456789abcdef"


class Source:
    """Stands for the service."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.recent = Recent()
        self.is_ready = True

    def figures(self) -> Figures:
        gauges = {"sessions": 1, 'server_up{backend="old",server="10.0.0.5:25"}': 1}
        lists = {"sessions": self.recent.changed()}
        return Figures(counts=self.metrics.counts(), gauges=gauges, lists=lists)

    def look(self) -> None:
        self.recent.look()

    def ready(self) -> bool:
        return self.is_ready


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
        admin = Admin(Address("127.0.0.1", 0), "", source)
        yield f"http://{await admin.start()}"
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
        lines = set(text.splitlines())
        assert {
            "# TYPE smtpproxy_commands_total counter",
            'smtpproxy_commands_total{reply="2xx",verb="RCPT"} 2.0',
            'smtpproxy_commands_total{reply="5xx",verb="end-of-data"} 1.0',
            'smtpproxy_messages_total{outcome="relayed"} 1.0',
            'smtpproxy_messages_total{outcome="refused"} 1.0',
            "smtpproxy_round_trips_saved_total 4.0",
            "smtpproxy_held_replies_total 4.0",
            "smtpproxy_client_stalls_total 1.0",
            'smtpproxy_violations_total{by="client",kind="bare_lf"} 1.0',
            "# TYPE smtpproxy_backend_reply_seconds histogram",
            'smtpproxy_backend_reply_seconds_bucket{le="0.25",verb="MAIL"} 2.0',
            'smtpproxy_backend_reply_seconds_sum{verb="MAIL"} 0.5',
            'smtpproxy_group_commands_bucket{le="3"} 4.0',
            'smtpproxy_group_commands_bucket{le="+Inf"} 4.0',
            'smtpproxy_server_up{backend="old",server="10.0.0.5:25"} 1.0',
            'smtpproxy_sessions_closed_total{reason="quit"} 1.0',
            'smtpproxy_octets_total{direction="in",leg="client"} 80.0',
        } <= lines
        assert "process_resident_memory_bytes" in text

    async def test_health_and_readiness(
        self, url: str, source: Source, client: ClientSession
    ) -> None:
        for ready, status in ((True, 200), (False, 503)):
            source.is_ready = ready
            async with client.get(f"{url}/readyz") as response:
                assert response.status == status
            async with client.get(f"{url}/healthz") as response:
                assert response.status == 200

    async def test_nothing_foreign_is_loaded(self, url: str, client: ClientSession) -> None:
        for name in STATIC:
            async with client.get(f"{url}/{name}") as response:
                assert response.status == 200
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
                text = await response.text()
            assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
        async with client.get(f"{url}/nothing") as response:
            assert response.status == 404

    async def test_a_name_that_was_made_to_mean_it_is_refused(
        self, url: str, client: ClientSession
    ) -> None:
        for host, status in (("evil.example", 403), ("localhost:8025", 200), ("[::1]:1", 200)):
            async with client.get(f"{url}/", headers={"Host": host}) as response:
                assert response.status == status

    async def test_events_tell_of_sessions(
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
        (told,) = event["sessions"]
        assert (told["client"], told["saved"], told["reason"]) == ("192.0.2.1:4711", 2, "")
        assert told["messages"][0]["sender"] == "a@x"
        assert [each.get("verb") for each in told["records"]][1:] == [
            *("greeting", "MAIL", "RCPT", "DATA", ".")
        ]


class TestTokens:
    async def test_without_it_nobody_gets_in(self, source: Source, client: ClientSession) -> None:
        admin = Admin(Address("127.0.0.1", 0), TOKEN, source)
        url = f"http://{await admin.start()}"
        try:
            for path in ("/", "/metrics", "/events", "/healthz", "/?token=wrong", "/?token=%C3%A9"):
                async with client.get(url + path) as response:
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


async def test_a_unix_socket_serves_too(source: Source, tmp_path: Path) -> None:
    path = str(tmp_path / "admin.sock")
    admin = Admin(Address(path=path), "", source)
    assert await admin.start() == f"unix:{path}"
    async with (
        ClientSession(connector=UnixConnector(path)) as client,
        client.get("http://smtpproxy/healthz") as response,
    ):
        assert response.status == 200
    await admin.stop()


class TestBounds:
    def test_so_many_sessions_a_second_are_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("smtpproxy.observe.recent.monotonic", lambda: 100.5)
        recent = Recent()
        taken = [recent.session(f"s-{number}", "l", "c") for number in range(1000)]
        assert sum(each is not None for each in taken) == PER_SECOND

    def test_so_many_sessions_and_exchanges_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("smtpproxy.observe.recent.PER_SECOND", 10**6)
        recent = Recent()
        session = Watched(recent)
        for _ in range(KEPT_EXCHANGES * 2):
            session.sends("NOOP")
            session.says("250 ok")
        recent.look()
        (told,) = recent.changed()
        assert isinstance(told, dict)
        assert len(told["records"]) == KEPT_EXCHANGES + 1
        assert told["missing"] == KEPT_EXCHANGES + 1
        for _ in range(KEPT_SESSIONS * 2):
            Watched(recent).close()
        assert len(recent._sessions) == KEPT_SESSIONS

    def test_nothing_is_made_while_nobody_looks(self) -> None:
        recent = Recent()
        Watched(recent).relay("text")
        assert recent.changed() == []
        recent.look()
        assert len(recent.changed()) == 1
        assert recent.changed() == []

    async def test_lookers_are_bounded_and_a_slow_one_misses_events(self, source: Source) -> None:
        board = Board(source)
        lookers = [board.join() for _ in range(LOOKERS)]
        assert board.full
        for _ in range(10):
            board.tell()
        assert lookers[0].full()
        for looker in lookers:
            board.leave(looker)
        assert not board.full
