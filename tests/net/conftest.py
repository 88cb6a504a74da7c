"""Fixtures of the tests of net."""

import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smtpproxy.core.exchange import Exchange
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.log import log
from smtpproxy.net.admission import Admission
from smtpproxy.net.backend.connection_slots import ConnectionSlots
from tests.net import real_sockets
from tests.net.fakes import Clock, Opener, Server, Stage

Logged = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
async def opened(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opener]:
    """Return a function that opens a stage with servers and a policy, after connecting has run."""
    clock = Clock()
    monkeypatch.setattr("smtpproxy.net.session.monotonic", clock)
    monkeypatch.setattr("smtpproxy.net.timeouts.monotonic", clock)
    stages: list[Stage] = []

    async def open_stage(
        *servers: Server,
        policy: SessionPolicy | None = None,
        content: Callable[[Exchange, bytes, bytes], None] | None = None,
        commands_per_second: float = 0,
        admission: Admission | None = None,
        connection_slots: ConnectionSlots | None = None,
    ) -> Stage:
        chosen = list(servers) or [Server("first")]
        stage = Stage(
            chosen,
            policy or SessionPolicy(),
            clock,
            content,
            commands_per_second,
            admission,
            connection_slots,
        )
        stages.append(stage)
        await stage.settle()
        return stage

    yield open_stage
    for stage in stages:
        stage.timeouts.stop()
        await stage.settle()


@pytest.fixture
def logged() -> Iterator[Logged]:
    """Return a function that returns the log lines of an event."""
    stream = io.BytesIO()
    log.configure("debug", "json", stream)

    def of(event: str) -> list[dict[str, Any]]:
        lines = map(json.loads, stream.getvalue().splitlines())
        return [line for line in lines if line["event"] == event]

    yield of
    log.configure("info", "json")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[real_sockets.Stage]:
    """A backend, and a function that starts the proxy in front of it, with real sockets."""
    made = real_sockets.Stage(tmp_path)
    yield made
    await made.stop()
