"""`smtpproxy status` in each state of a service."""

import json
import os
import signal
import smtplib
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from smtpproxy import __version__
from smtpproxy.control_socket.service_status import (
    BackendStatus,
    InstanceStatus,
    ServiceStatus,
)
from smtpproxy.demo.legacy import LegacyMTA
from tests.support.preloaded import completed
from tests.support.processes import eventually
from tests.support.program import Program
from tests.support.redis_server import RedisServer

Run = Callable[..., Program]


def status(directory: Path) -> tuple[int, ServiceStatus]:
    """Return the exit code and the answer of `smtpproxy status --json`."""
    done = completed("status", "--json", env={**os.environ, "RUNTIME_DIRECTORY": str(directory)})
    assert done.stderr == ""
    return done.returncode, msgspec.convert(json.loads(done.stdout), ServiceStatus)


def only(directory: Path) -> InstanceStatus:
    """Return the state of the only instance."""
    _, found = status(directory)
    (instance,) = found.instances
    return instance


def test_a_service_at_work_and_its_end(run: Run, mta: LegacyMTA, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        'instance = "mx1"\nworkers = 2\n[listeners.smtp]\naddress = "127.0.0.1:0"\n'
        f'backend = "old"\n[backends.old]\nservers = ["{mta.address}", "127.0.0.1:1"]\n'
        "max_connections = 2\n"
        f'[backends.new]\nservers = ["{mta.address}"]\n'
    )
    program = run("-c", file)
    port, directory = program.port(), tmp_path / "run0"
    code, found = status(directory)
    (instance,) = found.instances
    assert (code, found.cluster, found.problems) == (0, "", [])
    assert 0 < instance.uptime_s < 60
    instance.uptime_s = 0
    assert instance == InstanceStatus(
        "mx1",
        __version__,
        "serving",
        workers=2,
        backends=[BackendStatus("old", 0, 2, 0, servers=2), BackendStatus("new", servers=1)],
    )
    clients = [smtplib.SMTP("127.0.0.1", port, timeout=10) for _ in range(2)]
    clients[0].ehlo()
    clients[0].mail("a@example.org")
    with socket.create_connection(("127.0.0.1", port)):  # its greeting waits for a slot
        eventually(lambda: only(directory).backends[0].waiting or None, "a client that waits")
        instance = only(directory)
    assert (instance.sessions, instance.backends[0].connections) == (3, 2)
    clients[1].close()
    program.signal(signal.SIGTERM)
    program.event("draining")
    code, found = status(directory)
    assert (code, found.instances[0].state, found.problems) == (3, "draining", ["mx1: draining"])
    clients[0].close()
    assert program.wait() == 0


def test_a_server_that_is_down(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(
        'instance = "mx1"\n[listeners.smtp]\naddress = "127.0.0.1:0"\n'
        '[backends.old]\nservers = ["127.0.0.1:1"]\nhealth_check_interval = 0.1\n'
    )
    run("-c", file).event("server_down")
    code, found = status(tmp_path / "run0")
    assert found.instances[0].backends == [
        BackendStatus("old", servers=1, servers_down=["127.0.0.1:1"])
    ]
    assert (code, found.problems) == (3, ["mx1: server 127.0.0.1:1 of old is down"])


def test_replicas_of_a_cluster_show_each_other(run: Run, mta: LegacyMTA, tmp_path: Path) -> None:
    def start(number: int) -> Program:
        file = tmp_path / f"mx{number}.toml"
        file.write_text(
            f'instance = "mx{number}"\n[listeners.smtp]\naddress = "127.0.0.1:0"\n'
            f'[backends.old]\nservers = ["{mta.address}"]\nmax_connections = 4\n'
            f'[cluster]\nurl = "{server.url}"\nreplicas = 2\nname = "mail"\nlease = 4\n'
        )
        return run("-c", file)

    def settled(asked: int) -> ServiceStatus | None:
        code, found = status(tmp_path / f"run{asked}")
        return found if code == 0 else None

    with RedisServer(tmp_path) as server:
        first, second = start(0), start(1)
        for number, program in enumerate((first, second)):
            with smtplib.SMTP("127.0.0.1", program.port(), timeout=10):
                found = eventually(lambda asked=number: settled(asked), "both replicas")
                other = tmp_path / f"run{1 - number}"
                eventually(
                    lambda path=other, name=f"mx{number}": sessions(path, name) or None,
                    "the session at the other replica",
                )
            assert [each.instance for each in found.instances] == ["mx0", "mx1"]
            assert (found.cluster, found.replicas) == ("mail", 2)
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
        alone = ["cluster mail: 1 of 2 replicas"]
        eventually(
            lambda: status(tmp_path / "run0")[1].problems == alone or None, "the end of the other"
        )
        server.kill()
        eventually(lambda: stores(tmp_path / "run0") == ["away"] or None, "a store that is away")


def stores(directory: Path) -> list[str]:
    """Return how each instance finds the store."""
    _, found = status(directory)
    return [each.store for each in found.instances]


def sessions(directory: Path, instance: str) -> int:
    """Return the sessions of an instance, as another one shows them."""
    _, found = status(directory)
    return sum(each.sessions for each in found.instances if each.instance == instance)
