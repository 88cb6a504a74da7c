"""Makes the spans of sessions: the session is the root, each exchange a child of it.

An exchange is a span on the client's connection, from the command to the reply; each line that was
sent to the backend for it is a child of that, from the line to the backend's reply. Attributes are
those of OpenTelemetry's semantic conventions, and `smtp.*` for what these do not have. Text of
peers is escaped and cut; secrets were cut before an observer sees an exchange.

A session that is not sampled has no observer.
"""

from collections.abc import Callable, Iterable, Mapping
from time import monotonic, time
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange, ProxyStep
from smtpproxy.core.observer import SessionEnds, SessionSummary
from smtpproxy.log.events import PROXY_HEADER_READ, TLS_STARTED
from smtpproxy.log.transaction_summary import paths
from smtpproxy.log.verb_name import VERB_NAMES
from smtpproxy.otel.span_export import SpanExport
from smtpproxy.text.escaping import shortened

SPANS_OF_SESSION = 1000
"""The most spans below the root; `smtp.session.spans_left_out` is how many more there were."""
TEXT_BYTES = 256
"""The most of a text of a peer."""
_UNIX = "unix"

Attributes = Mapping[str, str | int | bool | list[str]]


class SpanRecorder:
    """Makes the spans of a worker's sessions.

    Args:
        export: Takes the spans.
    """

    def __init__(self, export: SpanExport) -> None:
        self._export = export

    @property
    def lost(self) -> int:
        """Return how many spans were not sent."""
        return self._export.lost

    def session(
        self, session: str, listener: str, backend: str, client: str
    ) -> "SessionSpans | None":
        """Return what makes the spans of a session; None if it is not sampled."""
        now = monotonic()
        offset = time() - now
        root = self._export.tracer.start_span(
            "session", Context(), SpanKind.SERVER, start_time=_nanoseconds(now + offset)
        )
        if not root.is_recording():
            return None
        root.set_attributes(
            {
                "smtp.session.id": session,
                "smtp.session.listener": listener,
                "smtp.session.backend": backend,
            }
        )
        return SessionSpans(self._export, root, now, offset, client)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Do nothing: it belongs to no session."""

    def close(self) -> None:
        """Send what is left, within a time limit."""
        self._export.close()


class SessionSpans:
    """Makes the spans of one session.

    Args:
        export: Takes the spans.
        root: The span of the session.
        began: When it began.
        offset: Seconds to add to a time to get that since 1970.
        client: The client's address.
    """

    __slots__ = (
        "_began",
        "_client_side",
        "_error",
        "_export",
        "_left_out",
        "_offset",
        "_root",
        "_root_context",
        "_server_side",
        "_spans",
    )

    content = None

    def __init__(
        self, export: SpanExport, root: Span, began: float, offset: float, client: str
    ) -> None:
        self._export = export
        self._root = root
        self._root_context = set_span_in_context(root, Context())
        self._began = began
        self._offset = offset
        self._client_side = {"network.protocol.name": "smtp", **_end("client", client)}
        self._server_side: dict[str, str | int] = {}
        self._spans = self._left_out = 0
        self._error = ""  # the first one of the session

    def connected(self, server: str, ends: SessionEnds) -> None:
        """Take in the addresses of both connections."""
        end = ends.all()
        # Of the client's connection, the proxy is the server.
        self._client_side = {**_end("server", end.listener), **self._client_side}
        self._server_side = {
            "network.protocol.name": "smtp",
            **_end("network.peer", end.server),
            **_end("server", server),
        }

    def gave_up(self, server: str, reason: str) -> None:
        """Add the event to the session."""
        self._failed("server_given_up", {"server": server, "reason": reason})

    def noted(self, event: str, **values: str) -> None:
        """Take in a PROXY header and the start of TLS, and add what failed to the session."""
        if event == PROXY_HEADER_READ.name:
            self._client_side |= {f"smtp.{name}": text for name, text in values.items()}
            return
        if event != TLS_STARTED.name:
            self._failed(event, values)
            return
        side = self._client_side if values["side"] == "client" else self._server_side
        name, _, version = values["version"].partition("v")
        side["tls.protocol.name"] = name.lower()
        side["tls.protocol.version"] = version
        side["tls.cipher"] = values["cipher"]

    def _failed(self, event: str, values: Mapping[str, str]) -> None:
        self._error = self._error or event
        texts = {f"smtp.{name}": shortened(text, TEXT_BYTES) for name, text in values.items()}
        self._root.add_event(event, texts)

    def broken(self, error: Exception) -> None:
        """Set the error of the session."""
        self._error = type(error).__name__

    def slowed(self) -> None:
        """Do nothing: the times show it."""

    def stalled(self) -> None:
        """Do nothing: the times show it."""

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Do nothing: the exchanges show it."""

    def settled(self, exchanges: list[Exchange]) -> None:
        """Make the spans of each exchange."""
        for exchange in exchanges:
            error = _error_of(exchange)
            self._error = self._error or error
            steps = exchange.all_steps
            if not steps and exchange.sent:
                sent = (exchange.line, exchange.reply, exchange.sent, exchange.replied)
                steps = (ProxyStep(*sent),)
            spans = 1 + len(steps)
            if self._spans + spans > SPANS_OF_SESSION or not self._export.has_room(spans):
                self._left_out += spans
                continue
            self._spans += spans
            self._make_spans(exchange, steps, error)

    def _make_spans(self, exchange: Exchange, steps: Iterable[ProxyStep], error: str) -> None:
        name = _name_of(exchange)
        ended = exchange.flushed or monotonic()
        span = self._start(name, self._root_context, SpanKind.SERVER, exchange.framed)
        span.set_attributes({**self._client_side, **_attributes_of(exchange)})
        context = set_span_in_context(span, Context())
        for step in steps:
            step_name = name if step.line == exchange.line else _first_word(step.line) or name
            below = self._start(step_name, context, SpanKind.CLIENT, step.sent)
            below.set_attributes({**self._server_side, **_dialogue(step.line, step.reply)})
            code = _code_of(step.reply)
            self._end(below, step.replied or ended, _error_type(code))
        self._end(span, ended, error)

    def _start(self, name: str, context: Context, kind: SpanKind, at: float) -> Span:
        start = _nanoseconds(max(at, self._began) + self._offset)
        return self._export.tracer.start_span(name, context, kind, start_time=start)

    def _end(self, span: Span, at: float, error: str) -> None:
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(max(at, self._began) + self._offset))

    def closed(self, summary: SessionSummary) -> None:
        """End the root span."""
        if self._export.has_room(1):
            self._root.set_attributes(
                {
                    **self._client_side,
                    "smtp.session.close_reason": summary.reason,
                    "smtp.session.commands": summary.commands,
                    "smtp.session.messages": summary.messages,
                    "smtp.session.round_trips_saved": summary.pipelined,
                }
            )
            if self._left_out:
                self._root.set_attribute("smtp.session.spans_left_out", self._left_out)
            self._end(self._root, monotonic(), self._error)
        self._export.report()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _end(role: str, address: str) -> dict[str, str | int]:
    """Return the attributes of an end of a connection.

    Args:
        role: `client`, `server` or `network.peer`.
        address: Its address, such as `192.0.2.1:25`, `unix:/run/mta.sock`, `unix` or `unknown`.
    """
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        shown = shortened(host.strip("[]"), TEXT_BYTES)
        return {"network.transport": "tcp", f"{role}.address": shown, f"{role}.port": int(port)}
    path = address.removeprefix("unix:")
    found: dict[str, str | int] = {
        "network.transport": _UNIX if address == _UNIX or path != address else "tcp"
    }
    if path != address:
        found[f"{role}.address"] = shortened(path, TEXT_BYTES)
    return found


def _name_of(exchange: Exchange) -> str:
    """Return the name of an exchange's span, one of a few: an unknown verb has none of its own."""
    name = exchange.verb.name
    if name:
        return VERB_NAMES[name]
    return verbs.NAMES_OF_ROLES.get(exchange.verb.role, "other")


def _first_word(line: bytes) -> str:
    """Return the verb of a line of the proxy's own; empty if it is none."""
    return VERB_NAMES.get(line.split(None, 1)[0].upper(), "") if line.strip() else ""


def _attributes_of(exchange: Exchange) -> Attributes:
    found: dict[str, str | int | bool | list[str]] = {
        **_dialogue(exchange.line, exchange.reply),
        "smtp.pipelined": exchange.pipelined,
    }
    role = exchange.verb.role
    if role == verbs.MAIL:
        found["smtp.sender"] = _path_in(exchange.line)
    elif role == verbs.RCPT:
        found["smtp.recipients"] = [_path_in(exchange.line)]
    elif role in (verbs.END_OF_DATA, verbs.BDAT):
        found["smtp.data.size"] = exchange.octets
    return found


def _path_in(line: bytes) -> str:
    (path,) = paths([line.partition(b"\n")[0] + b"\n"])
    return shortened(path, TEXT_BYTES)


def _dialogue(line: bytes, reply: bytes) -> dict[str, str | int]:
    """Return the attributes of a command and its reply, as far as there are any."""
    found: dict[str, str | int] = {}
    if line:
        found["smtp.command"] = shortened(line.rstrip(b"\r\n"), TEXT_BYTES)
    if reply:
        found["smtp.response.status_code"] = _code_of(reply)
        found["smtp.response.text"] = shortened(reply.rstrip(b"\r\n"), TEXT_BYTES)
    return found


def _code_of(reply: bytes) -> int:
    return int(reply[:3]) if reply[:3].isdigit() else 0


def _error_of(exchange: Exchange) -> str:
    """Return the `error.type` of an exchange; empty if it succeeded."""
    if exchange.problem is not None and not exchange.rewritten:
        return exchange.problem.kind
    return _error_type(exchange.code)


def _error_type(code: int) -> str:
    """Return the `error.type` of a reply; 0: there was none."""
    if not code:
        return "no_reply"
    return str(code) if code >= 400 else ""
