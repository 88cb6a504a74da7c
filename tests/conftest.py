"""For all tests: the same examples of properties each time, and log lines of the catalogue."""

import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, MutableMapping

import pytest
from xdist.remote import Producer

from smtpproxy.log import log
from tests.support import distribution, effort, threads
from tests.support.catalogue import faults

__all__ = ["effort"]

FREE_LINES = ("tests.log.test_log", "tests.log.test_line_writer", "tests.text.test_console")
"""Tests of how any line is written, with events of their own."""

# Hundreds of programs are started, which otherwise would compile all of their modules each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A shell starts programs in the background with SIGINT ignored, which those of the tests inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Answer `-n auto`."""
    return distribution.processes(config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> distribution.PiecesOfWork:
    """Distribute by files and MTAs."""
    return distribution.PiecesOfWork(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long ones, and put the others in order before xdist reads their groups."""
    if distribution.is_whole(config) and not config.option.markexpr:
        chosen: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            chosen[item.get_closest_marker("long") is None].append(item)
        items[:] = chosen[True]
        config.hook.pytest_deselected(items=chosen[False])
    if hasattr(config, "workerinput"):
        distribution.arrange(items)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector never look at the thousands of tests, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[str]:
    """Give the services that tests start another directory than /run/smtpproxy."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setenv("RUNTIME_DIRECTORY", directory)
        yield directory


@pytest.fixture(scope="module", autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a file if a thread goes on running after it ends, since later files measure CPU."""
    before = frozenset(threading.enumerate())
    yield
    assert threads.left_of(before) == []


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
