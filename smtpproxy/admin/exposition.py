"""Figures as Prometheus reads them; rendered when scraped, never before."""

import re
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from smtpproxy.figures import Figures

PREFIX = "smtpproxy_"
HELP = {
    "sessions": "Sessions that are open.",
    "sessions_opened": "Sessions begun.",
    "sessions_closed": "Sessions ended, by reason.",
    "commands": "Commands from clients, by verb and class of the reply.",
    "messages": "Transactions ended, by outcome.",
    "pipelined_commands": "Commands that came before the reply to the one before was flushed.",
    "round_trips_saved": "Round trips that clients did not have to wait for.",
    "held_replies": "Replies that waited for others of their group.",
    "client_stalls": "Times that a client was no longer read for a while (back-pressure).",
    "content_octets": "Octets of message content.",
    "octets": "Octets, by leg and direction; counted when a session ends, out when flushed.",
    "limits_reached": "Commands and messages over a limit of the settings.",
    "clients_refused": "Clients turned away with 421, by reason.",
    "clients_slowed": "Sessions that were slowed down, as they sent commands too fast.",
    "violations": "Violations of the protocol, by peer and kind.",
    "backend_reply_seconds": "Seconds that the backend took for a reply, by verb.",
    "group_commands": "Commands in each group that came from a client.",
    "server_up": "Whether a server is believed to be up.",
    "workers": "Processes that serve clients.",
}
_KEY = re.compile(r"(\w+)(?:\{(.*)\})?")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_HISTOGRAM = re.compile(r"(\w+)_(bucket|sum|count)")


class Exposition(Collector):
    """Renders figures."""

    def __init__(self) -> None:
        self._figures = Figures()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, figures: Figures) -> bytes:
        """Return the text for a scrape."""
        self._figures = figures
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; called by the registry."""
        yield from _metrics(self._figures.counts, "counter")
        yield from _metrics(self._figures.gauges, "gauge")


def _metrics(numbers: dict[str, int | float], kind: str) -> Iterator[Metric]:
    found: dict[str, Metric] = {}
    for key, number in numbers.items():
        matched = _KEY.fullmatch(key)
        if matched is None:
            continue
        sample, labels = matched[1], dict(_LABEL.findall(matched[2] or ""))
        histogram = _HISTOGRAM.fullmatch(sample)
        name, real = (histogram[1], "histogram") if histogram else (sample, kind)
        metric = found.get(name)
        if metric is None:
            told = HELP.get(name, name.replace("_", " ").capitalize() + ".")
            metric = found[name] = Metric(PREFIX + name, told, real)
        ending = "_total" if real == "counter" else ""
        metric.add_sample(PREFIX + sample + ending, labels, float(number))
    yield from found.values()
