"""Every metric: its name, type, help, labels and bounds.

To add a metric, add a row here, and put its number into a snapshot where the number is known. What
a session does is counted in `smtpproxy.metrics.counters`; everything else goes to
`MetricsSnapshot.put`. `python deploy/generate` makes deploy/reference/metrics.md from this file.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
COUNTER: Final = "counter"
"""It only grows; the numbers of a worker that has ended stay in the sum."""
GAUGE: Final = "gauge"
"""It rises and falls; the numbers of a worker that has ended are dropped."""
HISTOGRAM: Final = "histogram"
"""Counters by upper bound."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric."""

    name: str
    """Without the prefix `smtpproxy_`, and without `_total` or `_bucket` at its end."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    """Each of them is a key of LABELS."""
    bounds: tuple[float, ...] = ()
    """The upper bounds of a histogram, without the last one, which is infinite."""


_SESSION: Final = ("listener", "backend")
"""The labels of what sessions count."""
_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
"""From a reply on the same machine to a filter that needs minutes (RFC 5321 section 4.5.3.2)."""

INSTANCE: Final = "smtpproxy_instance"
"""The label that each series has; Prometheus has its own `instance`, the address it scrapes."""

LABELS: Final = {
    "listener": "The listener's name in the settings.",
    "backend": "The backend's name in the settings.",
    "server": "The address of a server, as it is written in the settings.",
    "reason": "Of a closed session: the `reason` of its `session_closed` event. Of a refused"
    " client: the name of the limit in `[limits]`, `file_descriptors` or `client_lost`.",
    "verb": "The verb in capitals; `end_of_data`; `auth_line`, what follows AUTH; `greeting`;"
    " `unsolicited`, a reply to no command; `other`, no known verb.",
    "reply": "The class of the reply: `2xx` to `5xx`; `none` without a reply.",
    "outcome": "`relayed`: the backend accepted the message. `refused`: it or the proxy refused."
    " `abandoned`: the transaction ended without a decision.",
    "side": "`client` or `backend`.",
    "direction": "`in`: from that side to the proxy. `out`: to that side.",
    "limit": "The name of the setting in `[limits]`.",
    "kind": "The kind of violation, as in the log.",
    "name": "A host name of `sni`, or `default`: the listener's own certificate.",
    "worker": "The worker's number; a later worker may have the same.",
    "version": "The version of smtpproxy, or of TLS; `none` for a handshake that failed.",
    "result": "Of a TLS handshake: `ok` or `failed`. Of a connection to a server: `ok`, or"
    " `given_up`: it was not reached, or did not greet.",
    "fault": "The value of `--fault`.",
    "compiled": "Whether the hot path is compiled: `yes` or `no`.",
}
"""What each label means, in all metrics that have it."""

BUILD_INFO: Final = Definition("build_info", GAUGE, "Always 1.", ("version", "compiled"))

# Sessions.
SESSIONS: Final = Definition("sessions", GAUGE, "Open sessions.", _SESSION)
SESSIONS_OPENED: Final = Definition("sessions_opened", COUNTER, "Sessions opened.", _SESSION)
SESSIONS_CLOSED: Final = Definition(
    "sessions_closed", COUNTER, "Sessions closed, by reason.", (*_SESSION, "reason")
)
PROBES: Final = Definition(
    "probes",
    COUNTER,
    "Of the sessions closed, those that sent nothing and left, or came from listeners.NAME.probes.",
    _SESSION,
)
CLIENTS_SLOWED: Final = Definition(
    "clients_slowed",
    COUNTER,
    "Sessions that sent more than limits.commands_per_second and were read more slowly.",
    _SESSION,
)
COMMANDS: Final = Definition(
    "commands",
    COUNTER,
    "Commands from clients and ends of data, by verb and class of the reply.",
    (*_SESSION, "verb", "reply"),
)
MESSAGES: Final = Definition(
    "messages", COUNTER, "Ended mail transactions, by outcome.", (*_SESSION, "outcome")
)
PIPELINED_COMMANDS: Final = Definition(
    "pipelined_commands",
    COUNTER,
    "Commands that arrived before the reply to the one before was flushed.",
    _SESSION,
)
ROUND_TRIPS_SAVED: Final = Definition(
    "round_trips_saved", COUNTER, "Round trips that clients did not have to wait for.", _SESSION
)
HELD_REPLIES: Final = Definition(
    "held_replies", COUNTER, "Replies that waited for others of their group.", _SESSION
)
CLIENT_STALLS: Final = Definition(
    "client_stalls",
    COUNTER,
    "Times that a client was not read for a while (back-pressure).",
    _SESSION,
)
CONTENT_BYTES: Final = Definition("content_bytes", COUNTER, "Bytes of message content.", _SESSION)
BYTES: Final = Definition(
    "bytes",
    COUNTER,
    "Bytes inside TLS, by side and direction: in, counted when a session closes; out, counted when "
    "replies are flushed, without secrets of AUTH and without what a passed STARTTLS carries.",
    (*_SESSION, "side", "direction"),
)
LIMITS_REACHED: Final = Definition(
    "limits_reached", COUNTER, "Commands and messages over a limit.", (*_SESSION, "limit")
)
VIOLATIONS: Final = Definition(
    "violations", COUNTER, "Protocol violations, by side and kind.", (*_SESSION, "side", "kind")
)
TLS_HANDSHAKES: Final = Definition(
    "tls_handshakes",
    COUNTER,
    "TLS handshakes, by side, version and result.",
    (*_SESSION, "side", "version", "result"),
)
FAULTS_INJECTED: Final = Definition(
    "faults_injected", COUNTER, "Faults injected into sessions.", (*_SESSION, "fault")
)
AUTH_REFUSALS: Final = Definition(
    "auth_refusals", COUNTER, "AUTH exchanges that ended with 4xx or 5xx.", _SESSION
)
BACKEND_CONNECTS: Final = Definition(
    "backend_connects", COUNTER, "Connections to servers, by result.", (*_SESSION, "result")
)
BACKEND_CONNECT_SECONDS: Final = Definition(
    "backend_connect_seconds",
    HISTOGRAM,
    "Seconds from the client's connection until the one to the server was open, the wait for a"
    " connection slot and servers that were given up included.",
    _SESSION,
    _SECONDS,
)
BACKEND_REPLY_SECONDS: Final = Definition(
    "backend_reply_seconds",
    HISTOGRAM,
    "Seconds until the backend's reply, by verb; for the greeting, since the client connected.",
    (*_SESSION, "verb"),
    _SECONDS,
)
PIPELINE_GROUP_SIZE: Final = Definition(
    "pipeline_group_size",
    HISTOGRAM,
    "Commands in each group that a client sent.",
    _SESSION,
    (1, 2, 3, 5, 10, 20, 50, 100, 500),
)

# The service.
CLIENTS_REFUSED: Final = Definition(
    "clients_refused",
    COUNTER,
    "New clients that got 421 at once, by the limit that was reached; client_lost: those that left "
    "before their address could be read.",
    ("reason",),
)
SERVER_UP: Final = Definition(
    "server_up", GAUGE, "Whether a server is up: 1 or 0.", ("backend", "server")
)
BACKEND_CONNECTIONS: Final = Definition(
    "backend_connections",
    GAUGE,
    "Connections to a backend that has max_connections.",
    ("backend",),
)
BACKEND_MAX_CONNECTIONS: Final = Definition(
    "backend_max_connections", GAUGE, "The setting max_connections of a backend.", ("backend",)
)
BACKEND_WAITING_CLIENTS: Final = Definition(
    "backend_waiting_clients",
    GAUGE,
    "Clients that wait for a connection to a backend that has max_connections.",
    ("backend",),
)
CLUSTER_STORE_UP: Final = Definition(
    "cluster_store_up", GAUGE, "Whether the store of the cluster answers in time: 1 or 0."
)
CLUSTER_STORE_FAILURES: Final = Definition(
    "cluster_store_failures",
    COUNTER,
    "Times that the store of the cluster did not answer in time, or refused a connection.",
)
CLUSTER_CONNECTIONS: Final = Definition(
    "cluster_connections",
    GAUGE,
    "Connections of all replicas to a backend that has max_connections, as the store last answered;"
    " a replica that is not heard counts with its share.",
    ("backend",),
)
CLUSTER_REPLICAS_HEARD: Final = Definition(
    "cluster_replicas_heard",
    GAUGE,
    "Other replicas whose sessions count for the limits by client address; 0 while the store is"
    " away.",
)
TRACE_RECORDS_LOST: Final = Definition(
    "trace_records_lost", COUNTER, "Trace records that could not be written."
)
TRACE_WATCHES: Final = Definition(
    "trace_watches", GAUGE, "Watches of `smtpproxy trace watch` that record sessions now."
)
OTEL_SPANS_LOST: Final = Definition(
    "otel_spans_lost",
    COUNTER,
    "Spans that did not reach the OpenTelemetry collector: it is too slow, or gone.",
)
LOG_LINES_LOST: Final = Definition(
    "log_lines_lost",
    COUNTER,
    "Log lines that could not be written: standard error is not read, or the disk is full.",
)
LOG_LINES_SUPPRESSED: Final = Definition(
    "log_lines_suppressed",
    COUNTER,
    "Log lines of clients that made more than log.session_lines_per_second or"
    " log.address_lines_per_second.",
)
CERTIFICATE_EXPIRY_TIMESTAMP_SECONDS: Final = Definition(
    "certificate_expiry_timestamp_seconds",
    GAUGE,
    "When a certificate shown to clients expires.",
    ("listener", "name"),
)
CONFIG_LAST_RELOAD_SUCCESSFUL: Final = Definition(
    "config_last_reload_successful",
    GAUGE,
    "Whether the last reload of the settings succeeded: 1 or 0.",
)
CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS: Final = Definition(
    "config_last_reload_success_timestamp_seconds",
    GAUGE,
    "When the settings in use were read.",
)
FAULTS: Final = Definition(
    "faults", GAUGE, "The flags `--fault` that the service was started with: 0 in production."
)
WORKERS: Final = Definition(
    "workers", GAUGE, "Worker processes, including those that only finish their last sessions."
)
WORKERS_LOST: Final = Definition(
    "workers_lost", COUNTER, "Workers that died or hung, and were replaced."
)
WORKER_CPU_SECONDS: Final = Definition(
    "worker_cpu_seconds", COUNTER, "User and system CPU time of a worker.", ("worker",)
)
WORKER_RESIDENT_MEMORY_BYTES: Final = Definition(
    "worker_resident_memory_bytes", GAUGE, "Resident memory of a worker.", ("worker",)
)
WORKER_OPEN_FDS: Final = Definition(
    "worker_open_fds", GAUGE, "Open file descriptors of a worker.", ("worker",)
)
WORKER_EVENT_LOOP_LAG_SECONDS: Final = Definition(
    "worker_event_loop_lag_seconds",
    GAUGE,
    "How late a worker's event loop is; from limits.event_loop_lag on, new clients are refused.",
    ("worker",),
)

DEFINITIONS: Final = {
    each.name: each for each in vars().copy().values() if isinstance(each, Definition)
}
"""By name, in the order in which the reference lists them."""
