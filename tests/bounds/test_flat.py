"""Memory over many sessions, each with names that no other has: it stays flat.

$SMTPPROXY_NEW_SESSIONS sets how many; a million take 20 minutes.
"""

import gc
import os
import resource
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from smtpproxy.admin.recent_sessions import RecentSessions
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import line_limits, log
from smtpproxy.log.line_limits import LineLimits
from smtpproxy.metrics.counters import MetricCounters
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.net import admission
from smtpproxy.net.admission import Admission, AdmissionLimits
from smtpproxy.net.backend.connection_slots import SlotQueue
from smtpproxy.net.shared_counters import SharedCounters
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.recorder import TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from tests.support.memory import Allocated
from tests.support.observed_session import Watched

SESSIONS = int(os.environ.get("SMTPPROXY_NEW_SESSIONS", "1200"))
TRACED = SESSIONS < 100_000
"""Whether tracemalloc measures: exactly, at twice the time; otherwise the process's own RSS."""
WINDOWS = 6
GROWTH = 4 * 1024 if TRACED else SESSIONS // WINDOWS
"""The allowed growth in that window of sessions that grows least: by RSS, a byte a session.

If sessions leave something in memory, it grows in every window. A cache that fills up, or a dict
that is made larger, makes it grow in some windows only.
"""


class Holder:
    """A session that waits for a connection slot."""

    def slot_answered(self, *, granted: bool) -> None:
        """Process the answer."""

    def reclaim_slot(self) -> None:
        """Keep it."""


class Service:
    """What a worker keeps beyond one session."""

    def __init__(self, directory: Path) -> None:
        self.calls: list[object] = []
        files = RotatingFiles(directory, 0, 1 << 20, 2)
        self.trace = TraceRecorder(
            files, self.calls.append, only_errors=True, kept=CaptureMode.FULL, most=1 << 16
        )
        self.recent = RecentSessions()
        self.metrics = MetricCounters()
        limits = AdmissionLimits(sessions_per_address=10, new_sessions_per_minute=10)
        self.admission: Admission | None = None
        self._limits = limits
        self.line_limits = LineLimits(
            1, 1, "info", str.encode, lambda _, call: self.calls.append(call), log.get()
        )
        self.slots = SlotQueue(1, 30)
        self.slots.ask(Holder(), b"another one")

    def run_session(self, number: int) -> None:
        """Run a session with only new names: address, host, verb, sender, recipient, replies."""
        if self.admission is None:
            self._started = Watched(self.metrics)
            self.admission = Admission(self._limits, SharedCounters(), b"mx", self._started.fanout)
        host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        slots = self.admission.enter(host)
        session = Watched(
            self.trace,
            self.recent,
            self.metrics,
            client=f"{host}:{number % 60000}",
            policy=SessionPolicy(consecutive_errors=0),
            line_limits=self.line_limits,
        )
        holder = Holder()
        self.slots.ask(holder, self.admission.address_of(host))
        session.sends(f"EHLO h{number}.example")
        session.says(f"250-mx{number}\r\n250-X{number}\r\n250 SIZE {number}")
        session.sends(f"V{number} x", f"XCLIENT N{number}=1")
        session.says(f"500 5.5.{number} what")
        session.sends(f"MAIL FROM:<a{number}@x>", f"RCPT TO:<b{number}@y>", "DATA")
        session.says(f"250 a{number}", f"250 b{number}", "354 go")
        session.sends(f"text {number}\0", ".")
        session.says(f"{400 + number % 200} {number}")
        session.sends(f"\u00e9{number}", "QUIT")
        session.says(f"500 {number}", "221 bye")
        session.close("command_time_limit" if number % 2 else "quit")
        if slots is not None:
            self.admission.leave(slots)
        self.slots.leave(holder)
        self.line_limits.report()
        self.calls.clear()
        self.trace.writer.flush()

    def snapshot(self) -> MetricsSnapshot:
        """Return the worker's metrics."""
        snapshot = MetricsSnapshot()
        self.metrics.put_into(snapshot)
        return snapshot


def resident() -> int:
    """Return the bytes of the process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.long
async def test_sessions_with_new_names_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ADDRESSES_KNOWN", 128)  # full long before the last window
    monkeypatch.setattr(line_limits, "ADDRESSES", 128)
    service = Service(tmp_path)
    sizes, keys = [], []
    with Allocated() if TRACED else nullcontext() as allocated:
        for number in range(SESSIONS):
            service.run_session(number)
            if (number + 1) % (SESSIONS // WINDOWS) == 0:
                sizes.append(allocated.octets() if allocated else resident())
                keys.append(len(msgspec.json.encode(service.snapshot())))
    service.trace.close()
    assert min(after - before for before, after in pairwise(sizes)) < GROWTH, sizes
    assert keys[-1] - keys[len(keys) // 2] < 1000  # no more digits than that
    assert service.trace.memory.octets == 0
    assert (service.slots.taken, service.slots.waiting) == (1, 0)
