"""Two machines with HAProxy in front, with the files as they are shipped."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pytest

from smtpproxy import data
from tests.interop.lan import Lan, lan, run_smtpproxy
from tests.interop.traffic import Mta, mta_on, traffic_from
from tests.support.processes import Process, Workplace, eventually
from tests.support.programs import command

ADDRESSES = {
    "client": "10.0.0.100",
    "one": "10.0.0.2",
    "two": "10.0.0.3",
    "haproxy": "10.0.0.4",
    "mta": "10.0.0.5",
}
MACHINES = ("one", "two")
FAILOVER_S = 5.0
"""The longest failover; on an idle machine it takes a tenth of a second."""


class Balanced:
    """Two machines with smtpproxy, and one with HAProxy."""

    def __init__(self, network: Lan, mta: Mta, work: Workplace, stack: ExitStack) -> None:
        self.network = network
        self.mta = mta
        self._work = work
        self._stack = stack
        self.proxies = {name: self._start_proxy(name) for name in MACHINES}
        for name in MACHINES:
            network[name].await_listening(2525)
        haproxy = network["haproxy"]
        haproxy.path("/etc/haproxy/haproxy.cfg").write_text(data.read_example("haproxy"))
        argv = (*haproxy.inside, command("haproxy"), "-db", "-f", "/etc/haproxy/haproxy.cfg")
        stack.enter_context(Process(argv, work.path / "haproxy"))
        haproxy.await_listening(25)
        for name in MACHINES:
            self.await_state(name, "UP")

    def _start_proxy(self, name: str) -> Process:
        host = self.network[name]
        settings = host.path("/etc/smtpproxy/smtpproxy.toml")
        settings.write_text(data.read_example("config-haproxy"))
        token = host.path("/etc/smtpproxy/admin-token")
        token.touch(0o600)
        token.write_text("0123456789abcdef")
        argv = ("-c", "/etc/smtpproxy/smtpproxy.toml")
        return self._stack.enter_context(run_smtpproxy(host, self._work, *argv))

    def ask(self, words: str) -> str:
        """Send a command to HAProxy's socket, and return the answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.network["haproxy"].path("/run/haproxy/admin.sock")))
            connection.sendall(f"{words}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def await_state(self, name: str, state: str) -> None:
        """Wait until HAProxy reports this state of a machine."""
        eventually(lambda: self._state(name) == state or None, f"{name} {state}")

    def _state(self, name: str) -> str:
        names, *rows = self.ask("show stat").lstrip("# ").splitlines()
        (row,) = [each for each in rows if each.startswith(f"smtpproxy,{name},")]
        return dict(zip(names.split(","), row.split(","), strict=True))["status"]

    def restart_proxy(self, name: str) -> None:
        """Stop the program, with its drain, and start it again."""
        assert self.proxies[name].terminate() == 0
        self.proxies[name] = self._start_proxy(name)


@pytest.fixture(scope="module")
def balanced() -> Iterator[Balanced]:
    command("haproxy")
    with (
        lan("haproxy", ADDRESSES) as network,
        mta_on(network["mta"], proxy_header=True) as mta,
        Workplace("balanced") as work,
        ExitStack() as stack,
    ):
        yield Balanced(network, mta, work, stack)


@pytest.mark.long
def test_a_rolling_upgrade_refuses_no_client_and_checks_cost_the_mta_nothing(
    balanced: Balanced,
) -> None:
    """The MTA sees a connection for each session, and one for each start of the program."""
    mta, starts = balanced.mta, len(MACHINES)
    with traffic_from(balanced.network["client"], ADDRESSES["haproxy"]) as traffic:
        traffic.await_messages()
        for name in MACHINES:
            balanced.ask(f"set server smtpproxy/{name} state drain")
            balanced.await_state(name, "DRAIN")
            host = balanced.network[name]
            eventually(lambda: not host.sessions_at(2525) or None, f"the last session of {name}")  # noqa: B023  at once
            balanced.restart_proxy(name)
            starts += 1
            host.await_success("/usr/bin/smtpproxy", "health", "--ready")
            balanced.ask(f"set server smtpproxy/{name} state ready")
            balanced.await_state(name, "UP")
            before = mta.connections[host.address]
            eventually(lambda: mta.connections[host.address] > before or None, "new sessions")  # noqa: B023  at once
    traffic.assert_all_served()
    traffic.assert_account(mta)
    assert mta.connections.total() == traffic.greeted + starts


def test_log_and_mta_have_the_clients_address(balanced: Balanced) -> None:
    """The MTA sees a machine's own address for checks only."""
    client = ADDRESSES["client"]
    with traffic_from(balanced.network["client"], ADDRESSES["haproxy"]) as traffic:
        traffic.await_messages()
    assert balanced.mta.clients == {client, *(ADDRESSES[name] for name in MACHINES)}
    for name in MACHINES:
        printed = balanced.proxies[name].printed()
        assert set(re.findall(r'"client_ip":"([^"]*)"', printed)) == {client}


def test_clients_get_the_other_machine_when_the_program_is_killed(balanced: Balanced) -> None:
    with traffic_from(balanced.network["client"], ADDRESSES["haproxy"]) as traffic:
        traffic.await_messages()
        balanced.proxies["one"].kill()
        moment = monotonic()
        took = traffic.await_client_after(moment)
        balanced.await_state("one", "DOWN")
        down = monotonic() - moment
        traffic.await_messages()
    print(f"failover with HAProxy, program killed: {took:.1f} s; found by checks: {down:.1f} s")
    assert [each for each in traffic.refused if each[0] > moment] == []
    assert took < FAILOVER_S
    traffic.assert_account(balanced.mta)
