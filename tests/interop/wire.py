"""A client of bare octets, for groups that no program sends."""

import contextlib
import socket
import ssl
import struct
from typing import Self

TIMEOUT_S = 20.0


class Wire:
    """A connection to a port of 127.0.0.1 that sends groups and reads replies."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._socket = socket.create_connection(
            ("127.0.0.1", port), timeout=TIMEOUT_S, source_address=(source, 0)
        )
        self._file = self._socket.makefile("rb")
        self.waits = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Go on inside TLS, verified by `context`; nothing may be on its way in plaintext."""
        self._file.close()
        self._socket = context.wrap_socket(self._socket, server_hostname=name)
        self._file = self._socket.makefile("rb")

    def one_read(self) -> bytes:
        """Return what one read gives: inside TLS, the octets of one record."""
        return self._socket.recv(65536)

    @property
    def own_address(self) -> str:
        """This end of the connection, as the proxy's log writes it."""
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def send(self, *commands: bytes) -> None:
        """Send commands, each ended here, in one segment."""
        self._socket.sendall(b"".join(command + b"\r\n" for command in commands))

    def send_octets(self, octets: bytes) -> None:
        """Send octets as they are."""
        self._socket.sendall(octets)

    def replies(self, number: int) -> list[int]:
        """Wait once for so many replies, and return their codes."""
        self.waits += 1
        return [int(self.reply()[-1][:3]) for _ in range(number)]

    def ask(self, *commands: bytes, replies: int | None = None) -> list[int]:
        """Send a group and return the codes of its replies, one for each command."""
        self.send(*commands)
        return self.replies(len(commands) if replies is None else replies)

    def reply(self) -> list[bytes]:
        """Read one reply, and return its lines."""
        lines = [self._file.readline()]
        while lines[-1][3:4] == b"-":
            lines.append(self._file.readline())
        assert lines[-1], "the connection was closed"
        return lines

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()

    def rest(self) -> bytes:
        """Read until the other side closes, or resets the connection."""
        octets = b""
        with contextlib.suppress(ConnectionResetError):
            while line := self._file.readline():
                octets += line
        return octets
