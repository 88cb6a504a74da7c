"""Unread connections: those that a worker does not read for now.

The loop does not look at them, so it does not notice when the peer resets one: not while the client
leaves its replies unread, is too fast or has half-closed, nor while the MTA is to wait.  So what is
unread is looked at here, with one system call for all of a worker.
"""

import asyncio
import select
from collections.abc import Callable

LOOK_EVERY_S = 0.5
"""How often; a second after a reset nothing of a session may be held any more."""


class UnreadConnections:
    """Made once for a worker; no timer is armed while all connections are read."""

    def __init__(self) -> None:
        self._acts: dict[asyncio.Transport, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transport: asyncio.Transport, act: Callable[[], None]) -> None:
        """Act, once, if a connection is reset while it is unread."""
        self._acts[transport] = act
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def discard(self, transport: asyncio.Transport) -> None:
        """Leave a connection to the loop again; it need not be unread."""
        self._acts.pop(transport, None)

    def _look(self) -> None:
        self._timer = None
        poll = select.poll()
        opened: dict[int, asyncio.Transport] = {}
        for transport in list(self._acts):
            found = transport.get_extra_info("socket")
            if transport.is_closing() or found is None or found.fileno() < 0:
                del self._acts[transport]
                continue
            opened[found.fileno()] = transport
            poll.register(found, 0)  # only what is always told: POLLHUP, POLLERR
        for descriptor, _ in poll.poll(0):
            self._acts.pop(opened[descriptor])()
        if self._acts:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
