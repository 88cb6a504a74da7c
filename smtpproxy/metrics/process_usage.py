"""CPU, memory and file descriptors of a worker process, as metrics with the label `worker`.

Those of the supervisor are the `process_` metrics of every Prometheus client.
"""

import contextlib
import os
from pathlib import Path
from time import process_time

from smtpproxy.metrics import definitions
from smtpproxy.metrics.snapshot import MetricsSnapshot

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEMORY = Path("/proc/self/statm")
_DESCRIPTORS = Path("/proc/self/fd")


def add_process_usage(snapshot: MetricsSnapshot, worker: int, loop_lag_s: float) -> None:
    """Add the usage of this process to a snapshot, as far as the system reports it."""
    label = str(worker)
    snapshot.put(definitions.WORKER_CPU_SECONDS, process_time(), label)
    snapshot.put(definitions.WORKER_EVENT_LOOP_LAG_SECONDS, loop_lag_s, label)
    with contextlib.suppress(OSError):
        memory = int(_MEMORY.read_text().split()[1]) * _PAGE_BYTES
        snapshot.put(definitions.WORKER_RESIDENT_MEMORY_BYTES, memory, label)
        snapshot.put(definitions.WORKER_OPEN_FDS, _open_descriptors(), label)


def _open_descriptors() -> int:
    # Since Linux 6.2 the directory's size is the number; counting 20000 entries takes long.
    return _DESCRIPTORS.stat().st_size or len(os.listdir(_DESCRIPTORS))  # noqa: PTH208  it is faster
