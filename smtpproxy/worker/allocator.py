"""The memory allocator of the C library, prepared for the buffers of large messages."""

import ctypes
from typing import Final

KEPT_BYTES: Final = 8 * 1024 * 1024
"""How much free memory at the end of the heap a worker keeps for the next buffers."""
MAPPED_BYTES: Final = 4 * 1024 * 1024
"""The size from which a buffer gets a mapping of its own, which goes back to the kernel."""

# As in glibc's malloc.h, see mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_buffers() -> None:
    """Reuse the memory of a freed buffer for the next one.

    By default glibc returns freed memory to the kernel so soon that each buffer costs a page fault
    for every 4 KiB, which is up to two thirds of the CPU of large content (bench S4).  C libraries
    without mallopt(3) are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
