"""The composition root: settings become listeners, sessions and observers on one event loop."""

import asyncio
import gc
import os
import resource
import signal

import uvloop

from smtpproxy.core.capabilities import Filter
from smtpproxy.core.commands import Sync
from smtpproxy.core.content import BareNewlines
from smtpproxy.core.rules import Rules
from smtpproxy.net.listener import Listener
from smtpproxy.net.outbox import Outbox
from smtpproxy.net.servers import Server
from smtpproxy.net.service import Service
from smtpproxy.net.sweeper import Sweeper
from smtpproxy.observe import log
from smtpproxy.observe.sessions import ServiceLog
from smtpproxy.settings import Backend, Settings
from smtpproxy.settings import Listener as ListenerSettings

CLOSE_LIMIT_S = 30.0
"""How long a client that was told good-bye may take to close its side."""
LOG_DELAY_S = 0.02
"""How long a log line may wait for others, to be written together with them."""


class App:
    """The proxy on the running event loop."""

    def __init__(self, settings: Settings) -> None:
        self._timeouts = settings.timeouts
        self._log = log.get()
        self._sweeper = Sweeper(_limits(settings), settings.timeouts.hold)
        outbox = Outbox()
        observer = ServiceLog()
        self._listeners = [
            Listener(
                listener.address,
                Service(
                    name=str(listener.address),
                    rules=_rules(settings, listener, settings.backends[listener.backend]),
                    servers=tuple(
                        Server(address) for address in settings.backends[listener.backend].servers
                    ),
                    sweeper=self._sweeper,
                    outbox=outbox,
                    observer=observer,
                ),
            )
            for listener in settings.listener
        ]

    @property
    def addresses(self) -> list[str]:
        """The addresses that are listened on, with their real ports."""
        return [address for listener in self._listeners for address in listener.addresses]

    async def start(self) -> None:
        """Open all listeners; raises OSError, with none left open, if one can't be."""
        for listener in self._listeners:
            try:
                await listener.open()
            except OSError as error:
                self._log.error(
                    "cannot_listen", address=str(listener.wanted), why=os.strerror(error.errno or 0)
                )
                self._close_listeners()
                raise
        for address in self.addresses:
            self._log.info("listening", address=address)

    async def drain(self) -> None:
        """Take no new clients; let each session finish its transaction, for `drain` seconds."""
        self._close_listeners()
        self._log.info("draining", sessions=len(self._sweeper.sessions))
        self._sweeper.drain()
        await self._sweeper.wait_until_empty(self._timeouts.drain)

    async def stop(self) -> None:
        """Close everything at once."""
        self._close_listeners()
        self._sweeper.stop()
        await self._sweeper.wait_until_empty(1.0)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()


async def serve(settings: Settings) -> int:
    """Run until a signal: the first SIGTERM or SIGINT drains, the second stops at once."""
    app = App(settings)
    try:
        await app.start()
    except OSError:
        return 1
    asked, insisted = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (insisted if asked.is_set() else asked).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await asked.wait()
    draining = asyncio.create_task(app.drain(), name="drain")
    stopping = asyncio.create_task(insisted.wait(), name="second signal")
    await asyncio.wait((draining, stopping), return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    stopping.cancel()
    await app.stop()
    log.get().info("stopped")
    return 0


def main(settings: Settings) -> int:
    """Run the proxy in this process; return its exit code."""
    log.configure(settings.log.level, settings.log.format)
    _raise_file_limit()
    # What is loaded by now stays; collecting it over and over cost a third of all CPU (bench S1).
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        log.gather(lambda flush: loop.call_later(LOG_DELAY_S, flush))
        try:
            return runner.run(serve(settings))
        finally:
            log.gather(None)


def _raise_file_limit() -> None:
    """Use as many file descriptors as the system lets us: a session takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _rules(settings: Settings, listener: ListenerSettings, backend: Backend) -> Rules:
    limits = settings.limits
    return Rules(
        hostname=settings.hostname.encode("ascii", "replace"),
        sync=Sync(listener.sync),
        bare_newlines=BareNewlines(listener.bare_newlines),
        capabilities=Filter(
            hide=frozenset(word.encode() for word in listener.capabilities.hide),
            allow=frozenset(word.encode() for word in listener.capabilities.allow),
        ),
        use_pipelining=backend.pipelining == "auto",
        helo_fallback=backend.helo_fallback,
        guard_data=backend.guard_data,
        queue_commands=limits.queue_commands,
        queue_octets=limits.queue_octets,
        line=limits.line,
        auth_line=limits.auth_line,
        errors=limits.errors,
    )


def _limits(settings: Settings) -> dict[str, float]:
    """Return the seconds of each time limit by the name that the verb table and sessions use."""
    times = settings.timeouts
    return {
        "connect": times.connect,
        "greeting": times.greeting,
        "command": times.command,
        "data": times.data,
        "content": times.content,
        "end_of_data": times.end_of_data,
        "client": times.client,
        "close": CLOSE_LIMIT_S,
    }
