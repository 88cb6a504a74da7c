"""Stands for a service at its control socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def control_service(path: Path, *parts: bytes) -> Iterator[list[bytes]]:
    """Send one client an answer in parts, and close; yields the list that its request gets into."""
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            asked.append(connection.recv(4096))
            for part in parts:
                connection.sendall(part)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()
