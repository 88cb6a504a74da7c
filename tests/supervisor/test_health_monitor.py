"""Active health checks: their results, and errors without a result."""

import asyncio
import errno

import pytest
from msgspec.structs import replace

from smtpproxy.config.loader import from_flags
from smtpproxy.net.backend.server_pool import Server
from smtpproxy.supervisor.health_monitor import HealthMonitor
from smtpproxy.worker.control_messages import Health


async def test_a_shortage_of_this_machine_is_no_result_and_the_check_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a supervisor without descriptors would mark every server as down."""
    outcomes: list[OSError | str] = [OSError(errno.EMFILE, "Too many open files"), ""]

    async def check(server: Server, hostname: str, limit_s: float) -> str:  # noqa: ARG001
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    found: asyncio.Queue[Health] = asyncio.Queue()
    monkeypatch.setattr("smtpproxy.supervisor.health_monitor.check", check)
    checks = HealthMonitor(found.put_nowait, lambda *_: False)
    settings = from_flags(None, ["127.0.0.1:0"], ["192.0.2.1:25"], admin="127.0.0.1:0")
    (backend,) = settings.backends.values()
    checks.apply(replace(settings, backends={"mx": replace(backend, retry_after=0.01)}))
    async with asyncio.timeout(20):
        assert (await found.get()).up
    checks.stop()
    assert not outcomes
