"""Line limits: one client cannot fill the log, and what is left out is counted in it."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from smtpproxy.log import line_limits, log
from smtpproxy.log.debug_log import DebugLog
from smtpproxy.log.line_limits import BURST_S, LineLimits
from smtpproxy.log.session_log import ServiceLog, SessionLog
from tests.support.observed_session import Watched


class Service:
    """The log of a service, with a clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = io.BytesIO()
        self.now = 1000.0
        self.later: list[Callable[[], None]] = []
        monkeypatch.setattr(line_limits, "monotonic", lambda: self.now)

    def start(self, per_session: int = 10, per_address: int = 20, level: str = "info") -> None:
        log.configure(level, "json", self.stream)
        self.limits = self.make_limits(per_session, per_address, level)
        self.log = ServiceLog(self.limits)

    def make_limits(self, per_session: int, per_address: int, level: str) -> LineLimits:
        return LineLimits(
            per_session, per_address, level, self.address_of, self.call_later, log.get()
        )

    def address_of(self, host: str) -> bytes:
        """Return what an address counts as: here what is before its last dot."""
        return host.rpartition(".")[0].encode()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds == 1.0
        self.later.append(call)

    def session(self, client: str = "192.0.2.1:25", name: str = "s-1") -> SessionLog:
        return self.log.session(name, "smtp", "old", client)

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        later, self.later = self.later, []
        for call in later:
            call()

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines since the last call."""
        text = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return [json.loads(line) for line in text.splitlines()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines()]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    yield Service(monkeypatch)
    log.configure("info", "json")


def test_lines_over_the_limit_of_a_session_are_counted_in_one_line(
    service: Service,
) -> None:
    service.start(per_session=10, per_address=0)
    session = service.session()
    for _ in range(2000):
        session.slowed()
    assert service.events() == ["client_slowed"] * 50, "those of five seconds at once"
    service.passes(1)
    (line,) = service.lines()
    assert (line["event"], line["level"]) == ("log_lines_suppressed", "warning")
    assert (line["client_ip"], line["lines"]) == ("192.0.2.1", 1950)
    for _ in range(100):
        session.slowed()
    assert service.events() == ["client_slowed"] * 10, "a second's"
    service.passes(1)
    assert [line["lines"] for line in service.lines()] == [90]
    service.passes(1)
    assert service.lines() == [], "nothing was left out since then"
    assert service.limits.suppressed == 2040


def test_a_new_session_does_not_help_an_address(service: Service) -> None:
    """Nor does another address of its network."""
    service.start(per_session=10, per_address=20)
    for number in range(20):
        session = service.session(f"192.0.2.{number}:25", f"s-{number}")
        for _ in range(50):
            session.slowed()
    assert service.events() == ["client_slowed"] * 100
    other = service.session("192.0.3.1:25")
    other.slowed()
    assert service.events() == ["client_slowed"], "another network"
    service.passes(1)
    (line,) = service.lines()
    assert (line["event"], line["lines"]) == ("log_lines_suppressed", 900)
    assert line["client_ip"] == "192.0.2.19", "the last of them"


def test_other_lines_hide_no_accepted_message_and_no_refused_login(service: Service) -> None:
    service.start(per_session=1, per_address=1)
    session = service.session()
    watched = Watched(level="info")
    for _ in range(100):
        session.slowed()
    service.passes(0)
    service.lines()
    watched.pipeline.reply_buffer.observer = session
    watched.relay("a")
    watched.sends("AUTH PLAIN AGEAYg==")
    watched.says("535 no")
    watched.sends("MAIL FROM:<a@x>", "RSET")
    watched.says("250 a", "250 ok")
    assert service.events() == ["message_relayed", "auth_refused"]
    service.passes(0)
    assert [line["lines"] for line in service.lines()] == [1]


def test_refused_logins_of_an_address_have_their_own_limit(service: Service) -> None:
    service.start(per_session=1, per_address=2)
    for _ in range(30):
        session = service.session()
        watched = Watched(level="info")
        watched.pipeline.reply_buffer.observer = session
        watched.sends("AUTH PLAIN AGEAYg==")
        watched.says("535 no")
    assert service.events().count("auth_refused") == 2 * BURST_S
    service.passes(0)
    assert [line["lines"] for line in service.lines()] == [20]


def test_events_below_the_level_are_not_counted(service: Service) -> None:
    service.start(per_session=1, per_address=1, level="warning")
    session = service.session()
    for _ in range(100):
        session.slowed()
    session.noted("tls_failed", side="client", reason="gone")
    assert service.events() == ["tls_failed"]
    assert service.limits.suppressed == 0


@pytest.mark.parametrize(("per_session", "per_address", "logged"), [(0, 20, 100), (10, 0, 50)])
def test_0_is_no_limit(service: Service, per_session: int, per_address: int, logged: int) -> None:
    service.start(per_session=per_session, per_address=per_address)
    session = service.session()
    for _ in range(1000):
        session.slowed()
    assert len(service.lines()) == logged


def test_the_lines_of_exchanges_are_limited_on_their_own(service: Service) -> None:
    service.start(per_session=10, per_address=20, level="debug")
    debug_log = DebugLog(service.limits)
    session = debug_log.session("s-1", "smtp", "old", "192.0.2.1:25")
    service.log = ServiceLog(service.make_limits(10, 20, "debug"))
    watched = Watched(level="debug")
    watched.pipeline.reply_buffer.observer = session
    for _ in range(200):
        watched.sends("NOOP")
        watched.says("250 ok")
    assert service.events() == ["exchange"] * 50
    service.session().slowed()
    assert service.events() == ["client_slowed"]
    for _ in range(200):
        session.stalled()
    assert service.events() == []
    service.passes(1)
    assert [line["lines"] for line in service.lines()] == [350]


def test_ever_new_addresses_take_no_more_memory(service: Service) -> None:
    service.start(per_session=1, per_address=1)
    for number in range(3 * line_limits.ADDRESSES):
        service.session(f"{number}.1:25").slowed()
    assert len(service.limits._full_again) == line_limits.ADDRESSES
    service.lines()
    for number in range(3 * line_limits.REPORTED):
        session = service.session(f"a{number}.1:25")
        for _ in range(10):
            session.slowed()
    service.lines()
    service.passes(1)
    reports = service.lines()
    assert len(reports) == line_limits.REPORTED
    assert sum(line["lines"] for line in reports) == 3 * line_limits.REPORTED * 5


def test_clients_of_unix_sockets_are_one(service: Service) -> None:
    service.start(per_session=10, per_address=20)
    for _ in range(10):
        session = service.session("unix")
        for _ in range(50):
            session.slowed()
    assert len(service.lines()) == 100
    service.passes(1)
    (line,) = service.lines()
    assert (line["client_ip"], line["lines"]) == (None, 400)
