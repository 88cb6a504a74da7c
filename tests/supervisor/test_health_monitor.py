"""Active health checks: their results, and errors without a result."""

import asyncio
import errno
from pathlib import Path

import pytest
import trustme
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

    async def check(server: Server, hostname: str, limit_s: float) -> str:  # noqa: ARG001
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
        checks.check_once(backend, "192.0.2.1:25")
    await asyncio.wait(checks._checking.values(), timeout=20)
    assert found == [
        Health(backend, "192.0.2.1:25", up=False, reason="refused"),
        Health(backend, "192.0.2.1:25", up=True),
    ]
    checks.stop()


@pytest.mark.parametrize("query", [False, True], ids=["once", "query"])
async def test_a_certificate_file_that_is_gone_is_no_result_and_the_check_is_repeated(
    query: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(server: Server, hostname: str, limit_s: float) -> str:  # noqa: ARG001
        return ""

    monkeypatch.setattr("smtpproxy.supervisor.health_monitor.check", check)
    monkeypatch.setattr("smtpproxy.supervisor.health_monitor.WAIT_S", 0.05)
    found: asyncio.Queue[Health] = asyncio.Queue()
    file = tmp_path / "ca.pem"
    settings = from_flags(None, ["127.0.0.1:0"], ["192.0.2.1:25"])
    ((name, backend),) = settings.backends.items()
    backend = replace(backend, tls="implicit", ca_file=str(file), retry_after=0.01)
    checks = HealthMonitor(found.put_nowait, lambda *_: False)
    checks.apply(replace(settings, backends={name: backend}))
    if query:
        await checks.wait()
    else:
        checks.check_once(name, "192.0.2.1:25")
        await asyncio.wait(checks._checking.values(), timeout=20)
    assert found.empty()
    assert "not been checked yet" in checks.why_not_ready()
    trustme.CA().cert_pem.write_to_path(file)
    if not query:
        checks.check_once(name, "192.0.2.1:25")
    async with asyncio.timeout(20):
        assert (await found.get()).up
    assert checks.why_not_ready() == ""
    checks.stop()


@pytest.mark.parametrize("rounds", [0, 1], ids=["not begun", "begun"])
async def test_after_a_reload_during_a_check_a_server_can_be_checked_again(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    async def check(server: Server, hostname: str, limit_s: float) -> str:  # noqa: ARG001
        begun.append(server.name)
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr("smtpproxy.supervisor.health_monitor.check", check)
    settings = from_flags(None, ["127.0.0.1:0"], ["192.0.2.1:25"])
    (backend,) = settings.backends
    checks = HealthMonitor(lambda _: None, lambda *_: False)
    checks.apply(settings)
    checks.check_once(backend, "192.0.2.1:25")
    for _ in range(rounds):
        await asyncio.sleep(0)
    assert len(begun) == rounds
    checks.apply(settings)
    checks.check_once(backend, "192.0.2.1:25")
    await asyncio.sleep(0)
    assert len(begun) == rounds + 1
    checks.stop()
