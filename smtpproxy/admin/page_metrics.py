"""The metrics that the live page shows, summed over listeners."""

from msgspec import Struct

from smtpproxy.metrics import definitions
from smtpproxy.metrics.definitions import Definition
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number


class ReplyTimes(Struct):
    """How long the backends took for their replies to one verb."""

    bounds: tuple[float, ...]
    """The bounds of the histogram, in seconds."""
    seconds: Number
    """All times together."""
    counts: list[int]
    """How many lie between two bounds; the last: above all bounds."""


class PageTotals(Struct):
    """The numbers that the page shows or that rates are made of."""

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
    workers: Number
    """Worker processes."""
    servers: list[tuple[str, str, Number]]
    """Backend, server, and whether the server is up."""
    waiting: dict[str, Number]
    """Clients that wait for a connection, by backend."""


def page_totals(snapshot: MetricsSnapshot) -> PageTotals:
    """Return what the page needs of a snapshot, but for reply times."""
    return PageTotals(
        relayed=_sum(snapshot, definitions.MESSAGES, "relayed"),
        refused=_sum(snapshot, definitions.MESSAGES, "refused"),
        saved=_sum(snapshot, definitions.ROUND_TRIPS_SAVED),
        groups=sum(
            sum(each.counts) for each in snapshot.histograms_of(definitions.PIPELINE_GROUP_SIZE)
        ),
        opened=_sum(snapshot, definitions.SESSIONS_OPENED),
        open=_sum(snapshot, definitions.SESSIONS),
        workers=_sum(snapshot, definitions.WORKERS),
        servers=[
            (each.label("backend"), each.label("server"), each.value)
            for each in snapshot.samples_of(definitions.SERVER_UP)
        ],
        waiting={
            each.label("backend"): each.value
            for each in snapshot.samples_of(definitions.BACKEND_WAITING_CLIENTS)
        },
    )


def reply_times(snapshot: MetricsSnapshot) -> dict[str, ReplyTimes]:
    """Return the backends' reply times by verb.

    The greeting is left out, as its time includes that of the connection.
    """
    metric = definitions.BACKEND_REPLY_SECONDS
    replies: dict[str, ReplyTimes] = {}
    for each in snapshot.histograms_of(metric):
        verb = each.labels[metric.labels.index("verb")]
        if verb == "greeting":
            continue
        known = replies.setdefault(verb, ReplyTimes(metric.bounds, 0, [0] * len(each.counts)))
        known.seconds += each.total
        known.counts = [a + b for a, b in zip(known.counts, each.counts, strict=True)]
    return replies


def _sum(snapshot: MetricsSnapshot, metric: Definition, outcome: str = "") -> Number:
    found = snapshot.samples_of(metric)
    return sum(each.value for each in found if not outcome or each.label("outcome") == outcome)
