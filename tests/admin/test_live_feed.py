"""The board: what it keeps is bounded, and so is who may look."""

import msgspec

from smtpproxy.admin.live_feed import KEPT_SESSIONS, LOOKERS, WAITING, Board
from smtpproxy.metrics.snapshot import Figures


class Source:
    """Stands for a service that has as many new sessions each second."""

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._count = 0

    def figures(self) -> Figures:
        self._count += self._sessions
        names = range(self._count - self._sessions, self._count)
        return Figures(
            lists={"sessions": [{"id": f"s-{name}", "reason": "quit"} for name in names]}
        )

    def look(self) -> None:
        """Need not be told."""

    def listeners(self) -> list[str]:
        return []

    def why_not_ready(self) -> str:
        return ""


async def test_lookers_are_bounded_and_a_slow_one_misses_events() -> None:
    board = Board(Source(1))
    lookers = [board.join() for _ in range(LOOKERS)]
    assert board.full
    for _ in range(WAITING * 3):
        board.tell()
    assert lookers[0].qsize() == WAITING
    for looker in lookers:
        board.leave(looker)
    assert not board.full


async def test_so_many_sessions_are_kept_for_who_comes_later() -> None:
    board = Board(Source(KEPT_SESSIONS * 3 // 4))
    first = board.join()
    for _ in range(3):
        board.tell()
    late = board.join().get_nowait()
    assert late.count(b'"id"') == KEPT_SESSIONS
    board.leave(first)


async def test_who_looks_when_it_closes_is_told_the_end() -> None:
    board = Board(Source(1))
    reads, does_not = board.join(), board.join()
    reads.get_nowait()
    for _ in range(WAITING):
        board.tell()
    board.close()
    for looker in (reads, does_not):
        assert [looker.get_nowait() for _ in range(WAITING)][-1] == b""
    assert not board.full


async def test_an_open_session_of_which_no_worker_tells_any_more_is_not_open_forever() -> None:
    source = Source(0)
    board = Board(source)
    looker = board.join()
    told = {"sessions": [{"id": "s", "reason": ""}], "open_sessions": ["s"]}
    reasons = []
    for lists in (told, {"open_sessions": ["s"]}, {}, {}, {"open_sessions": ["s"]}, *[{}] * 4):
        source.figures = lambda now=lists: Figures(lists=now)  # type: ignore[method-assign, misc]
        board.tell()
        while not looker.empty():
            event = msgspec.json.decode(looker.get_nowait().removeprefix(b"data: "))
        reasons.append([each["reason"] for each in event["sessions"]])
    assert reasons == [[""], [], [], [], [], [], [], ["followed no more"], []]
    board.leave(looker)
