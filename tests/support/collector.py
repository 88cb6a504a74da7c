"""An OpenTelemetry collector's receiver: OTLP over HTTP, the protobuf decoded."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.processes import eventually


class Collector:
    """The receiver, until the end of the block.

    Args:
        status: What each request gets.
        hangs: Reply to no request before the end of the block.
    """

    def __init__(self, status: int = 200, *, hangs: bool = False) -> None:
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self._leaving = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.asked.set()
                if hangs:
                    collector._leaving.wait(60)
                    return
                if status == 200:
                    collector.requests.append(body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def resources(self) -> list[dict[str, Any]]:
        """Return the attributes of each request's resource."""
        decoded = map(ExportTraceServiceRequest.FromString, self.requests)
        return [_values(each.resource) for request in decoded for each in request.resource_spans]

    def spans(self) -> list[Span]:
        """Return all spans so far."""
        return list(self._spans())

    def _spans(self) -> Iterator[Span]:
        for request in map(ExportTraceServiceRequest.FromString, list(self.requests)):
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    yield from scope.spans

    def session(self) -> list[Span]:
        """Wait for a root, and return all spans in the order of their beginnings, roots first."""

        def look() -> list[Span] | None:
            spans = self.spans()
            return spans if any(not each.parent_span_id for each in spans) else None

        spans = eventually(look, "a root span")
        return sorted(
            spans, key=lambda each: (each.start_time_unix_nano, each.parent_span_id != b"")
        )


def attributes(span: Span | Span.Event) -> dict[str, Any]:
    """Return the attributes of a span or an event as plain values."""
    return _values(span)


def _values(holder: Any) -> dict[str, Any]:
    return {each.key: _plain(each.value) for each in holder.attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return getattr(value, kind)


def below(spans: list[Span], parent: Span) -> list[Span]:
    """Return the children of a span."""
    return [each for each in spans if each.parent_span_id == parent.span_id]


def tree(spans: list[Span]) -> list[str]:
    """Return a line for each span: its name, indented below its parent, and its error."""

    def lines(parent: bytes, depth: int) -> Iterator[str]:
        for each in spans:
            if each.parent_span_id == parent:
                error = attributes(each).get("error.type")
                yield f"{'  ' * depth}{each.name}{f' ! {error}' if error else ''}"
                yield from lines(each.span_id, depth + 1)

    return list(lines(b"", 0))
