"""The machine that measures: its description, a network namespace, and the limit of open files."""

import contextlib
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

DESCRIPTORS = 65536
"""The limit of open files to ask for: a session takes two in a proxy."""
SPARE_DESCRIPTORS = 400
"""How many open files a proxy needs besides those of sessions."""
_INSIDE = "SMTPPROXY_BENCH_INSIDE"


def describe() -> dict[str, str]:
    """Return what affects the figures: processors, kernel, Python, and the load before."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def commit() -> str:
    """Return the commit of the repository, as `git describe` shows it; "" outside of one."""
    git = shutil.which("git")
    if not git:
        return ""
    argv = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def isolate() -> bool:
    """Start this program again in a new network namespace, if possible; this takes root.

    There nothing reaches another machine, no name is looked up, and all ports of the loopback are
    free.

    Returns:
        Whether the program runs in such a namespace; if not, it uses the machine's loopback.
    """
    if os.environ.get(_INSIDE):
        _set_up_network()
        return True
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if os.geteuid() != 0 or not unshare or not ip:
        return False
    if subprocess.run([unshare, "-n", "true"], capture_output=True, check=False).returncode:
        return False
    os.environ[_INSIDE] = "1"
    return os.execv(unshare, ["unshare", "-n", sys.executable, *sys.orig_argv[1:]])


def raise_limits() -> None:
    """Raise the limit of open files to DESCRIPTORS, or as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, DESCRIPTORS), hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def most_sessions() -> int:
    """Return how many sessions the limit of open files allows one process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (limit - SPARE_DESCRIPTORS) // 2


def _set_up_network() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("32768 65000")
    # no pacing timers, which some others set on the loopback too
    Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("reno")
