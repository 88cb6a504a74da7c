"""The write batcher: order, and nothing to a connection that closes."""

import asyncio

from smtpproxy.net.write_batching import BULK, BatchedWriter, WriteBatcher
from tests.net.fakes import Transport


async def test_writes_wait_for_the_end_of_the_iteration_in_order() -> None:
    write_batcher, first, second = WriteBatcher(), Transport(), Transport()
    BatchedWriter(write_batcher, first)(b"1")
    BatchedWriter(write_batcher, second)(b"2")
    BatchedWriter(write_batcher, first)(b"3")
    assert first.written == second.written == []
    await asyncio.sleep(0)
    assert (first.written, second.written) == ([b"1", b"3"], [b"2"])


async def test_large_writes_are_sent_at_once_after_pending_ones() -> None:
    write_batcher, transport = WriteBatcher(), Transport()
    BatchedWriter(write_batcher, transport)(b"1")
    BatchedWriter(write_batcher, transport)(b"x" * BULK)
    assert transport.written == [b"1", b"x" * BULK]


async def test_nothing_is_written_to_a_connection_that_closes() -> None:
    write_batcher, transport = WriteBatcher(), Transport()
    BatchedWriter(write_batcher, transport)(b"1")
    transport.abort()
    write_batcher.flush()
    assert transport.written == []
