"""The figures of the last hour: rows of a few seconds, and no more than an hour of them."""

import msgspec
import pytest

from smtpproxy.admin.figure_history import KEPT_ROWS, ROW_S, FigureHistory, FigureRow, quantile
from smtpproxy.admin.page_metrics import PageTotals, ReplyTimes

VERBS = 30
"""More than the verb table has."""
BOUNDS = (0.01, 0.1, 1.0)


def totals(number: int) -> PageTotals:
    """Return totals that have grown to a number, with as many open sessions."""
    return PageTotals(number, 0, 2 * number, 0, number, number, 1, [], {})


def rows(history: FigureHistory) -> list[FigureRow]:
    return [msgspec.json.decode(row, type=FigureRow) for row in history.rows]


def test_a_row_has_the_rates_of_its_seconds() -> None:
    history = FigureHistory()
    for second in range(11):
        history.take(100.0 + second, totals(second * second), {})
    assert rows(history) == [
        FigureRow(105.0, 5.0, 5.0, 0.0, 10.0, 5.0, 25, {}),
        FigureRow(110.0, 5.0, 15.0, 0.0, 30.0, 15.0, 100, {}),
    ]


def test_the_newest_figures_are_those_of_the_last_seconds_at_any_moment() -> None:
    history = FigureHistory()
    found = [history.take(float(second), totals(10 * second), {}) for second in range(9)]
    assert [each.seconds for each in found] == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert {each.relayed for each in found[1:]} == {10.0}


def test_a_moment_without_time_in_between_has_no_rate() -> None:
    history = FigureHistory()
    history.take(1.0, totals(0), {})
    assert history.take(1.0, totals(5), {}).relayed == 0


def test_counters_that_shrink_make_no_negative_rate() -> None:
    history = FigureHistory()
    history.take(0.0, totals(100), {"MAIL": ReplyTimes(BOUNDS, 5.0, [9, 0, 0, 0])})
    row = history.take(ROW_S, totals(1), {"MAIL": ReplyTimes(BOUNDS, 1.0, [1, 0, 0, 0])})
    assert (row.relayed, row.replies) == (0, {})


def test_reply_times_are_by_verb_and_only_of_the_row() -> None:
    history = FigureHistory()
    history.take(0.0, totals(0), {"MAIL": ReplyTimes(BOUNDS, 900.0, [0, 0, 0, 900])})
    replies = {
        "MAIL": ReplyTimes(BOUNDS, 901.0, [0, 10, 0, 900]),
        "RCPT": ReplyTimes(BOUNDS, 8.0, [0, 0, 0, 4]),
    }
    assert history.take(ROW_S, totals(0), replies).replies == {
        "MAIL": (10, 0.1, 0.0955),
        "RCPT": (4, 2.0, 1.0),
    }
    assert history.take(2 * ROW_S, totals(0), replies).replies == {}, "none of the last seconds"


@pytest.mark.parametrize(
    ("counts", "found"),
    [([100, 0, 0, 0], 0.0095), ([0, 100, 0, 0], 0.0955), ([90, 0, 10, 0], 0.55), ([1, 0, 0, 9], 1)],
)
def test_a_quantile_is_interpolated_within_its_bounds(counts: list[int], found: float) -> None:
    assert quantile(BOUNDS, counts) == pytest.approx(found)


def test_no_more_than_an_hour_is_kept_and_it_is_small() -> None:
    """Also when each verb got replies in each row."""
    history = FigureHistory()
    for row in range(KEPT_ROWS + 10):
        times = ReplyTimes(BOUNDS, 1.2345678 * row, [row, row, row, row])
        replies = {f"VERB{number}": times for number in range(VERBS)}
        history.take(row * ROW_S, totals(123457 * row), replies)
    assert len(history.rows) == KEPT_ROWS == 3600 / ROW_S
    assert rows(history)[0].at == 10 * ROW_S
    assert sum(len(row) for row in history.rows) < 1024 * 1024


def test_many_moments_at_once_take_no_room() -> None:
    history = FigureHistory()
    for moment in range(10_000):
        history.take(moment / 1000, totals(moment), {})
    assert len(history._lately) <= 12
