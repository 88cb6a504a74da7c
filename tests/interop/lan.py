"""Machines at one switch, as network namespaces: the network of the shipped files for two machines.

Each machine has the interface `eth0`, a `/run` and an `/etc` of its own, and the program of these
tests as `/usr/bin/smtpproxy`.  Nothing outside of the namespaces is changed.
"""

import ctypes
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.networks import Machine, make_namespace
from tests.support.processes import Process, Workplace, eventually
from tests.support.programs import command, require_root, unavailable

_CLONE_NEWNET = 0x40000000
_ESTABLISHED, _LISTEN = "01", "0A"
_MOUNTS = """\
set -e
mount -t tmpfs -o mode=755 run /run
mkdir /run/haproxy
mount -t overlay -o lowerdir=$1:/usr/bin bin /usr/bin
mount -t tmpfs -o mode=755 etc /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work etc /etc
mkdir -p /etc/smtpproxy /etc/keepalived /etc/haproxy
echo mounted
exec sleep infinity
"""


@dataclass(frozen=True)
class Host(Machine):
    """A machine at the switch; `mounts` is the process that keeps its mounts, `port` its port."""

    address: str
    mounts: int

    @property
    def inside(self) -> tuple[str, ...]:
        enter = (command("nsenter", "util-linux"), "-t", str(self.mounts), "-n", "-m")
        return (*enter, "env", "-u", "RUNTIME_DIRECTORY")

    def path(self, file: str) -> Path:
        """Return where a file of this machine is seen from outside."""
        return Path(f"/proc/{self.mounts}/root{file}")

    def has_address(self, address: str) -> bool:
        """Return whether an address is one of this machine's."""
        return f" {address}\n" in Path(f"/proc/{self.mounts}/net/fib_trie").read_text()

    def sessions_at(self, port: int) -> int:
        """Return how many clients are connected to a port."""
        return self._sockets(port).count(_ESTABLISHED)

    def await_listening(self, port: int) -> None:
        """Wait until a process listens at a port."""
        eventually(lambda: _LISTEN in self._sockets(port) or None, f"a listener at port {port}")

    def _sockets(self, port: int) -> list[str]:
        """Return the state of each socket of a port, as `/proc/net/tcp` has it."""
        rows = Path(f"/proc/{self.mounts}/net/tcp").read_text().splitlines()[1:]
        columns = (row.split() for row in rows)
        return [state for _, local, _, state, *_ in columns if local.endswith(f":{port:04X}")]

    def enter(self) -> None:
        """Move the calling thread into the network of this machine, for good."""
        with Path(f"/proc/{self.mounts}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True)
class Lan:
    """The switch and the machines by name."""

    switch: Machine
    hosts: Mapping[str, Host]

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def unplug(self, name: str) -> None:
        """Disconnect a machine: both ends see that the link is down."""
        self.switch.run("ip", "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Connect a machine again."""
        self.switch.run("ip", "link", "set", name, "up")


@contextmanager
def lan(prefix: str, addresses: Mapping[str, str]) -> Iterator[Lan]:
    """Make machines with these addresses, by name, and remove them at the end."""
    require_root("a network of namespaces")
    with ExitStack() as stack:
        work = stack.enter_context(Workplace("lan"))
        shutil.copy(Path(sys.executable).parent / "smtpproxy", work.directory("bin"))
        switch = stack.enter_context(make_namespace(f"smtpproxy-{prefix}-switch"))
        switch.run("ip", "link", "add", "bridge", "type", "bridge")
        switch.run("ip", "link", "set", "bridge", "up")
        hosts = {}
        for name, address in addresses.items():
            machine = stack.enter_context(make_namespace(f"smtpproxy-{prefix}-{name}"))
            ends = ("eth0", "type", "veth", "peer", "name", name, "netns", switch.name)
            machine.run("ip", "link", "add", *ends)
            switch.run("ip", "link", "set", name, "master", "bridge", "up")
            machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")
            argv = (*machine.inside, "sh", "-c", _MOUNTS, "sh", work.path / "bin")
            mounts = stack.enter_context(Process(argv, work.path / f"{name}.mounts"))
            _await_mounts(mounts)
            hosts[name] = Host(machine.name, address, mounts.pid)
        yield Lan(switch, hosts)


def _await_mounts(mounts: Process) -> None:
    def look() -> bool | None:
        mounts.check_alive()
        return "mounted" in mounts.printed() or None

    try:
        eventually(look, "the mounts of a machine")
    except AssertionError as error:
        unavailable(f"a machine cannot have mounts of its own here: {error}")


def run_smtpproxy(host: Host, work: Workplace, *argv: str, code: Path | None = None) -> Process:
    """Start the program on a machine, with the package in the directory `code`, if given."""
    environment = {"PYTHONPATH": str(code)} if code else {}
    command_line = (*host.inside, "/usr/bin/smtpproxy", "run", *argv)
    return Process(command_line, work.path / f"{host.name}.log", environment)
