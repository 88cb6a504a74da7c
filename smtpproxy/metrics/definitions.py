"""Every metric: its name, type, help and labels.

To add one, add a row here, and put its number where it is known: what a session does is counted in
`smtpproxy.metrics.counters`; `MetricsSnapshot.put` takes all else.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
COUNTER: Final = "counter"
"""What only grows: the numbers of a worker that has ended stay in the sum."""
GAUGE: Final = "gauge"
"""What holds for now: the numbers of a worker go with it."""
HISTOGRAM: Final = "histogram"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric."""

    name: str
    """Without the prefix `smtpproxy_`, and without `_total` or `_bucket` at its end."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def key(self, *values: str) -> str:
        """Return the key of a number in a snapshot, `name{label="value"}`; a value per label."""
        return self.name + with_labels(dict(zip(self.labels, values, strict=True)))


def with_labels(labels: dict[str, str]) -> str:
    """Return labels as Prometheus writes them; nothing if there are none."""
    inside = ",".join(f"{name}={_quoted(value)}" for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


_ROWS = (
    Definition(
        "build_info",
        GAUGE,
        "1, with the version of smtpproxy, and whether its hot path is compiled: yes or no.",
        ("version", "compiled"),
    ),
    Definition("sessions", GAUGE, "Sessions that are open."),
    Definition("sessions_opened", COUNTER, "Sessions begun."),
    Definition("sessions_closed", COUNTER, "Sessions ended, by reason.", ("reason",)),
    Definition(
        "clients_refused",
        COUNTER,
        "Clients that got 421 at once, by the limit that they met; client_lost: gone before their"
        " address could be read.",
        ("reason",),
    ),
    Definition(
        "clients_slowed",
        COUNTER,
        "Sessions that sent commands faster than they may, and were slowed down.",
    ),
    Definition(
        "commands",
        COUNTER,
        "Commands from clients and ends of message content, by verb and class of the reply; "
        "auth_line is what follows AUTH, other is no known verb, none got no reply.",
        ("verb", "reply"),
    ),
    Definition(
        "messages",
        COUNTER,
        "Transactions ended, by outcome; relayed are those that the backend took over.",
        ("outcome",),
    ),
    Definition(
        "pipelined_commands",
        COUNTER,
        "Commands that came before the reply to the one before was flushed.",
    ),
    Definition("round_trips_saved", COUNTER, "Round trips that clients did not have to wait for."),
    Definition("held_replies", COUNTER, "Replies that waited for others of their group."),
    Definition(
        "client_stalls",
        COUNTER,
        "Times that a client was no longer read for a while (back-pressure).",
    ),
    Definition("content_bytes", COUNTER, "Bytes of message content."),
    Definition(
        "bytes",
        COUNTER,
        "Bytes inside TLS, by leg and direction: in, counted when a session ends; out, when "
        "replies are flushed, without the secrets of AUTH and what STARTTLS only passes "
        "through.",
        ("leg", "direction"),
    ),
    Definition(
        "limits_reached", COUNTER, "Commands and messages over a limit of the settings.", ("limit",)
    ),
    Definition(
        "violations", COUNTER, "Violations of the protocol, by peer and kind.", ("by", "kind")
    ),
    Definition(
        "backend_reply_seconds",
        HISTOGRAM,
        "Seconds that the backend took for a reply, by verb; for the greeting, from the "
        "client's connection on.",
        ("verb",),
    ),
    Definition("pipeline_group_size", HISTOGRAM, "Commands in each group that came from a client."),
    Definition("server_up", GAUGE, "Whether a server is believed to be up.", ("backend", "server")),
    Definition(
        "backend_connections",
        GAUGE,
        "Connections to a backend that has max_connections.",
        ("backend",),
    ),
    Definition(
        "backend_waiting_clients",
        GAUGE,
        "Clients that wait for a connection to a backend with max_connections.",
        ("backend",),
    ),
    Definition("trace_records_lost", COUNTER, "Records that could not be written to a trace file."),
    Definition(
        "log_lines_lost",
        COUNTER,
        "Log lines that could not be written: nobody reads them, or the disk is full.",
    ),
    Definition(
        "certificate_expiry_timestamp_seconds",
        GAUGE,
        "When a certificate shown to clients expires; name is a host name of sni, or default.",
        ("listener", "name"),
    ),
    Definition(
        "config_last_reload_successful",
        GAUGE,
        "Whether the settings in force are the last that were read.",
    ),
    Definition(
        "config_last_reload_success_timestamp_seconds",
        GAUGE,
        "When the settings in force were read.",
    ),
    Definition(
        "workers",
        GAUGE,
        "Processes that serve clients, those that let their last sessions end included.",
    ),
    Definition("workers_lost", COUNTER, "Workers that died or hung, and were replaced."),
    Definition("worker_cpu_seconds", COUNTER, "User and system CPU time of workers.", ("worker",)),
    Definition("worker_resident_memory_bytes", GAUGE, "Resident memory of a worker.", ("worker",)),
    Definition("worker_open_fds", GAUGE, "File descriptors that a worker has open.", ("worker",)),
    Definition(
        "worker_loop_lag_seconds",
        GAUGE,
        "How late a worker's event loop is; from limits.event_loop_lag on new clients are refused.",
        ("worker",),
    ),
)
DEFINITIONS = {row.name: row for row in _ROWS}
"""By name, in the order in which a reference lists them."""
