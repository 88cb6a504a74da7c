"""The outbox: what the sessions of a worker write in one turn of the loop, sent at its end.

A write to a process that sleeps has to wake it up, which costs more than the write.  Sent one
behind the other, the writes of a turn find the MTA awake: 10 to 20 % of all CPU (bench S2, S3).
"""

import asyncio
from collections.abc import Callable
from functools import cached_property

BULK = 16 * 1024
"""So many octets are not kept: to hold several chunks at a time costs page faults (bench S4)."""


class Outbox:
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


class Sink:
    """Where octets for one transport go: call it with them.

    They are written when the turn is over, or at once if they are many.
    """

    # Two in each session (bench S5): a partial takes five times the memory.
    __slots__ = ("_outbox", "_transport")

    def __init__(self, outbox: Outbox, transport: asyncio.WriteTransport) -> None:
        self._outbox = outbox
        self._transport = transport

    def __call__(self, octets: bytes) -> None:
        outbox = self._outbox
        if not outbox.pending:
            outbox.at_turn_end(outbox.flush)
        outbox.pending.append((self._transport, octets))
        if len(octets) >= BULK:
            outbox.flush()
