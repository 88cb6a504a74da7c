"""Every message acknowledged to a client was accepted by the backend: whole, and once per attempt.

Seconds of chaos: $SMTPPROXY_CHAOS_S (a longer run: SMTPPROXY_CHAOS_S=600 pytest tests/chaos).
"""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from tests.chaos.backend import Connection, Record
from tests.chaos.clients import Reported, send_messages
from tests.support.program import Program

SECONDS = float(os.environ.get("SMTPPROXY_CHAOS_S", "6"))
ENOUGH = 20 * SECONDS
"""Messages without which it was an idle run; a busy machine takes longer for them."""
LONGEST_S = 10 * SECONDS
CLIENTS = 12


async def test_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    seed = int(os.environ.get("SMTPPROXY_CHAOS_SEED", "1"))
    print(f"SMTPPROXY_CHAOS_SEED={seed}")  # shown if it fails
    record, reported, over = Record(seed), Reported(), asyncio.Event()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(record), "127.0.0.1", 0)
    host, number = server.sockets[0].getsockname()
    file = tmp_path / "p"
    file.write_text(
        """
        [timeouts]
        reply_hold = 0.05
        command = 2
        data = 2
        end_of_data = 2
        drain = 1
        """
    )
    addresses = ("-l", "127.0.0.1:0", "-b", f"{host}:{number}", "-w", "2")
    with Program(tmp_path, "-c", file, *addresses) as program:
        port = await asyncio.to_thread(program.port)
        clients = [
            asyncio.create_task(send_messages(port, f"c{which}", reported, over, seed + which))
            for which in range(CLIENTS)
        ]
        await _make_chaos(
            program,
            record,
            random.Random(seed),
            lambda: len(reported.acknowledged) > ENOUGH and reported.refused > SECONDS,
        )
        over.set()
        await asyncio.gather(*clients)
        program.signal(signal.SIGTERM)
        assert await asyncio.to_thread(program.wait) == 0
        events = [fields["event"] for fields in program.log()]
    server.close()
    for connection in list(record.connections):
        connection.transport.abort()
        await connection.closed.wait()
    assert "internal_error" not in events
    assert "backend_violation" not in events
    assert record.wrong == []
    assert reported.out_of_step == []
    for sender in reported.acknowledged:
        assert sender in record.accepted, f"{sender!r} was acknowledged, and the backend has it not"
    for sender, contents in record.accepted.items():
        assert contents == [reported.meant[sender]], f"{sender!r}: {contents!r:.500}"
    # It was no idle run: faults were met, and yet messages went through.
    assert len(reported.acknowledged) > ENOUGH
    assert reported.attempts > len(reported.acknowledged)
    assert reported.refused > SECONDS
    assert record.faults > SECONDS
    assert events.count("worker_lost") >= SECONDS // 6  # some are hit while they leave
    assert "reloaded" in events


async def _make_chaos(
    program: Program, record: Record, chance: random.Random, enough: Callable[[], bool]
) -> None:
    """Reset connections all the time; kill, stall and replace workers now and then."""
    began, turn = monotonic(), 0
    while (passed := monotonic() - began) < SECONDS or not enough():
        assert passed < LONGEST_S
        turn += 1
        for _ in range(10):
            await asyncio.sleep(0.1)
            record.reset_one()
        workers = program.workers()
        if not workers:
            continue
        victim = chance.choice(workers)
        if turn % 3 == 0:
            program.signal(signal.SIGHUP)
        elif turn % 3 == 1:
            _kill(victim, signal.SIGKILL)
        else:
            _kill(victim, signal.SIGSTOP)
            await asyncio.sleep(0.3)
            _kill(victim, signal.SIGCONT)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have been replaced meanwhile
        os.kill(pid, number)
