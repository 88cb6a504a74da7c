"""Stages for the tests: each MTA and its proxy start once, and are watched in every test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.interop.dialogue import assert_lock_step
from tests.interop.peers import BACKENDS
from tests.interop.stage import Stage
from tests.interop.stage import stage as running_stage
from tests.interop.tap import Tap


@pytest.fixture(scope="session")
def stages() -> Iterator[Callable[[str], Stage]]:
    """Give a function that returns the stage with a certain MTA, started when first asked for."""
    started: dict[str, Stage] = {}
    with ExitStack() as stack:

        def start(name: str) -> Stage:
            if name not in started:
                started[name] = stack.enter_context(running_stage(BACKENDS[name]))
            return started[name]

        yield start


@pytest.fixture(params=BACKENDS)
def stage(request: pytest.FixtureRequest, stages: Callable[[str], Stage]) -> Iterator[Stage]:
    """Give the stage with each MTA in turn; whatever the test did, the MTA must see lock step."""
    chosen = stages(request.param)
    since = len(chosen.tap.connections)
    yield chosen
    for connection in chosen.tap.settled(since):
        assert_lock_step(connection)


@pytest.fixture
def front(stage: Stage) -> Iterator[Tap]:
    """Give a tap of the test's own in front of the proxy."""
    with Tap(stage.port) as tap:
        yield tap


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a client in a test's id by its function."""
    return getattr(val, "__name__", None) if argname == "client" else None
