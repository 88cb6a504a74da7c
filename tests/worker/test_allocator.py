"""The memory allocator of a worker."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from smtpproxy.worker.allocator import keep_freed_buffers
if {prepared}:
    keep_freed_buffers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for size in (64, 256, 512, 1024) * 50:
    buffer = bytearray(size * 1024)
    copies = [bytes(buffer), bytes(buffer)]
    del buffer, copies
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, prepared: bool) -> int:
    """Return how often 200 times three buffers, 64 KiB to 1 MiB, needed a page of the kernel."""
    argv = [sys.executable, "-c", PROGRAM.format(prepared=prepared)]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def test_memory_of_freed_buffers_is_used_again() -> None:
    if page_faults(prepared=False) < 10_000:
        pytest.skip("this C library keeps freed memory anyway")
    assert page_faults(prepared=True) < 2000
