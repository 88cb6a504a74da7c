"""The metrics that the live page shows, summed over listeners."""

from msgspec import Struct

from smtpproxy.metrics import definitions
from smtpproxy.metrics.definitions import Definition
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number


class ReplyTimes(Struct):
    """How long the backends took for their replies to one verb."""

    seconds: Number
    """All times together."""
    counts: list[int]
    """How many lie between two bounds of the histogram; the last: above all bounds."""


class PageMetrics(Struct):
    """The numbers that the page shows or computes rates from."""

    relayed: Number
    refused: Number
    saved: Number
    """Round trips saved."""
    groups: int
    """Groups of commands."""
    opened: Number
    """Sessions opened."""
    open: Number
    """Open sessions."""
    bounds: tuple[float, ...]
    """The bounds of reply times, in seconds."""
    replies: dict[str, ReplyTimes]
    """By verb; the greeting is left out, as its time includes that of the connection."""
    servers: list[tuple[str, str, Number]]
    """Backend, server, and whether the server is up."""
    waiting: dict[str, Number]
    """Clients that wait for a connection, by backend."""


def page_metrics(snapshot: MetricsSnapshot) -> PageMetrics:
    """Return what the page needs of a snapshot."""
    reply_seconds = definitions.BACKEND_REPLY_SECONDS
    replies: dict[str, ReplyTimes] = {}
    for each in snapshot.histograms_of(reply_seconds):
        verb = each.labels[reply_seconds.labels.index("verb")]
        if verb == "greeting":
            continue
        known = replies.setdefault(verb, ReplyTimes(0, [0] * len(each.counts)))
        known.seconds += each.total
        known.counts = [a + b for a, b in zip(known.counts, each.counts, strict=True)]
    return PageMetrics(
        relayed=_sum(snapshot, definitions.MESSAGES, "relayed"),
        refused=_sum(snapshot, definitions.MESSAGES, "refused"),
        saved=_sum(snapshot, definitions.ROUND_TRIPS_SAVED),
        groups=sum(
            sum(each.counts) for each in snapshot.histograms_of(definitions.PIPELINE_GROUP_SIZE)
        ),
        opened=_sum(snapshot, definitions.SESSIONS_OPENED),
        open=_sum(snapshot, definitions.SESSIONS),
        bounds=reply_seconds.bounds,
        replies=replies,
        servers=[
            (each.label("backend"), each.label("server"), each.value)
            for each in snapshot.samples_of(definitions.SERVER_UP)
        ],
        waiting={
            each.label("backend"): each.value
            for each in snapshot.samples_of(definitions.BACKEND_WAITING_CLIENTS)
        },
    )


def _sum(snapshot: MetricsSnapshot, metric: Definition, outcome: str = "") -> Number:
    found = snapshot.samples_of(metric)
    return sum(each.value for each in found if not outcome or each.label("outcome") == outcome)
