"""The client of the control socket: one request to the running service.

It uses little of the standard library and nothing else: `smtpproxy health` runs every few seconds,
so it must start quickly.
"""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

DEADLINE_S = 5.0
"""How long the service may take, from the connection to the last octet."""
_MOST_BYTES = 4 * 1024 * 1024
"""The longest answer: the status of a thousand replicas."""


class NoAnswer(Exception):
    """There is no answer; the text gives the reason and the path of the socket."""


def ask(path: str, socket_paths: Sequence[Path], deadline_s: float = DEADLINE_S) -> tuple[int, str]:
    """Send a request to the service, and return its answer.

    Args:
        path: The path of the request, such as `/readyz`.
        socket_paths: The possible paths of the socket; the first that accepts a connection is used.
        deadline_s: How many seconds the service may take for its answer.

    Returns:
        The HTTP status, and the text without the end of its last line.

    Raises:
        NoAnswer: There is no service, or it does not answer in time.
    """
    deadline = monotonic() + deadline_s
    try:
        socket_path, answer = _exchange(path, socket_paths, deadline)
    except ConnectionError:  # a service that hands over to a new version may have closed it
        try:
            socket_path, answer = _exchange(path, socket_paths, deadline)
        except ConnectionError as error:
            raise NoAnswer(f"no answer: {os.strerror(error.errno or 0)}") from None
    head, _, text = answer.partition("\r\n\r\n")
    words = head.split(" ", 2)
    if len(words) < 3 or not words[1].isdecimal():
        raise NoAnswer(f"the program that answers at {socket_path} is not smtpproxy")
    return int(words[1]), text.rstrip("\n")


class Stream:
    """The answer to a request that goes on until either side closes.

    Args:
        target: The path of the request, with its query.
        socket_paths: The possible paths of the socket; the first that accepts a connection is used.

    Raises:
        NoAnswer: There is no service, it does not answer in time, or it refuses.
    """

    connection: socket.socket
    """Has the rest of the answer."""
    received: bytes
    """What has come of the answer so far."""

    def __init__(self, target: str, socket_paths: Sequence[Path]) -> None:
        with ExitStack() as close_on_error:
            self.connection = close_on_error.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            )
            try:
                self.received = self._begin(target, socket_paths)
            except TimeoutError:
                raise NoAnswer("no answer in time") from None
            except ConnectionError as error:
                raise NoAnswer(f"no answer: {error.strerror}") from None
            close_on_error.pop_all()

    def _begin(self, target: str, socket_paths: Sequence[Path]) -> bytes:
        """Send the request, and return what has come after the head of the answer."""
        deadline = monotonic() + DEADLINE_S
        self.connection.settimeout(DEADLINE_S)
        socket_path = _connect(self.connection, socket_paths)
        self.connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        found = _read(self.connection, deadline, b"\r\n\r\n")
        head, _, received = found.partition(b"\r\n\r\n")
        status = head.split(b" ")[1:2]
        if status == [b"404"]:
            raise NoAnswer(f"the service at {socket_path} is an older version without it")
        if status != [b"200"]:
            text = (received + _read(self.connection, deadline)).decode(errors="replace")
            raise NoAnswer(text.rstrip("\n") or f"no answer at {socket_path}")
        self.connection.settimeout(None)
        return received


def _exchange(path: str, socket_paths: Sequence[Path], deadline: float) -> tuple[Path, str]:
    """Return the path of the socket, and the answer.

    Raises:
        ConnectionError: The service closed the connection without an answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(deadline - monotonic(), 0.001))
        socket_path = _connect(connection, socket_paths)
        try:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            if answer := _read(connection, deadline):
                return socket_path, answer.decode(errors="replace")
        except TimeoutError:
            raise NoAnswer(f"no answer in time at {socket_path}") from None
        raise ConnectionResetError(errno.ECONNRESET, "closed without an answer")


def _connect(connection: socket.socket, socket_paths: Sequence[Path]) -> Path:
    denied = None
    for socket_path in socket_paths:
        try:
            connection.connect(str(socket_path))
        except PermissionError:
            denied = denied or socket_path
        except OSError:
            continue
        else:
            return socket_path
    if denied is not None:
        raise NoAnswer(f"no permission to ask at {denied}: be root, or the service's user")
    raise NoAnswer(f"no service answers at {' or '.join(map(str, socket_paths))}")


def _read(connection: socket.socket, deadline: float, until: bytes = b"") -> bytes:
    """Return what comes, at most until these octets are among it."""
    found = b""
    while len(found) < _MOST_BYTES and not (until and until in found):
        connection.settimeout(max(deadline - monotonic(), 0.001))
        octets = connection.recv(4096)
        if not octets:
            break
        found += octets
    return found
