"""Tests wait for servers on this machine only."""

import pytest

from smtpproxy.probe import connector


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "LEAST_PATIENCE_S", 0.1)
