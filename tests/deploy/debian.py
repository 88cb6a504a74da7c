"""A Debian system in a directory, for tests that need one with nothing of ours.

debootstrap makes the original once, in the user's cache, of this machine's release and from the
archive that apt has here. Each use is an overlay over it. Commands run there in namespaces of their
own (nspawn); `boot` starts systemd.
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.processes import Process, Workplace, eventually
from tests.support.programs import command, require_root, unavailable

PACKAGES = "systemd"
"""What the system has besides what every Debian has: enough to boot."""
ARCHIVES = "/var/cache/apt/archives"


class System:
    """A Debian system in the directory `root`."""

    def __init__(self, root: Path, archives: Path) -> None:
        self.root = root
        self._archives = archives

    def run(
        self, *argv: str | Path, nspawn: Sequence[str] = (), timeout_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in this machine's network unless `nspawn` says otherwise."""
        begin = self.argv(f"--bind={self._archives}:{ARCHIVES}", "--pipe", *nspawn)
        return finished([*begin, *map(str, argv)], timeout_s)

    def argv(self, *options: str) -> list[str]:
        """Return what a command line begins with that is to run in the system."""
        nspawn = command("systemd-nspawn", "systemd-container")
        # No services of this machine take part.
        alone = ("--register=no", "--keep-unit", "--quiet", "--as-pid2")
        alone = alone if "--boot" not in options else alone[:-1]
        return [nspawn, *alone, *options, f"--directory={self.root}"]

    @contextmanager
    def boot(self) -> Iterator["Booted"]:
        """Start systemd in it, in a network that is only loopback; stop it at the end."""
        argv = self.argv("--boot", "--private-network", "--console=pipe")
        with Process(argv, self.root.parent / "console") as nspawn:
            booted = Booted(eventually(lambda: first_process(nspawn.pid), "process 1 of a system"))
            try:
                eventually(booted.is_up, "a system that has been started")
                yield booted
                nspawn.terminate()
            finally:
                with suppress(ProcessLookupError):
                    os.kill(booted.pid, signal.SIGKILL)


class Booted:
    """A system in which systemd runs; `pid` is its process 1, seen from here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *argv: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in it, to its end."""
        path = "PATH=/usr/sbin:/usr/bin"
        enter = ["nsenter", f"--target={self.pid}", "--all", "env", "-i", "--chdir=/", path]
        return finished([*enter, *map(str, argv)], timeout_s)

    def is_up(self) -> bool | None:
        """Return whether all has been started, or None while systemd does not answer."""
        done = self.run("systemctl", "is-system-running", "--wait")
        return True if done.stdout.strip() in {"running", "degraded"} else None


def finished(argv: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def system() -> Iterator[System]:
    """Make a system that has nothing of ours; it is deleted at the end."""
    require_root("a Debian system in a directory")
    command("systemd-nspawn", "systemd-container")
    cache = cache_directory()
    with locked(cache):
        original = _bootstrapped(cache)
    with Workplace("debian") as work, _archives(cache) as archives:
        root, upper, spare = (work.directory(name) for name in ("root", "upper", "spare"))
        # volatile: nothing waits for the disk, as dpkg would for each file.
        layers = f"volatile,lowerdir={original},upperdir={upper},workdir={spare}"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", root], check=True)
        try:
            yield System(root, archives)
        finally:
            subprocess.run(["umount", "--lazy", root], check=True)


def cache_directory() -> Path:
    """Return the directory of cached builds; delete it to build everything again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smtpproxy-debian"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Keep other processes from building what belongs in the cache."""
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _archives(cache: Path) -> Iterator[Path]:
    """Give a directory with the cached packages, and cache what apt adds.

    Each system has its own, since apt locks it.
    """
    kept = cache / "archives"
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="archives-", dir=cache) as name:
        own = Path(name)
        own.chmod(0o755)
        (own / "partial").mkdir()
        for package in kept.glob("*.deb"):
            os.link(package, own / package.name)
        yield own
        for package in own.glob("*.deb"):
            with suppress(FileExistsError):
                os.link(package, kept / package.name)


def _bootstrapped(cache: Path) -> Path:
    """Return the system that all others are copies of, after making it if there is none yet."""
    archive, suite = _archive()
    original = cache / suite
    if original.exists():
        return original
    debootstrap = command("debootstrap")
    new = cache / f"{suite}.new"
    shutil.rmtree(new, ignore_errors=True)
    done = finished(
        [debootstrap, "--variant=minbase", f"--include={PACKAGES}", suite, str(new), archive], 600
    )
    if done.returncode != 0:
        pytest.fail(f"debootstrap: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    settings = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, check=True)
    (new / "etc/apt/apt.conf.d/90this-machine").write_bytes(settings.stdout)
    new.rename(original)
    return original


def _archive() -> tuple[str, str]:
    """Return this machine's Debian archive and release, as apt knows them."""
    if not shutil.which("apt-get"):
        unavailable("this machine is no Debian")
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format=$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    suite = release.get("VERSION_CODENAME", "")
    found = re.search(rf"^(\S+) {re.escape(suite)}$", listed.stdout, re.MULTILINE)
    if not found:
        unavailable(f"apt knows no archive of {suite!r}; apt-get update may help")
    return found[1], suite


def first_process(nspawn: int) -> int | None:
    """Return the child of nspawn that is process 1 in its namespace, or None as long as none is."""
    for child in Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{child}/status").read_text()
            if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                return int(child)
    return None
