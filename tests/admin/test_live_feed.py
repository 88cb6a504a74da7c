"""The live feed: what it keeps is bounded, and so is who may look."""

import msgspec

from smtpproxy.admin.live_feed import KEPT_SESSIONS, MAX_VIEWERS, WAITING, LiveFeed
from smtpproxy.metrics.snapshot import MetricsSnapshot


class Source:
    """Stands for a service that has as many new sessions each second."""

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._count = 0

    def snapshot(self) -> MetricsSnapshot:
        self._count += self._sessions
        names = range(self._count - self._sessions, self._count)
        return MetricsSnapshot(
            lists={"sessions": [{"id": f"s-{name}", "reason": "quit"} for name in names]}
        )

    def look(self) -> None:
        """Need not be told."""

    def listeners(self) -> list[str]:
        return []

    def why_not_ready(self) -> str:
        return ""


async def test_lookers_are_bounded_and_a_slow_one_misses_events() -> None:
    live_feed = LiveFeed(Source(1))
    viewers = [live_feed.join() for _ in range(MAX_VIEWERS)]
    assert live_feed.full
    for _ in range(WAITING * 3):
        live_feed.tell()
    assert viewers[0].qsize() == WAITING
    for viewer in viewers:
        live_feed.leave(viewer)
    assert not live_feed.full


async def test_so_many_sessions_are_kept_for_who_comes_later() -> None:
    live_feed = LiveFeed(Source(KEPT_SESSIONS * 3 // 4))
    first = live_feed.join()
    for _ in range(3):
        live_feed.tell()
    late = live_feed.join().get_nowait()
    assert late.count(b'"id"') == KEPT_SESSIONS
    live_feed.leave(first)


async def test_who_looks_when_it_closes_is_told_the_end() -> None:
    live_feed = LiveFeed(Source(1))
    reads, does_not = live_feed.join(), live_feed.join()
    reads.get_nowait()
    for _ in range(WAITING):
        live_feed.tell()
    live_feed.close()
    for viewer in (reads, does_not):
        assert [viewer.get_nowait() for _ in range(WAITING)][-1] == b""
    assert not live_feed.full


async def test_an_open_session_of_which_no_worker_tells_any_more_is_not_open_forever() -> None:
    source = Source(0)
    live_feed = LiveFeed(source)
    viewer = live_feed.join()
    told = {"sessions": [{"id": "s", "reason": ""}], "open_sessions": ["s"]}
    reasons = []
    for lists in (told, {"open_sessions": ["s"]}, {}, {}, {"open_sessions": ["s"]}, *[{}] * 4):
        source.snapshot = lambda now=lists: MetricsSnapshot(lists=now)  # type: ignore[method-assign, misc]
        live_feed.tell()
        while not viewer.empty():
            event = msgspec.json.decode(viewer.get_nowait().removeprefix(b"data: "))
        reasons.append([each["reason"] for each in event["sessions"]])
    assert reasons == [[""], [], [], [], [], [], [], ["followed no more"], []]
    live_feed.leave(viewer)
