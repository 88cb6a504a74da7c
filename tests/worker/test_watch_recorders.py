"""Watches in a worker: which sessions are recorded, and until when."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import Raw

from smtpproxy.config.schema import TraceSettings
from smtpproxy.trace.watch import WatchRequest
from smtpproxy.worker.watch_recorders import WatchRecorders
from tests.support.observed_session import Later, Watched

ALL = WatchRequest(("192.0.2.0/24",))


class Worker:
    """A worker whose records are kept here."""

    def __init__(self, **settings: Any) -> None:
        self.session = Watched()
        self.later = Later()
        self.sent: list[tuple[int, list[dict[str, Any]], int]] = []
        self.has_room = True
        kept = TraceSettings(**settings)
        self.watches = WatchRecorders(kept, [], self.session.fanout, self.later)
        self.watches.send_with(self._send)

    def _send(self, watch: int, records: Sequence[Raw], lost: int) -> bool:
        if self.has_room:
            self.sent.append((watch, [json.loads(bytes(each)) for each in records], lost))
        return self.has_room

    def begin_session(self, client: str = "192.0.2.1:4711") -> Watched:
        """Begin another session of the same worker."""
        return Watched(fanout=self.session.fanout, client=client)

    def records(self, watch: int = 1) -> list[dict[str, Any]]:
        """Return all records of a watch that were sent."""
        self.later.run()
        return [record for number, records, _ in self.sent if number == watch for record in records]

    def whats(self, watch: int = 1) -> list[str]:
        """Return what each of these is."""
        return [each.get("verb") or each["what"] for each in self.records(watch)]


def test_nothing_observes_sessions_while_nobody_watches() -> None:
    worker = Worker()
    assert worker.begin_session().observer is not None
    bare = type(worker.begin_session().observer)
    worker.watches.begin(1, ALL)
    assert type(worker.begin_session().observer) is not bare
    worker.watches.end(1)
    assert type(worker.begin_session().observer) is bare


def test_sessions_are_recorded_from_the_begin_of_the_watch_to_its_end() -> None:
    worker = Worker()
    before = worker.begin_session()
    worker.watches.begin(1, ALL)
    assert worker.sent == [(1, [], 0)]
    session, other = worker.begin_session(), worker.begin_session("198.51.100.1:4711")
    for each in (before, session, other):
        each.sends("EHLO x")
        each.says("250 mx")
    assert worker.whats() == ["opened", "connected", "greeting", "EHLO"]
    worker.watches.end(1)
    session.relay("text")
    session.close()
    assert worker.whats() == ["opened", "connected", "greeting", "EHLO"]


def test_two_watches_know_nothing_of_each_other() -> None:
    worker = Worker(content="headers")
    worker.watches.begin(1, ALL)
    worker.watches.begin(2, WatchRequest(("192.0.2.1/32",), "headers"))
    session = worker.begin_session()
    session.relay("Subject: x", "", "text")
    worker.watches.end(1)
    session.relay("Subject: x", "", "text")
    session.close()
    assert worker.whats(1)[-2:] == ["DATA", "end_of_data"]
    assert worker.whats(2)[-2:] == ["end_of_data", "closed"]
    assert "content" not in worker.records(1)[-1]
    assert worker.records(2)[-2]["content"] == "Subject: x\r\n\r\n"
    assert len(worker.records(2)[-1]["transactions"]) == 2


def test_content_is_not_even_kept_once_the_watch_has_ended() -> None:
    worker = Worker(content="full")
    worker.watches.begin(1, WatchRequest(ALL.networks, "full"))
    session = worker.begin_session()
    assert session.observer._content  # type: ignore[attr-defined]
    worker.watches.end(1)
    assert len(session.observer._observers) == 1  # type: ignore[attr-defined]
    assert session.observer._log._on_transaction == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("content", ["none", "headers"])
def test_other_settings_after_a_reload_are_obeyed(content: str) -> None:
    worker = Worker(content=content)
    worker.watches.begin(1, WatchRequest(ALL.networks, "full"))
    session = worker.begin_session()
    session.relay("Subject: x", "", "text")
    assert worker.whats()[-1] == "end_of_data"
    assert "content" not in worker.records()[-1]


def test_only_sessions_with_a_problem_and_the_whole_of_each() -> None:
    worker = Worker()
    worker.watches.begin(1, WatchRequest(ALL.networks, only_problems=True))
    for reply in ("250 ok", "550 no"):
        session = worker.begin_session()
        session.relay("text", reply=reply)
        assert worker.records() == []
        session.close()
    assert worker.whats()[0] == "opened"
    assert worker.whats()[-2:] == ["end_of_data", "closed"]
    assert worker.records()[-1]["codes"] == [550]


def test_what_there_is_no_room_for_is_counted_and_never_waits() -> None:
    worker = Worker()
    worker.watches.begin(1, ALL)
    session = worker.begin_session()
    worker.later.run()
    worker.has_room = False
    for _ in range(3):
        session.sends("NOOP")
        session.says("250 ok")
        worker.later.run()
    worker.has_room = True
    session.close()
    assert worker.whats()[-1] == "closed"
    assert sum(lost for _, _, lost in worker.sent) == 3


def test_a_loss_is_reported_although_no_record_comes_after_it() -> None:
    worker = Worker()
    worker.watches.begin(1, ALL)
    session = worker.begin_session()
    worker.later.run()
    worker.has_room = False
    session.close()
    worker.later.run()
    worker.later.run()
    worker.has_room = True
    worker.later.run()
    assert worker.sent[-1] == (1, [], 1)
    count = len(worker.sent)
    worker.later.run()
    assert len(worker.sent) == count


def test_a_watch_that_is_begun_twice_is_one() -> None:
    """A worker that starts may get it twice."""
    worker = Worker()
    for _ in range(2):
        worker.watches.begin(1, ALL)
    worker.begin_session()
    assert worker.whats().count("opened") == 1
    worker.watches.end(1)
    worker.watches.end(1)
    worker.begin_session()
    assert worker.whats().count("opened") == 1


def test_the_last_records_are_sent_when_the_worker_ends() -> None:
    worker = Worker()
    worker.watches.begin(1, ALL)
    worker.begin_session().close()
    worker.watches.close()
    assert [each["what"] for each in worker.sent[-1][1]][-1] == "closed"
