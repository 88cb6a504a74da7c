"""The debug log: a line for each exchange, at level debug only."""

from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import SessionEnds, SessionSummary
from smtpproxy.log import events, log
from smtpproxy.log.line_limits import LineLimits, SessionLineLimit
from smtpproxy.log.session_log import ip_and_port, session_fields
from smtpproxy.log.verb_name import verb_of


class DebugLog:
    """Logs the exchanges of a worker's sessions.

    Args:
        limits: How many lines, beside those of the log; None for any number.
    """

    def __init__(self, limits: LineLimits | None = None) -> None:
        self._limits = limits

    def session(self, session: str, listener: str, backend: str, client: str) -> "SessionDebugLog":
        """Begin to log the exchanges of a session."""
        fields = session_fields(session, listener, backend, client, server="")
        limits = self._limits
        limit = None if limits is None else limits.session(ip_and_port(client)[0])
        return SessionDebugLog(fields, log.get(), limit)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Do nothing: the session log has it."""


class SessionDebugLog:
    """Logs the exchanges of one session."""

    __slots__ = ("_fields", "_limit", "_log")

    content = None

    def __init__(
        self,
        fields: dict[str, object],
        logger: FilteringBoundLogger,
        limit: SessionLineLimit | None,
    ) -> None:
        self._fields = fields
        self._log = logger
        self._limit = limit

    def _allows(self, event: events.Event) -> bool:
        return self._limit is None or self._limit.allows(event)

    def settled(self, exchanges: list[Exchange]) -> None:
        """Log each exchange with its times."""
        for exchange in exchanges:
            if not self._allows(events.EXCHANGE):
                continue
            events.EXCHANGE.log(
                self._log,
                **self._fields,
                verb=verb_of(exchange),
                command=exchange.line.rstrip(b"\r\n"),
                reply=exchange.reply.rstrip(b"\r\n"),
                content_bytes=exchange.octets,
                pipelined=exchange.pipelined,
                queued_s=_between(exchange.framed, exchange.sent),
                backend_s=_between(exchange.sent, exchange.replied),
                held_s=_between(exchange.replied, exchange.flushed),
            )

    def connected(self, server: str, ends: SessionEnds) -> None:  # noqa: ARG002
        """Set the server's address."""
        self._fields["server"] = server

    def gave_up(self, server: str, reason: str) -> None:
        """Do nothing: the session log has it."""

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Do nothing: the session log has it."""

    def noted(self, event: str, **values: str) -> None:
        """Add a fault to all further lines; the session log has the event."""
        if event == events.FAULT_INJECTED.name:
            self._log = self._log.bind(fault=values["fault"])

    def broken(self, error: Exception) -> None:
        """Do nothing: the session log has it."""

    def slowed(self) -> None:
        """Do nothing: the session log has it."""

    def stalled(self) -> None:
        """Log that the client is not read for now."""
        if self._allows(events.CLIENT_STALLED):
            events.CLIENT_STALLED.log(self._log, **self._fields)

    def closed(self, summary: SessionSummary) -> None:
        """Do nothing: the session log has it."""


def _between(begin: float, end: float) -> float | None:
    """Return the seconds between two events, or None if one of them did not happen."""
    return round(end - begin, 6) if begin and end else None
