"""The composition root of one worker: settings become listeners, sessions and observers."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from math import inf
from pathlib import Path

from smtpproxy.admin.recent_sessions import Recent
from smtpproxy.config.address import Address
from smtpproxy.config.schema import Backend, Settings
from smtpproxy.config.schema import Listener as ListenerSettings
from smtpproxy.core.capabilities import Filter
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import Auth, Rules
from smtpproxy.core.verbs import Sync
from smtpproxy.log.debug_log import ExchangeLog
from smtpproxy.log.session_log import ServiceLog
from smtpproxy.metrics.counters import Metrics
from smtpproxy.metrics.process_usage import add_usage
from smtpproxy.metrics.snapshot import Figures
from smtpproxy.net.admission import Admission, Bounds
from smtpproxy.net.backend.connection_slots import Places, Queue
from smtpproxy.net.backend.server_pool import Server, Servers
from smtpproxy.net.listener import Listener
from smtpproxy.net.listener_context import Service
from smtpproxy.net.rate_limit import Pacing
from smtpproxy.net.shared_counters import Tally
from smtpproxy.net.timeouts import Sweeper
from smtpproxy.net.write_batching import Outbox
from smtpproxy.trace.content_capture import Kept
from smtpproxy.trace.recorder import Trace
from smtpproxy.trace.rotating_files import Files
from smtpproxy.worker import security_builder
from smtpproxy.worker.observer_fanout import Fanout, Watcher

CLOSE_LIMIT_S = 30.0
"""How long a client that was told good-bye may take to close its side."""
TRACE_DELAY_S = 0.1
"""How long a trace's records may wait for others, to be made lines together."""


Changed = Callable[[str, str, bool, str], None]
"""Is told that a server of a backend has gone down or come up, and why."""
MakePlaces = Callable[[str, Backend], Places]
"""Makes what gives out the places of a backend that has only so many."""


class App:
    """The proxy on the running event loop.

    changed, places, tally: where other workers have to know, to be asked or to be counted; left
    out if it is alone.
    worker: its number, by which its trace files and its usage are told from those of others.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        changed: Changed | None = None,
        places: MakePlaces | None = None,
        tally: Tally | None = None,
        worker: int = 0,
    ) -> None:
        self._worker = worker
        self._trace = _trace(settings, worker)
        watched = settings.admin.address != Address()
        self._metrics = Metrics() if watched else None
        self._recent = Recent() if watched else None
        observer = Fanout(ServiceLog(), self._watchers(settings))
        self._admission = Admission(
            _bounds(settings), tally or Tally(), _hostname(settings), observer
        )
        self._sweeper = Sweeper(_limits(settings), settings.timeouts.hold)
        self._outbox = Outbox()
        self._observer = observer
        rate = settings.limits.commands_per_second
        self._pacing = Pacing(rate) if rate else None
        self._servers = {
            name: _servers(settings, name, changed or observer.server_changed, worker)
            for name, backend in settings.backends.items()
        }
        make_places = places or (
            lambda _, backend: Queue(backend.max_connections, backend.max_wait)
        )
        self._places = {
            name: make_places(name, backend) if backend.max_connections else None
            for name, backend in settings.backends.items()
        }
        self._listeners = [
            Listener(listener.address, self._service(settings, listener), listener.transparent)
            for listener in settings.listener
        ]

    def _service(self, settings: Settings, listener: ListenerSettings) -> Service:
        backend = settings.backends[listener.backend]
        return Service(
            name=str(listener.address),
            rules=_rules(settings, listener, backend),
            servers=self._servers[listener.backend],
            sweeper=self._sweeper,
            outbox=self._outbox,
            observer=self._observer,
            places=self._places[listener.backend],
            admission=self._admission,
            pacing=self._pacing,
            security=security_builder.security(
                settings,
                listener,
                backend,
                lambda: _rules(settings, listener, backend, trusted=True),
            ),
        )

    def _watchers(self, settings: Settings) -> list[Watcher]:
        """Return who watches beside the log; what is off is not among them and costs nothing."""
        found: list[Watcher] = []
        if settings.log.level == "debug":
            found.append(ExchangeLog())
        found += [each for each in (self._trace, self._metrics, self._recent) if each is not None]
        return found

    @property
    def addresses(self) -> list[str]:
        """The addresses that are listened on, with their real ports."""
        return [address for listener in self._listeners for address in listener.addresses]

    async def start(self, sockets: list[list[socket.socket]] | None = None) -> None:
        """Begin to accept clients, from these sockets for each listener, which stay the caller's.

        Without them it opens its own; raises OSError, with none left open, if one can't be had.
        """
        self._admission.start(self._listeners)
        for index, listener in enumerate(self._listeners):
            try:
                await listener.open(sockets[index] if sockets else None)
            except OSError:
                self.close()
                raise

    def learn(self, backend: str, server: str, *, up: bool) -> None:
        """Take it from another worker that a server has gone down or come up."""
        if backend in self._servers:
            self._servers[backend].learn(server, up=up)

    def figures(self) -> Figures:
        """Return what this worker tells of itself; see `smtpproxy.metrics.snapshot`."""
        figures = Figures(
            counts={
                f'clients_refused{{reason="{reason}"}}': count
                for reason, count in self._admission.refused.items()
            },
            gauges={"sessions": len(self._sweeper.sessions)},
        )
        figures.counts["clients_slowed"] = self._pacing.slowed if self._pacing else 0
        if self._metrics is not None and self._recent is not None:
            figures.counts.update(self._metrics.counts())
            figures.lists["sessions"] = self._recent.changed()
            figures.lists["open_sessions"] = self._recent.open()
            add_usage(figures, self._worker, self._admission.lag)
        if self._trace is not None:
            figures.counts["trace_records_lost"] = self._trace.lost
        return figures

    def look(self) -> None:
        """Somebody looks at the live page: the figures are to tell of sessions for a while."""
        if self._recent is not None:
            self._recent.look()

    def close(self) -> None:
        """Take no new clients."""
        for listener in self._listeners:
            listener.close()

    def drain(self) -> None:
        """Take no new clients, and let each session end with its transaction, with 421."""
        self.close()
        self._sweeper.drain()

    async def wait_until_empty(self, seconds: float | None = None) -> None:
        """Wait until no session is left, but no longer than this."""
        await self._sweeper.wait_until_empty(seconds)

    async def stop(self) -> None:
        """Close everything at once."""
        self.close()
        self._admission.stop()
        self._sweeper.stop()
        await self._sweeper.wait_until_empty(1.0)
        if self._trace is not None:
            self._trace.close()


def _servers(settings: Settings, name: str, changed: Changed, worker: int) -> Servers:
    backend = settings.backends[name]
    route = security_builder.route(settings, backend)
    servers = [Server(address, route) for address in backend.servers]
    least = backend.balance == "least"
    if least:  # not every worker is to begin with the same one
        begin = worker % len(servers)
        servers = servers[begin:] + servers[:begin]
    return Servers(
        servers,
        backend.retry_after,
        least=least,
        changed=partial(changed, name),
    )


def _trace(settings: Settings, worker: int) -> Trace | None:
    """Return what records sessions, if anything does."""
    wanted = settings.trace
    if not wanted.directory or wanted.when == "off":
        return None

    def later(flush: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(TRACE_DELAY_S, flush)

    return Trace(
        Files(Path(wanted.directory), worker, wanted.max_file, wanted.max_files),
        later,
        only_errors=wanted.when == "errors",
        networks=[ip_network(network.text) for network in wanted.networks],
        kept=Kept(wanted.content),
        most=wanted.max_content,
    )


def _rules(
    settings: Settings, listener: ListenerSettings, backend: Backend, *, trusted: bool = False
) -> Rules:
    limits = settings.limits
    return Rules(
        hostname=_hostname(settings),
        sync=Sync(listener.sync),
        bare_newlines=BareNewlines(listener.bare_newlines),
        capabilities=Filter(
            hide=frozenset(word.encode() for word in listener.capabilities.hide),
            allow=frozenset(word.encode() for word in listener.capabilities.allow),
        ),
        use_pipelining=backend.pipelining == "auto",
        helo_fallback=backend.helo_fallback,
        guard_data=backend.guard_data,
        queue_commands=limits.queue_commands,
        queue_octets=limits.queue_octets,
        line=limits.line,
        auth_line=limits.auth_line,
        errors=limits.errors,
        message_octets=limits.message_octets,
        recipients=limits.recipients,
        client_tls=security_builder.CLIENT_TLS[listener.tls],
        require_tls=listener.require_tls,
        auth=Auth(listener.auth),
        backend_tls=security_builder.BACKEND_TLS[backend.tls],
        trusted=trusted,
        xforward=backend.identity == "xforward",
        # Else a client could have its mail passed on ahead of TLS, or as if it were the proxy's.
        hello_first=backend.tls == "starttls" or backend.identity == "xclient",
    )


def _hostname(settings: Settings) -> bytes:
    return settings.hostname.encode("ascii", "replace")


def _bounds(settings: Settings) -> Bounds:
    limits = settings.limits
    return Bounds(
        sessions=limits.sessions,
        sessions_per_address=limits.sessions_per_address,
        new_sessions_per_minute=limits.new_sessions_per_minute,
        loop_lag=limits.loop_lag,
        exempt=tuple(ip_network(network.text) for network in limits.exempt),
    )


def _limits(settings: Settings) -> dict[str, float]:
    """Return the seconds of each time limit by the name that the verb table and sessions use."""
    times = settings.timeouts
    return {
        "place": inf,  # who gives out the places keeps the time
        "connect": times.connect,
        "greeting": times.greeting,
        "command": times.command,
        "data": times.data,
        "content": times.content,
        "end_of_data": times.end_of_data,
        "client": times.client,
        "proxy_header": times.proxy_header,
        "client_hello": times.tls_handshake,
        "handshake": times.tls_handshake + CLOSE_LIMIT_S,  # the loop keeps the exact one
        "close": CLOSE_LIMIT_S,
    }
