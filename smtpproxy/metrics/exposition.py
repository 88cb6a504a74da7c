"""The text that Prometheus scrapes at /metrics, made for each request."""

import time
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from smtpproxy import __version__, is_compiled
from smtpproxy.metrics.definitions import BUILD_INFO, COUNTER, DEFINITIONS, INSTANCE, Definition
from smtpproxy.metrics.snapshot import HistogramSample, MetricsSnapshot, Sample

PREFIX = "smtpproxy_"
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Exposition(Collector):
    """Makes the text of a snapshot, with the metrics of this process."""

    def __init__(self) -> None:
        self._snapshot = MetricsSnapshot()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        _Process(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, snapshot: MetricsSnapshot, instance: str) -> bytes:
        """Return the text of a snapshot.

        Args:
            snapshot: The numbers of the service.
            instance: The name of the instance, for each series.
        """
        self._snapshot = snapshot
        return generate_latest(_Labelled(self._registry, {INSTANCE: instance}))

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics; called by the registry."""
        yield _family(
            BUILD_INFO,
            [Sample(BUILD_INFO.name, (__version__, "yes" if is_compiled() else "no"), 1)],
        )
        for metric in DEFINITIONS.values():
            if histograms := self._snapshot.histograms_of(metric):
                yield _histogram(metric, histograms)
            elif samples := self._snapshot.samples_of(metric):
                yield _family(metric, samples)


class _Labelled(Collector):
    """Gives each series of a collector further labels."""

    def __init__(self, collector: Collector, labels: dict[str, str]) -> None:
        self._collector = collector
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        for metric in self._collector.collect():
            metric.samples = [
                sample._replace(labels={**self._labels, **sample.labels})
                for sample in metric.samples
            ]
            yield metric


class _Process(ProcessCollector):
    """The metrics of the supervisor's process, also if `ProcSubset=pid` hides /proc/stat."""

    def _boot_time(self) -> float:
        # Without a boot time the base class reports nothing at all.
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _family(metric: Definition, samples: Iterable[Sample]) -> Metric:
    kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
    family = kind(PREFIX + metric.name, metric.help, labels=metric.labels)
    for sample in samples:
        family.add_metric(sample.labels, float(sample.value))
    return family


def _histogram(metric: Definition, samples: Iterable[HistogramSample]) -> Metric:
    family = HistogramMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.bounds), "+Inf"]
    for sample in samples:
        # In Prometheus a bucket counts all values below its bound.
        buckets = zip(bounds, accumulate(sample.counts), strict=True)
        family.add_metric(sample.labels, list(buckets), float(sample.total))
    return family
