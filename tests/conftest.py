"""For all tests: the same examples of properties each time, and log lines of the catalogue."""

import tempfile
from collections.abc import Iterator, MutableMapping

import pytest

from smtpproxy.log import log
from tests.support import effort
from tests.support.catalogue import faults

__all__ = ["effort"]

FREE_LINES = ("tests.log.test_log", "tests.log.test_line_writer", "tests.text.test_console")
"""Tests of how any line is written, with events of their own."""


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[str]:
    """Give the services that tests start another directory than /run/smtpproxy."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setenv("RUNTIME_DIRECTORY", directory)
        yield directory


@pytest.fixture(autouse=True)
def each_test_has_its_control_socket(
    runtime_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside services that several tests share."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", tempfile.mkdtemp(dir=runtime_directory))


@pytest.fixture(autouse=True)
def what_is_logged_is_in_the_catalogue(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test in whose process a line is logged with an event or a field that has no row."""
    found: list[str] = []
    complete = log._complete

    def checked(line: MutableMapping[str, object]) -> MutableMapping[str, object]:
        line = complete(line)
        found.extend(faults(line))
        return line

    if request.module.__name__ not in FREE_LINES:
        monkeypatch.setattr(log, "_complete", checked)
    yield
    assert found == []
