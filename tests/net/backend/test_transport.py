"""The way to a server, where no connection of a client's may leave as the proxy's own."""

import asyncio

import pytest

from smtpproxy.config.address import Address
from smtpproxy.net.backend.transport import BackendTransport
from smtpproxy.net.peer import Peer


@pytest.mark.parametrize("peer", [Peer(), Peer("0.0.0.0:1"), Peer("[::]:1")])
async def test_nobodys_address_is_not_replaced_by_the_proxys_own(peer: Peer) -> None:
    """An MTA that trusts the proxy would relay for whom a proxy in front calls 0.0.0.0."""
    server = Address(host="127.0.0.1", port=9)
    with pytest.raises(OSError, match="no address to connect from"):
        await BackendTransport(transparent=True).connect(server, asyncio.Protocol, peer)
