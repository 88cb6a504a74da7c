"""Line limits: how many log lines a second the sessions of one client may make.

A token bucket for each session and one for each address, so that a burst is logged whole: of each
only the time is kept at which it is full again.  What is over is left out and counted, and the
count is logged once a second.  What an audit counts is never left out: the acknowledgement of a
message, and a login that was refused.

hot path: measure before changing (bench core, S1: a line for each session).
"""

from collections.abc import Callable
from time import monotonic

from structlog.typing import FilteringBoundLogger

from smtpproxy.log import events

BURST_S = 5.0
"""So many seconds' worth of lines may come at once."""
REPORT_EVERY_S = 1.0
"""How often it is logged how many lines were left out."""
ADDRESSES = 4096
"""Of so many addresses the buckets are kept; those that logged last."""
REPORTED = 64
"""For so many addresses a second there is a line of its own; the others share one."""
NEVER_LEFT_OUT = frozenset((events.MESSAGE_RELAYED.name, events.AUTH_REFUSED.name))
_LONGEST = BURST_S + 1e-6  # sums of intervals are rounded
_LEVELS = ("debug", "info", "warning", "error")


class LineLimits:
    """For all sessions of a worker.

    Args:
        per_session: Lines of a session in a second; 0 is no limit.
        per_address: The same of all sessions of an address.
        level: The least level that is logged; other events count for nothing.
        address_of: Returns what an IP address counts as, as limits count it.
        later: Calls what it is given after so many seconds.
        logger: Takes the lines with the number of those that were left out.
    """

    suppressed: int
    """How many lines were left out."""

    def __init__(
        self,
        per_session: int,
        per_address: int,
        level: str,
        address_of: Callable[[str], bytes],
        later: Callable[[float, Callable[[], None]], object],
        logger: FilteringBoundLogger,
    ) -> None:
        self.session_interval = 1 / per_session if per_session else 0.0
        self._address_interval = 1 / per_address if per_address else 0.0
        self.levels = frozenset(_LEVELS[_LEVELS.index(level) :])
        self.address_of = address_of
        self._later = later
        self._log = logger
        self._full_again: dict[bytes, float] = {}  # by address; the one that logged last, last
        self._left_out: dict[bytes, tuple[str, int]] = {}  # a client's IP address, and lines
        self.suppressed = 0

    def session(self, client_ip: str | None) -> "SessionLineLimit":
        """Return the limit of a session."""
        return SessionLineLimit(self, client_ip or "")

    def take(self, address: bytes, now: float) -> bool:
        """Count a line of an address; return whether it may be logged."""
        full_again = max(self._full_again.pop(address, now), now)
        allowed = full_again + self._address_interval <= now + _LONGEST
        self._full_again[address] = full_again + self._address_interval if allowed else full_again
        if len(self._full_again) > ADDRESSES:
            del self._full_again[next(iter(self._full_again))]
        return allowed

    def leave_out(self, client_ip: str, address: bytes) -> None:
        """Count a line that is not logged."""
        self.suppressed += 1
        if not self._left_out:
            self._later(REPORT_EVERY_S, self.report)
        if address not in self._left_out and len(self._left_out) >= REPORTED:
            address = next(iter(self._left_out))
        _, lines = self._left_out.get(address, ("", 0))
        self._left_out[address] = client_ip, lines + 1

    def report(self) -> None:
        """Log how many lines were left out since the last report."""
        left_out, self._left_out = self._left_out, {}
        for client_ip, lines in left_out.values():
            events.LOG_LINES_SUPPRESSED.log(self._log, client_ip=client_ip or None, lines=lines)


class SessionLineLimit:
    """Of one session."""

    __slots__ = ("_address", "_client_ip", "_full_again", "_limits")

    def __init__(self, limits: LineLimits, client_ip: str) -> None:
        self._limits = limits
        self._client_ip = client_ip
        self._address: bytes | None = None  # looked up when the first line comes
        self._full_again = 0.0

    def allows(self, event: events.Event, level: str) -> bool:
        """Count a line; return whether it may be logged."""
        limits = self._limits
        if event.name in NEVER_LEFT_OUT or level not in limits.levels:
            return True
        if self._address is None:
            self._address = limits.address_of(self._client_ip)
        now = monotonic()
        full_again = max(self._full_again, now) + limits.session_interval
        if full_again > now + _LONGEST or not limits.take(self._address, now):
            limits.leave_out(self._client_ip, self._address)
            return False
        self._full_again = full_again
        return True
