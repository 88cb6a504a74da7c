"""What observers get."""

import pytest

from smtpproxy.core.observer import SessionSummary


def test_summary_is_immutable() -> None:
    summary = SessionSummary("quit", 1.5, 9, 5, 1, 300, 200)
    assert (summary.reason, summary.commands, summary.pipelined) == ("quit", 9, 5)
    assert summary[4:] == (1, 300, 200, False)
    with pytest.raises(AttributeError):
        summary.messages = 2  # type: ignore[misc]  # that is the point
