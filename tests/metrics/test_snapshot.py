"""Snapshots of workers, and their sums."""

import pytest

from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot, Number, SnapshotTotals
from smtpproxy.worker.control_messages import Beat, MessageReader, encode

GROUPS = definitions.PIPELINE_GROUP_SIZE


def snapshot(opened: int, is_open: int) -> MetricsSnapshot:
    made = MetricsSnapshot()
    made.put(definitions.SESSIONS, is_open, "smtp", "old")
    made.put(definitions.SESSIONS_OPENED, opened, "smtp", "old")
    counts = [0] * (len(GROUPS.bounds) + 1)
    counts[2] = opened
    made.put_histogram(GROUPS, counts, 3 * opened, "smtp", "old")
    made.lists["sessions"] = [opened]
    return made


def found(totals: SnapshotTotals) -> dict[str, Number]:
    whole = totals.sum()
    numbers = {each.name: each.value for each in whole.samples}
    assert len(numbers) == len(whole.samples), "each series comes once"
    for each in whole.histograms:
        numbers[each.name] = sum(each.counts)
        assert each.total == 3 * sum(each.counts)
    return numbers


def test_the_numbers_of_workers_add_up_and_counters_outlive_them() -> None:
    totals = SnapshotTotals()
    totals.take(1, snapshot(opened=5, is_open=2))
    totals.take(2, snapshot(opened=7, is_open=1))
    assert found(totals) == {"sessions": 3, "sessions_opened": 12, "pipeline_group_size": 12}
    assert sorted(totals.sum().lists["sessions"]) == [5, 7]
    totals.forget(1)
    assert found(totals) == {"sessions": 1, "sessions_opened": 12, "pipeline_group_size": 12}
    totals.take(3, snapshot(opened=1, is_open=1))
    totals.forget(2)
    totals.forget(3)
    assert found(totals) == {"sessions_opened": 13, "pipeline_group_size": 13}


def test_a_sum_leaves_the_snapshots_as_they_are() -> None:
    totals = SnapshotTotals()
    totals.take(1, snapshot(opened=5, is_open=2))
    totals.take(2, snapshot(opened=7, is_open=1))
    assert found(totals) == found(totals)


def test_a_snapshot_reaches_the_supervisor_unchanged() -> None:
    sent = Beat(snapshot(opened=5, is_open=2))
    assert list(MessageReader().from_worker(encode(sent))) == [sent]


def test_a_snapshot_is_not_changed_by_later_counting() -> None:
    counts = [0] * (len(GROUPS.bounds) + 1)
    made = MetricsSnapshot()
    made.put_histogram(GROUPS, counts, 0, "smtp", "old")
    counts[0] += 1
    assert sum(made.histograms[0].counts) == 0


@pytest.mark.parametrize("labels", [(), ("smtp",), ("smtp", "old", "more")])
def test_a_number_needs_a_value_for_each_label(labels: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="sessions"):
        MetricsSnapshot().put(definitions.SESSIONS, 1, *labels)
