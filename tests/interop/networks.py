"""Three machines in a row, as network namespaces: client, proxy, MTA.

The proxy's is the router between the two networks of the others; all have IPv4 and IPv6. Nothing
outside of the namespaces is touched.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import smtpproxy.data
from tests.support.processes import eventually
from tests.support.programs import command, require_root, unavailable

CLIENT, MTA = "10.91.1.2", "10.91.2.2"
CLIENT6, MTA6 = "fd91:1::2", "fd91:2::2"
ROUTER, ROUTER6 = "10.91.2.1", "fd91:2::1"
EXAMPLES = Path(smtpproxy.data.__file__).parent / "transparent"


@dataclass(frozen=True)
class Machine:
    """A namespace; `inside` is what a command line begins with that is to run there."""

    name: str

    @property
    def network(self) -> Path:
        """The file of its network namespace."""
        return Path("/run/netns") / self.name

    @property
    def inside(self) -> tuple[str, ...]:
        return (command("ip", "iproute2"), "netns", "exec", self.name)

    def run(self, *argv: str | Path) -> str:
        """Run a command to its end, and return what it prints."""
        done = subprocess.run(
            [*self.inside, *map(str, argv)], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def await_success(self, *argv: str | Path) -> None:
        """Run a command until it succeeds."""

        def succeeds() -> bool | None:
            done = subprocess.run([*self.inside, *map(str, argv)], check=False)
            return done.returncode == 0 or None

        eventually(succeeds, shlex.join(map(str, argv)))

    def await_listening(self, port: int) -> None:
        """Wait until a process listens at a port."""
        look = f"sport = :{port}"
        eventually(lambda: self.run("ss", "-Hltn", look) or None, f"a listener at port {port}")


@dataclass(frozen=True)
class Networks:
    """The three machines."""

    client: Machine
    proxy: Machine
    mta: Machine


@contextmanager
def networks(name: str) -> Iterator[Networks]:
    """Make them, and remove them at the end."""
    require_root("a network of namespaces")
    for program in ("nft", "ss"):
        if shutil.which(program) is None:
            unavailable(f"{program} is missing (see .ci/install-peers)")
    with ExitStack() as stack:
        row = Networks(
            *(
                stack.enter_context(make_namespace(f"smtpproxy-{name}-{each}"))
                for each in ("client", "proxy", "mta")
            )
        )
        for machine, number in ((row.client, 1), (row.mta, 2)):
            _join(row.proxy, machine, number)
        for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            row.proxy.run("sysctl", "-qw", f"{setting}=1")
        yield row


@contextmanager
def make_namespace(name: str) -> Iterator[Machine]:
    """Make a namespace with its loopback, and remove it at the end.

    Other processes that run the same test have others of that name.
    """
    name = f"{name}-{os.getpid()}"
    try:
        _ip("netns", "add", name)
    except AssertionError as error:
        unavailable(f"network namespaces are not available here: {error}")
    try:
        machine = Machine(name)
        machine.run("ip", "link", "set", "lo", "up")
        yield machine
    finally:
        _ip("netns", "del", name)


def _join(router: Machine, machine: Machine, number: int) -> None:
    ends = ("type", "veth", "peer", "name", f"lan{number}", "netns", router.name)
    _ip("link", "add", "lan0", "netns", machine.name, *ends)
    for each, link, host in ((machine, "lan0", 2), (router, f"lan{number}", 1)):
        each.run("ip", "addr", "add", f"10.91.{number}.{host}/24", "dev", link)
        each.run("ip", "-6", "addr", "add", f"fd91:{number}::{host}/64", "dev", link, "nodad")
        each.run("ip", "link", "set", link, "up")
    machine.run("ip", "route", "add", "default", "via", f"10.91.{number}.1")
    machine.run("ip", "-6", "route", "add", "default", "via", f"fd91:{number}::1")


def _ip(*argv: str) -> None:
    done = subprocess.run(
        [command("ip", "iproute2"), *argv], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, f"ip {argv}: {done.stderr}"


def talk(machine: Machine, host: str, commands: Sequence[str], port: int = 25) -> list[str]:
    """Send commands in one group from a machine, and return the lines of all replies."""
    script = (
        "import socket, sys\n"
        "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 15) as s:\n"
        "    s.settimeout(15)\n"
        "    s.sendall('\\r\\n'.join(sys.argv[3:] + ['']).encode())\n"
        "    while octets := s.recv(65536):\n"
        "        sys.stdout.write(octets.decode())\n"
    )
    return machine.run("python3", "-c", script, host, str(port), *commands).splitlines()
