"""What the live page is sent of the metrics."""

from smtpproxy.admin.page_metrics import page_totals, reply_times
from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot


def test_numbers_are_summed_over_listeners() -> None:
    snapshot = MetricsSnapshot()
    for listener, number in (("smtp", 3), ("submission", 4)):
        labels = (listener, "old")
        snapshot.put(definitions.SESSIONS, number, *labels)
        snapshot.put(definitions.SESSIONS_OPENED, 10 * number, *labels)
        snapshot.put(definitions.ROUND_TRIPS_SAVED, 5 * number, *labels)
        for outcome, count in (("relayed", number), ("refused", 1), ("abandoned", 9)):
            snapshot.put(definitions.MESSAGES, count, *labels, outcome)
        for verb in ("MAIL", "greeting"):
            counts = [number] + [0] * len(definitions.BACKEND_REPLY_SECONDS.bounds)
            snapshot.put_histogram(
                definitions.BACKEND_REPLY_SECONDS, counts, number / 2, *labels, verb
            )
        counts = [number] + [0] * len(definitions.PIPELINE_GROUP_SIZE.bounds)
        snapshot.put_histogram(definitions.PIPELINE_GROUP_SIZE, counts, number, *labels)
    snapshot.put(definitions.SERVER_UP, 0, "old", "10.0.0.5:25")
    snapshot.put(definitions.BACKEND_WAITING_CLIENTS, 2, "old")
    snapshot.put(definitions.WORKERS, 3)
    page, replies = page_totals(snapshot), reply_times(snapshot)
    assert (page.workers, page.open, page.opened, page.saved, page.groups) == (3, 7, 70, 35, 7)
    assert (page.relayed, page.refused) == (7, 2)
    assert replies.keys() == {"MAIL"}
    assert (replies["MAIL"].seconds, replies["MAIL"].counts[:2]) == (3.5, [7, 0])
    assert page.servers == [("old", "10.0.0.5:25", 0)]
    assert page.waiting == {"old": 2}


def test_a_service_without_sessions_has_zeros() -> None:
    page = page_totals(MetricsSnapshot())
    assert (page.open, page.relayed, page.groups, page.workers) == (0, 0, 0, 0)
    assert reply_times(MetricsSnapshot()) == {}
