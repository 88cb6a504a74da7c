"""What is logged of sessions: a line for each message and for each session, none per command."""

from collections.abc import Callable, Sequence
from typing import Any

from structlog.typing import FilteringBoundLogger

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import ConnectionEnds, SessionSummary
from smtpproxy.core.violations import LIMITS, BackendViolation
from smtpproxy.log import events, log
from smtpproxy.log.transaction_summary import TransactionSummary

_CONTINUES = frozenset((verbs.DATA, verbs.END_OF_DATA, verbs.BDAT))
_BEGINS_ANEW = frozenset((verbs.RSET, verbs.EHLO, verbs.HELO))
_REASONS = {"proxy_header_unexpected": "its network is not in proxy_protocol"}
"""What an operator has to look at, by the kind of the violation."""


class ServiceLog:
    """Logs a worker's sessions."""

    def __init__(self) -> None:
        self._log = log.get()

    def session(self, session: str, listener: str, backend: str, client: str) -> "SessionLog":
        """Begin to log a session, under an id that no other session has."""
        return SessionLog(session, listener, backend, client, self._log)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Log that a server is down, or up again."""
        if up:
            events.SERVER_UP.log(self._log, backend=backend, server=server)
        else:
            events.SERVER_DOWN.log(self._log, backend=backend, server=server, reason=reason)

    def refused(self, reason: str, client: str, clients: int) -> None:
        """Log that clients were turned away; of those that have gone by themselves, quietly."""
        if reason == "client_lost":
            events.CLIENTS_LOST.log(self._log, clients=clients)
            return
        client_ip = client or None
        events.CLIENTS_REFUSED.log(self._log, reason=reason, client_ip=client_ip, clients=clients)


def session_fields(
    session: str, listener: str, backend: str, client: str, server: str
) -> dict[str, object]:
    """Return the fields that each event of a session begins with (`events.SESSION`).

    `client` is `192.0.2.1:4711`, `[2001:db8::1]:4711`, or `unix`.
    """
    host, colon, port = client.rpartition(":")
    return {
        "session": session,
        "client_ip": host.strip("[]") if colon else None,
        "client_port": int(port) if colon else None,
        "listener": listener,
        "backend": backend,
        "server": server,
    }


class SessionLog:
    """Logs one session.

    on_transaction: who else learns what each transaction came to: the event, and what makes its
    fields, since not everybody needs them.
    """

    __slots__ = (
        "_backend",
        "_client",
        "_id",
        "_limits_told",
        "_listener",
        "_log",
        "_server",
        "_transaction",
        "on_transaction",
    )

    content = None

    def __init__(
        self,
        session: str,
        listener: str,
        backend: str,
        client: str,
        logger: FilteringBoundLogger,
    ) -> None:
        self._id = session
        self._listener = listener
        self._backend = backend
        self._client = client
        self._server = ""
        self._limits_told: tuple[str, ...] = ()  # each is told once, however often it is reached
        self._log = logger
        self._transaction: TransactionSummary | None = None
        self.on_transaction: Sequence[Callable[[str, Callable[[], dict[str, Any]]], None]] = ()

    def connected(self, server: str, ends: Callable[[], ConnectionEnds]) -> None:  # noqa: ARG002
        """Log that the session is open."""
        self._server = server
        self._emit(events.SESSION_OPENED)

    def _emit(self, event: events.Event, **values: object) -> None:
        fields = session_fields(self._id, self._listener, self._backend, self._client, self._server)
        event.log(self._log, **{**fields, **values})

    def gave_up(self, server: str, reason: str) -> None:
        """Log that this session goes on to another server, or to none."""
        self._emit(events.SERVER_GIVEN_UP, server=server, reason=reason)

    def settled(self, exchanges: list[Exchange]) -> None:
        """Follow transactions, and log the one that is over; log what broke the protocol."""
        for exchange in exchanges:
            role = exchange.verb.role
            if role == verbs.RCPT:
                if self._transaction is not None:
                    self._transaction.add(exchange)
            elif role == verbs.MAIL:
                self._begin(exchange)
            elif role in _CONTINUES:
                self._continue(exchange)
            elif role in _BEGINS_ANEW and exchange.code < 300:
                self._finish()
            if exchange.problem is not None:
                self._log_violation(exchange)

    def noted(self, event: str, **values: str) -> None:
        """Log what happened besides the dialogue."""
        self._emit(events.EVENTS[event], **values)

    def broken(self, error: Exception) -> None:
        """Log an error of the proxy itself, with its traceback."""
        self._emit(events.INTERNAL_ERROR, exc_info=error)

    def _begin(self, mail: Exchange) -> None:
        if self._transaction is not None and mail.code >= 300:
            return  # a nested MAIL, refused: the transaction goes on
        self._finish()
        self._transaction = TransactionSummary(mail)

    def _continue(self, exchange: Exchange) -> None:
        transaction = self._transaction
        if transaction is None:
            return
        if exchange.ends_message:
            transaction.end(exchange)
            self._finish()
        elif exchange.code >= 400:
            transaction.end(exchange)  # DATA or BDAT was refused
        else:
            transaction.add(exchange)

    def _finish(self) -> None:
        transaction = self._transaction
        if transaction is None:
            return
        self._transaction = None
        outcome, fields = transaction.outcome, transaction.fields
        self._emit(events.EVENTS[outcome], details=fields)
        for tell in self.on_transaction:
            tell(outcome, fields)

    def _log_violation(self, exchange: Exchange) -> None:
        problem = exchange.problem
        assert problem is not None
        limit = LIMITS.get(problem.kind)
        if limit is not None:
            if limit not in self._limits_told:
                self._limits_told += (limit,)
                self._emit(
                    events.LIMIT_REACHED,
                    limit=limit,
                    command=exchange.line.rstrip(),
                    reply=exchange.reply.rstrip(),
                )
            return
        by_backend = isinstance(problem, BackendViolation)
        reason = _REASONS.get(problem.kind)
        # What was rewritten did no harm, but shows which clients `reject` would refuse.
        self._emit(
            events.BACKEND_VIOLATION if by_backend else events.CLIENT_VIOLATION,
            kind=problem.kind,
            bytes=problem.octets,
            command=exchange.line.rstrip(),
            rewritten=exchange.rewritten,
            **({"reason": reason} if reason else {}),
        )

    def stalled(self) -> None:
        """Say nothing: it happens to every large message."""

    def slowed(self) -> None:
        """Log that the client is slowed down."""
        self._emit(events.CLIENT_SLOWED)

    def closed(self, summary: SessionSummary) -> None:
        """Log the session, and what was left of its last transaction."""
        self._finish()
        if summary.reason == "backend_lost":
            self._emit(events.BACKEND_LOST)
        self._emit(
            events.SESSION_CLOSED,
            reason=summary.reason,
            duration_s=round(summary.seconds, 4),
            messages=summary.messages,
            commands=summary.commands,
            pipelined=summary.pipelined,
            round_trips_saved=summary.pipelined,
            bytes_from_client=summary.client_octets,
            bytes_from_backend=summary.backend_octets,
        )
