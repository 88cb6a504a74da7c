"""The metrics of a worker at one moment, and their sums over all workers.

Once a second each worker sends what `App.snapshot` returns to the supervisor, as its heartbeat. The
supervisor keeps the last snapshot of each worker; `SnapshotTotals.sum` is the whole service.
"""

from msgspec import Struct, field
from msgspec.structs import replace

from smtpproxy.metrics.definitions import COUNTER, DEFINITIONS, HISTOGRAM, Definition

Number = int | float
Series = tuple[str, tuple[str, ...]]
"""The name of a metric and the values of its labels."""


class Sample(Struct, array_like=True, frozen=True):
    """The number of a counter or a gauge."""

    name: str
    labels: tuple[str, ...]
    """The values of the labels, in the order of the definition."""
    value: Number

    def label(self, name: str) -> str:
        """Return the value of a label."""
        return self.labels[DEFINITIONS[self.name].labels.index(name)]


class HistogramSample(Struct, array_like=True, frozen=True):
    """The numbers of a histogram."""

    name: str
    labels: tuple[str, ...]
    """The values of the labels, in the order of the definition."""
    counts: list[int]
    """How many values lie between two bounds of the definition; the last: above all bounds."""
    total: Number
    """The sum of all values."""


class MetricsSnapshot(Struct, kw_only=True):
    """The numbers of one worker, or the sums of several."""

    samples: list[Sample] = field(default_factory=list)
    histograms: list[HistogramSample] = field(default_factory=list)
    lists: dict[str, list[object]] = field(default_factory=dict)
    """Lists of plain values, joined over all workers; the code that adds a list bounds it."""

    def put(self, metric: Definition, value: Number, *labels: str) -> None:
        """Add the number of a counter or a gauge, under the values of its labels."""
        assert len(labels) == len(metric.labels), metric.name
        assert metric.kind != HISTOGRAM, metric.name
        self.samples.append(Sample(metric.name, labels, value))

    def put_histogram(
        self, metric: Definition, counts: list[int], total: Number, *labels: str
    ) -> None:
        """Add the numbers of a histogram, under the values of its labels."""
        assert len(labels) == len(metric.labels), metric.name
        assert len(counts) == len(metric.bounds) + 1, metric.name
        self.histograms.append(HistogramSample(metric.name, labels, list(counts), total))

    def samples_of(self, metric: Definition) -> list[Sample]:
        """Return the numbers of a counter or a gauge."""
        return [each for each in self.samples if each.name == metric.name]

    def histograms_of(self, metric: Definition) -> list[HistogramSample]:
        """Return the numbers of a histogram."""
        return [each for each in self.histograms if each.name == metric.name]


class SnapshotTotals:
    """The last snapshot of each worker, and the counters of the workers that have ended."""

    def __init__(self) -> None:
        self._ended = _Sums()
        self._workers: dict[int, MetricsSnapshot] = {}

    def take(self, worker: int, snapshot: MetricsSnapshot) -> None:
        """Replace a worker's last snapshot."""
        self._workers[worker] = snapshot

    def forget(self, worker: int) -> None:
        """Drop the gauges of a worker that has ended, and keep its counters."""
        snapshot = self._workers.pop(worker, None)
        if snapshot is not None:
            counters = [each for each in snapshot.samples if DEFINITIONS[each.name].kind == COUNTER]
            self._ended.add(MetricsSnapshot(samples=counters, histograms=snapshot.histograms))

    def sum(self) -> MetricsSnapshot:
        """Return the numbers of the whole service."""
        sums = _Sums()
        sums.add(self._ended.snapshot())
        for snapshot in self._workers.values():
            sums.add(snapshot)
        return sums.snapshot()


class _Sums:
    def __init__(self) -> None:
        self._samples: dict[Series, Sample] = {}
        self._histograms: dict[Series, HistogramSample] = {}
        self._lists: dict[str, list[object]] = {}

    def add(self, snapshot: MetricsSnapshot) -> None:
        for sample in snapshot.samples:
            series = sample.name, sample.labels
            known = self._samples.get(series)
            if known:
                sample = replace(sample, value=sample.value + known.value)
            self._samples[series] = sample
        for histogram in snapshot.histograms:
            series = histogram.name, histogram.labels
            before = self._histograms.get(series)
            self._histograms[series] = _added(before, histogram) if before else histogram
        for name, items in snapshot.lists.items():
            self._lists.setdefault(name, []).extend(items)

    def snapshot(self) -> MetricsSnapshot:
        return MetricsSnapshot(
            samples=list(self._samples.values()),
            histograms=list(self._histograms.values()),
            lists=self._lists,
        )


def _added(one: HistogramSample, other: HistogramSample) -> HistogramSample:
    counts = [a + b for a, b in zip(one.counts, other.counts, strict=True)]
    return replace(one, counts=counts, total=one.total + other.total)
