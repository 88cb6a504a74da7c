"""The composition root of a worker: makes listeners, sessions and observers from the settings."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from smtpproxy.admin.recent_sessions import RecentSessions
from smtpproxy.config.address import Address, ports_on_ipv4
from smtpproxy.config.fault_flag import NO_FAULTS, Faults, rule_of
from smtpproxy.config.schema import BackendSettings, ListenerSettings, Settings
from smtpproxy.core.capabilities import CapabilityFilter
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.fault_rules import FaultRule, intercepted
from smtpproxy.core.policy import Auth, SessionPolicy
from smtpproxy.core.verbs import Sync
from smtpproxy.log import log
from smtpproxy.log.debug_log import DebugLog
from smtpproxy.log.line_limits import LineLimits
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.metrics import definitions
from smtpproxy.metrics.counters import MetricCounters
from smtpproxy.metrics.process_usage import add_process_usage
from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.net.admission import Admission, AdmissionLimits
from smtpproxy.net.backend.connection_slots import ConnectionSlots, SlotQueue
from smtpproxy.net.backend.health_check import check
from smtpproxy.net.backend.server_pool import Server, ServerPool
from smtpproxy.net.fault_injection import FaultInjection
from smtpproxy.net.listener import Listener
from smtpproxy.net.listener_context import ListenerContext
from smtpproxy.net.shared_counters import SharedCounters
from smtpproxy.net.timeouts import SessionTimeouts
from smtpproxy.net.write_batching import WriteBatcher
from smtpproxy.trace.content_capture import CaptureMode
from smtpproxy.trace.recorder import Network, TraceRecorder
from smtpproxy.trace.rotating_files import RotatingFiles
from smtpproxy.worker import security_builder
from smtpproxy.worker.control_messages import Health
from smtpproxy.worker.observer_fanout import ObserverFanout, SessionObserverFactory
from smtpproxy.worker.watch_recorders import WatchRecorders

if TYPE_CHECKING:
    from smtpproxy.otel.span_recorder import SpanRecorder

CLOSE_LIMIT_S = 30.0
"""How long a client may take to close its side after its last reply."""
SLOT_GRACE_S = 10.0
"""How long an inactive transaction may keep a connection slot that other clients wait for."""
QUEUE_GRACE_S = 3.0
"""How long after `max_wait` a supervisor that hangs may leave a client without an answer."""
TRACE_DELAY_S = 0.1
"""How long trace records are collected before they are written."""


Changed = Callable[[str, str, bool, str], None]
"""Called with backend, server, whether it is up now, and the reason, when its health changes."""
MakeConnectionSlots = Callable[[str, BackendSettings], ConnectionSlots]
"""Makes the connection slots of a backend that has a limit of connections."""


class App:
    """The proxy on the running event loop.

    Without the first three arguments it is the only worker.

    Args:
        settings: The settings.
        changed: Reports changes of a server's health to the other workers.
        connection_slots: Makes connection slots that are shared with the other workers.
        shared_counters: The session counters shared with the other workers.
        worker: Its number, which distinguishes its trace files and its process metrics.
        faults: The faults to inject.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        changed: Changed | None = None,
        connection_slots: MakeConnectionSlots | None = None,
        shared_counters: SharedCounters | None = None,
        worker: int = 0,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self._worker = worker
        self._rules = [rule_of(flag) for flag in faults.flags]
        self._faults = FaultInjection(self._rules, faults.seed) if self._rules else None
        self._trace = _trace(settings, worker)
        self._spans = _spans(settings)
        watched = settings.admin.address != Address()
        names = [(name, listener.backend) for name, listener in settings.listeners.items()]
        self._metrics = MetricCounters(names) if watched else None
        self._recent = RecentSessions() if watched else None
        self._line_limits: list[LineLimits] = []
        observer = ObserverFanout(ServiceLog(self._limit_lines(settings)), self._watchers(settings))
        self._admission = Admission(
            _bounds(settings), shared_counters or SharedCounters(), _hostname(settings), observer
        )
        self._timeouts = SessionTimeouts(_limits(settings), settings.timeouts.reply_hold)
        self._write_batcher = WriteBatcher()
        self._observer = observer
        self.watches = WatchRecorders(settings.trace, _networks(settings), observer, _later)
        """The watches of `smtpproxy trace watch`."""
        self._servers = {
            name: _servers(settings, name, changed or observer.server_changed, worker)
            for name, backend in settings.backends.items()
        }
        make_connection_slots = connection_slots or (
            lambda _, backend: SlotQueue(backend.max_connections, backend.max_wait)
        )
        self._connection_slots = {
            name: make_connection_slots(name, backend) if backend.max_connections else None
            for name, backend in settings.backends.items()
        }
        on_ipv4 = ports_on_ipv4(each.address for each in settings.listeners.values())
        self._listeners = [
            Listener(
                listener.address,
                self._listener_context(settings, name, listener),
                transparent=listener.transparent,
                with_ipv4=listener.address.port not in on_ipv4,
                fast_open=listener.early_pipelining,
            )
            for name, listener in settings.listeners.items()
        ]

    def _listener_context(
        self, settings: Settings, name: str, listener: ListenerSettings
    ) -> ListenerContext:
        backend = settings.backends[listener.backend]
        return ListenerContext(
            name=name,
            backend=listener.backend,
            policy=_policy(settings, listener, backend, self._rules),
            servers=self._servers[listener.backend],
            timeouts=self._timeouts,
            write_batcher=self._write_batcher,
            observer=self._observer,
            connection_slots=self._connection_slots[listener.backend],
            admission=self._admission,
            commands_per_second=settings.limits.commands_per_second,
            security=security_builder.listener_security(
                settings,
                listener,
                backend,
                lambda: _policy(settings, listener, backend, self._rules, trusted=True),
            ),
            faults=self._faults,
        )

    def _watchers(self, settings: Settings) -> list[SessionObserverFactory]:
        """Return the observers besides the log; those that are off are left out."""
        found: list[SessionObserverFactory] = []
        if settings.log.level == "debug":
            found.append(DebugLog(self._limit_lines(settings)))
        others = (self._trace, self._spans, self._metrics, self._recent)
        found += [each for each in others if each is not None]
        return found

    def _limit_lines(self, settings: Settings) -> LineLimits | None:
        """Return what limits the log lines of a client, if anything does."""
        wanted = settings.log
        if not (wanted.session_lines_per_second or wanted.address_lines_per_second):
            return None
        limits = LineLimits(
            wanted.session_lines_per_second,
            wanted.address_lines_per_second,
            wanted.level,
            lambda host: self._admission.address_of(host),
            lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call),
            log.get(),
        )
        self._line_limits.append(limits)
        return limits

    @property
    def addresses(self) -> list[str]:
        """The addresses of the listeners, with their actual ports."""
        return [address for listener in self._listeners for address in listener.addresses]

    async def start(self, sockets: list[list[socket.socket]] | None = None) -> None:
        """Start accepting clients.

        Args:
            sockets: The listening sockets of each listener, which the caller keeps; None to open
                new ones.

        Raises:
            OSError: A socket cannot be opened; the others are closed then.
        """
        self._admission.start(self._listeners)
        for index, listener in enumerate(self._listeners):
            try:
                await listener.open(sockets[index] if sockets else None)
            except OSError:
                self.close()
                raise

    def learn(self, health: Health) -> None:
        """Process the report of another worker that a server went down or came up."""
        if health.backend in self._servers:
            servers = self._servers[health.backend]
            servers.learn(health.server, up=health.up, alone_s=health.alone_s)

    def snapshot(self) -> MetricsSnapshot:
        """Return the metrics and sessions of this worker; see `smtpproxy.metrics.snapshot`."""
        snapshot = MetricsSnapshot()
        for reason, count in self._admission.refused.items():
            snapshot.put(definitions.CLIENTS_REFUSED, count, reason)
        if self._metrics is not None and self._recent is not None:
            self._metrics.put_into(snapshot)
            snapshot.lists["sessions"] = self._recent.changed()
            snapshot.lists["open_sessions"] = self._recent.open()
            add_process_usage(snapshot, self._worker, self._admission.lag)
            snapshot.put(definitions.LOG_LINES_LOST, log.lost())
            suppressed = sum(limits.suppressed for limits in self._line_limits)
            snapshot.put(definitions.LOG_LINES_SUPPRESSED, suppressed)
        if self._trace is not None:
            snapshot.put(definitions.TRACE_RECORDS_LOST, self._trace.lost)
        if self._spans is not None:
            snapshot.put(definitions.OTEL_SPANS_LOST, self._spans.lost)
        return snapshot

    def look(self, full: bool) -> None:
        """Include sessions in the snapshots for a while, since the live page is open.

        Args:
            full: Whether to include all sessions once, not only those that changed.
        """
        if self._recent is not None:
            self._recent.look(full=full)

    def close(self) -> None:
        """Stop accepting clients."""
        for listener in self._listeners:
            listener.close()

    def drain(self) -> None:
        """Stop accepting clients, and end each session with 421 when its transaction ends."""
        self.close()
        self._timeouts.drain()

    async def wait_until_empty(self, seconds: float | None = None) -> None:
        """Wait until no session is left, at most `seconds` if given."""
        await self._timeouts.wait_until_empty(seconds)

    async def stop(self) -> None:
        """Close all listeners and sessions at once."""
        self.close()
        self._admission.stop()
        for servers in self._servers.values():
            servers.stop()
        self._timeouts.stop()
        await self._timeouts.wait_until_empty(1.0)
        if self._trace is not None:
            self._trace.close()
        if self._spans is not None:
            self._spans.close()
        self.watches.close()
        for limits in self._line_limits:
            limits.report()


def _servers(settings: Settings, name: str, changed: Changed, worker: int) -> ServerPool:
    backend = settings.backends[name]
    backend_transport = security_builder.backend_transport(settings, backend)
    servers = [Server(address, backend_transport) for address in backend.servers]
    least = backend.balance == "least"
    if least:  # so that the workers do not all start with the same server
        begin = worker % len(servers)
        servers = servers[begin:] + servers[:begin]
    return ServerPool(
        servers,
        backend.retry_after,
        least=least,
        changed=partial(changed, name),
        check=partial(check, hostname=settings.hostname),
    )


def _trace(settings: Settings, worker: int) -> TraceRecorder | None:
    """Return the trace recorder; None if tracing is off."""
    wanted = settings.trace
    if not wanted.directory or wanted.when == "off":
        return None
    return TraceRecorder(
        RotatingFiles(Path(wanted.directory), worker, wanted.max_file, wanted.max_files),
        _later,
        only_errors=wanted.when == "errors",
        networks=_networks(settings),
        kept=CaptureMode(wanted.content),
        most=wanted.max_content,
    )


def _spans(settings: Settings) -> "SpanRecorder | None":
    """Return what makes spans for OpenTelemetry; None if that is off, without an import."""
    if not settings.otel.endpoint:
        return None
    from smtpproxy.otel.span_export import SpanExport
    from smtpproxy.otel.span_recorder import SpanRecorder

    return SpanRecorder(SpanExport(settings.otel.endpoint, settings.otel.sample, settings.instance))


def _networks(settings: Settings) -> list[Network]:
    return [network.parsed() for network in settings.trace.networks]


def _later(flush: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(TRACE_DELAY_S, flush)


def _policy(
    settings: Settings,
    listener: ListenerSettings,
    backend: BackendSettings,
    rules: Sequence[FaultRule],
    *,
    trusted: bool = False,
) -> SessionPolicy:
    limits = settings.limits
    return SessionPolicy(
        hostname=_hostname(settings),
        sync=Sync(listener.sync),
        bare_newlines=BareNewlines(listener.bare_newlines),
        capabilities=CapabilityFilter(
            hide=frozenset(word.encode() for word in listener.capabilities.hide),
            allow=frozenset(word.encode() for word in listener.capabilities.allow),
        ),
        # What a fault concerns must be alone in flight.
        use_pipelining=backend.pipelining == "auto" and not rules,
        add_chunking=backend.chunking == "add",
        helo_fallback=backend.helo_fallback,
        guard_data=backend.guard_data,
        queue_commands=limits.queue_commands,
        queue_bytes=limits.queue_bytes,
        command_line=limits.command_line,
        auth_line=limits.auth_line,
        consecutive_errors=limits.consecutive_errors,
        reply_bytes=limits.reply_bytes,
        message_bytes=limits.message_bytes,
        recipients=limits.recipients,
        client_tls=security_builder.CLIENT_TLS[listener.tls],
        require_tls=listener.require_tls,
        auth=Auth(listener.auth),
        backend_tls=security_builder.BACKEND_TLS[backend.tls],
        backend_verified=backend.tls in ("starttls", "implicit") and backend.verify,
        trusted=trusted,
        early_pipelining=listener.early_pipelining,
        xforward=backend.identity == "xforward",
        intercepted=intercepted(rules),
        xclient_login=backend.identity == "xclient",
        # Else mail could be forwarded before TLS starts, or without the client's address.
        hello_first=backend.tls == "starttls" or backend.identity == "xclient",
    )


def _hostname(settings: Settings) -> bytes:
    return settings.hostname.encode("ascii", "replace")


def _bounds(settings: Settings) -> AdmissionLimits:
    limits = settings.limits
    return AdmissionLimits(
        sessions=limits.sessions,
        sessions_per_address=limits.sessions_per_address,
        new_sessions_per_minute=limits.new_sessions_per_minute,
        event_loop_lag=limits.event_loop_lag,
        nat64=tuple(network.parsed() for network in limits.nat64),
        exempt=tuple(network.parsed() for network in limits.exempt),
    )


def _limits(settings: Settings) -> dict[str, float]:
    """Return each time limit in seconds, by the name that the verb table and sessions use."""
    times = settings.timeouts
    longest_wait = max((each.max_wait for each in settings.backends.values()), default=inf)
    return {
        "slot_queue": longest_wait + QUEUE_GRACE_S,  # the connection slots enforce the exact one
        "connection_slot": SLOT_GRACE_S,
        "connect": times.connect,
        "greeting": times.greeting,
        "command": times.command,
        "data": times.data,
        "content": times.content,
        "backend": times.content,
        "message": times.message or inf,
        "end_of_data": times.end_of_data,
        "client": times.client,
        "proxy_header": times.proxy_header,
        "client_hello": times.tls_handshake,
        "handshake": times.tls_handshake + CLOSE_LIMIT_S,  # tls.handshake enforces the exact one
        "close": CLOSE_LIMIT_S,
    }
