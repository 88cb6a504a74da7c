"""Two machines that share an address by VRRP: keepalived, with the files as they are shipped.

The tests build on one another: each begins with the machines as the one before it left them.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

import smtpproxy
from smtpproxy import data
from tests.interop.lan import Lan, lan, run_smtpproxy
from tests.interop.traffic import Mta, mta_on, traffic_from
from tests.support.processes import Process, Workplace, eventually
from tests.support.programs import command

ADDRESS = "10.0.0.10"
MACHINES = ("one", "two")
ADDRESSES = {"client": "10.0.0.100", "one": "10.0.0.2", "two": "10.0.0.3", "mta": "10.0.0.5"}
FAILOVER_S = 12.0
"""The longest failover; on an idle machine it takes less than 5 s."""


class Pair:
    """Two machines with smtpproxy and keepalived."""

    def __init__(self, network: Lan, mta: Mta, work: Workplace, stack: ExitStack) -> None:
        self.network = network
        self.mta = mta
        self._work = work
        self._stack = stack
        argv = ("-l", "0.0.0.0:25", "-b", f"{ADDRESSES['mta']}:25")
        code = work.path / "code"
        package = Path(smtpproxy.__file__).parent
        shutil.copytree(package, code / "smtpproxy", ignore=shutil.ignore_patterns("__pycache__"))
        self.version = code / "smtpproxy/__init__.py"
        self.proxies = {
            name: stack.enter_context(run_smtpproxy(network[name], work, *argv, code=code))
            for name in MACHINES
        }
        self.keepalived: dict[str, Process] = {}
        for name in MACHINES:
            network[name].await_listening(25)
            self.write(name, "/etc/keepalived/keepalived.conf", "keepalived")
            self.start_keepalived(name)
            self.await_active("one")  # which keeps the address when the other one starts

    def write(self, name: str, file: str, example: str) -> None:
        """Write an example to a machine, as it is shipped."""
        self.network[name].path(file).write_text(data.read_example(example))

    def start_keepalived(self, name: str) -> None:
        """Start keepalived on a machine."""
        argv = (*self.network[name].inside, command("keepalived"), "-n", "-l", "-D")
        process = Process(argv, self._work.path / f"{name}.keepalived")
        self.keepalived[name] = self._stack.enter_context(process)

    def await_active(self, name: str) -> None:
        """Wait until this machine has the address, and the other one does not."""
        eventually(lambda: self._active() == [name] or None, f"the address at {name}")

    def _active(self) -> list[str]:
        return [name for name in MACHINES if self.network[name].has_address(ADDRESS)]

    def await_standby(self, name: str) -> None:
        """Wait until keepalived of this machine would take the address over."""

        def look() -> bool | None:
            states = re.findall(r"Entering (\w+) STATE", self.keepalived[name].printed())
            return states[-1:] == ["BACKUP"] or None

        eventually(look, f"keepalived of {name} as backup")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    command("keepalived")
    with (
        lan("vrrp", ADDRESSES) as network,
        mta_on(network["mta"]) as mta,
        Workplace("pair") as work,
        ExitStack() as stack,
    ):
        both = Pair(network, mta, work, stack)
        both.await_standby("two")
        yield both
        for each in both.proxies.values():
            assert "Traceback" not in each.printed(), each.printed()


@pytest.mark.long
def test_an_upgrade_in_place_moves_nothing_and_refuses_no_client(pair: Pair) -> None:
    with traffic_from(pair.network["client"], ADDRESS) as traffic:
        traffic.await_messages()
        pair.version.write_text(pair.version.read_text() + '__version__ = "9.2.0"\n')
        for name in ("two", "one"):
            proxy = pair.proxies[name]
            proxy.hang_up()
            reloaded = re.compile(r'"event":"reloaded".*"version":"9.2.0"')
            eventually(lambda: reloaded.search(proxy.printed()), f"the new version on {name}")  # noqa: B023  at once
        traffic.await_messages()
        pair.await_active("one")
    traffic.assert_all_served()
    traffic.assert_account(pair.mta)


@pytest.mark.long
def test_planned_work_refuses_no_client_and_cuts_no_session(pair: Pair) -> None:
    one, two = (pair.network[name] for name in MACHINES)
    with traffic_from(pair.network["client"], ADDRESS) as traffic:
        traffic.await_messages()
        pair.write("two", "/etc/standby.nft", "keepalived-standby")
        two.run("nft", "-f", "/etc/standby.nft")
        pair.write("one", "/etc/drain.nft", "keepalived-drain")
        one.run("nft", "-f", "/etc/drain.nft")
        eventually(
            lambda: not one.sessions_at(25) or None, "the last session of the active machine"
        )
        eventually(lambda: two.sessions_at(25) or None, "a session at the standby machine")
        assert pair.keepalived["one"].terminate() == 0
        pair.await_active("two")
        traffic.await_messages()
        one.run("nft", "delete", "table", "netdev", "smtpproxy-drain")
        pair.start_keepalived("one")
        pair.await_standby("one")
        pair.await_active("two")
    traffic.assert_all_served()
    traffic.assert_account(pair.mta)


def test_the_address_moves_when_the_link_goes_down(pair: Pair) -> None:
    with traffic_from(pair.network["client"], ADDRESS) as traffic:
        traffic.await_messages()
        moment = monotonic()
        pair.network.unplug("two")
        took = traffic.await_client_after(moment)
        pair.network.plug("two")
        pair.await_standby("two")
        pair.await_active("one")
    print(f"failover with keepalived, link down: {took:.1f} s")
    assert took < FAILOVER_S
    traffic.assert_account(pair.mta)


def test_the_address_moves_when_the_program_is_killed(pair: Pair) -> None:
    with traffic_from(pair.network["client"], ADDRESS) as traffic:
        traffic.await_messages()
        pair.proxies["one"].kill()
        moment = monotonic()
        took = traffic.await_client_after(moment)
        pair.await_active("two")
    print(f"failover with keepalived, program killed: {took:.1f} s")
    assert took < FAILOVER_S
    traffic.assert_account(pair.mta)
