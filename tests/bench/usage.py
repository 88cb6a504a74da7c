"""CPU and memory of a process and its descendants, read from /proc."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_SHARE = 0.04
"""On a quiet machine other programs use no more of one CPU than this share."""


class Cpu(NamedTuple):
    """Seconds of CPU, reaped children included."""

    user_s: float
    system_s: float


class Memory(NamedTuple):
    """KiB of all processes together; memory that they share is counted once."""

    resident: int
    peak: int
    """The sum of the processes' peaks, which may have been at different times."""
    processes: int


class _Status(NamedTuple):
    parent: int
    cpu: Cpu


def cpu_of(root: int) -> Cpu:
    """Return the CPU time that a process and its descendants have used so far."""
    used = [status.cpu for pid in _tree(root) if (status := _status(pid))]
    return Cpu(sum(cpu.user_s for cpu in used), sum(cpu.system_s for cpu in used))


def memory_of(root: int) -> Memory:
    """Return the memory of a process and its descendants now."""
    resident = peak = processes = 0
    for pid in _tree(root):
        fields = dict(re.findall(r"^(Vm\w+):\s+(\d+)", _read(f"/proc/{pid}/status"), re.MULTILINE))
        if "VmRSS" in fields:
            own = int(fields["VmRSS"])
            share = re.search(r"^Pss:\s+(\d+)", _read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
            proportional = int(share[1]) if share else own
            resident += proportional
            peak += proportional + int(fields["VmHWM"]) - own
            processes += 1
    return Memory(resident, peak, processes)


class Meter:
    """Measures the CPU time of a process, and of all programs but this benchmark, from now on."""

    def __init__(self, root: int | None) -> None:
        """Begin to measure; without a process (None) only `others` is useful."""
        self._root = root
        self._cpu = cpu_of(root) if root else Cpu(0, 0)
        self._ours = sum(cpu_of(os.getpid()))
        self._busy = _busy_s()
        self._began = time.monotonic()

    def cpu(self) -> Cpu:
        """Return the CPU time that the process has used since."""
        now = cpu_of(self._root) if self._root else Cpu(0, 0)
        return Cpu(now.user_s - self._cpu.user_s, now.system_s - self._cpu.system_s)

    def others(self) -> float:
        """Return the share of one CPU that other programs have used since."""
        ours = sum(cpu_of(os.getpid())) - self._ours
        seconds = max(time.monotonic() - self._began, 1e-6)
        return max(0.0, (_busy_s() - self._busy - ours) / seconds)


def wait_until_quiet(limit_s: float) -> bool:
    """Wait until other programs are idle for half a second; return whether they were in time."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        meter = Meter(None)
        time.sleep(0.5)
        if meter.others() < QUIET_SHARE:
            return True
    return False


def _tree(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (status := _status(int(entry.name))):
            children.setdefault(status.parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, ())


def _status(pid: int) -> _Status | None:
    """Read /proc/PID/stat, whose second field, the name, may contain spaces and parentheses."""
    fields = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
    if len(fields) < 15:
        return None
    user, system, child_user, child_system = (int(field) / TICKS_PER_S for field in fields[11:15])
    return _Status(int(fields[1]), Cpu(user + child_user, system + child_system))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""


def _busy_s() -> float:
    """Return the seconds that all CPUs have worked, without those stolen by the hypervisor."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, _read("/proc/stat").split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS_PER_S
