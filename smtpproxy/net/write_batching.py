"""The write batcher: what the sessions of a worker write in one turn of the loop, sent at its end.

A write to a process that sleeps has to wake it up, which costs more than the write.  Sent one
behind the other, the writes of a turn find the MTA awake: 10 to 20 % of all CPU (bench S2, S3).
"""

import asyncio
from collections.abc import Callable
from functools import cached_property

BULK = 16 * 1024
"""So many octets are not kept: to hold several chunks at a time costs page faults (bench S4)."""


class WriteBatcher:
    """Keeps the order of writes to each transport; nothing waits longer than the turn lasts.

    pending: what waits, in order.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[asyncio.WriteTransport, bytes]] = []

    @cached_property
    def at_turn_end(self) -> Callable[[Callable[[], None]], object]:
        """What calls back at the end of the turn: to look up the loop is a system call."""
        return asyncio.get_running_loop().call_soon

    def flush(self) -> None:
        """Write now; whoever closes a transport calls this first."""
        pending, self.pending = self.pending, []
        for transport, octets in pending:
            if not transport.is_closing():
                transport.write(octets)


class BatchedWriter:
    """Where octets for one transport go: call it with them.

    They are written when the turn is over, or at once if they are many.
    """

    # Two in each session (bench S5): a partial takes five times the memory.
    __slots__ = ("_transport", "_write_batcher")

    def __init__(self, write_batcher: WriteBatcher, transport: asyncio.WriteTransport) -> None:
        self._write_batcher = write_batcher
        self._transport = transport

    def __call__(self, octets: bytes) -> None:
        write_batcher = self._write_batcher
        if not write_batcher.pending:
            write_batcher.at_turn_end(write_batcher.flush)
        write_batcher.pending.append((self._transport, octets))
        if len(octets) >= BULK:
            write_batcher.flush()
