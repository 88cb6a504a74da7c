"""Unread connections: detects the reset of connections that are not read at present.

The event loop does not poll a connection while reading is paused or the peer has half-closed, so it
does not detect a reset by the peer.  These connections are polled here, with one system call for
all of a worker.
"""

import asyncio
import select
from collections.abc import Callable

POLL_INTERVAL_S = 0.5
"""The interval of polls; a session must end within a second after a reset."""


class UnreadConnections:
    """The unread connections of a worker; without any, no timer is set."""

    def __init__(self) -> None:
        self._callbacks: dict[asyncio.Transport, Callable[[], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, transport: asyncio.Transport, callback: Callable[[], None]) -> None:
        """Call `callback` once if the connection is reset while it is unread."""
        self._callbacks[transport] = callback
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_INTERVAL_S, self._poll)

    def discard(self, transport: asyncio.Transport) -> None:
        """Stop polling a connection that is read again; others are ignored."""
        self._callbacks.pop(transport, None)

    def _poll(self) -> None:
        self._timer = None
        poll = select.poll()
        opened: dict[int, asyncio.Transport] = {}
        for transport in list(self._callbacks):
            found = transport.get_extra_info("socket")
            if transport.is_closing() or found is None or found.fileno() < 0:
                del self._callbacks[transport]
                continue
            opened[found.fileno()] = transport
            poll.register(found, 0)  # POLLHUP and POLLERR are always reported
        for descriptor, _ in poll.poll(0):
            self._callbacks.pop(opened[descriptor])()
        if self._callbacks:
            self._timer = asyncio.get_running_loop().call_later(POLL_INTERVAL_S, self._poll)
