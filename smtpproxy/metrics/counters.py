"""What a worker counts of its sessions: plain integers, which get names and labels in a snapshot.

Hot path: measure before changing (python -m tests.bench.trace).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import SessionEnds, SessionSummary
from smtpproxy.core.violations import LIMITS, BackendViolation
from smtpproxy.metrics import definitions
from smtpproxy.metrics.definitions import Definition
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number

_NAMELESS = {role: name.encode() for role, name in verbs.NAMES_OF_ROLES.items()}
_NO_COMMANDS = (b"greeting", b"unsolicited")


class Histogram:
    """Counts values by upper bound."""

    __slots__ = ("_metric", "counts", "total")

    counts: list[int]
    """How many values lie between two bounds; the last: above all bounds."""
    total: Number
    """The sum of all values."""

    def __init__(self, metric: Definition) -> None:
        self._metric = metric
        self.counts = [0] * (len(metric.bounds) + 1)
        self.total = 0

    def add(self, value: Number) -> None:
        """Count a value."""
        self.counts[bisect_left(self._metric.bounds, value)] += 1
        self.total += value

    def put_into(self, snapshot: MetricsSnapshot, *labels: str) -> None:
        """Put the numbers into a snapshot."""
        snapshot.put_histogram(self._metric, self.counts, self.total, *labels)


class MetricCounters:
    """Counts for all sessions of a worker.

    Args:
        listeners: The name of each listener and of its backend, so that their metrics are there
            from the start.
    """

    def __init__(self, listeners: Iterable[tuple[str, str]] = ()) -> None:
        self._counters: dict[tuple[str, str], ListenerCounters] = {}
        for listener, backend in listeners:
            self._of(listener, backend)

    def _of(self, listener: str, backend: str) -> "ListenerCounters":
        key = listener, backend
        found = self._counters.get(key)
        if found is None:
            found = self._counters[key] = ListenerCounters(listener, backend)
        return found

    def session(
        self,
        session: str,  # noqa: ARG002
        listener: str,
        backend: str,
        client: str,  # noqa: ARG002
    ) -> "SessionCounters":
        """Begin to count for a session."""
        return SessionCounters(self._of(listener, backend))

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Count nothing: the supervisor knows which servers are up."""

    def put_into(self, snapshot: MetricsSnapshot) -> None:
        """Put all numbers into a snapshot."""
        for each in self._counters.values():
            each.put_into(snapshot)


class ListenerCounters:
    """Counts for the sessions of one listener, whose names are labels of all these metrics."""

    def __init__(self, listener: str, backend: str) -> None:
        self._labels = listener, backend
        self.commands: dict[bytes, list[int]] = {}
        """By verb: the number of commands by the first digit of their reply; 0 for no reply."""
        self.seconds: dict[bytes, Histogram] = {}
        """By verb: how long the backend took to reply."""
        self.groups = Histogram(definitions.PIPELINE_GROUP_SIZE)
        self.connect_seconds = Histogram(definitions.BACKEND_CONNECT_SECONDS)
        self.given_up = 0
        self.handshakes: dict[tuple[str, str, str], int] = {}
        """By side, TLS version and result."""
        self.faults: dict[str, int] = {}
        """By the rule."""
        self.messages = {"relayed": 0, "refused": 0, "abandoned": 0}
        self.limits = dict.fromkeys(LIMITS.values(), 0)
        self.violations: dict[tuple[str, str], int] = {}
        """By side and kind."""
        self.closed: dict[str, int] = {}
        """By reason."""
        self.opened = self.open = self.probes = self.slowed = self.stalls = self.held = (
            self.pipelined
        ) = 0
        self.from_client = self.from_backend = self.content = 0
        self.to_client = self.to_backend = 0

    def put_into(self, snapshot: MetricsSnapshot) -> None:
        """Put all numbers into a snapshot."""
        put, labels = snapshot.put, self._labels
        put(definitions.SESSIONS, self.open, *labels)
        put(definitions.SESSIONS_OPENED, self.opened, *labels)
        put(definitions.PROBES, self.probes, *labels)
        put(definitions.CLIENTS_SLOWED, self.slowed, *labels)
        put(definitions.PIPELINED_COMMANDS, self.pipelined, *labels)
        put(definitions.ROUND_TRIPS_SAVED, self.pipelined, *labels)
        put(definitions.HELD_REPLIES, self.held, *labels)
        put(definitions.CLIENT_STALLS, self.stalls, *labels)
        put(definitions.CONTENT_BYTES, self.content, *labels)
        put(definitions.BYTES, self.from_client, *labels, "client", "in")
        put(definitions.BYTES, self.to_client, *labels, "client", "out")
        put(definitions.BYTES, self.from_backend, *labels, "backend", "in")
        put(definitions.BYTES, self.to_backend, *labels, "backend", "out")
        self._put_commands(snapshot)
        put(definitions.BACKEND_CONNECTS, sum(self.connect_seconds.counts), *labels, "ok")
        put(definitions.BACKEND_CONNECTS, self.given_up, *labels, "given_up")
        self.connect_seconds.put_into(snapshot, *labels)
        put(definitions.AUTH_REFUSALS, self._auth_refusals, *labels)
        for (side, version, result), number in self.handshakes.items():
            put(definitions.TLS_HANDSHAKES, number, *labels, side, version, result)
        for fault, number in self.faults.items():
            put(definitions.FAULTS_INJECTED, number, *labels, fault)
        for outcome, number in self.messages.items():
            put(definitions.MESSAGES, number, *labels, outcome)
        for reason, number in self.closed.items():
            put(definitions.SESSIONS_CLOSED, number, *labels, reason)
        for limit, number in self.limits.items():
            put(definitions.LIMITS_REACHED, number, *labels, limit)
        for (side, kind), number in self.violations.items():
            put(definitions.VIOLATIONS, number, *labels, side, kind)
        self.groups.put_into(snapshot, *labels)

    @property
    def _auth_refusals(self) -> int:
        rows = self.commands.get(b"AUTH"), self.commands.get(_NAMELESS[verbs.AUTH])
        return sum(row[4] + row[5] for row in rows if row is not None)

    def _put_commands(self, snapshot: MetricsSnapshot) -> None:
        for verb, row in self.commands.items():
            if verb in _NO_COMMANDS:
                continue
            for reply, number in enumerate(row):
                if number:
                    code_class = f"{reply}xx" if reply else "none"
                    labels = *self._labels, _name(verb), code_class
                    snapshot.put(definitions.COMMANDS, number, *labels)
        for verb, histogram in self.seconds.items():
            if any(histogram.counts):
                histogram.put_into(snapshot, *self._labels, _name(verb))


class SessionCounters:
    """Counts for one session."""

    __slots__ = ("_began", "_counters", "_group")

    content = None

    def __init__(self, counters: ListenerCounters) -> None:
        self._counters = counters
        self._group = 0
        self._began = monotonic()
        counters.opened += 1
        counters.open += 1

    def connected(self, server: str, ends: SessionEnds) -> None:  # noqa: ARG002
        """Count the connection, and how long it took."""
        self._counters.connect_seconds.add(monotonic() - self._began)

    def gave_up(self, server: str, reason: str) -> None:  # noqa: ARG002
        """Count a server that was given up."""
        self._counters.given_up += 1

    def settled(self, exchanges: list[Exchange]) -> None:
        """Count exchanges."""
        counters = self._counters
        rows, seconds = counters.commands, counters.seconds
        counters.held += len(exchanges) - 1
        for exchange in exchanges:
            name = exchange.verb.name or _NAMELESS.get(exchange.verb.role, b"other")
            row = rows.get(name)
            if row is None:
                row = rows[name] = [0] * 6
                seconds[name] = Histogram(definitions.BACKEND_REPLY_SECONDS)
            row[exchange.code // 100] += 1
            counters.to_client += len(exchange.reply)
            if exchange.sent:
                counters.to_backend += len(exchange.line)
                if exchange.replied:
                    seconds[name].add(exchange.replied - exchange.sent)
            if exchange.pipelined:
                counters.pipelined += 1
                self._group += 1
            elif exchange.verb.role == verbs.GREETING:
                if exchange.replied:
                    seconds[name].add(exchange.replied - exchange.framed)
            else:
                if self._group:
                    counters.groups.add(self._group)
                self._group = 1
            if exchange.problem is not None or exchange.octets:
                self._count_uncommon(exchange)

    def _count_uncommon(self, exchange: Exchange) -> None:
        counters = self._counters
        counters.content += exchange.octets
        if exchange.sent or (exchange.is_content_chunk and exchange.code < 300):
            end = len(b".\r\n") if exchange.verb.role == verbs.END_OF_DATA else 0
            counters.to_backend += exchange.octets + end
        if exchange.problem is None:
            return
        limit = LIMITS.get(exchange.problem.kind)
        if limit is not None:
            self._counters.limits[limit] += 1
        else:
            side = "backend" if isinstance(exchange.problem, BackendViolation) else "client"
            key = (side, exchange.problem.kind)
            counters.violations[key] = counters.violations.get(key, 0) + 1

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:  # noqa: ARG002
        """Count a message."""
        self._counters.messages[outcome.removeprefix("message_")] += 1

    def noted(self, event: str, **values: str) -> None:
        """Count TLS handshakes and faults."""
        if event == "fault_injected":
            faults, fault = self._counters.faults, values["fault"]
            faults[fault] = faults.get(fault, 0) + 1
        elif event == "tls_started":
            self._count_handshake(values["side"], values["version"], "ok")
        elif event == "tls_failed":
            self._count_handshake(values["side"], "none", "failed")
        elif event == "client_turned_away" and values["kind"] == "client_tls_failed":
            self._count_handshake("client", "none", "failed")

    def _count_handshake(self, side: str, version: str, result: str) -> None:
        handshakes, key = self._counters.handshakes, (side, version, result)
        handshakes[key] = handshakes.get(key, 0) + 1

    def broken(self, error: Exception) -> None:
        """Count nothing: the end of the session does."""

    def slowed(self) -> None:
        """Count that the client is read more slowly."""
        self._counters.slowed += 1

    def stalled(self) -> None:
        """Count that the client is not read for now."""
        self._counters.stalls += 1

    def closed(self, summary: SessionSummary) -> None:
        """Count the end of the session."""
        counters = self._counters
        if self._group:
            counters.groups.add(self._group)
        counters.open -= 1
        counters.closed[summary.reason] = counters.closed.get(summary.reason, 0) + 1
        counters.probes += summary.probe
        counters.from_client += summary.client_octets
        counters.from_backend += summary.backend_octets


def _name(verb: bytes) -> str:
    return "end_of_data" if verb == b"." else verb.decode()
