"""The session log: a line for each message and for each session, none for each command."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from structlog.typing import FilteringBoundLogger

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.observer import Endpoint, NotedEvent, SessionEnds, SessionSummary
from smtpproxy.core.violations import LIMITS, BackendViolation
from smtpproxy.log import events, log
from smtpproxy.log.line_limits import LineLimits, SessionLineLimit
from smtpproxy.log.message_identifiers import MessageIdScanner
from smtpproxy.log.transaction_summary import TransactionSummary, paths
from smtpproxy.text.escaping import shortened

_CONTINUES = frozenset((verbs.DATA, verbs.END_OF_DATA, verbs.BDAT))
_RESETS = frozenset((verbs.RSET, verbs.EHLO, verbs.HELO))
_NOT_KNOWN = frozenset((500, 502, 504))
"""Codes of a backend that does not know EHLO; the client goes on with HELO."""
_FORWARDING = frozenset((b"XCLIENT", b"XFORWARD"))
"""Verbs by which a proxy passes on the client's address."""
REFUSALS_LOGGED = 20
"""The most refusals of one kind that are logged in a session."""
HELO_BYTES = 255
"""The most bytes that are logged of the name in EHLO, HELO or XFORWARD."""
_FORWARDED = {b"ADDR": "forwarded_ip", b"NAME": "forwarded_name"}
_NO_SOURCE: Endpoint = ("", 0)
_NOTHING: dict[str, str] = {}
_REASONS = {"proxy_header_unexpected": "its network is not in proxy_protocol"}
"""Hints for the operator, by the kind of the violation."""

TransactionEnded = Callable[[str, Callable[[], dict[str, Any]]], None]
"""Called at the end of a transaction with the name of its event, and what returns its fields.

Not every observer needs the fields, so they are made only if asked for.
"""


class ServiceLog:
    """Logs a worker's sessions.

    Args:
        limits: Limits the lines; None does not.
    """

    def __init__(self, limits: LineLimits | None = None) -> None:
        self._log = log.get()
        self._limits = limits

    def session(self, session: str, listener: str, backend: str, client: str) -> "SessionLog":
        """Return the log of a session; `session` is its unique id."""
        return SessionLog(session, listener, backend, client, self._log, self._limits)

    def server_changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Log that a server is down, or up again."""
        if up:
            events.SERVER_UP.log(self._log, backend=backend, server=server)
        else:
            events.SERVER_DOWN.log(self._log, backend=backend, server=server, reason=reason)

    def refused(self, reason: str, client: str, clients: int) -> None:
        """Log refused clients; those that left by themselves at debug."""
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
    client_ip, client_port = ip_and_port(client)
    return {
        "session": session,
        "client_ip": client_ip,
        "client_port": client_port,
        "listener": listener,
        "backend": backend,
        "server": server,
    }


def ip_and_port(client: str) -> tuple[str | None, int | None]:
    """Split a client's address into IP address and port; both are None for `unix`."""
    host, colon, port = client.rpartition(":")
    return (host.strip("[]"), int(port)) if colon else (None, None)


class SessionLog:
    """Logs one session."""

    __slots__ = (
        "_auth",
        "_backend",
        "_client",
        "_fields",
        "_forwarded",
        "_from_header",
        "_hello",
        "_limit",
        "_limits",
        "_limits_logged",
        "_listener",
        "_log",
        "_mechanism",
        "_message_fields",
        "_on_transaction",
        "_refusals",
        "_scanned",
        "_scanners",
        "_server",
        "_source_ip",
        "_source_port",
        "_tls",
        "_transaction",
        "id",
    )

    def __init__(
        self,
        session: str,
        listener: str,
        backend: str,
        client: str,
        logger: FilteringBoundLogger,
        limits: LineLimits | None,
    ) -> None:
        # An idle session keeps all this (bench S5), so what it may not need is made later.
        self.id = session
        """The unique id of the session."""
        self._listener = listener
        self._backend = backend
        self._client = client
        self._server = ""
        self._limits_logged: tuple[str, ...] = ()  # each is logged once
        self._log = logger
        self._limits = limits
        self._limit: SessionLineLimit | None = None
        self._transaction: TransactionSummary | None = None
        self._source_ip = ""  # not kept as the tuple, which takes more memory
        self._source_port = 0
        self._tls = ""
        self._hello = b""  # the client's last EHLO or HELO line
        self._forwarded: dict[str, object] | None = None  # by a trusted client's XFORWARD
        self._from_header: dict[str, str] = _NOTHING  # by the PROXY header of a proxy in front
        self._mechanism = self._auth = b""  # of the last AUTH, and of the one that was accepted
        self._fields: dict[str, object] | None = None  # those of each event
        self._message_fields: dict[str, object] | None = None  # and of each message's
        self._refusals: dict[events.Event, int] | None = None
        self._scanned: Exchange | None = None
        self._scanners: dict[Exchange, MessageIdScanner] | None = None
        self._on_transaction: Sequence[TransactionEnded] = ()

    def report_transactions(self, on_transaction: Sequence[TransactionEnded]) -> None:
        """Set what is called at the end of each transaction."""
        self._on_transaction = on_transaction

    def connected(self, server: str, ends: SessionEnds) -> None:
        """Log that the session is open."""
        self._server = server
        self._fields = None
        self._source_ip, self._source_port = ends.source() or _NO_SOURCE
        self._emit(events.SESSION_OPENED)

    def _emit(self, event: events.Event, **values: object) -> None:
        if self._may_log(event, event.level_of(values)):
            event.log(self._log, **{**self._session_fields, **values})

    def _may_log(self, event: events.Event, level: str) -> bool:
        """Return whether a line is logged, before its fields are made; it counts as logged."""
        limits = self._limits
        if limits is None:
            return True
        if level not in limits.levels:
            return False
        if event is events.MESSAGE_RELAYED:
            return True
        if self._limit is None:
            self._limit = limits.session(ip_and_port(self._client)[0])
        return self._limit.allows(event)

    @property
    def _session_fields(self) -> dict[str, object]:
        fields = self._fields
        if fields is None:
            fields = self._fields = session_fields(
                self.id, self._listener, self._backend, self._client, self._server
            )
        return fields

    def gave_up(self, server: str, reason: str) -> None:
        """Log that a server could not be used."""
        self._emit(events.SERVER_GIVEN_UP, server=server, reason=reason)

    def content(self, exchange: Exchange, sent: bytes, came: bytes) -> None:  # noqa: ARG002
        """Look for the Message-ID; called with each chunk."""
        if exchange is not self._scanned:
            self._scanned = exchange
            self._scanners = self._scanners or {}
            self._scanners[exchange] = MessageIdScanner()
        assert self._scanners is not None
        self._scanners[exchange].add(sent)

    def settled(self, exchanges: list[Exchange]) -> None:
        """Follow transactions, and log ended ones, refusals and violations."""
        for exchange in exchanges:
            role = exchange.verb.role
            if role == verbs.RCPT:
                if self._transaction is not None:
                    self._transaction.add(exchange)
            elif role == verbs.MAIL:
                self._begin(exchange)
            elif role in _CONTINUES:
                self._continue(exchange)
            elif role in _RESETS:
                self._reset(exchange)
            elif role in (verbs.AUTH, verbs.XFORWARD):
                self._note_identity(exchange)
            if exchange.code >= 400:
                self._log_refusal(exchange)
            if exchange.problem is not None:
                self._log_violation(exchange)

    def noted(self, event: NotedEvent, **values: str) -> None:
        """Log an event besides the dialogue."""
        if event == events.TLS_STARTED.name and values["side"] == "client":
            self._tls = f"{values['version']} {values['cipher']}"
        elif event == events.PROXY_HEADER_READ.name:
            self._from_header = values
        elif event == events.FAULT_INJECTED.name:
            self._log = self._log.bind(fault=values["fault"])
        self._emit(events.EVENTS[event], **values)

    def broken(self, error: Exception) -> None:
        """Log an error of the proxy itself, with its traceback."""
        self._emit(events.INTERNAL_ERROR, exc_info=error)

    def _begin(self, mail: Exchange) -> None:
        if self._transaction is not None and mail.code >= 300:
            return  # a nested MAIL, refused: the transaction goes on
        self._finish()
        self._transaction = TransactionSummary(mail)

    def _reset(self, exchange: Exchange) -> None:
        if exchange.code < 300:
            self._finish()
            self._forwarded = None
            if exchange.verb.role != verbs.RSET:
                self._hello = exchange.line
                self._message_fields = None

    def _continue(self, exchange: Exchange) -> None:
        transaction = self._transaction
        scanner = self._scanners.pop(exchange, None) if self._scanners else None
        if transaction is None:
            return
        if scanner is not None and not transaction.header_ended:
            transaction.add_header(scanner.message_id, ended=scanner.ended)
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
        event = events.EVENTS[outcome]
        if self._may_log(event, event.level):
            begin = self._fields_of_messages()
            if self._forwarded:
                begin = begin | self._forwarded
            details = partial(_message_details, begin, fields)
            event.log(self._log, details=details)
        self._forwarded = None  # the MTA discards it, too
        for report in self._on_transaction:
            report(outcome, fields)

    def _fields_of_messages(self) -> dict[str, object]:
        """Return the fields of a message's event that all messages of the client have."""
        fields = self._message_fields
        if fields is None:
            fields = self._message_fields = {**self._session_fields}
            if self._hello:
                fields["helo"] = shortened(self._hello[5:].strip(), HELO_BYTES)
            if self._tls:
                fields["tls"] = self._tls
            if self._auth:
                fields["auth"] = log.text_of_value(self._auth)
            if self._source_ip:
                fields["source_ip"] = self._source_ip
                fields["source_port"] = self._source_port
            fields |= self._from_header
        return fields

    def _note_identity(self, exchange: Exchange) -> None:
        if exchange.verb.role == verbs.AUTH:
            self._note_auth(exchange)
        elif exchange.code < 300:
            self._forwarded = {**(self._forwarded or {}), **_forwarded_by(exchange.line)}

    def _note_auth(self, exchange: Exchange) -> None:
        if exchange.verb.name:  # else it is a line after a 334
            words = exchange.line.split(None, 2)
            self._mechanism = words[1].upper() if len(words) > 1 else b""
        if exchange.code == 235:
            self._auth = self._mechanism
            self._message_fields = None

    def _log_refusal(self, exchange: Exchange) -> None:
        role, reply = exchange.verb.role, exchange.reply.rstrip()
        if role == verbs.RCPT:
            (recipient,) = paths([exchange.line])
            self._emit_refusal(events.RECIPIENT_REFUSED, recipient=recipient, reply=reply)
        elif role == verbs.AUTH:
            self._emit_refusal(events.AUTH_REFUSED, mechanism=self._mechanism, reply=reply)
        elif role == verbs.GREETING:
            if not exchange.refusal:
                self._emit(events.GREETING_REFUSED, reply=reply)
        elif role in (verbs.EHLO, verbs.HELO):
            self._log_hello_refused(exchange, reply)
        elif exchange.verb.name in _FORWARDING:
            command = exchange.line.rstrip()
            self._emit_refusal(events.XCLIENT_REFUSED, command=command, reply=reply)

    def _log_hello_refused(self, exchange: Exchange, reply: bytes) -> None:
        step = exchange.steps[-1] if exchange.steps else None
        if step is not None and step.line.startswith(b"XCLIENT "):
            self._emit(
                events.BACKEND_XCLIENT_REFUSED,
                command=step.line.rstrip(),
                reply=step.reply.rstrip(),
            )
        elif exchange.verb.role == verbs.HELO or exchange.code not in _NOT_KNOWN:
            self._emit(events.HELLO_REFUSED, command=exchange.line.rstrip(), reply=reply)

    def _emit_refusal(self, event: events.Event, **values: object) -> None:
        """Count a refusal of this kind, and log it if it is among the first ones."""
        refusals = self._refusals = self._refusals or {}
        refusals[event] = attempt = refusals.get(event, 0) + 1
        if attempt <= REFUSALS_LOGGED:
            self._emit(event, **values, attempt=attempt)

    def _log_violation(self, exchange: Exchange) -> None:
        problem = exchange.problem
        assert problem is not None
        limit = LIMITS.get(problem.kind)
        if limit is not None:
            if limit not in self._limits_logged:
                self._limits_logged += (limit,)
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
        """Log nothing: every large message stalls."""

    def slowed(self) -> None:
        """Log that the client is read more slowly."""
        self._emit(events.CLIENT_SLOWED)

    def closed(self, summary: SessionSummary) -> None:
        """Log the end of the session, and of its last transaction."""
        if summary.probe:
            self._emit(
                events.PROBE_CLOSED,
                reason=summary.reason,
                duration_s=round(summary.seconds, 4),
                commands=summary.commands,
            )
            return
        self._finish()
        if summary.reason == "backend_lost":
            self._emit(events.BACKEND_LOST)
        event = events.SESSION_CLOSED
        if self._may_log(event, event.level):
            begin = self._session_fields | self._from_header
            event.log(self._log, details=partial(_closed_details, begin, summary))


def _forwarded_by(line: bytes) -> dict[str, object]:
    """Return the fields of the client that an XFORWARD line names, as far as it is known."""
    found: dict[str, object] = {}
    for word in line.split()[1:]:
        name, _, value = word.partition(b"=")
        field = _FORWARDED.get(name.upper())
        if field is not None and not value.startswith(b"["):  # [UNAVAILABLE]
            if value[:5].upper() == b"IPV6:":
                value = value[5:]
            found[field] = shortened(value, HELO_BYTES)
    return found


def _message_details(
    begin: dict[str, object], fields: Callable[[], dict[str, Any]]
) -> dict[str, object]:
    """Return the fields of a message's event, which begin with those of all its messages."""
    line = {**begin, **fields()}
    line["reply"] = log.text_of_value(line["reply"])
    if "message_id" in line:
        line["message_id"] = log.text_of_value(line["message_id"])
    return line


def _closed_details(begin: dict[str, object], summary: SessionSummary) -> dict[str, object]:
    return {
        **begin,
        "reason": summary.reason,
        "duration_s": round(summary.seconds, 4),
        "messages": summary.messages,
        "commands": summary.commands,
        "pipelined": summary.pipelined,
        "round_trips_saved": summary.pipelined,
        "bytes_from_client": summary.client_octets,
        "bytes_from_backend": summary.backend_octets,
    }
