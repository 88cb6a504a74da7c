"""The simulated network adds latency and nothing else."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from smtpproxy.demo.simulated_network import SimulatedLink, SimulatedNetwork

DEADLINE_S = 20.0
# Timers of a loop fire up to a millisecond early or late.
SLACK_S = 0.002


@dataclass
class Peer(asyncio.Protocol):
    """The server at the far end: keeps what it received, and sends what a test gives it."""

    chunks: list[bytes] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    connected: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # narrower: TCP
        self.transport = transport
        self.connected.set()

    def data_received(self, octets: bytes) -> None:
        self.chunks.append(octets)

    def eof_received(self) -> bool:
        self.ended.set()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        self.lost.set()


async def end(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await asyncio.wait_for(writer.wait_closed(), DEADLINE_S)


@contextlib.asynccontextmanager
async def connected(
    rtt_s: float,
) -> AsyncIterator[tuple[Peer, SimulatedNetwork, asyncio.StreamReader, asyncio.StreamWriter]]:
    peer = Peer()
    server = await asyncio.get_running_loop().create_server(lambda: peer, "127.0.0.1", 0)
    target = "{}:{}".format(*server.sockets[0].getsockname())
    async with SimulatedNetwork(target, rtt_s) as network:
        host, _, port = network.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await asyncio.wait_for(peer.connected.wait(), DEADLINE_S)
        try:
            yield peer, network, reader, writer
        finally:
            await end(writer)
            peer.transport.abort()
            await asyncio.wait_for(peer.lost.wait(), DEADLINE_S)
            server.close()
            await server.wait_closed()


async def test_each_direction_takes_half_the_round_trip() -> None:
    async with connected(0.1) as (peer, network, reader, writer):
        writer.write(b"ping")
        peer.transport.write(b"pong")
        assert await asyncio.wait_for(reader.readexactly(4), DEADLINE_S) == b"pong"
        for group in network.links[0].groups:
            assert group.arrived_at - group.sent_at >= 0.05 - SLACK_S


async def test_data_sent_before_the_far_end_is_connected_arrives_in_order() -> None:
    peer = Peer()
    server = await asyncio.get_running_loop().create_server(lambda: peer, "127.0.0.1", 0)
    async with SimulatedNetwork("{}:{}".format(*server.sockets[0].getsockname()), 0.02) as network:
        host, _, port = network.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"early")
        writer.write_eof()
        await asyncio.wait_for(peer.ended.wait(), DEADLINE_S)
        assert b"".join(peer.chunks) == b"early"
        await end(writer)
        peer.transport.abort()
        await asyncio.wait_for(peer.lost.wait(), DEADLINE_S)
    server.close()
    await server.wait_closed()


async def test_many_groups_in_transit_arrive_in_order_and_separately() -> None:
    """The delay is latency: a hundred groups take one delay, not a hundred."""
    loop = asyncio.get_running_loop()
    async with connected(0.2) as (peer, network, _, writer):
        started = loop.time()
        lane = network.links[0].near
        sent = [b"group %d\r\n" % number for number in range(100)]
        for octets in sent:
            lane.data_received(octets)
        writer.write_eof()
        await asyncio.wait_for(peer.ended.wait(), 20)
        assert loop.time() - started < 10  # of the 20 s that a hundred delays would be
        assert b"".join(peer.chunks) == b"".join(sent)
        assert [group.octets for group in network.links[0].groups] == [*sent, b""]


async def test_a_half_close_is_relayed_and_leaves_the_other_direction_open() -> None:
    async with connected(0.02) as (peer, network, reader, writer):
        writer.write_eof()
        await asyncio.wait_for(peer.ended.wait(), DEADLINE_S)
        peer.transport.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), DEADLINE_S) == b"still here"
        peer.transport.close()
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        assert network.links[0].groups[0].octets == b""


async def test_a_reset_is_relayed() -> None:
    async with connected(0.02) as (peer, _, _, writer):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await asyncio.wait_for(peer.lost.wait(), DEADLINE_S)
        assert not peer.ended.is_set()


async def test_a_large_transfer_to_a_slow_reader_arrives_whole() -> None:
    async with connected(0.01) as (peer, _, _, writer):
        peer.transport.pause_reading()
        size = 20_000_000
        writer.write(b"x" * size)
        writer.write_eof()
        peer.transport.resume_reading()
        await asyncio.wait_for(peer.ended.wait(), 20)
        assert sum(map(len, peer.chunks)) == size


async def test_a_link_without_a_target_is_closed_and_reported() -> None:
    closed: asyncio.Future[SimulatedLink] = asyncio.get_running_loop().create_future()
    with socket.socket() as nobody:  # it does not listen, and no other process can
        nobody.bind(("127.0.0.1", 0))
        target = "{}:{}".format(*nobody.getsockname())
        async with SimulatedNetwork(target, 0.01, closed.set_result) as network:
            host, _, port = network.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
            link = await asyncio.wait_for(closed, DEADLINE_S)
            assert link.gone.is_set()
            await end(writer)


@pytest.mark.parametrize("rtt_s", [0.0, 0.001])
async def test_a_short_round_trip_works_the_same(rtt_s: float) -> None:
    async with connected(rtt_s) as (peer, _, reader, writer):
        writer.write(b"ping")
        peer.transport.write(b"pong")
        assert await asyncio.wait_for(reader.readexactly(4), DEADLINE_S) == b"pong"
