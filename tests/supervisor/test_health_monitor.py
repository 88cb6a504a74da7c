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


@pytest.mark.parametrize("admin", ["127.0.0.1:0", None], ids=["admin address", "control socket"])
async def test_a_query_waits_for_the_first_check_of_a_server_and_causes_no_second_one(
    admin: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: asyncio.Queue[str] = asyncio.Queue()
    greeting = asyncio.Event()

    async def check(server: Server, hostname: str, limit_s: float) -> str:  # noqa: ARG001
        begun.put_nowait(server.name)
        await greeting.wait()
        return ""

    monkeypatch.setattr("smtpproxy.supervisor.health_monitor.check", check)
    checks = HealthMonitor(lambda _: None, lambda *_: False)
    checks.apply(from_flags(None, ["127.0.0.1:0"], ["192.0.2.1:25"], admin=admin))
    async with asyncio.timeout(20):
        if admin:
            await begun.get()
        queries = [asyncio.create_task(checks.wait()) for _ in range(2)]
        if not admin:
            await begun.get()
        await asyncio.sleep(0)
        greeting.set()
        await asyncio.gather(*queries)
    checks.stop()
    assert begun.empty()


async def test_a_server_is_checked_once_when_another_replica_reports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = ["refused", OSError(errno.EMFILE, "Too many open files"), ""]
    waiting = asyncio.Event()

    async def check(server: Server, hostname: str) -> str:  # noqa: ARG001
        await waiting.wait()
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    found: list[Health] = []
    monkeypatch.setattr("smtpproxy.supervisor.health_monitor.check", check)
    checks = HealthMonitor(found.append, lambda *_: False)
    checks.apply(from_flags(None, ["127.0.0.1:0"], ["192.0.2.1:25"]))
    (backend,) = checks._settings.backends
    for server in ("192.0.2.1:25", "192.0.2.1:25", "192.0.2.2:25"):
        checks.check_once(backend, server)
    checks.check_once("other", "192.0.2.1:25")
    assert len(checks._checking) == 1
    waiting.set()
    while outcomes:
        await asyncio.wait(checks._checking.values(), timeout=20)
        if outcomes:
            checks.check_once(backend, "192.0.2.1:25")
    assert checks._checking == {}
    assert found == [
        Health(backend, "192.0.2.1:25", up=False, reason="refused"),
        Health(backend, "192.0.2.1:25", up=True),
    ]
    checks.stop()
