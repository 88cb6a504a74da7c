"""Limits the log lines that the sessions of one client may write in a second.

Each session and each client address has a token bucket, so that a burst is logged whole; for each
bucket only the time is kept at which it is full again. Lines over the limit are left out and
counted, and the count is logged once a second. Acknowledged messages are never left out, since
audits count them. Refused logins have a bucket of their own for each address, so that other lines
cannot hide them.

Hot path: measure before changing (bench core, S1: a line for each session).
"""

from collections.abc import Callable
from time import monotonic

from structlog.typing import FilteringBoundLogger

from smtpproxy.log import events

BURST_S = 5.0
"""The size of a bucket, in seconds at its rate."""
REPORT_EVERY_S = 1.0
"""How often the number of left-out lines is logged."""
ADDRESSES = 4096
"""The number of addresses whose buckets are kept, those that logged last."""
REPORTED = 64
"""The most addresses with a report line of their own in a second; the others share one."""
_OF_LOGINS = b" AUTH"
"""Added to the key of an address, for the bucket of its refused logins."""
_LONGEST = BURST_S + 1e-6  # sums of intervals are rounded
_LEVELS = ("debug", "info", "warning", "error")


class LineLimits:
    """The limits of all sessions of a worker.

    Args:
        per_session: Lines of a session in a second; 0: no limit.
        per_address: Lines of all sessions of an address in a second; 0: no limit.
        level: The lowest level that is logged.
        address_of: Returns the key under which an IP address is counted.
        later: Calls a function after some seconds.
        logger: Logs the number of lines that were left out.
    """

    levels: frozenset[str]
    """The levels that are logged; lines of others are not counted."""
    suppressed: int
    """The number of lines that were left out."""

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
    """The limit of one session."""

    __slots__ = ("_address", "_client_ip", "_full_again", "_limits")

    def __init__(self, limits: LineLimits, client_ip: str) -> None:
        self._limits = limits
        self._client_ip = client_ip
        self._address = limits.address_of(client_ip)
        self._full_again = 0.0

    def allows(self, event: events.Event) -> bool:
        """Count a line, of a level that is logged; return whether it may be logged."""
        limits = self._limits
        now = monotonic()
        if event is events.AUTH_REFUSED:
            allowed = limits.take(self._address + _OF_LOGINS, now)
        else:
            full_again = max(self._full_again, now) + limits.session_interval
            allowed = full_again <= now + _LONGEST and limits.take(self._address, now)
            if allowed:
                self._full_again = full_again
        if not allowed:
            limits.leave_out(self._client_ip, self._address)
        return allowed
