"""A listener: an address at which clients connect."""

import asyncio
import socket
import stat
from pathlib import Path

from smtpproxy.address import Address
from smtpproxy.net.client import ClientConnection
from smtpproxy.net.service import Service

BACKLOG = 4096


class Listener:
    """Accepts clients at one address and begins a session for each.

    wanted: the address asked for.  addresses: those that are listened on.
    """

    def __init__(self, address: Address, service: Service) -> None:
        self.wanted = address
        self._service = service
        self._server: asyncio.Server | None = None
        self.addresses: list[str] = []

    async def open(self) -> None:
        """Begin to listen; `addresses` are then the real ones, ports chosen by the system too.

        Raises OSError if the address can't be had.
        """
        loop = asyncio.get_running_loop()
        if self.wanted.is_unix:
            # Bound here: the loop would remove whatever stands at the path, a live socket too.
            self._server = await loop.create_unix_server(
                self._make_client, sock=_bind_unix(self.wanted.path), backlog=BACKLOG
            )
            self.addresses = [str(self.wanted)]
            return
        self._server = await loop.create_server(
            self._make_client, self.wanted.host, self.wanted.port, backlog=BACKLOG
        )
        self.addresses = [
            str(Address(host=name[0], port=name[1]))
            for name in (bound.getsockname() for bound in self._server.sockets)
        ]

    def _make_client(self) -> ClientConnection:
        return ClientConnection(self._service)

    def close(self) -> None:
        """Accept no more clients."""
        if self._server is not None:
            self._server.close()
            if self.wanted.is_unix:
                Path(self.wanted.path).unlink(missing_ok=True)
            self._server = None


def _bind_unix(path: str) -> socket.socket:
    """Bind a socket, in place of one that a proxy which was killed has left behind."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_dead(path):
            Path(path).unlink(missing_ok=True)
        bound.bind(path)
    except OSError:
        bound.close()
        raise
    return bound


def _is_dead(path: str) -> bool:
    """Tell whether a socket is at the path that nobody serves."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return stat.S_ISSOCK(Path(path).stat().st_mode)
        except OSError:
            return False
    return False
