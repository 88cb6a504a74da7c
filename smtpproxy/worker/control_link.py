"""The worker's end of the control channel."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import cast

from msgspec import Raw

from smtpproxy.metrics.snapshot import MetricsSnapshot
from smtpproxy.net.backend.connection_slots import SlotHolder
from smtpproxy.trace.watch import WatchRequest
from smtpproxy.worker.control_messages import (
    Ask,
    Beat,
    Drain,
    FromWorker,
    Granted,
    Health,
    Leave,
    Look,
    MessageReader,
    Reclaim,
    Retire,
    Stop,
    ToWorker,
    Unwatch,
    Watch,
    Watched,
    encode,
)

BEAT_S = 1.0
"""The interval of snapshots to the supervisor."""
UNREAD_OCTETS = 1024 * 1024
"""The size of unsent data to the supervisor at which snapshots and records are left out."""


class ControlLink(asyncio.Protocol):
    """The worker's end of the control channel.

    The events `retire`, `drain` and `stop` are set by the messages of these names.
    """

    def __init__(self, lines: MessageReader) -> None:
        self._on_health: Callable[[Health], None] = _ignore
        self._on_look: Callable[[bool], None] = _ignore
        self._on_watch: Callable[[int, WatchRequest], None] = _ignore
        self._on_unwatch: Callable[[int], None] = _ignore
        self.retire, self.drain, self.stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.closed = asyncio.Event()
        """Set, with `retire` and `drain`, when the channel closes: the supervisor has ended."""
        self._lines = lines
        self._transport: asyncio.Transport | None = None
        self._tickets = count()
        self._asked: dict[int, SlotHolder] = {}
        self._granted: dict[int, SlotHolder] = {}

    def forward(
        self,
        health: Callable[[Health], None],
        look: Callable[[bool], None],
        watch: Callable[[int, WatchRequest], None],
        unwatch: Callable[[int], None],
    ) -> None:
        """Set what is called with messages for the worker as a whole.

        Args:
            health: Called when another worker reports a change of a server's health.
            look: Called regularly while the live page is open, with `Look.full`.
            watch: Called to begin a watch.
            unwatch: Called to end a watch.
        """
        self._on_health = health
        self._on_look = look
        self._on_watch = watch
        self._on_unwatch = unwatch

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the channel."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Process messages of the supervisor."""
        for message in self._lines.to_worker(data):
            self._take(message)

    def _take(self, message: ToWorker) -> None:
        if isinstance(message, Retire | Drain | Stop):
            self.retire.set()
            self._set_end(message)
        elif isinstance(message, Granted):
            self._take_answer(message)
        elif isinstance(message, Reclaim):
            if message.ticket in self._granted:
                self._granted[message.ticket].reclaim_slot()
        elif isinstance(message, Health):
            self._on_health(message)
        elif isinstance(message, Look):
            self._on_look(message.full)
        elif isinstance(message, Watch):
            self._on_watch(message.number, message.request)
        elif isinstance(message, Unwatch):
            self._on_unwatch(message.number)

    def _set_end(self, message: Retire | Drain | Stop) -> None:
        if isinstance(message, Drain):
            self.drain.set()
        elif isinstance(message, Stop):
            self.stop.set()

    def _take_answer(self, message: Granted) -> None:
        holder = self._asked.pop(message.ticket, None)
        if holder is not None:
            if message.granted:
                self._granted[message.ticket] = holder
            holder.slot_answered(granted=message.granted)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Retire and drain: without a supervisor this worker could not be reloaded or stopped."""
        self._transport = None
        self.retire.set()
        self.drain.set()
        self.closed.set()
        asked, self._asked = self._asked, {}
        for holder in asked.values():
            holder.slot_answered(granted=False)

    def send(self, message: FromWorker) -> None:
        """Send a message to the supervisor."""
        if self._transport is not None:
            self._transport.write(encode(message))

    def changed(self, backend: str, server: str, up: bool, reason: str) -> None:
        """Report that a server went down or came up."""
        self.send(Health(backend, server, up, reason))

    def send_records(self, watch: int, records: Sequence[Raw], lost: int) -> bool:
        """Send records of a watch; return whether there was room for them.

        Args:
            watch: Its number.
            records: The records.
            lost: How many there was no room for before.
        """
        if self._transport is None or self._is_full():
            return False
        self.send(Watched(watch, records, lost))
        return True

    def _is_full(self) -> bool:
        assert self._transport is not None
        return self._transport.get_write_buffer_size() >= UNREAD_OCTETS

    def ask(self, backend: str, holder: SlotHolder, address: bytes) -> int:
        """Request a connection slot of a backend, and return the ticket of the request."""
        ticket = next(self._tickets)
        self._asked[ticket] = holder
        self.send(Ask(backend, ticket, address))
        return ticket

    def leave(self, backend: str, ticket: int) -> None:
        """Release a connection slot, or cancel the request for one."""
        self._asked.pop(ticket, None)
        self._granted.pop(ticket, None)
        # A transport that was aborted closes its socket in the next turn of the loop; before that,
        # the MTA would get one connection too many.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self.send, Leave(backend, ticket))

    def beat(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        """Send a snapshot now, and then every second."""
        if self._transport is None:
            return
        if not self._is_full():
            self.send(Beat(snapshot()))
        asyncio.get_running_loop().call_later(BEAT_S, self.beat, snapshot)

    async def close(self) -> None:
        """Close the channel after all messages have been sent."""
        if self._transport is not None:
            self._transport.close()
        await self.closed.wait()


class SharedConnectionSlots:
    """The connection slots of a backend, which the supervisor shares among the workers."""

    def __init__(self, link: ControlLink, backend: str) -> None:
        self._link = link
        self._backend = backend
        self._tickets: dict[SlotHolder, int] = {}

    def ask(self, holder: SlotHolder, address: bytes) -> None:
        """Request a slot for a client of this address; the holder gets the answer."""
        self._tickets[holder] = self._link.ask(self._backend, holder, address)

    def leave(self, holder: SlotHolder) -> None:
        """Release the slot, or cancel the request for one."""
        self._link.leave(self._backend, self._tickets.pop(holder))


def _ignore(*message: object) -> None:
    """Ignore a message that comes before `ControlLink.forward` is called."""
