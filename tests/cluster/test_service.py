"""The service in a cluster, as an operator runs it."""

import contextlib
import signal
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smtpproxy.demo.legacy import LegacyMTA
from tests.supervisor.conftest import mta, run
from tests.support.processes import eventually
from tests.support.program import Program
from tests.support.redis_server import RedisServer

__all__ = ["mta", "run"]

Run = Callable[..., Program]
LEASE_S = 1.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


def write(
    file: Path,
    mta: LegacyMTA,
    server: RedisServer | None,
    lease_s: float = LEASE_S,
    host: str = "127.0.0.1",
) -> Path:
    """Write settings for one connection, in a cluster of two replicas or without one."""
    text = '[listeners.smtp]\naddress = "127.0.0.1:0"\n[backends.mx]\nmax_wait = 30\n'
    text += f'servers = ["{mta.address}"]\nmax_connections = 1\n'
    if server is not None:
        text += f'[cluster]\nurl = "redis://{host}:{server.port}"\n'
        text += f"replicas = 2\nlease = {lease_s}\n"
    file.write_text(text)
    return file


class Client:
    """A client, which may have to wait for the greeting."""

    def __init__(self, port: int) -> None:
        self.smtp = smtplib.SMTP(timeout=0.3)
        self._port = port

    def is_served(self) -> bool:
        """Connect, and return whether a connection to the MTA was free."""
        self.smtp.close()
        try:
            code, _ = self.smtp.connect("127.0.0.1", self._port)
        except (OSError, smtplib.SMTPException):
            self.smtp.close()
            return False
        return code == 220

    def until_served(self) -> None:
        eventually(lambda: self.is_served() or None, "a greeting")

    def quit(self) -> None:
        self.smtp.quit()


def waits(client: Client, program: Program) -> bool:
    """Return whether a client has to wait, or the machine was too busy for the store."""
    return not client.is_served() or goes_by_share(program)


def goes_by_share(program: Program) -> bool:
    """Return whether a replica has gone by its share, since the machine was too busy."""
    return any(line["event"] == "cluster_degraded" for line in program.log())


def leases_are_granted(server: RedisServer, replicas: int) -> None:
    """Wait until the store knows so many replicas, and no longer recovers."""
    key = "smtpproxy:{smtpproxy}:leases:mx"

    def known() -> bool | None:
        fields = server.command("HKEYS", key).split()
        return sum(field != "=" for field in fields) == replicas or None

    eventually(known, "replicas in the store")
    time.sleep(LEASE_S + 0.5)  # by the server's clock, which gives no sign


def two_services(
    run: Run, mta: LegacyMTA, server: RedisServer, directory: Path
) -> tuple[list[Path], list[Program], list[int]]:
    """Start two replicas; return their settings files, their programs and their ports."""
    files = [directory / "one", directory / "two"]
    programs = [run("-c", write(file, mta, server)) for file in files]
    ports = [program.port() for program in programs]
    leases_are_granted(server, 2)
    return files, programs, ports


def test_two_services_share_one_connection_also_after_reloads_and_an_end(
    mta: LegacyMTA, run: Run, server: RedisServer, tmp_path: Path
) -> None:
    files, programs, ports = two_services(run, mta, server, tmp_path)
    one, two = (Client(port) for port in ports)
    one.until_served()
    assert waits(two, programs[1])
    one.quit()
    two.until_served()

    write(files[1], mta, server, 2 * LEASE_S)  # while it holds the lease
    programs[1].signal(signal.SIGHUP)
    programs[1].event("reloaded")
    assert waits(one, programs[0])
    two.quit()
    one.until_served()

    programs[0].signal(signal.SIGTERM)  # in order: its lease is free at once
    two.until_served()
    two.quit()
    one.smtp.close()


def test_another_name_of_the_same_store_frees_no_lease(
    mta: LegacyMTA, run: Run, server: RedisServer, tmp_path: Path
) -> None:
    files, programs, ports = two_services(run, mta, server, tmp_path)
    one = Client(ports[0])
    one.until_served()
    with one.smtp, socket.create_connection(("127.0.0.1", ports[1])) as waiting:
        waiting.settimeout(LEASE_S)
        write(files[0], mta, server, host="localhost")
        programs[0].signal(signal.SIGHUP)
        programs[0].event("reloaded")
        with contextlib.suppress(TimeoutError):
            assert not waiting.recv(99) or goes_by_share(programs[1])


def test_a_reload_joins_a_cluster_and_leaves_it(
    mta: LegacyMTA, run: Run, server: RedisServer, tmp_path: Path
) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    programs = [run("-c", write(files[0], mta, None)), run("-c", write(files[1], mta, server))]
    ports = [program.port() for program in programs]
    one, two = (Client(port) for port in ports)
    one.until_served()
    write(files[0], mta, server)
    programs[0].signal(signal.SIGHUP)
    programs[0].event("reloaded")
    leases_are_granted(server, 2)
    assert waits(two, programs[1])  # the connection from before the reload counts
    write(files[0], mta, None)
    programs[0].signal(signal.SIGHUP)
    programs[0].event("reloaded")
    two.until_served()
    one.quit()
    two.quit()
