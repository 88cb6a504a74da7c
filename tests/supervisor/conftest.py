"""Fixtures: a legacy MTA in a separate thread, so that tests may block."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.program import Program


@pytest.fixture
def mta() -> Iterator[LegacyMTA]:
    """A legacy MTA that keeps the messages it accepts."""
    loop = asyncio.new_event_loop()
    server = LegacyMTA()
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Return a function that starts the program with arguments; it is stopped after the test."""
    started: list[Program] = []

    def start(*arguments: str | Path, **options: object) -> Program:
        directory = tmp_path / f"run{len(started)}"
        directory.mkdir()
        started.append(Program(directory, *arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for program in started:
        program.__exit__()
