"""Sends spans to an OpenTelemetry collector: OTLP over HTTP, in batches, from a thread of the SDK.

A collector that is slow or gone costs spans, never mail: beyond QUEUE_SPANS no more are made. Those
that were not sent are counted, and logged once a minute.

Headers, certificates, compression and time limits of the requests come from the exporter's own
environment variables (`OTEL_EXPORTER_OTLP_HEADERS` and others).
"""

import logging
from collections.abc import Sequence
from threading import Thread
from time import monotonic

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from smtpproxy import __version__
from smtpproxy.log import events, log
from smtpproxy.text.escaping import shortened

QUEUE_SPANS = 2048
"""The most spans of a worker that wait to be sent."""
BATCH_SPANS = 256
"""The most spans in a request."""
BATCH_EVERY_MS = 1000
"""How long spans wait for others of their batch."""
EVENTS_OF_SPAN = 32
"""The most events of a span."""
CLOSE_S = 2.0
"""How long the end of a worker waits for the last spans to be sent."""
LOGGED_EVERY_S = 60.0
"""The shortest interval between two log lines about lost spans."""
REASON_BYTES = 512
"""The most bytes that are logged of the reason."""


class SpanExport:
    """The tracer of a worker, and the thread that sends its spans.

    Made in the worker, since a thread does not survive a fork.

    Args:
        endpoint: The URL of the collector, without `/v1/traces`.
        sample: The share of the traces that are made, from 0 to 1.
        instance: The name of the instance.
    """

    def __init__(self, endpoint: str, sample: float, instance: str) -> None:
        library_log = logging.getLogger("opentelemetry")
        library_log.addHandler(_library_messages)
        library_log.propagate = False  # `otel_spans_lost` has the last message
        self._exporter = _CountedExporter(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces"))
        self._provider = TracerProvider(
            sampler=TraceIdRatioBased(sample),
            resource=Resource.create(
                {
                    "service.name": "smtpproxy",
                    "service.version": __version__,
                    "service.instance.id": instance,
                }
            ),
            shutdown_on_exit=False,  # it has no deadline
            span_limits=SpanLimits(max_events=EVENTS_OF_SPAN),
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=QUEUE_SPANS,
                schedule_delay_millis=BATCH_EVERY_MS,
                max_export_batch_size=BATCH_SPANS,
            )
        )
        self.tracer = self._provider.get_tracer("smtpproxy", __version__)
        """Starts spans; `has_room` comes before the end of each."""
        self._log = log.get()
        self._queued = 0  # all that ever were, as the counts below
        self._dropped = 0
        self._lost_in_all: int | None = None
        self._lost_logged = 0
        self._logged_at = -LOGGED_EVERY_S

    @property
    def lost(self) -> int:
        """Return how many spans were not sent."""
        if self._lost_in_all is not None:
            return self._lost_in_all
        return self._dropped + self._exporter.failed

    def has_room(self, spans: int) -> bool:
        """Return whether so many spans may be ended now; else they are counted as lost."""
        if self._queued - self._exporter.taken + spans > QUEUE_SPANS:
            self._dropped += spans
            return False
        self._queued += spans
        return True

    def report(self) -> None:
        """Log lost spans, at most once a minute."""
        now = monotonic()
        if self.lost > self._lost_logged and now - self._logged_at >= LOGGED_EVERY_S:
            self._logged_at = now
            self._log_lost()

    def _log_lost(self) -> None:
        self._lost_logged = self.lost
        reason = _library_messages.last or "the queue is full"
        events.OTEL_SPANS_LOST.log(self._log, spans=self._lost_logged, reason=reason)

    def close(self) -> None:
        """Send what is left, for CLOSE_S at most."""
        closing = Thread(target=self._provider.shutdown, name="otel-close", daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        # What the thread may still be sending is given up.
        self._lost_in_all = self._dropped + self._queued - self._exporter.sent
        if self.lost > self._lost_logged:
            self._log_lost()
        if closing.is_alive():
            self._exporter.shutdown()  # else the provider would wait half a minute for it


class _CountedExporter(SpanExporter):
    """Counts what the thread of the SDK hands over."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.taken = 0
        """Spans that have left the queue."""
        self.sent = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, and count them."""
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.sent += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        """Stop, also an attempt that is waiting for its repetition."""
        self._exporter.shutdown()


class _LastMessage(logging.Handler):
    """Keeps the last message of the libraries, which is why spans were lost."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = shortened(record.getMessage(), REASON_BYTES)


_library_messages = _LastMessage()
