"""Figures as Prometheus reads them; rendered when scraped, never before."""

import re
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from smtpproxy import __version__
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number

PREFIX = "smtpproxy_"
CONTENT_TYPE = CONTENT_TYPE_LATEST
HELP = {
    "build_info": "1, with the version of smtpproxy as its label.",
    "sessions": "Sessions that are open.",
    "sessions_opened": "Sessions begun.",
    "sessions_closed": "Sessions ended, by reason.",
    "clients_refused": "Clients that got 421 at once, by the limit that they met.",
    "clients_slowed": "Sessions that sent commands faster than they may, and were slowed down.",
    "commands": "Commands from clients and ends of message content, by verb and class of the"
    " reply; auth-line is what follows AUTH, other is no known verb, none got no reply.",
    "messages": "Transactions ended, by outcome; relayed are those that the backend took over.",
    "pipelined_commands": "Commands that came before the reply to the one before was flushed.",
    "round_trips_saved": "Round trips that clients did not have to wait for.",
    "held_replies": "Replies that waited for others of their group.",
    "client_stalls": "Times that a client was no longer read for a while (back-pressure).",
    "content_octets": "Octets of message content.",
    "octets": "Octets inside TLS, by leg and direction: in, counted when a session ends; out, when"
    " replies are flushed, without the secrets of AUTH and what STARTTLS only passes through.",
    "limits_reached": "Commands and messages over a limit of the settings.",
    "violations": "Violations of the protocol, by peer and kind.",
    "backend_reply_seconds": "Seconds that the backend took for a reply, by verb; for the greeting,"
    " from the client's connection on.",
    "group_commands": "Commands in each group that came from a client.",
    "server_up": "Whether a server is believed to be up.",
    "servers_down": "Servers that are believed to be down.",
    "places_taken": "Connections to a backend that has max_connections.",
    "places_waited_for": "Clients that wait for a connection to a backend with max_connections.",
    "trace_records_lost": "Records that could not be written to a trace file.",
    "config_last_reload_successful": "Whether the settings in force are the last that were read.",
    "config_last_reload_success_timestamp_seconds": "When the settings in force were read.",
    "workers": "Processes that serve clients, those that let their last sessions end included.",
    "workers_lost": "Workers that died or hung, and were replaced.",
    "worker_cpu_seconds": "User and system CPU time of workers.",
    "worker_resident_memory_bytes": "Resident memory of a worker.",
    "worker_open_fds": "File descriptors that a worker has open.",
    "worker_loop_lag_seconds": "How late a worker's event loop is; from limits.loop_lag on new"
    " clients are refused.",
}
_KEY = re.compile(r"(\w+)(?:\{(.*)\})?", re.DOTALL)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_HISTOGRAM = re.compile(r"(\w+)_(bucket|sum|count)")


class Exposition(Collector):
    """Renders figures."""

    def __init__(self) -> None:
        self._snapshot = MetricsSnapshot()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        _Process(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, snapshot: MetricsSnapshot) -> bytes:
        """Return the text for a scrape."""
        self._snapshot = snapshot
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; called by the registry."""
        snapshot = self._snapshot
        build: dict[str, Number] = {f'build_info{{version="{__version__}"}}': 1}
        yield from _metrics(snapshot.counts, "counter")
        yield from _metrics(build | snapshot.gauges, "gauge")


class _Process(ProcessCollector):
    """The supervisor's process; also where /proc/stat is hidden, as by `ProcSubset=pid`."""

    def _boot_time(self) -> float:
        # Without a boot time the base class reports nothing at all.
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _metrics(numbers: dict[str, Number], kind: str) -> Iterator[Metric]:
    found: dict[str, Metric] = {}
    for key, number in numbers.items():
        matched = _KEY.fullmatch(key)
        assert matched is not None, f"no name of a figure: {key}"
        sample = matched[1]
        labels = {name: _plain(value) for name, value in _LABEL.findall(matched[2] or "")}
        histogram = _HISTOGRAM.fullmatch(sample)
        name, real = (histogram[1], "histogram") if histogram else (sample, kind)
        metric = found.get(name)
        if metric is None:
            metric = found[name] = Metric(PREFIX + name, HELP.get(name, ""), real)
        ending = "_total" if real == "counter" else ""
        metric.add_sample(PREFIX + sample + ending, labels, float(number))
    yield from found.values()


def _plain(escaped: str) -> str:
    return _ESCAPED.sub(r"\1", escaped)
