"""The main function of a worker: one event loop, in a process that the fork server has forked.

A worker ends on request, or when the supervisor has ended.  Modules that would be imported on first
use are imported here, before the fork.
"""

import asyncio
import encodings.idna
import encodings.latin_1
import encodings.unicode_escape  # noqa: F401  like the two above
import gc
import signal
import socket
from itertools import islice

import uvloop

from smtpproxy.log import log
from smtpproxy.net import own_connections
from smtpproxy.net.binding import adopt
from smtpproxy.net.shared_counters import SharedCounters
from smtpproxy.tls import certificate_names  # noqa: F401
from smtpproxy.worker.allocator import keep_freed_buffers
from smtpproxy.worker.app import App
from smtpproxy.worker.certificate_snapshot import FileCopies
from smtpproxy.worker.control_link import ControlLink, SharedConnectionSlots
from smtpproxy.worker.control_messages import (
    Beat,
    MessageReader,
    Ready,
    Retired,
    Start,
    take_descriptors,
)


async def serve(
    start: Start, descriptors: list[int], channel: socket.socket, lines: MessageReader
) -> int:
    """Serve clients until the supervisor stops the worker.

    Args:
        start: The first message.
        descriptors: The descriptors that were sent before it.
        channel: The worker's end of the control channel.
        lines: Its reader, which may have read part of the next message.

    Returns:
        The exit code.
    """
    shared_counters, *inherited = descriptors
    copies = FileCopies(start.settings, start.files)
    link = ControlLink(lines)
    own_connections.share(shared_counters, start.row)
    app = App(
        copies.settings,
        changed=link.changed,
        connection_slots=lambda backend, _: SharedConnectionSlots(link, backend),
        worker=start.row,
        shared_counters=SharedCounters(shared_counters, start.row),
        faults=start.faults,
    )
    copies.close()
    link.forward(
        health=app.learn,
        look=app.look,
        watch=app.watches.begin,
        unwatch=app.watches.end,
    )
    app.watches.send_with(link.send_records)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=channel)
    given = map(adopt, inherited)
    sockets = [list(islice(given, count)) for count in start.sockets]
    await app.start(sockets)
    link.send(Ready())
    link.beat(app.snapshot)
    await link.retire.wait()
    app.close()
    for listening in [each for listener in sockets for each in listener]:
        listening.close()
    link.send(Retired())
    stop = asyncio.create_task(link.stop.wait(), name="stop")
    limits = start.settings.timeouts
    leaving = asyncio.create_task(
        _leave(app, link, limits.drain, limits.transaction_grace), name="leave"
    )
    ends = [leaving, stop]
    if start.settings.cluster.url:
        lapse = asyncio.create_task(_lapse(link, start.settings.cluster.lease), name="lapse")
        ends.append(lapse)
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in ends:
        task.cancel()
    await app.stop()
    log.gather(None)
    link.send(Beat(app.snapshot()))
    await link.close()
    return 0


async def _leave(app: App, link: ControlLink, drain_s: float, grace_s: float) -> None:
    """Wait until the sessions end; after a time limit, end them with their transactions.

    After a reload new workers serve new clients, so old sessions may continue for a while.  The
    limit prevents that a client keeps a worker with old settings running for ever.
    """
    drain = asyncio.create_task(link.drain.wait(), name="drain")
    empty = asyncio.create_task(app.wait_until_empty(drain_s), name="empty")
    await asyncio.wait((drain, empty), return_when=asyncio.FIRST_COMPLETED)
    empty.cancel()
    app.drain()
    if not drain.done():
        longest = max(grace_s - drain_s, 0.0)
        empty = asyncio.create_task(app.wait_until_empty(longest), name="empty")
        await asyncio.wait((drain, empty), return_when=asyncio.FIRST_COMPLETED)
        empty.cancel()
    if drain.done():
        await app.wait_until_empty(drain_s)
    drain.cancel()


async def _lapse(link: ControlLink, lease_s: float) -> None:
    """Return before the leases of a supervisor that was killed lapse.

    It renewed them each third of a lease.  Then other replicas open connections in their place.
    """
    await link.closed.wait()
    await asyncio.sleep(lease_s / 2)


def main(control: int) -> int:
    """Run a worker, and return its exit code.

    Args:
        control: The descriptor of its end of the control channel.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor handles them for its workers
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    channel = socket.socket(fileno=control)
    lines = MessageReader()
    descriptors = take_descriptors(channel)
    start = _first(channel, lines)
    if start is None:
        return 1
    settings = start.settings
    log.configure(settings.log.level, settings.log.format, instance=settings.instance)
    log.adopt_uncaught()
    keep_freed_buffers()
    # Objects loaded so far are permanent; collecting them again cost a third of all CPU (bench S1).
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        log.gather(runner.get_loop().call_later)
        try:
            return runner.run(serve(start, descriptors, channel, lines))
        finally:
            log.gather(None)


def _first(channel: socket.socket, lines: MessageReader) -> Start | None:
    """Wait for `Start`, and return it; None if the supervisor has ended.

    Later messages stay in the channel: a supervisor that stops during a reload sends `Drain` at
    once.
    """
    while octets := channel.recv(65536, socket.MSG_PEEK):
        line = octets.find(b"\n") + 1
        for message in lines.to_worker(channel.recv(line or len(octets))):
            if isinstance(message, Start):
                return message
    return None
