"""Metrics: what a worker counts.  Plain integers here, names and labels when they are asked for.

hot path: measure before changing (python -m tests.bench.trace).
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import ConnectionEnds, Endpoint, SessionSummary
from smtpproxy.core.violations import LIMITS, BackendViolation
from smtpproxy.metrics.definitions import with_labels
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram of reply times."""
GROUPS = (1, 2, 3, 5, 10, 20, 50, 100, 500)
"""Upper bounds of the histogram of group sizes."""
_NAMELESS = {
    verbs.GREETING: b"greeting",
    verbs.AUTH: b"auth_line",
    verbs.UNSOLICITED: b"unasked",
}
_NO_COMMANDS = (b"greeting", b"unasked")


class Histogram:
    """Counts by upper bound; the last count is of what is above all of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[Number, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: Number = 0

    def add(self, value: Number) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def put_into(self, snapshot: MetricsSnapshot, name: str, labels: dict[str, str]) -> None:
        """Put it into a snapshot, cumulative as Prometheus has it."""
        count = 0
        for bound, number in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            count += number
            buckets = with_labels({**labels, "le": str(bound)})
            snapshot.counts[f"{name}_bucket{buckets}"] = count
        snapshot.counts[f"{name}_sum{with_labels(labels)}"] = self.total
        snapshot.counts[f"{name}_count{with_labels(labels)}"] = count


class MetricCounters:
    """Counts for all sessions of a worker."""

    def __init__(self) -> None:
        self.commands: dict[bytes, list[int]] = {}
        self.seconds: dict[bytes, Histogram] = {}
        self.groups = Histogram(GROUPS)
        self.messages = {"relayed": 0, "refused": 0, "abandoned": 0}
        self.limits = dict.fromkeys(LIMITS.values(), 0)
        self.violations: dict[tuple[str, str], int] = {}
        self.ended: dict[str, int] = {}
        self.sessions = self.held = self.stalls = self.pipelined = 0
        self.from_client = self.from_backend = self.content = 0
        self.to_client = self.to_backend = 0

    def session(
        self,
        session: str,  # noqa: ARG002
        listener: str,  # noqa: ARG002
        backend: str,  # noqa: ARG002
        client: str,  # noqa: ARG002
    ) -> "SessionCounters":
        """Begin to count for a session."""
        self.sessions += 1
        return SessionCounters(self)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Count nothing: the supervisor knows which servers are up."""

    def put_into(self, snapshot: MetricsSnapshot) -> None:
        """Put all numbers into a snapshot."""
        put = snapshot.put
        put("sessions_opened", self.sessions)
        put("pipelined_commands", self.pipelined)
        put("round_trips_saved", self.pipelined)
        put("held_replies", self.held)
        put("client_stalls", self.stalls)
        put("content_bytes", self.content)
        put("bytes", self.from_client, "client", "in")
        put("bytes", self.to_client, "client", "out")
        put("bytes", self.from_backend, "backend", "in")
        put("bytes", self.to_backend, "backend", "out")
        self._put_commands(snapshot)
        for outcome, number in self.messages.items():
            put("messages", number, outcome)
        for reason, number in self.ended.items():
            put("sessions_closed", number, reason)
        for limit, number in self.limits.items():
            put("limits_reached", number, limit)
        for (peer, kind), number in self.violations.items():
            put("violations", number, peer, kind)
        self.groups.put_into(snapshot, "pipeline_group_size", {})

    def _put_commands(self, snapshot: MetricsSnapshot) -> None:
        for verb, row in self.commands.items():
            if verb in _NO_COMMANDS:
                continue
            for reply, number in enumerate(row):
                if number:
                    code_class = f"{reply}xx" if reply else "none"
                    snapshot.put("commands", number, _name(verb), code_class)
        for verb, histogram in self.seconds.items():
            if any(histogram.counts):
                histogram.put_into(snapshot, "backend_reply_seconds", {"verb": _name(verb)})


class SessionCounters:
    """Counts for one session."""

    __slots__ = ("_group", "_metrics")

    content = None

    def __init__(self, metrics: MetricCounters) -> None:
        self._metrics = metrics
        self._group = 0

    def connected(
        self, server: str, source: Endpoint | None, ends: Callable[[], ConnectionEnds]
    ) -> None:
        """Count nothing."""

    def gave_up(self, server: str, reason: str) -> None:
        """Count nothing."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """Count exchanges."""
        metrics = self._metrics
        rows, seconds = metrics.commands, metrics.seconds
        metrics.held += len(exchanges) - 1
        for exchange in exchanges:
            name = exchange.verb.name or _NAMELESS.get(exchange.verb.role, b"other")
            row = rows.get(name)
            if row is None:
                row = rows[name] = [0] * 6
                seconds[name] = Histogram(SECONDS)
            row[exchange.code // 100] += 1
            metrics.to_client += len(exchange.reply)
            if exchange.sent:
                metrics.to_backend += len(exchange.line)
                if exchange.replied:
                    seconds[name].add(exchange.replied - exchange.sent)
            if exchange.pipelined:
                metrics.pipelined += 1
                self._group += 1
            elif exchange.verb.role == verbs.GREETING:
                if exchange.replied:
                    seconds[name].add(exchange.replied - exchange.framed)
            else:
                if self._group:
                    metrics.groups.add(self._group)
                self._group = 1
            if exchange.problem is not None or exchange.octets:
                self._count_uncommon(exchange)

    def _count_uncommon(self, exchange: Exchange) -> None:
        metrics = self._metrics
        metrics.content += exchange.octets
        if exchange.sent:
            end = len(b".\r\n") if exchange.verb.role == verbs.END_OF_DATA else 0
            metrics.to_backend += exchange.octets + end
        if exchange.problem is None:
            return
        limit = LIMITS.get(exchange.problem.kind)
        if limit is not None:
            self._metrics.limits[limit] += 1
        else:
            peer = "backend" if isinstance(exchange.problem, BackendViolation) else "client"
            key = (peer, exchange.problem.kind)
            metrics.violations[key] = metrics.violations.get(key, 0) + 1

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:  # noqa: ARG002
        """Count a message."""
        self._metrics.messages[outcome.removeprefix("message_")] += 1

    def noted(self, event: str, **values: str) -> None:
        """Count nothing."""

    def broken(self, error: Exception) -> None:
        """Count nothing: the end of the session does."""

    def slowed(self) -> None:
        """Count nothing: pacing itself counts."""

    def stalled(self) -> None:
        """Count that the client is not read for now."""
        self._metrics.stalls += 1

    def closed(self, summary: SessionSummary) -> None:
        """Count the end of the session."""
        metrics = self._metrics
        if self._group:
            metrics.groups.add(self._group)
        metrics.ended[summary.reason] = metrics.ended.get(summary.reason, 0) + 1
        metrics.from_client += summary.client_octets
        metrics.from_backend += summary.backend_octets


def _name(verb: bytes) -> str:
    return "end_of_data" if verb == b"." else verb.decode()
