"""The servers of these tests are local, so short waits are enough."""

import pytest

from smtpproxy.probe import connector


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "LEAST_PATIENCE_S", 0.3)
