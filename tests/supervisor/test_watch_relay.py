"""Watches in the supervisor: when they begin, and what a slow client loses."""

import asyncio
from typing import Any, cast

import pytest
from msgspec import Raw

from smtpproxy.supervisor import watch_relay
from smtpproxy.supervisor.watch_relay import WatchRelay
from smtpproxy.supervisor.worker_process import WorkerProcess
from smtpproxy.trace.watch import WatchRequest
from smtpproxy.worker.control_messages import ToWorker, Unwatch, Watch, Watched

REQUEST = WatchRequest(("192.0.2.0/24",))
WATCHING = b'{"what":"watching"}\n'


class Worker:
    def __init__(self) -> None:
        self.got: list[ToWorker] = []

    def send(self, message: ToWorker) -> None:
        self.got.append(message)


class Writer:
    """A connection, and its transport."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.unread = 0
        self.closing = False

    @property
    def transport(self) -> "Writer":
        return self

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def write(self, octets: bytes) -> None:
        self.written.append(octets)


@pytest.fixture
def relay() -> WatchRelay:
    return WatchRelay()


@pytest.fixture
def writer() -> Writer:
    return Writer()


def joined(relay: WatchRelay) -> Any:
    worker = cast("WorkerProcess", Worker())
    relay.joined(worker)
    return worker


async def test_it_begins_when_each_worker_records_or_has_ended(
    relay: WatchRelay, writer: Any
) -> None:
    one, other = joined(relay), joined(relay)
    block = relay.watch(REQUEST, 0, 1, writer)
    begun = asyncio.create_task(block.__aenter__())
    await asyncio.sleep(0)
    assert one.got == other.got == [Watch(1, REQUEST)]
    relay.take(one, Watched(1, [], 0))
    await asyncio.sleep(0)
    assert not begun.done()
    relay.left(other)
    await begun
    assert writer.written == [WATCHING]
    late = joined(relay)
    assert late.got == [Watch(1, REQUEST)]
    assert relay.watches == 1
    await block.__aexit__(None, None, None)
    assert one.got == late.got == [Watch(1, REQUEST), Unwatch(1)]
    assert other.got == [Watch(1, REQUEST)]
    assert relay.watches == 0
    relay.take(one, Watched(1, [Raw(b"{}")], 0))
    assert writer.written == [WATCHING]


async def test_a_worker_that_hangs_does_not_keep_it_from_beginning(
    relay: WatchRelay, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_relay, "BEGIN_LIMIT_S", 0.01)
    joined(relay)
    async with relay.watch(REQUEST, 0, 1, writer):
        assert writer.written == [WATCHING]


async def test_a_client_that_does_not_read_loses_records(relay: WatchRelay, writer: Any) -> None:
    records = [Raw(b'{"a":1}'), Raw(b'{"b":2}')]
    async with relay.watch(REQUEST, 0, 1, writer):
        writer.written.clear()
        relay.take(joined(relay), Watched(1, records, 0))
        assert writer.written == [b'{"a":1}\n{"b":2}\n']
        writer.unread = watch_relay.UNREAD_BYTES + 1
        for _ in range(3):
            relay.take(joined(relay), Watched(1, records, 0))
        writer.unread = 0
        relay.take(joined(relay), Watched(1, records[:1], 5))
        assert writer.written[1:] == [b'{"what":"records_lost","records":11}\n', b'{"a":1}\n']
        relay.take(joined(relay), Watched(1, records[:1], 0))
        assert writer.written[3:] == [b'{"a":1}\n']
        writer.closing = True
        relay.take(joined(relay), Watched(1, records[:1], 0))
        assert len(writer.written) == 4


async def test_a_loss_is_reported_although_no_record_comes_after_it(
    relay: WatchRelay, writer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_relay, "REPORT_S", 0.001)
    reported = asyncio.Event()
    block = relay.watch(REQUEST, 0, 1, writer)
    async with block:
        writer.unread = watch_relay.UNREAD_BYTES + 1
        relay.take(joined(relay), Watched(1, [Raw(b"{}")] * 2, 0))
        writer.written.clear()
        write = writer.write

        def written(octets: bytes) -> None:
            write(octets)
            reported.set()

        monkeypatch.setattr(writer, "write", written)
        asyncio.get_running_loop().call_later(0.01, setattr, writer, "unread", 0)
        await asyncio.wait_for(reported.wait(), 10)
        assert writer.written == [b'{"what":"records_lost","records":2}\n']


async def test_a_loss_is_reported_at_the_end_of_a_watch(relay: WatchRelay, writer: Any) -> None:
    async with relay.watch(REQUEST, 0, 1, writer):
        writer.unread = watch_relay.UNREAD_BYTES + 1
        relay.take(joined(relay), Watched(1, [Raw(b"{}")], 0))
        assert writer.written == [WATCHING]
    assert writer.written[1:] == [b'{"what":"records_lost","records":1}\n']
