"""The writer of log lines: nobody who does not read them, and no number of them, stops the loop."""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from threading import Thread
from time import thread_time
from typing import Any, BinaryIO

import pytest
import structlog

from smtpproxy.log import line_writer, log


@pytest.fixture(autouse=True)
def leave_logging_as_it_was() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    yield
    log.gather(None)
    logging.getLogger().handlers[:] = handlers
    structlog.reset_defaults()


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """A pipe of one page."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(reader, "rb", 0) as read_end, os.fdopen(writer, "wb", 0) as write_end:
        yield read_end, write_end


class Loop:
    """Keeps what is to be called later, and counts the turns."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.turns = 0

    def call_later(self, _: float, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self) -> float:
        """Run all turns; return the CPU time of the longest one."""
        longest = 0.0
        while self.calls:
            began = thread_time()
            self.calls.pop(0)()
            longest = max(longest, thread_time() - began)
            self.turns += 1
        return longest


def decoded(octets: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in octets.splitlines()]


def test_a_blocked_pipe_stops_nothing_and_lost_lines_are_counted(
    pipe: tuple[BinaryIO, BinaryIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "WAITING_BYTES", 100_000)
    read_end, write_end = pipe
    log.configure("info", "json", write_end)
    loop = Loop()
    log.gather(loop.call_later)
    for number in range(200):
        log.get().info("x", number=number, filler="-" * 6000)  # longer than the pipe
        loop.run()
    lost = log.lost()
    assert 100 < lost < 200
    received: list[bytes] = []
    reading = Thread(target=lambda: received.extend(iter(lambda: read_end.read(65536), b"")))
    reading.start()
    log.gather(None)
    write_end.close()
    reading.join()
    lines = decoded(b"".join(received))
    numbers = [line["number"] for line in lines if line["event"] == "x"]
    assert numbers == list(range(200 - lost))
    notices = [line["lines"] for line in lines if line["event"] == "log_lines_lost"]
    assert sum(notices) == lost


def test_the_end_does_not_wait_for_a_blocked_pipe(
    pipe: tuple[BinaryIO, BinaryIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_writer, "STOP_LIMIT_S", 0.05)
    log.configure("info", "json", pipe[1])
    loop = Loop()
    log.gather(loop.call_later)
    for _ in range(3):
        log.get().info("x", filler="-" * 6000)
    log.gather(None)
    log.get().info("y")
    assert log.lost() > 0
    pipe[0].close()  # lets the thread end


def longest_turn_of_many_lines() -> float:
    with open(os.devnull, "wb", 0) as nowhere:  # noqa: PTH123  a device
        log.configure("info", "json", nowhere)
        loop = Loop()
        log.gather(loop.call_later)
        for _ in range(200):
            log.get().info("x", details=lambda: {"to": ["\x7f" * 320] * 100})
        longest = loop.run()
        log.gather(None)
    assert loop.turns > 1
    return longest


def test_many_lines_that_come_together_are_rendered_in_turns() -> None:
    """A busy machine makes some turns longer, but hardly those of each attempt."""
    assert any(longest_turn_of_many_lines() < 0.05 for _ in range(3))


def test_lines_that_wait_have_a_bound_and_keep_their_order(
    pipe: tuple[BinaryIO, BinaryIO],
) -> None:
    read_end, write_end = pipe
    log.configure("info", "json", write_end)
    received: list[bytes] = []
    reading = Thread(target=lambda: received.extend(iter(lambda: read_end.read(65536), b"")))
    reading.start()
    loop = Loop()
    log.gather(loop.call_later)
    many = 5 * line_writer.WAITING_LINES
    rendered: list[int] = []

    def note(number: int) -> dict[str, object]:
        rendered.append(number)
        return {"number": number}

    for number in range(many):
        log.get().info("x", details=lambda number=number: note(number))
        assert number - len(rendered) < line_writer.WAITING_LINES
    log.gather(None)
    write_end.close()
    reading.join()
    assert [line["number"] for line in decoded(b"".join(received))] == list(range(many))


def test_a_new_configuration_keeps_the_writer_of_old_loggers() -> None:
    with open(os.devnull, "wb", 0) as nowhere:  # noqa: PTH123  a device
        log.configure("info", "json", nowhere)
        loop = Loop()
        log.gather(loop.call_later)
        before = log.get()
        log.configure("info", "console", nowhere)
        before.info("x")
        log.get().info("y")
        assert len(loop.calls) == 1
