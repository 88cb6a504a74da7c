"""The control channel: what a worker is told before it has begun to listen."""

import socket

from smtpproxy.config.loader import from_flags
from smtpproxy.worker import main
from smtpproxy.worker.control_messages import Drain, MessageReader, Start, encode


def test_what_stands_behind_the_start_is_not_lost() -> None:
    """A service that ends while it reloads tells a worker to drain before it has read."""
    settings = from_flags(None, ["127.0.0.1:0"], ["127.0.0.1:25"])
    start = Start(settings=settings, files={}, sockets=[], row=0)
    ours, its = socket.socketpair()
    with ours, its:
        ours.sendall(encode(start) + encode(Drain()))
        lines = MessageReader()
        assert isinstance(main._first(its, lines), Start)
        assert list(lines.to_worker(its.recv(65536))) == [Drain()]
