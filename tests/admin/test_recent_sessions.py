"""Recent sessions: bounded whatever peers do, and nothing is made of them while nobody looks."""

import msgspec
import pytest

from smtpproxy.admin.recent_sessions import (
    KEPT_EXCHANGES,
    KEPT_LAST,
    KEPT_LINE,
    KEPT_OCTETS,
    KEPT_RECIPIENTS,
    KEPT_SESSIONS,
    KEPT_UNSEEN,
    KEPT_WRONG,
    LOOK_S,
    PER_SECOND,
    RecentSessions,
)
from smtpproxy.core.observer import SessionSummary
from smtpproxy.core.policy import SessionPolicy
from tests.support.observed_session import Watched


def watched() -> RecentSessions:
    """Return a sample that somebody looks at."""
    recent = RecentSessions()
    recent.look()
    return recent


def sent(recent: RecentSessions) -> dict[str, object]:
    """Return what the page gets of the only session."""
    recent.look()
    (session,) = recent.changed()
    assert isinstance(session, dict)
    return session


def test_so_many_sessions_a_second_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.admin.recent_sessions.monotonic", lambda: 100.5)
    recent = RecentSessions()
    taken = [recent.session(f"s-{number}", "l", "b", "c") for number in range(1000)]
    assert sum(each is not None for each in taken) == PER_SECOND


@pytest.mark.parametrize("was_shown", [False, True])
def test_a_probe_is_kept_only_if_the_page_shows_it_already(was_shown: bool) -> None:
    """One comes every few seconds: nothing else would be left of a quiet day."""
    recent = watched()
    kept = recent.session("s-1", "l", "b", "192.0.2.1:4711")
    assert kept is not None
    if was_shown:
        recent.changed()
    kept.closed(SessionSummary("client_lost", 0.1, 0, 0, 0, 0, 0, probe=True))
    reasons = [each["reason"] for each in recent.changed() if isinstance(each, dict)]
    assert reasons == (["client_lost"] if was_shown else [])


def test_so_many_sessions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpproxy.admin.recent_sessions.PER_SECOND", 10**6)
    recent = RecentSessions()
    for _ in range(KEPT_SESSIONS * 2):
        Watched(recent).close()
    assert len(recent._sessions) == KEPT_SESSIONS


def test_a_long_session_keeps_its_beginning_and_its_end() -> None:
    recent = watched()
    session = Watched(recent)
    for _ in range(KEPT_EXCHANGES * 2):
        session.sends("NOOP")
        session.says("250 ok")
    session.sends("QUIT")
    session.says("221 bye")
    records = sent(recent)["records"]
    assert isinstance(records, list)
    verbs = [each.get("verb", each["what"]) for each in records]
    assert verbs == [
        *("connected", "greeting", *["NOOP"] * (KEPT_EXCHANGES - 1), "gap"),
        *(*["NOOP"] * (KEPT_LAST - 1), "QUIT"),
    ]
    # Of greeting, 240 NOOP and QUIT.
    assert records[KEPT_EXCHANGES + 1]["exchanges"] == 242 - KEPT_EXCHANGES - KEPT_LAST


def test_long_lines_and_replies_take_no_room() -> None:
    recent = watched()
    session = Watched(recent)
    for _ in range(KEPT_EXCHANGES * 2):
        session.sends("NOOP " + "x" * 1500)
        session.says(*["250-" + "y" * 4000] * 10, "250 ok")
    octets = len(msgspec.json.encode(sent(recent)))
    assert octets < KEPT_OCTETS + KEPT_LAST * 4 * KEPT_LINE + 200 * (KEPT_EXCHANGES + KEPT_LAST)


def test_many_recipients_take_no_room_and_are_counted() -> None:
    recent = watched()
    session = Watched(recent, policy=SessionPolicy(consecutive_errors=1000))
    session.sends("MAIL FROM:<a@x>", *(f"RCPT TO:<{n}@y>" for n in range(100)), "DATA")
    session.says("250 a", *["250 b"] * 60, *["550 no"] * 40, "354 go")
    session.sends("text", ".")
    session.says("250 ok")
    (transaction,) = sent(recent)["transactions"]  # type: ignore[misc, attr-defined]  # a list
    assert (transaction["accepted"], transaction["refused"]) == (60, 40)
    assert len(transaction["to"]) == 2 * KEPT_RECIPIENTS
    assert transaction["to"][-1] == "79@y 550 no"


def test_all_is_counted_though_not_all_is_kept() -> None:
    recent = watched()
    session = Watched(recent)
    for _ in range(KEPT_RECIPIENTS * 3):
        session.relay("text")
    found = sent(recent)
    assert (found["messages"], found["round_trips_saved"], found["content_bytes"]) == (
        60,
        2 * 60,
        6 * 60,
    )
    assert len(found["transactions"]) == KEPT_RECIPIENTS  # type: ignore[arg-type]  # a list


def test_tls_is_reported_with_its_side() -> None:
    recent = watched()
    session = Watched(recent)
    session.observer.noted("tls_started", side="client", version="TLSv1.3", cipher="x")
    session.observer.noted("tls_failed", side="backend", reason="x")
    found = sent(recent)
    assert found["tls"] == {"client": "TLSv1.3"}
    noted = [each for each in found["records"] if each["what"] == "noted"]  # type: ignore[attr-defined]  # a list
    assert [each["event"] for each in noted] == ["tls_started", "tls_failed"]


def test_without_a_viewer_only_what_the_list_shows_is_kept() -> None:
    recent = RecentSessions()
    session = Watched(recent)
    session.sends("EHLO x")
    session.says("250 mx")
    for _ in range(3):
        session.relay("text")
        session.sends("VRFY x")
        session.says("550 no")
    found = sent(recent)
    assert [each["what"] for each in found["records"]] == [  # type: ignore[attr-defined]  # a list
        *("connected", *["exchange"] * KEPT_UNSEEN, "gap", *["exchange"] * KEPT_WRONG)
    ]
    assert [each["code"] for each in found["records"][-KEPT_WRONG:]] == [550, 550]  # type: ignore[index]
    assert len(found["transactions"]) == 1  # type: ignore[arg-type]  # a list
    assert (found["messages"], found["content_bytes"]) == (3, 18)
    session.relay("text")
    found = sent(recent)
    last = [each.get("verb", "") for each in found["records"][-4:]]  # type: ignore[index]  # a list
    assert last == ["MAIL", "RCPT", "DATA", "end_of_data"]


def test_what_was_kept_for_a_viewer_is_dropped_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recent = watched()
    session = Watched(recent)
    for _ in range(30):
        session.relay("text")
    now = recent._looked + LOOK_S + 1
    monkeypatch.setattr("smtpproxy.admin.recent_sessions.monotonic", lambda: now)
    assert recent.changed() == []
    found = sent(recent)
    assert len(found["records"]) == 1 + KEPT_UNSEEN + 1 + 1  # type: ignore[arg-type]  # a list
    assert len(found["transactions"]) == 1  # type: ignore[arg-type]  # a list


@pytest.mark.parametrize("octets", ["x", "\x7f", "\u202e"])
@pytest.mark.parametrize("somebody_looks", [False, True])
def test_a_session_has_a_bound_whatever_is_in_it(octets: str, somebody_looks: bool) -> None:
    recent = watched() if somebody_looks else RecentSessions()
    session = Watched(recent, policy=SessionPolicy(consecutive_errors=10**6, recipients=10**6))
    address = octets * (2000 // len(octets.encode()))
    for _ in range(30):
        session.sends(f"MAIL FROM:<{address}>", *[f"RCPT TO:<{address}>"] * 50, "RSET")
        session.says(*[f"250-{address}\r\n250 {address}"] * 52)
    size = len(msgspec.json.encode(sent(recent)))
    assert size < (300_000 if somebody_looks else 50_000)


def test_nothing_is_sampled_without_a_viewer() -> None:
    recent = RecentSessions()
    Watched(recent).relay("text")
    assert recent.changed() == []
    recent.look()
    assert len(recent.changed()) == 1
    assert recent.changed() == []


def test_a_session_that_is_over_counts_as_open_until_the_page_was_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the page takes a session whose turn has not come for one that no worker has."""
    monkeypatch.setattr("smtpproxy.admin.recent_sessions.TURN_S", -1)
    recent = watched()
    first, second = Watched(recent), Watched(recent)
    assert len(recent.changed() + recent.changed()) == 2
    first.close()
    second.close()
    open_names = []
    for _ in range(3):
        recent.changed()
        open_names.append(len(recent.open()))
    assert open_names == [1, 0, 0]
