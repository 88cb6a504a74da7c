"""A simulated network: a TCP relay that adds latency and nothing else.

Every chunk, and a half-close too, is delivered in order, half a round trip after it was received.
Chunks are never joined or split: what was sent as one group arrives as one group.  The drawings are
made from the recorded groups.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from smtpproxy.demo.tcp_server import TcpServer

CONNECT_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True)
class SentGroup:
    """Data that was sent together; times are on the event loop's clock."""

    from_client: bool
    octets: bytes
    """The data; empty for a half-close."""
    sent_at: float
    arrived_at: float


class SimulatedNetwork(TcpServer):
    """Listens on a loopback port and relays each connection with added latency.

    Args:
        target: Where to relay to, HOST:PORT.
        rtt_s: The round-trip time to simulate.
        on_closed: Called with each link after both its connections are closed.
        port: The port to listen on; 0: a free one.
    """

    def __init__(
        self,
        target: str,
        rtt_s: float,
        on_closed: "Callable[[SimulatedLink], None] | None" = None,
        port: int = 0,
    ) -> None:
        host, _, target_port = target.rpartition(":")
        self.rtt_s = rtt_s
        self.links: list[SimulatedLink] = []
        super().__init__(self._open_link, self.links, port)
        self._target = (host, int(target_port))
        self._on_closed = on_closed

    def forget(self, link: "SimulatedLink") -> None:
        """Remove a link that is closed, to free its memory."""
        self.links.remove(link)

    def ignore_closed(self) -> None:
        """Report no closed link from now on."""
        self._on_closed = None

    def _open_link(self) -> "_End":
        link = SimulatedLink(self._target, self.rtt_s / 2, self._link_closed)
        self.links.append(link)
        return link.near

    def _link_closed(self, link: "SimulatedLink") -> None:
        if self._on_closed is not None:
            self._on_closed(link)


class SimulatedLink:
    """One relayed connection: two sockets, a lane for each direction, the recorded groups."""

    def __init__(
        self,
        target: tuple[str, int],
        delay_s: float,
        on_closed: "Callable[[SimulatedLink], None]",
    ) -> None:
        self.groups: list[SentGroup] = []
        self.opened_at = 0.0
        self.aborted = False
        self.gone = asyncio.Event()
        self.near = _End(self, from_client=True)
        self.far = _End(self, from_client=False)
        self._target = target
        self._delay_s = delay_s
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._connecting: asyncio.Task[None] | None = None
        self.near.connect(_Lane(self, self.far, delay_s))
        self.far.connect(_Lane(self, self.near, delay_s))

    def opened(self) -> None:
        """Start to connect to the target, after the delay, now that the client has connected."""
        self.opened_at = self._loop.time()
        self._connecting = self._loop.create_task(self._connect(), name="demo-network-connect")

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S + self._delay_s):
                await asyncio.sleep(self._delay_s)  # connecting is delayed as each chunk is
                await self._loop.create_connection(lambda: self.far, *self._target)
        except (OSError, TimeoutError):
            self.abort()

    def delivered(self, group: SentGroup) -> None:
        """Record the group, and close when both directions have ended."""
        self.groups.append(group)
        if self.near.lane.ended and self.far.lane.ended:
            self.near.close()
            self.far.close()

    def lost(self) -> None:
        """Finish the link if both connections are closed."""
        if not self.gone.is_set() and self.near.gone and (self.far.gone or not self.far.connected):
            if self._connecting is not None:
                self._connecting.cancel()
            self.gone.set()
            self._on_closed(self)

    def abort(self) -> None:
        """Abort both connections now, or as soon as they are made."""
        self.aborted = True
        if self._connecting is not None:
            self._connecting.cancel()
        self.near.abort()
        self.far.abort()


class _End(asyncio.Protocol):
    """One of a link's two sockets."""

    lane: "_Lane"

    def __init__(self, link: SimulatedLink, *, from_client: bool) -> None:
        self.from_client = from_client
        self.connected = False
        self.gone = False
        self._link = link
        self._ended = False
        self._transport: asyncio.Transport | None = None

    def connect(self, lane: "_Lane") -> None:
        """Set the lane that takes what this socket receives."""
        self.lane = lane

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.connected = True
        if self._link.aborted:
            self.abort()
        elif self.from_client:
            self._link.opened()
        else:
            self._link.near.lane.deliver_late()

    def data_received(self, octets: bytes) -> None:
        self.lane.send(octets)

    def eof_received(self) -> bool:
        self._ended = True
        self.lane.send(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if exc is not None or not self._ended:
            self.lane.send_abort()
        self._link.lost()

    def pause_writing(self) -> None:
        self._opposite().pause()

    def resume_writing(self) -> None:
        self._opposite().resume()

    def _opposite(self) -> "_End":
        return self._link.far if self.from_client else self._link.near

    def pause(self) -> None:
        if self._transport is not None and not self.gone:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self.gone:
            self._transport.resume_reading()

    def write(self, octets: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if octets:
            self._transport.write(octets)
        else:
            self._transport.write_eof()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Reset the connection, as the peer of the other one did."""
        if self._transport is None or self.gone:
            return
        if not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


class _Lane:
    """One direction of a link: groups in transit, delivered in order."""

    def __init__(self, link: SimulatedLink, destination: _End, delay_s: float) -> None:
        self.ended = False
        self._link = link
        self._destination = destination
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._late = 0

    def send(self, octets: bytes) -> None:
        self._under_way.append((self._loop.time(), octets))
        self._loop.call_later(self._delay_s, self._arrive)

    def send_abort(self) -> None:
        self._loop.call_later(self._delay_s, self._destination.abort)

    def deliver_late(self) -> None:
        """Deliver the groups that were due before the destination was connected."""
        while self._late:
            self._late -= 1
            self._deliver()

    def _arrive(self) -> None:
        # Each timer delivers the oldest group, so the order does not depend on the timers' order.
        if self._destination.connected:
            self._deliver()
        else:
            self._late += 1

    def _deliver(self) -> None:
        sent_at, octets = self._under_way.popleft()
        self._destination.write(octets)
        self.ended = self.ended or not octets
        from_client = not self._destination.from_client
        self._link.delivered(SentGroup(from_client, octets, sent_at, self._loop.time()))
