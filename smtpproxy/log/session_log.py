"""What is logged of sessions: a line for each message and for each session, none per command."""

from collections.abc import Callable, Sequence
from typing import Any

from structlog.typing import FilteringBoundLogger

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import ConnectionEnds, SessionSummary
from smtpproxy.core.violations import LIMITS, BackendViolation
from smtpproxy.log import log
from smtpproxy.log.transaction_summary import TransactionSummary

_CONTINUES = frozenset((verbs.DATA, verbs.END_OF_DATA, verbs.BDAT))
_BEGINS_ANEW = frozenset((verbs.RSET, verbs.EHLO, verbs.HELO))
_WHY = {"proxy_header_unexpected": "its network is not in proxy_protocol"}
"""What an operator has to look at, by the kind of the violation."""


class ServiceLog:
    """Logs a worker's sessions."""

    def __init__(self) -> None:
        self._log = log.get()

    def session(self, session: str, listener: str, client: str) -> "SessionLog":
        """Begin to log a session, under an id that no other session has."""
        return SessionLog(session, listener, client, self._log)

    def server_changed(self, backend: str, server: str, up: bool, why: str) -> None:
        """Log that a server is down, or up again."""
        if up:
            self._log.info("server_up", backend=backend, server=server)
        else:
            self._log.warning("server_down", backend=backend, server=server, why=why)

    def refused(self, reason: str, client: str, clients: int) -> None:
        """Log that clients were turned away; of those that have gone by themselves, quietly."""
        tell = self._log.debug if reason == "client_lost" else self._log.warning
        tell("clients_refused", reason=reason, client=client, clients=clients)

    def broken(self, error: Exception) -> None:
        """Log an error of the proxy itself, with its traceback."""
        self._log.error("internal_error", exc_info=error)


class SessionLog:
    """Logs one session.

    on_transaction: who else learns what each transaction came to: the event, and what makes its
    fields, since not everybody needs them.
    """

    __slots__ = (
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
        self, session: str, listener: str, client: str, logger: FilteringBoundLogger
    ) -> None:
        self._id = session
        self._listener = listener
        self._client = client
        self._server = ""
        self._limits_told: tuple[str, ...] = ()  # each is told once, however often it is reached
        self._log = logger
        self._transaction: TransactionSummary | None = None
        self.on_transaction: Sequence[Callable[[str, Callable[[], dict[str, Any]]], None]] = ()

    def connected(self, server: str, ends: Callable[[], ConnectionEnds]) -> None:  # noqa: ARG002
        """Log that the session is open."""
        self._server = server
        self._log.debug(
            "session_opened",
            session=self._id,
            listener=self._listener,
            client=self._client,
            server=server,
        )

    def gave_up(self, server: str, why: str) -> None:
        """Log that this session goes on to another server, or to none."""
        self._log.info(
            "server_given_up", session=self._id, client=self._client, server=server, why=why
        )

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
        """Log what happened besides the dialogue; only failures matter to everybody."""
        level = self._log.debug if event == "tls_started" else self._log.warning
        level(event, session=self._id, client=self._client, server=self._server, **values)

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
        self._log.info(
            outcome, session=self._id, client=self._client, server=self._server, details=fields
        )
        for tell in self.on_transaction:
            tell(outcome, fields)

    def _log_violation(self, exchange: Exchange) -> None:
        problem = exchange.problem
        assert problem is not None
        limit = LIMITS.get(problem.kind)
        if limit is not None:
            if limit not in self._limits_told:
                self._limits_told += (limit,)
                self._log.warning(
                    "limit_reached",
                    session=self._id,
                    client=self._client,
                    server=self._server,
                    limit=limit,
                    command=exchange.line.rstrip(),
                    reply=exchange.reply.rstrip(),
                )
            return
        by_backend = isinstance(problem, BackendViolation)
        why = _WHY.get(problem.kind)
        # What was mended did no harm, but tells who would be refused by `reject`.
        tell = self._log.info if exchange.rewritten else self._log.warning
        tell(
            "backend_violation" if by_backend else "client_violation",
            session=self._id,
            client=self._client,
            server=self._server,
            kind=problem.kind,
            octets=problem.octets,
            command=exchange.line.rstrip(),
            refused=not exchange.rewritten,
            **({"why": why} if why else {}),
        )

    def stalled(self) -> None:
        """Say nothing: it happens to every large message."""

    def slowed(self) -> None:
        """Log that the client is slowed down."""
        self._log.info("client_slowed", session=self._id, client=self._client)

    def closed(self, summary: SessionSummary) -> None:
        """Log the session, and what was left of its last transaction."""
        self._finish()
        if summary.reason == "backend_lost":
            self._log.warning(
                "backend_lost", session=self._id, client=self._client, server=self._server
            )
        self._log.info(
            "session_closed",
            session=self._id,
            listener=self._listener,
            client=self._client,
            server=self._server,
            reason=summary.reason,
            seconds=round(summary.seconds, 4),
            messages=summary.messages,
            commands=summary.commands,
            pipelined=summary.pipelined,
            round_trips_saved=summary.pipelined,
            octets_from_client=summary.client_octets,
            octets_from_backend=summary.backend_octets,
        )
