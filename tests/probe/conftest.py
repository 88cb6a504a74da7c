"""Tests wait for servers on this machine only."""

import pytest

from smtpproxy.probe import access


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LEAST_PATIENCE_S", 0.1)
