"""The control channel: messages that arrive before the worker reads them."""

import socket

import msgspec
import pytest

from smtpproxy.config.loader import from_flags
from smtpproxy.worker import control_messages, main
from smtpproxy.worker.control_messages import Drain, MessageReader, Start, encode


def test_a_message_after_start_is_not_lost() -> None:
    """A service that stops during a reload sends Drain before the worker has read Start."""
    settings = from_flags(None, ["127.0.0.1:0"], ["127.0.0.1:25"])
    start = Start(settings=settings, files={}, sockets=[], row=0)
    ours, its = socket.socketpair()
    with ours, its:
        ours.sendall(encode(start) + encode(Drain()))
        lines = MessageReader()
        assert isinstance(main._first(its, lines), Start)
        assert list(lines.to_worker(its.recv(65536))) == [Drain()]


def test_a_line_that_never_ends_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_messages, "LINE_BYTES", 100)
    lines = MessageReader()
    assert list(lines.to_worker(encode(Drain())[:-1])) == []
    assert list(lines.to_worker(b"\n" + encode(Drain()))) == [Drain(), Drain()]
    assert list(lines.to_worker(b"x" * 100)) == []
    with pytest.raises(msgspec.MsgspecError):
        lines.to_worker(b"x")
