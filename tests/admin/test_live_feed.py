"""The live feed: what it keeps is bounded, and so is who may look."""

import msgspec
import pytest

from smtpproxy.admin import live_feed
from smtpproxy.admin.live_feed import KEPT_SESSIONS, MAX_VIEWERS, WAITING, LiveFeed
from smtpproxy.metrics.snapshot import MetricsSnapshot


class Source:
    """Stands for a service that has as many new sessions each second."""

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._count = 0
        self.looks: list[bool] = []

    def snapshot(self) -> MetricsSnapshot:
        self._count += self._sessions
        names = range(self._count - self._sessions, self._count)
        return MetricsSnapshot(
            lists={"sessions": [{"session": f"s-{name}", "reason": "quit"} for name in names]}
        )

    def look(self, *, anew: bool = False) -> None:
        self.looks.append(anew)

    def listeners(self) -> list[str]:
        return []

    def why_not_ready(self, backend: str = "") -> str:  # noqa: ARG002
        return ""

    async def wait_for_checks(self) -> None:
        """Return at once."""


async def test_lookers_are_bounded_and_a_slow_one_misses_events() -> None:
    feed = LiveFeed(Source(1))
    viewers = [feed.join() for _ in range(MAX_VIEWERS)]
    assert feed.full
    for _ in range(WAITING * 3):
        feed.tell()
    assert viewers[0].qsize() == WAITING
    for viewer in viewers:
        feed.leave(viewer)
    assert not feed.full


async def test_recent_sessions_are_kept_for_later_viewers() -> None:
    feed = LiveFeed(Source(KEPT_SESSIONS * 3 // 4))
    first = feed.join()
    for _ in range(3):
        feed.tell()
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
    feed.tell()
    second = feed.join()
    assert 300 < len(b"".join(each.told for each in feed._sessions.values())) <= 1000
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
        feed.tell()
    feed.close()
    for viewer in (reads, does_not):
        assert [viewer.get_nowait() for _ in range(WAITING)][-1] == b""
    assert not feed.full


async def test_an_open_session_that_no_worker_reports_any_more_is_removed() -> None:
    source = Source(0)
    feed = LiveFeed(source)
    viewer = feed.join()
    told = {"sessions": [{"session": "s", "reason": ""}], "open_sessions": ["s"]}
    reasons = []
    for lists in (told, {"open_sessions": ["s"]}, {}, {}, {"open_sessions": ["s"]}, *[{}] * 4):
        source.snapshot = lambda now=lists: MetricsSnapshot(lists=now)  # type: ignore[method-assign, misc]
        feed.tell()
        while not viewer.empty():
            event = msgspec.json.decode(viewer.get_nowait().removeprefix(b"data: "))
        reasons.append([each["reason"] for each in event["sessions"]])
    assert reasons == [[""], [], [], [], [], [], [], ["followed no more"], []]
    feed.leave(viewer)
