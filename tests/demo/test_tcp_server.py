"""The servers of the demo close all connections, whenever they are stopped."""

import asyncio
import gc
import socket
from collections.abc import Callable

import pytest
import uvloop

from smtpproxy.demo.legacy import LegacyMTA
from smtpproxy.demo.simulated_network import SimulatedNetwork


@pytest.mark.parametrize("listening", [LegacyMTA, lambda: SimulatedNetwork("127.0.0.1:9", 0.01)])
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("turns", range(5))
def test_stopped_while_clients_connect(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    listening: Callable[[], LegacyMTA | SimulatedNetwork],
    turns: int,
) -> None:
    """An unclosed socket is a ResourceWarning, which is an error."""

    async def connect_and_stop() -> None:
        await stage.start()
        host, _, port = stage.address.rpartition(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await stage.stop()
        for client in clients:
            client.close()

    loop = new_loop()
    stage = listening()
    loop.run_until_complete(connect_and_stop())
    loop.close()
    begun = stage.sessions if isinstance(stage, LegacyMTA) else stage.links
    assert all(each.gone.is_set() for each in begun)
    gc.collect()
