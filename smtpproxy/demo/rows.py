"""From what the demonstration has recorded to the rows of a time line."""

from collections.abc import Iterator, Sequence

from smtpproxy.demo.labeller import Labeller
from smtpproxy.demo.legacy_session import Event, Happening
from smtpproxy.demo.network import Group
from smtpproxy.picture.labels import BAD, QUIET, Label
from smtpproxy.picture.timeline import Row, Timeline


def timeline(
    groups: Sequence[Group], opened_at: float, events: Sequence[Event] | None = None
) -> Timeline:
    """Return the time line of a session.

    events: the MTA's record when a proxy stands between, None when there is none.
    """
    rows = [*_client_rows(groups, opened_at), *_mta_rows(events or (), opened_at)]
    return Timeline(rows, proxied=events is not None)


def _client_rows(groups: Sequence[Group], opened_at: float) -> Iterator[Row]:
    yield Row(0.0, to_mta=(Label("", "connects", QUIET),))
    labeller = Labeller()
    parted = False
    for group in groups:
        at = (group.sent_at if group.from_client else group.arrived_at) - opened_at
        labels = tuple(labeller.label(group.octets, from_client=group.from_client))
        parted = parted or any(label.short in {"221", "421"} for label in labels)
        if not group.octets and not parted:
            how = "sends no more" if group.from_client else "closes the connection"
            labels = (Label("", how, QUIET if group.from_client else BAD),)
        if labels and group.from_client:
            yield Row(at, to_mta=labels)
        elif labels:
            yield Row(at, to_client=labels)


def _mta_rows(events: Sequence[Event], opened_at: float) -> Iterator[Row]:
    labeller = Labeller()
    asked: tuple[Label, ...] = (Label("", "connects", QUIET),)
    asked_at = events[0].at if events else 0.0
    for event in events:
        if event.what in {Happening.RECEIVED, Happening.CONTENT}:
            asked = tuple(labeller.label(event.octets, from_client=True))
            asked_at = event.at
        elif event.what is Happening.SENT:
            replied = tuple(labeller.label(event.octets, from_client=False))
            yield Row(asked_at - opened_at, True, asked, replied)
            asked = ()
