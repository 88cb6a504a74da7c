"""The live feed: what it keeps and the number of viewers are bounded."""

import asyncio
from time import monotonic
from typing import Any, cast

import msgspec
import pytest

from smtpproxy import __version__
from smtpproxy.admin import live_feed
from smtpproxy.admin.live_feed import KEPT_SESSIONS, MAX_VIEWERS, WAITING, LiveFeed
from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot


class Source:
    """A fake of a service that has as many new sessions each second."""

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._count = 0
        self.serving_since = monotonic() - 60
        self.instance = "mx1"
        self.looks: list[bool] = []

    def snapshot(self) -> MetricsSnapshot:
        self._count += self._sessions
        names = range(self._count - self._sessions, self._count)
        return MetricsSnapshot(
            lists={"sessions": [{"session": f"s-{name}", "reason": "quit"} for name in names]}
        )

    def look(self, *, full: bool = False) -> None:
        self.looks.append(full)

    def faults(self) -> list[str]:
        return ["RCPT 450"]

    def listeners(self) -> list[str]:
        return []

    def why_not_ready(self, backend: str = "") -> str:  # noqa: ARG002
        return ""

    async def wait_for_checks(self) -> None:
        """Return at once."""


def decoded(event: bytes) -> dict[str, Any]:
    """Return the JSON object of an event."""
    return cast("dict[str, Any]", msgspec.json.decode(event.removeprefix(b"data: ")))


async def test_viewers_are_bounded_and_a_slow_one_misses_events() -> None:
    feed = LiveFeed(Source(1))
    viewers = [feed.join() for _ in range(MAX_VIEWERS)]
    assert feed.full
    for _ in range(WAITING * 3):
        feed.publish()
    assert viewers[0].qsize() == WAITING
    for viewer in viewers:
        feed.leave(viewer)
    assert not feed.full


async def test_each_event_names_the_faults() -> None:
    feed = LiveFeed(Source(1))
    assert decoded(feed.join().get_nowait())["faults"] == ["RCPT 450"]


async def test_recent_sessions_are_kept_for_later_viewers() -> None:
    feed = LiveFeed(Source(KEPT_SESSIONS * 3 // 4))
    first = feed.join()
    for _ in range(3):
        feed.publish()
    late = feed.join().get_nowait()
    assert late.count(b'"session"') == KEPT_SESSIONS
    feed.leave(first)


async def test_sessions_are_bounded_in_bytes_and_dropped_without_a_viewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_feed, "KEPT_BYTES", 1000)
    source = Source(100)
    feed = LiveFeed(source)
    first = feed.join()
    feed.publish()
    second = feed.join()
    assert 300 < len(b"".join(each.encoded for each in feed._sessions.values())) <= 1000
    feed.leave(first)
    assert feed._sessions
    feed.leave(second)
    assert not feed._sessions
    feed.leave(feed.join())
    assert source.looks == [True, False, True]


async def test_viewers_are_notified_when_it_closes() -> None:
    feed = LiveFeed(Source(1))
    reads, does_not = feed.join(), feed.join()
    reads.get_nowait()
    for _ in range(WAITING):
        feed.publish()
    feed.close()
    for viewer in (reads, does_not):
        assert [viewer.get_nowait() for _ in range(WAITING)][-1] == b""
    assert not feed.full


async def test_an_open_session_that_no_worker_reports_any_more_is_removed() -> None:
    source = Source(0)
    feed = LiveFeed(source)
    viewer = feed.join()
    open_one = {"sessions": [{"session": "s", "reason": ""}], "open_sessions": ["s"]}
    reasons = []
    for lists in (open_one, {"open_sessions": ["s"]}, {}, {}, {"open_sessions": ["s"]}, *[{}] * 4):
        source.snapshot = lambda now=lists: MetricsSnapshot(lists=now)  # type: ignore[method-assign, misc]
        feed.publish()
        while not viewer.empty():
            event = decoded(viewer.get_nowait())
        reasons.append([each["reason"] for each in event["sessions"]])
    assert reasons == [[""], [], [], [], [], [], [], ["followed no more"], []]
    feed.leave(viewer)


class TestFigures:
    """Figures of the last hour are kept whether somebody looks or not."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(live_feed, "monotonic", lambda: now[0])
        return now

    async def test_a_fresh_page_has_what_was_before(self, clock: list[float]) -> None:
        source = Source(0)
        feed = LiveFeed(source)
        for _ in range(61):
            feed.tick()
            clock[0] += 1
        assert source.looks == [], "no worker is asked for sessions"
        first = decoded(feed.join().get_nowait())
        assert [row[0] for row in first["rows"]] == [1000 + 5 * row for row in range(1, 13)]
        assert first["clock"] == 1061

    async def test_without_a_viewer_the_service_is_summed_up_once_in_a_row(
        self, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = Source(0)
        feed, snapshots = LiveFeed(source), 0

        def snapshot() -> MetricsSnapshot:
            nonlocal snapshots
            snapshots += 1
            return MetricsSnapshot()

        monkeypatch.setattr(source, "snapshot", snapshot)
        for _ in range(50):
            feed.tick()
            clock[0] += 1
        assert snapshots == 10

    async def test_they_survive_viewers_and_each_viewer_gets_each_row(
        self, clock: list[float]
    ) -> None:
        feed = LiveFeed(Source(0))
        rows = set()
        watching = feed.join()
        for _ in range(21):
            feed.tick()
            feed.leave(feed.join())
            while not watching.empty():
                rows |= {row[0] for row in decoded(watching.get_nowait())["rows"]}
            clock[0] += 1
        feed.leave(watching)
        assert rows == {1005, 1010, 1015, 1020}
        assert {row[0] for row in decoded(feed.join().get_nowait())["rows"]} == rows

    async def test_the_loop_keeps_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live_feed, "INTERVAL_S", 0)
        monkeypatch.setattr("smtpproxy.admin.figure_history.ROW_S", 0)
        feed = LiveFeed(Source(0))
        feed.start()
        async with asyncio.timeout(5):
            while len(feed._history.rows) < 3:
                await asyncio.sleep(0)
        feed.close()


async def test_an_event_says_which_instance_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(0)
    snapshot = MetricsSnapshot()
    snapshot.put(definitions.WORKERS, 4)
    monkeypatch.setattr(source, "snapshot", lambda: snapshot)
    event = decoded(LiveFeed(source).join().get_nowait())
    assert (event["host"], event["version"], event["totals"]["workers"]) == (
        *("mx1", __version__, 4),
    )
    assert 60 <= event["uptime_s"] < 120
