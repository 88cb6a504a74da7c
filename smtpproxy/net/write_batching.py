"""The write batcher: sends what all sessions write in one loop iteration at the end of it.

Waking a sleeping process costs more than the write itself.  If all writes of an iteration are sent
together, the MTA is awake after the first one, which saves 10 to 20 % of all CPU (bench S2, S3).
"""

import asyncio
from collections.abc import Callable
from typing import Final

BULK: Final = 16 * 1024
"""The size of a write that is sent at once: keeping several costs page faults (bench S4)."""


class WriteBatcher:
    """The pending writes of a worker, which are sent in order at the end of a loop iteration."""

    def __init__(self) -> None:
        self.pending: list[tuple[asyncio.WriteTransport, bytes]] = []
        """The pending writes, in order."""
        self.at_turn_end: Callable[[Callable[[], None]], object] = self._find_loop
        """Calls a function at the end of the loop iteration."""

    def _find_loop(self, call: Callable[[], None]) -> None:
        # Kept, since getting the running loop is a system call.
        self.at_turn_end = asyncio.get_running_loop().call_soon
        self.at_turn_end(call)

    def flush(self) -> None:
        """Write everything now; must be called before a transport is closed."""
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        for transport, octets in pending:
            if not transport.is_closing():
                transport.write(octets)


class BatchedWriter:
    """The sink for octets to one transport, to be called with them.

    They are written at the end of the loop iteration, or at once if there are `BULK` or more.
    """

    # Two in each session (bench S5): a partial takes five times the memory.
    __slots__ = ("_transport", "_write_batcher")

    def __init__(self, write_batcher: WriteBatcher, transport: asyncio.WriteTransport) -> None:
        self._write_batcher = write_batcher
        self._transport = transport

    def __call__(self, octets: bytes) -> None:
        """Write octets to the transport."""
        write_batcher = self._write_batcher
        if len(octets) >= BULK:
            write_batcher.flush()
            if not self._transport.is_closing():
                self._transport.write(octets)
            return
        if not write_batcher.pending:
            write_batcher.at_turn_end(write_batcher.flush)
        write_batcher.pending.append((self._transport, octets))
