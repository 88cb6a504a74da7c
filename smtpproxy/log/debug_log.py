"""The log at its most talkative: a line for each exchange, at level debug only."""

from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import ConnectionEnds, SessionSummary
from smtpproxy.log import log
from smtpproxy.log.verb_name import verb_of


class DebugLog:
    """Logs the exchanges of a worker's sessions."""

    def session(self, session: str, listener: str, client: str) -> "SessionDebugLog":  # noqa: ARG002
        """Begin to log the exchanges of a session."""
        return SessionDebugLog(session, log.get())

    def server_changed(self, backend: str, server: str, up: bool, why: str) -> None:
        """Say nothing: the log does already."""


class SessionDebugLog:
    """Logs the exchanges of one session."""

    __slots__ = ("_log", "_session")

    content = None

    def __init__(self, session: str, logger: FilteringBoundLogger) -> None:
        self._session = session
        self._log = logger

    def settled(self, exchanges: list[Exchange]) -> None:
        """Log each: seconds it waited here, the MTA took, and its reply was held."""
        for exchange in exchanges:
            self._log.debug(
                "exchange",
                session=self._session,
                verb=verb_of(exchange),
                command=exchange.line.rstrip(b"\r\n"),
                reply=exchange.reply.rstrip(b"\r\n"),
                octets=exchange.octets,
                pipelined=exchange.pipelined,
                waited=_between(exchange.framed, exchange.sent),
                taken=_between(exchange.sent, exchange.replied),
                held=_between(exchange.replied, exchange.flushed),
            )

    def connected(self, server: str, ends: Callable[[], ConnectionEnds]) -> None:
        """Say nothing: the log does already."""

    def gave_up(self, server: str, why: str) -> None:
        """Say nothing: the log does already."""

    def transaction(self, outcome: str, fields: Callable[[], dict[str, Any]]) -> None:
        """Say nothing: the log does already."""

    def noted(self, event: str, **values: str) -> None:
        """Say nothing: the log does."""

    def slowed(self) -> None:
        """Say nothing: the log does."""

    def stalled(self) -> None:
        """Log that the client is not read for now."""
        self._log.debug("client_stalled", session=self._session)

    def closed(self, summary: SessionSummary) -> None:
        """Say nothing: the log does already."""


def _between(begin: float, end: float) -> float | None:
    """Return the seconds from one to the other, None if either has not happened."""
    return round(end - begin, 6) if begin and end else None
