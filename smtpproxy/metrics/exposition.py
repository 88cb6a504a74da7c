"""Figures as Prometheus reads them; rendered when scraped, never before."""

import re
import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from smtpproxy import __version__, is_compiled
from smtpproxy.metrics.definitions import COUNTER, DEFINITIONS
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number

PREFIX = "smtpproxy_"
CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUILD = DEFINITIONS["build_info"].key(__version__, "yes" if is_compiled() else "no")
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
        build: dict[str, Number] = {_BUILD: 1}
        yield from _metrics(snapshot.counts)
        yield from _metrics(build | snapshot.gauges)


class _Process(ProcessCollector):
    """The supervisor's process; also where /proc/stat is hidden, as by `ProcSubset=pid`."""

    def _boot_time(self) -> float:
        # Without a boot time the base class reports nothing at all.
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _metrics(numbers: dict[str, Number]) -> Iterator[Metric]:
    found: dict[str, Metric] = {}
    for key, number in numbers.items():
        matched = _KEY.fullmatch(key)
        assert matched is not None, f"no name of a figure: {key}"
        sample = matched[1]
        labels = {name: _plain(value) for name, value in _LABEL.findall(matched[2] or "")}
        histogram = _HISTOGRAM.fullmatch(sample)
        row = DEFINITIONS[histogram[1] if histogram else sample]
        metric = found.get(row.name)
        if metric is None:
            metric = found[row.name] = Metric(PREFIX + row.name, row.help, row.kind)
        ending = "_total" if row.kind == COUNTER else ""
        metric.add_sample(PREFIX + sample + ending, labels, float(number))
    yield from found.values()


def _plain(escaped: str) -> str:
    return _ESCAPED.sub(r"\1", escaped)
