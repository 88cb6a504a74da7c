"""The catalogue of log events: name, level, fields and meaning of each.

Every log line is an event of this catalogue: its name and level come from the row, and a test
compares the fields of each line with those of the row. `python deploy/generate` makes
deploy/reference/events.md from this file.

To add an event, add a row, and a Field for each field that no other event has.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from structlog.typing import FilteringBoundLogger

Level = Literal["debug", "info", "warning", "error"]
Type = Literal[
    "text",
    "number",
    "whole number",
    "true or false",
    "null",
    "list of texts",
    "list of whole numbers",
]


@dataclass(frozen=True, slots=True)
class Field:
    """A field, with the same name, type and meaning in each event that has it."""

    types: tuple[Type, ...]
    """The JSON types that the value can have."""
    meaning: str


@dataclass(frozen=True, slots=True)
class Event:
    """An event."""

    name: str
    level: Level
    meaning: str
    fields: tuple[str, ...] = ()
    """In the order of the line; those in OPTIONAL may be missing."""
    rewritten_level: Level = "info"
    """The level if the field `rewritten` is true, as the violation then did no harm."""

    def log(self, logger: FilteringBoundLogger, /, **values: object) -> None:
        """Log the event.

        Args:
            logger: The logger.
            values: The fields.  `details` is none: it is called when the line is rendered, and
                returns more fields, whose values have JSON types.
        """
        getattr(logger, self.level_of(values))(self.name, **values)

    def level_of(self, values: Mapping[str, object]) -> Level:
        """Return the level of the event with these values."""
        return self.rewritten_level if values.get("rewritten") else self.level


SESSION: Final = ("fault", "session", "client_ip", "client_port", "listener", "backend", "server")
"""The fields that each event of a session begins with."""
_FROM_HEADER: Final = (
    "forwarded_authority",
    "forwarded_unique_id",
    "forwarded_tls",
    "forwarded_cn",
)
_MESSAGE: Final = (
    *SESSION,
    "helo",
    "tls",
    "auth",
    "source_ip",
    "source_port",
    *_FROM_HEADER,
    "forwarded_ip",
    "forwarded_name",
    "sender",
    "recipients",
    "refused",
    "size_bytes",
    "reply",
    "duration_s",
    "groups",
    "more_recipients",
    "more_refused",
    "message_id",
    "queue_id",
)
_VIOLATION: Final = (*SESSION, "kind", "bytes", "command", "rewritten", "reason")
_WATCH: Final = ("uid", "pid", "networks", "content", "only_problems")
OPTIONAL: Final = frozenset(
    (
        "fault",
        "more_recipients",
        "more_refused",
        "message_id",
        "queue_id",
        "helo",
        "tls",
        "auth",
        "source_ip",
        "source_port",
        *_FROM_HEADER,
        "forwarded_ip",
        "forwarded_name",
        "exception",
        "exceptions",
        "cipher",
        "version",
        "reason",
        "kind",
    )
)
"""Fields that are left out if there is no value."""

FIELDS: Final = {
    "fault": Field(("text",), "The last fault that `--fault` has injected into the session."),
    "session": Field(("text",), "The unique id of the session, in log and traces."),
    "client_ip": Field(
        (
            "text",
            "null",
        ),
        "The client's IP address; null on a Unix socket.",
    ),
    "client_port": Field(
        (
            "whole number",
            "null",
        ),
        "The client's port; null on a Unix socket.",
    ),
    "listener": Field(
        ("text", "null"), "The listener's name in the settings; null if it is about a backend."
    ),
    "backend": Field(
        ("text", "null"), "The backend's name in the settings; null if it is about a listener."
    ),
    "server": Field(("text",), "The address of the backend's server; empty before there is one."),
    "address": Field(
        ("text",), "The address of the listener or of the admin server, with the real port."
    ),
    "sender": Field(("text",), "The address of MAIL."),
    "recipients": Field(("list of texts",), "The addresses of RCPT that the backend accepted."),
    "more_recipients": Field(
        ("whole number",), "Accepted recipients that are not shown, for lack of room."
    ),
    "refused": Field(("list of texts",), "The refused addresses of RCPT, each with its reply."),
    "more_refused": Field(
        ("whole number",), "Refused recipients that are not shown, for lack of room."
    ),
    "message_id": Field(("text",), "The Message-ID in the header of the message."),
    "queue_id": Field(
        ("text",),
        "The message's id in the MTA's log, if its reply names one, as those of Postfix, Exim,"
        " Sendmail, OpenSMTPD, Exchange and qmail do.",
    ),
    "helo": Field(("text",), "The client's name, as its EHLO or HELO gives it."),
    "tls": Field(("text",), "Version and cipher suite of the client's TLS."),
    "auth": Field(("text",), "The mechanism by which the client has authenticated itself."),
    "source_ip": Field(("text",), "The address that the server sees the connection come from."),
    "source_port": Field(("whole number",), "The port that the server sees it come from."),
    "forwarded_ip": Field(
        ("text",),
        "The client's address by XFORWARD of a trusted proxy; not used for anything else.",
    ),
    "forwarded_name": Field(("text",), "The client's host name by the same XFORWARD, in xtext."),
    "forwarded_authority": Field(
        ("text",),
        "The host name that the client asked the proxy in front for (SNI), by its PROXY header.",
    ),
    "forwarded_unique_id": Field(
        ("text",), "The id of the connection in the log of the proxy in front, by the same header."
    ),
    "forwarded_tls": Field(
        ("text",),
        "Version and, if known, cipher suite of the client's TLS with the proxy in front, by the"
        " same header.",
    ),
    "forwarded_cn": Field(
        ("text",),
        "The common name of the client's certificate, which the proxy in front has verified, by the"
        " same header.",
    ),
    "recipient": Field(("text",), "The address of RCPT."),
    "mechanism": Field(("text",), "The mechanism of AUTH, never the credentials."),
    "attempt": Field(
        ("whole number",), "The number of this refusal among those of its kind in the session."
    ),
    "size_bytes": Field(("whole number",), "Bytes of message content received, dots unstuffed."),
    "reply": Field(("text",), "The reply that the client got."),
    "duration_s": Field(("number",), "Seconds from start to end."),
    "groups": Field(("list of whole numbers",), "Commands in each pipelined group of the message."),
    "reason": Field(("text",), "The cause, as one of a few names or in words."),
    "kind": Field(("text",), "The kind of the violation, or of the failure."),
    "bytes": Field(("text",), "What was sent, cut and escaped."),
    "command": Field(("text",), "The command line, without secrets, cut and escaped."),
    "rewritten": Field(
        ("true or false",), "Whether the proxy rewrote and forwarded it; otherwise it was refused."
    ),
    "limit": Field(("text",), "The name of the setting in [limits]."),
    "messages": Field(("whole number",), "Messages that the backend accepted."),
    "commands": Field(("whole number",), "Commands from the client."),
    "pipelined": Field(
        (
            "whole number",
            "true or false",
        ),
        "Commands that came before the reply to the one before; whether this one did.",
    ),
    "round_trips_saved": Field(("whole number",), "Round trips that the client did not wait for."),
    "bytes_from_client": Field(("whole number",), "Bytes from the client, inside TLS."),
    "bytes_from_backend": Field(("whole number",), "Bytes from the backend, inside TLS."),
    "side": Field(("text",), "The peer: client or backend."),
    "version": Field(
        ("text",), "The version of TLS, or in an event of the service the version of smtpproxy."
    ),
    "cipher": Field(("text",), "The cipher suite of TLS."),
    "new_version": Field(("text",), "The version that took over."),
    "verb": Field(
        ("text",),
        "The verb in capitals, or end_of_data, auth_line, greeting, unsolicited, malformed.",
    ),
    "content_bytes": Field(("whole number",), "Bytes of message content or BDAT payload received."),
    "queued_s": Field(
        (
            "number",
            "null",
        ),
        "Seconds that the command waited in the proxy.",
    ),
    "backend_s": Field(
        (
            "number",
            "null",
        ),
        "Seconds that the backend took to reply.",
    ),
    "held_s": Field(
        (
            "number",
            "null",
        ),
        "Seconds that the reply waited for others of its group.",
    ),
    "clients": Field(("whole number",), "Clients since the last such line."),
    "workers": Field(("whole number",), "Worker processes."),
    "sessions": Field(("whole number",), "Open sessions of all workers."),
    "cluster": Field(("text",), "The name of the cluster."),
    "replica": Field(("text",), "The name of another instance of the cluster."),
    "name": Field(("text",), "A host name of sni, or default: the listener's own certificate."),
    "problems": Field(("list of texts",), "The problems in the settings, each with file and line."),
    "pid": Field(
        ("whole number",),
        "The process id: of the worker, of the new supervisor, or of trace watch.",
    ),
    "exit_code": Field(
        ("whole number",), "The exit code of the worker; negative: the signal that ended it."
    ),
    "restart_delay_s": Field(("number",), "Seconds until another worker replaces it."),
    "silent_s": Field(("number",), "Seconds since the last heartbeat of the worker."),
    "records": Field(("whole number",), "Trace records lost since the worker started."),
    "spans": Field(("whole number",), "Spans lost since the worker started."),
    "uid": Field(("whole number",), "The user id of the process, as the kernel knows it."),
    "networks": Field(("list of texts",), "The networks of the clients that are watched."),
    "content": Field(("text",), "How much message content is recorded: none, headers or full."),
    "only_problems": Field(
        ("true or false",), "Whether only sessions in which something failed are recorded."
    ),
    "records_sent": Field(("whole number",), "Trace records that were sent."),
    "records_lost": Field(("whole number",), "Trace records for which there was no room."),
    "lines": Field(("whole number",), "Log lines lost or left out since the last such line."),
    "faults": Field(("list of texts",), "The faults of `--fault`."),
    "seed": Field(("whole number",), "The seed of their decisions, for `--fault-seed`."),
    "library": Field(("text",), "The name of the library's logger."),
    "message": Field(("text",), "What the library reports."),
    "exceptions": Field(("whole number",), "Exceptions since the last such line."),
    "requests": Field(("whole number",), "Requests since the last such line."),
    "exception": Field(("text",), "The traceback."),
}

# Sessions.
SESSION_OPENED = Event(
    "session_opened", "debug", "The backend connection of a session is open.", SESSION
)
SESSION_CLOSED = Event(
    "session_closed",
    "info",
    "A session closed; `reason` is the cause.",
    (
        *SESSION,
        *_FROM_HEADER,
        "reason",
        "duration_s",
        "messages",
        "commands",
        "pipelined",
        "round_trips_saved",
        "bytes_from_client",
        "bytes_from_backend",
    ),
)
PROBE_CLOSED = Event(
    "probe_closed",
    "debug",
    "A connection that sent nothing and left, or came from listeners.NAME.probes, is over.",
    (*SESSION, "reason", "duration_s", "commands"),
)
MESSAGE_RELAYED = Event(
    "message_relayed", "info", "The backend accepted a message; `reply` is its own reply.", _MESSAGE
)
MESSAGE_REFUSED = Event("message_refused", "info", "A message was refused with `reply`.", _MESSAGE)
MESSAGE_ABANDONED = Event(
    "message_abandoned", "info", "A transaction ended without a reply to its message.", _MESSAGE
)
GREETING_REFUSED = Event(
    "greeting_refused",
    "info",
    "The backend refused the client in its greeting.",
    (*SESSION, "reply"),
)
HELLO_REFUSED = Event(
    "hello_refused",
    "info",
    "The backend refused EHLO or HELO; not logged if it does not know EHLO.",
    (*SESSION, "command", "reply"),
)
RECIPIENT_REFUSED = Event(
    "recipient_refused",
    "info",
    "A recipient was refused; the first 20 of a session are logged.",
    (*SESSION, "recipient", "reply", "attempt"),
)
AUTH_REFUSED = Event(
    "auth_refused",
    "info",
    "An AUTH exchange failed; the first 20 of a session are logged.",
    (*SESSION, "mechanism", "reply", "attempt"),
)
XCLIENT_REFUSED = Event(
    "xclient_refused",
    "info",
    "The proxy refused a client's XCLIENT or XFORWARD; the first 20 of a session are logged.",
    (*SESSION, "command", "reply", "attempt"),
)
BACKEND_XCLIENT_REFUSED = Event(
    "backend_xclient_refused",
    "warning",
    "The backend refused the proxy's XCLIENT, so the session ends.",
    (*SESSION, "command", "reply"),
)
CLIENT_VIOLATION = Event(
    "client_violation",
    "warning",
    "A client violated the protocol; at level info if the proxy rewrote it.",
    _VIOLATION,
)
BACKEND_VIOLATION = Event(
    "backend_violation", "warning", "The backend violated the protocol.", _VIOLATION
)
LIMIT_REACHED = Event(
    "limit_reached",
    "warning",
    "A session reached a limit; logged once for each limit and session.",
    (*SESSION, "limit", "command", "reply"),
)
CLIENT_SLOWED = Event(
    "client_slowed",
    "info",
    "A client exceeds `limits.commands_per_second` and is read more slowly.",
    SESSION,
)
CLIENT_STALLED = Event(
    "client_stalled", "debug", "Reading from a client is paused (back-pressure).", SESSION
)
BACKEND_LOST = Event(
    "backend_lost", "warning", "The backend closed or lost the connection of a session.", SESSION
)
SERVER_GIVEN_UP = Event(
    "server_given_up",
    "info",
    "A session could not use a server and tries the next one, if there is one.",
    (*SESSION, "reason"),
)
PROXY_HEADER_READ = Event(
    "proxy_header_read",
    "debug",
    "The PROXY header of a trusted proxy in front has TLVs about the client.",
    (*SESSION, *_FROM_HEADER),
)
TLS_STARTED = Event(
    "tls_started",
    "debug",
    "A TLS handshake with one side succeeded.",
    (*SESSION, "side", "version", "cipher"),
)
TLS_FAILED = Event(
    "tls_failed", "warning", "A TLS handshake with one side failed.", (*SESSION, "side", "reason")
)
CLIENT_TURNED_AWAY = Event(
    "client_turned_away",
    "warning",
    "A connection was closed before its session began: its PROXY header or implicit TLS failed.",
    (*SESSION, "kind", "reason"),
)
CONTENT_NOT_ENDED = Event(
    "content_not_ended",
    "warning",
    "A client sent a line with a dot alone that is not the end of data, and may wait for a reply.",
    (*SESSION, "kind"),
)
LOOP_DETECTED = Event(
    "loop_detected",
    "warning",
    "The proxy connected to itself: a server of the settings leads back to a listener.",
    (*SESSION, "reason"),
)
FAULT_INJECTED = Event(
    "fault_injected",
    "warning",
    "A fault of `--fault`, `fault`, was injected into a session.",
    SESSION,
)
EXCHANGE = Event(
    "exchange",
    "debug",
    "A command and its reply.",
    (
        *SESSION,
        "verb",
        "command",
        "reply",
        "content_bytes",
        "pipelined",
        "queued_s",
        "backend_s",
        "held_s",
    ),
)
INTERNAL_ERROR = Event(
    "internal_error",
    "error",
    "A bug in the proxy ended this session with 421.",
    (*SESSION, "exception"),
)

# The service.
LISTENING = Event(
    "listening", "info", "A listener accepts clients.", ("listener", "address", "version")
)
ADMIN_LISTENING = Event(
    "admin_listening", "info", "The admin server accepts connections.", ("address",)
)
ADMIN_BAD_REQUEST = Event(
    "admin_bad_request",
    "warning",
    "The admin address got requests that are not HTTP; at most one line a second.",
    ("kind", "requests"),
)
ADMIN_ERROR = Event(
    "admin_error", "error", "A bug in the proxy while it served the admin address.", ("exception",)
)
CANNOT_LISTEN = Event(
    "cannot_listen", "error", "An address cannot be listened on.", ("address", "reason")
)
NO_CONTROL_SOCKET = Event(
    "no_control_socket",
    "warning",
    "There is no control socket: `smtpproxy health` and `status` find no service; mail goes on.",
    ("address", "reason"),
)
FAULTS_WANTED = Event(
    "faults_wanted",
    "warning",
    "The service injects faults into sessions, since it was started with `--fault`.",
    ("faults", "seed"),
)
OPEN_RELAY_RISK = Event(
    "open_relay_risk",
    "warning",
    "The MTA sees the proxy's address for clients of other machines, and must not relay for it.",
    ("listener", "backend"),
)
WEAK_TLS = Event(
    "weak_tls",
    "warning",
    "The settings allow an old version of TLS or old ciphers, or any certificate of the MTA.",
    ("listener", "backend", "reason"),
)
CLIENTS_REFUSED = Event(
    "clients_refused",
    "warning",
    "New clients got 421; `reason` is the limit, `client_ip` the last client.",
    ("reason", "client_ip", "clients"),
)
CLIENTS_LOST = Event(
    "clients_lost",
    "debug",
    "Clients reset their connections before their addresses could be read.",
    ("clients",),
)
SERVER_DOWN = Event(
    "server_down",
    "warning",
    "A server cannot be reached, does not greet, or greets with 4xx; once for each change.",
    ("backend", "server", "reason"),
)
SERVER_DOWN_ELSEWHERE = Event(
    "server_down_elsewhere",
    "info",
    "Another replica found a server down: this one checks it now, and tries it last until then.",
    ("backend", "server", "replica"),
)
SERVER_UP = Event("server_up", "info", "A server can be reached again.", ("backend", "server"))
RELOADED = Event(
    "reloaded",
    "info",
    "New settings, or a new version, are in use.",
    ("workers", "sessions", "version"),
)
RELOAD_FAILED = Event(
    "reload_failed", "error", "A reload failed; the old settings stay in use.", ("problems",)
)
DOUBTFUL_CERTIFICATE = Event(
    "doubtful_certificate",
    "warning",
    "A certificate has expired, expires soon, is not valid yet, or lacks its name of `sni`.",
    ("listener", "name", "reason"),
)
CERTIFICATES_REFUSED = Event(
    "certificates_refused",
    "error",
    "Certificate files changed and cannot be used; the old certificates stay in use.",
    ("problems",),
)
CERTIFICATES_CHANGED = Event(
    "certificates_changed", "info", "Certificate files changed; the new certificates are in use."
)
HANDED_OVER = Event(
    "handed_over",
    "info",
    "Another version took over; this supervisor ends with its last session.",
    ("pid", "version", "new_version", "sessions"),
)
DRAINING = Event(
    "draining", "info", "No more clients are accepted; sessions finish.", ("sessions",)
)
STOPPED = Event("stopped", "info", "The service has ended.", ("version",))
CLUSTER_DEGRADED = Event(
    "cluster_degraded",
    "warning",
    "The store of the cluster is away or slow: this replica uses its share of the limits.",
    ("cluster", "reason"),
)
CLUSTER_RECOVERED = Event(
    "cluster_recovered",
    "info",
    "The store of the cluster answers in time again, after `duration_s`.",
    ("cluster", "duration_s"),
)
CLUSTER_COUNTS_AGAIN = Event(
    "cluster_counts_again",
    "info",
    "The store of the cluster is new, was restarted, has lost its data, or its clock has jumped: it"
    " grants no connection for `duration_s`, and this replica uses its share.",
    ("cluster", "backend", "duration_s"),
)
CANNOT_START_WORKERS = Event(
    "cannot_start_workers", "error", "Worker processes did not start.", ("reason",)
)
WORKER_LOST = Event(
    "worker_lost",
    "error",
    "A worker died with its sessions and will be replaced.",
    ("pid", "exit_code", "duration_s", "restart_delay_s"),
)
FORK_SERVER_LOST = Event(
    "fork_server_lost",
    "error",
    "The process that starts workers died; the supervisor restarts itself.",
)
WORKER_HANGS = Event(
    "worker_hangs",
    "error",
    "A worker sent no heartbeat for `timeouts.heartbeat` and is killed.",
    ("pid", "silent_s"),
)
TRACE_RECORDS_LOST = Event(
    "trace_records_lost", "error", "Trace records could not be written.", ("records", "reason")
)
TRACE_WATCH_STARTED = Event(
    "trace_watch_started",
    "info",
    "`smtpproxy trace watch` began to record sessions of clients of these networks.",
    _WATCH,
)
TRACE_WATCH_ENDED = Event(
    "trace_watch_ended",
    "info",
    "`smtpproxy trace watch` has ended, so these sessions are no longer recorded for it.",
    (*_WATCH, "duration_s", "records_sent", "records_lost"),
)
OTEL_SPANS_LOST = Event(
    "otel_spans_lost",
    "warning",
    "Spans did not reach the OpenTelemetry collector; at most once a minute.",
    ("spans", "reason"),
)
LOG_LINES_LOST = Event("log_lines_lost", "warning", "Log lines could not be written.", ("lines",))
LOG_LINES_SUPPRESSED = Event(
    "log_lines_suppressed",
    "warning",
    "Lines of a client were left out, beyond log.session_lines_per_second or"
    " log.address_lines_per_second; once a second. Beyond 64 addresses several share a line.",
    ("client_ip", "lines"),
)
LIBRARY_MESSAGE = Event(
    "library_message",
    "error",
    "A message of a library, with its level there.",
    ("library", "message", "exceptions", "exception"),
)
UNCAUGHT_EXCEPTION = Event(
    "uncaught_exception", "error", "A bug in the proxy ended a process or a thread.", ("exception",)
)

EVENTS: Final = {each.name: each for each in vars().copy().values() if isinstance(each, Event)}
"""By name, in the order in which a reference lists them."""
