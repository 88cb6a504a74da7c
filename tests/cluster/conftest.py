"""Fixtures: a Redis server whose clock only the test moves."""

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from smtpproxy.log import log
from tests.support.other_clock import OtherClock
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> OtherClock:
    """A clock that stands still."""
    clock = OtherClock(tmp_path_factory.mktemp("clock"))
    clock.stand_still()
    return clock


@pytest.fixture(scope="module")
def timed_server(
    clock: OtherClock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A server with the time of `clock`."""
    with RedisServer(tmp_path_factory.mktemp("redis"), env=clock.environment) as server:
        yield server


@pytest.fixture
def stream() -> Iterator[io.BytesIO]:
    """What is logged."""
    handlers = logging.getLogger().handlers[:]
    stream = io.BytesIO()
    log.configure("info", "json", stream)
    yield stream
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()
