"""Several proxies at one address after a router with ECMP, as deploy/sizing.md describes it.

The router, each proxy and the client are network namespaces. The sessions stay open while a proxy
is added to the router's routes, and while one is taken away.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.interop.networks import Machine, make_namespace
from tests.support.processes import Process
from tests.support.program import SMTPPROXY
from tests.support.programs import require_root, unavailable

ADDRESS = "198.51.100.25"
SESSIONS = 60
RESILIENT = ("type", "resilient", "buckets", "512", "idle_timer", "600")
CLIENT = """\
import socket, sys
def ask(connection, line):
    try:
        connection.sendall(line)
        return connection.recv(4096).decode().split()[0]
    except OSError:
        return "reset"
found = []
for _ in range(int(sys.argv[2])):
    connection = socket.create_connection((sys.argv[1], 25), 10)
    name = connection.recv(4096).decode().split()[1]  # in the greeting
    found.append((connection, name))
for _ in sys.stdin:
    replies = [(name, ask(connection, b"NOOP\\r\\n")) for connection, name in found]
    print(*(f"{name}:{reply}" for name, reply in replies), flush=True)
"""
"""Opens sessions; for each line of its input it prints a reply to NOOP in each of them."""


class Router:
    """The router, its proxies, and the client's sessions.

    Args:
        machines: The client, the router and the proxies.
        kind: The kind of the group of routes; none for the plain hash.
    """

    def __init__(self, machines: Sequence[Machine], kind: Sequence[str]) -> None:
        self._kind = kind
        self.client, self.router, *self.proxies = machines

    def connect(self) -> None:
        """Connect the machines, and route the address to the first two proxies."""
        for number, machine in enumerate((self.client, *self.proxies)):
            far = f"lan{number}"
            ends = ("type", "veth", "peer", "name", "lan", "netns", machine.name)
            self.router.run("ip", "link", "add", far, *ends)
            for each, link, host in ((machine, "lan", 2), (self.router, far, 1)):
                each.run("ip", "addr", "add", f"10.92.{number}.{host}/24", "dev", link)
                each.run("ip", "link", "set", link, "up")
            machine.run("ip", "route", "add", "default", "via", f"10.92.{number}.1")
        for number, proxy in enumerate(self.proxies, 1):
            proxy.run("ip", "addr", "add", f"{ADDRESS}/32", "dev", "lo")
            way = ("via", f"10.92.{number}.2", "dev", f"lan{number}")
            self.router.run("ip", "nexthop", "add", "id", str(number), *way)
        settings = ("net.ipv4.ip_forward=1", "net.ipv4.fib_multipath_hash_policy=1")
        self.router.run("sysctl", "-qw", *settings)
        self._group("add", "1/2")
        self.router.run("ip", "route", "add", f"{ADDRESS}/32", "nhid", "10")

    def use(self, *numbers: int) -> None:
        """Route the address to these proxies."""
        self._group("replace", "/".join(map(str, numbers)))

    def _group(self, what: str, members: str) -> None:
        words = ("id", "10", "group", members, *self._kind)
        self.router.run("ip", "nexthop", what, *words)


@contextmanager
def routed(kind: Sequence[str], directory: Path) -> Iterator[Router]:
    """Run three proxies, of which the router uses two."""
    require_root("a network of namespaces")
    with ExitStack() as end:
        names = ("client", "router", "mx1", "mx2", "mx3")
        made = [end.enter_context(make_namespace(f"smtpproxy-ecmp-{each}")) for each in names]
        router = Router(made, kind)
        try:
            router.connect()
        except AssertionError as error:
            unavailable(f"this kernel or its ip(8) lacks such groups of routes: {error}")
        for number, machine in enumerate(router.proxies, 1):
            file = directory / f"mx{number}.toml"
            file.write_text(
                f'hostname = "mx{number}"\n[listeners.smtp]\naddress = "{ADDRESS}:25"\n'
                'probes = ["10.92.0.0/24"]  # so the proxy itself answers\n'
                '[backends.mta]\nservers = ["127.0.0.1:2525"]\n'
            )
            argv = (*machine.inside, *SMTPPROXY, "run", "-c", file)
            environment = {"RUNTIME_DIRECTORY": str(directory / f"run{number}")}
            (directory / f"run{number}").mkdir()
            end.enter_context(Process(argv, directory / f"log{number}", environment))
        for machine in router.proxies:
            machine.await_listening(25)
        yield router


class Sessions:
    """The open sessions of the client."""

    def __init__(self, router: Router) -> None:
        argv = [*router.client.inside, sys.executable, "-c", CLIENT, ADDRESS, str(SESSIONS)]
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.communicate(timeout=20)

    def ask(self) -> Counter[tuple[str, str]]:
        """Send NOOP in each session; return how many there are of each proxy and reply."""
        asked, answers = self._popen.stdin, self._popen.stdout
        assert asked
        assert answers
        asked.write("\n")
        asked.flush()
        parts = (each.partition(":") for each in answers.readline().split())
        return Counter((name, reply) for name, _, reply in parts)


def lost(found: Counter[tuple[str, str]], proxy: str = "") -> int:
    """Return how many sessions were lost: of all proxies, or of one."""
    return sum(
        count for (name, reply), count in found.items() if reply != "250" and proxy in ("", name)
    )


@pytest.mark.long
@pytest.mark.parametrize("kind", [(), RESILIENT], ids=["plain", "resilient"])
def test_resilient_hashing_keeps_the_sessions_of_proxies_that_stay(
    kind: Sequence[str], tmp_path: Path
) -> None:
    """And a plain hash does not, so that the test would notice."""
    with routed(kind, tmp_path) as router, Sessions(router) as sessions:
        before = sessions.ask()
        assert lost(before) == 0
        assert {proxy for proxy, _ in before} == {"mx1", "mx2"}
        router.use(1, 2, 3)
        added = sessions.ask()
        print(f"{SESSIONS} sessions, a third proxy is added: {lost(added)} lost")
        router.use(2, 3)
        removed = sessions.ask()
        stayed = before["mx2", "250"]
        print(f"one is taken away: {lost(removed, 'mx2')} of {stayed} at another one lost")
        if kind:
            assert (lost(added), lost(removed, "mx2")) == (0, 0)
            assert lost(removed, "mx1") == before["mx1", "250"]
        else:
            assert lost(added) > 0
