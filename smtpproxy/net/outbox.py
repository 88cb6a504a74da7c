"""The outbox: what the sessions of a worker write in one turn of the loop, sent at its end.

A write to a process that sleeps has to wake it up, which costs more than the write.  Sent one
behind the other, the writes of a turn find the MTA awake: 10 to 20 % of all CPU (bench S2, S3).
"""

import asyncio

BULK = 16 * 1024
"""So many octets are not kept: to hold several chunks at a time costs page faults (bench S4)."""


class Outbox:
    """Keeps the order of writes to each transport; nothing waits longer than the turn lasts."""

    def __init__(self) -> None:
        self._pending: list[tuple[asyncio.WriteTransport, bytes]] = []

    def put(self, transport: asyncio.WriteTransport, octets: bytes) -> None:
        """Have octets written when the turn is over, or at once if they are many."""
        pending = self._pending
        if not pending:
            asyncio.get_running_loop().call_soon(self.flush)
        pending.append((transport, octets))
        if len(octets) >= BULK:
            self.flush()

    def flush(self) -> None:
        """Write now; whoever closes a transport calls this first."""
        pending, self._pending = self._pending, []
        for transport, octets in pending:
            if not transport.is_closing():
                transport.write(octets)
