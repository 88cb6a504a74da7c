"""The cost of untrusted input: the longest loop iteration, and the bytes that are made of it.

Each event, record and sample is driven with the largest and the most expensive input.  A turn is
what runs without a pause: one read from a peer, one end of a session, one call of a timer.  Its
time is CPU time of the loop's thread, so that a busy machine does not matter.
"""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from time import thread_time

import msgspec
import pytest
import structlog

from smtpproxy.admin.recent_sessions import RecentSessions
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import log
from smtpproxy.log.debug_log import DebugLog
from smtpproxy.metrics.counters import MetricCounters
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.observed_session import Watched

TURN_S = 0.05
CALIBRATED_S = 0.02
"""The time of `slowness` on an idle machine of 2020."""
ATTEMPTS = 3
"""How often the same is driven if a turn took too long: a host that stalls does so once."""
MADE = 1.5
"""The limit of bytes made for each byte received, by observer."""
SMALL_BYTES = 600
"""The bytes of a line or record besides text from peers, which do not count."""
READ_BYTES = 64 * 1024
"""What one read from a client brings, at most a little more."""
OCTETS = ["\x7f", "\x01", "\\", '"', "\u202e", "\x80", "\x7f.", "x"]


def slowness() -> float:
    """Return how many times slower than expected this machine is at present; at least 1."""
    began = thread_time()
    for number in range(200_000):
        str(number)
    return max(1.0, (thread_time() - began) / CALIBRATED_S)


class Loop:
    """Measures loop iterations: calls of `run`, and later callbacks."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._calls: list[Callable[[], None]] = []

    def call_later(self, _: float, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def later(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def run(self, turn: Callable[[], object]) -> None:
        """Run a turn."""
        began = thread_time()
        turn()
        self.longest = max(self.longest, thread_time() - began)

    def run_all(self) -> None:
        while self._calls:
            self.run(self._calls.pop(0))


class Service:
    """All observers, with their output in a directory.

    received: how many bytes came from peers.
    wanted: events that are to be in the log at the end.
    """

    def __init__(self, directory: Path, *, only_errors: bool) -> None:
        self.loop = Loop()
        self.directory = directory
        directory.mkdir(exist_ok=True)
        files = RotatingFiles(directory / "trace", 0, 1 << 30, 3)
        self.trace = TraceRecorder(
            files, self.loop.later, only_errors=only_errors, kept=CaptureMode.FULL, most=1 << 20
        )
        self.recent = RecentSessions()
        self.recent.look()
        self.metrics = MetricCounters()
        self.received = 0
        self.wanted: set[str] = set()
        self.log = (directory / "log").open("wb", 0)
        log.configure("debug", "json", self.log)
        log.gather(self.loop.call_later)

    def session(self) -> "Driven":
        return Driven(self)

    def finish(self) -> None:
        """Write everything, and check the limits of what is made."""
        self.loop.run_all()
        self.loop.run(lambda: msgspec.json.encode(self._snapshot()))
        page = len(msgspec.json.encode(self.recent.changed()))
        log.gather(None)
        self.log.close()
        self.trace.close()
        lines = (self.directory / "log").read_bytes().splitlines()
        events = {json.loads(line)["event"] for line in lines}
        assert events >= self.wanted | {"exchange"}
        assert max(map(len, lines), default=0) < log.LINE_BYTES
        traced = [
            line
            for path in (self.directory / "trace").glob("*")
            for line in path.read_bytes().splitlines()
        ]
        for made in (lines, traced):
            size = sum(max(0, len(line) - SMALL_BYTES) for line in made)
            assert size < MADE * self.received
        assert page < MADE * self.received + 50_000
        assert self.trace.lost == 0

    def _snapshot(self) -> MetricsSnapshot:
        snapshot = MetricsSnapshot()
        self.metrics.put_into(snapshot)
        snapshot.lists["sessions"] = self.recent.changed()
        return snapshot


class Driven:
    """One session; each read from a peer is one iteration."""

    def __init__(self, service: Service) -> None:
        self._service = service
        policy = SessionPolicy(consecutive_errors=0, recipients=1000)
        self.session = Watched(
            DebugLog(),
            service.trace,
            service.recent,
            service.metrics,
            level="debug",
            policy=policy,
            log_to=service.log,
        )

    def sends(self, octets: bytes) -> None:
        self._service.received += len(octets)
        for at in range(0, len(octets), READ_BYTES):
            part = octets[at : at + READ_BYTES]
            self._turn(lambda part=part: self.session.pipeline.client_received(part, 20.0))

    def says(self, octets: bytes) -> None:
        self._service.received += len(octets)
        self._turn(lambda: self.session.pipeline.backend_received(octets, 21.0))

    def close(self) -> None:
        self.session.close()

    def _turn(self, turn: Callable[[], object]) -> None:
        self._service.loop.run(turn)
        self.session.got.clear()
        self.session.backend.clear()


@pytest.fixture(
    params=[pytest.param(False, id="all"), pytest.param(True, id="errors", marks=pytest.mark.long)]
)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path, only_errors=request.param)
    inputs = {
        name: given for name, given in request.node.callspec.params.items() if name != "service"
    }
    gc.disable()  # it looks at all objects of the tests; a worker freezes its own
    try:
        yield made
        made.finish()
        for attempt in range(1, ATTEMPTS):
            if made.loop.longest < TURN_S:
                break
            made = Service(tmp_path / str(attempt), only_errors=request.param)
            request.function(made, **inputs)
            made.finish()
        assert made.loop.longest < TURN_S or made.loop.longest < TURN_S * slowness()
    finally:
        gc.enable()
        log.gather(None)
        structlog.reset_defaults()


def text_of(octets: str, size: int) -> bytes:
    encoded = octets.encode("latin-1" if octets == "\x80" else "utf-8")
    return encoded * (size // len(encoded))


@pytest.mark.parametrize("octets", OCTETS)
@pytest.mark.parametrize("reply", [b"250 ok\r\n", b"450 no\r\n"])
def test_recipients(service: Service, octets: str, reply: bytes) -> None:
    _give_recipients(service, octets, reply, 200)


@pytest.mark.parametrize("octets", ["\x7f", "\u202e"])
def test_as_many_recipients_as_are_allowed(service: Service, octets: str) -> None:
    _give_recipients(service, octets, b"250 ok\r\n", 1000)


def _give_recipients(service: Service, octets: str, reply: bytes, number: int) -> None:
    driven = service.session()
    address = text_of(octets, 2000)
    driven.sends(b"MAIL FROM:<%s>\r\n" % address)
    driven.says(reply)
    for _ in range(number // 100):
        driven.sends(b"RCPT TO:<%s>\r\n" % address * 100)
        for _ in range(100):
            driven.says(reply)
    driven.sends(b"RSET\r\n")
    driven.says(b"250 ok\r\n")
    service.loop.run(driven.close)


@pytest.mark.parametrize("octets", OCTETS)
def test_replies(service: Service, octets: str) -> None:
    driven = service.session()
    lines = b"550-%s\r\n" % text_of(octets, 4000) * 15 + b"550 %s\r\n" % text_of(octets, 2000)
    for command in (b"EHLO x\r\n", b"MAIL FROM:<a@x>\r\n", b"NOOP\r\n", b"VRFY x\r\n") * 5:
        driven.sends(command)
        driven.says(lines)
    service.loop.run(driven.close)


def test_capabilities(service: Service) -> None:
    driven = service.session()
    for _ in range(20):
        driven.sends(b"EHLO x\r\n")
        words = b"".join(b"250-X%d %s\r\n" % (number, b"\x7f" * 50) for number in range(1000))
        driven.says(words + b"250 SIZE\r\n")
    service.loop.run(driven.close)


@pytest.mark.parametrize("octets", [*OCTETS, "\r\n", "a\n", "\x00", "\r"])
def test_content(service: Service, octets: str) -> None:
    driven = service.session()
    content = text_of(octets, 1 << 20) + b"\r\n.\r\n"
    for _ in range(3):
        driven.sends(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n")
        for reply in (b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"):
            driven.says(reply)
        driven.sends(content)
        driven.says(b"550 no\r\n")
    service.loop.run(driven.close)


@pytest.mark.parametrize("octets", ["\x7f", "\\", "x"])
def test_transactions_that_end_together(service: Service, octets: str) -> None:
    """Twenty sessions in one iteration, each with an open transaction."""
    address = text_of(octets, 2000)
    sessions = [service.session() for _ in range(20)]
    for driven in sessions:
        driven.sends(b"MAIL FROM:<%s>\r\n" % address + b"RCPT TO:<%s>\r\n" % address * 100)
        for _ in range(101):
            driven.says(b"250 ok\r\n")

    def end_all() -> None:
        for driven in sessions:
            driven.close()

    service.loop.run(end_all)


def test_commands_that_are_refused(service: Service) -> None:
    driven = service.session()
    driven.sends(b"NOOP \0%s\r\n" % (b"\x7f" * 2000) * 100)
    driven.sends(b"%s\r\n" % (b"\x7f" * 2000) * 50)
    for _ in range(50):
        driven.says(b"500 %s\r\n" % (b"\x7f" * 500))
    service.loop.run(driven.close)


@pytest.mark.parametrize("octets", ["\x7f", "\\", '"', "x"])
def test_refusals(service: Service, octets: str) -> None:
    """Each event of a refusal, as often as a session can cause it."""
    driven = service.session()
    word = text_of(octets, 1900)
    dialogue = [
        b"EHLO %s\r\n" % word,
        b"HELO %s\r\n" % word,
        b"XCLIENT NAME=%s\r\n" % word,
        b"AUTH PLAIN %s\r\n" % text_of("x", 12000),
        b"MAIL FROM:<%s>\r\n" % word,
        b"VRFY %s\r\n" % (word + word),
    ]
    for _ in range(50):
        for line in dialogue:
            driven.sends(line)
            if driven.session.pipeline.in_flight:  # else the proxy has refused it
                driven.says(b"550-%s\r\n550 no\r\n" % text_of(octets, 500))
    driven.says(b"999 %s\r\n" % text_of(octets, 4000) * 16)
    service.wanted = {
        "hello_refused",
        "xclient_refused",
        "auth_refused",
        "backend_violation",
    }
