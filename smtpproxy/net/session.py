"""The session: a client connection, its backend connection and the pipeline between them.

The only place that closes either side.  It keeps time for the pipeline, goes on to the next server
while none has greeted, and turns back-pressure on one side into silence on the other: while the
client does not read, neither side is read; while the backend does not read, or as much waits as may
wait, the client is not read.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from smtpproxy.core import replies
from smtpproxy.core.observer import Summary
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.net.backend.server_selection import Choice
from smtpproxy.net.peer import ends_of
from smtpproxy.net.rate_limit import Pace
from smtpproxy.net.session_upgrades import Changes
from smtpproxy.net.write_batching import Sink

if TYPE_CHECKING:
    from smtpproxy.net.listener_context import Service
    from smtpproxy.net.peer import Peer


class Session:
    """One client, served by one connection to the backend.

    When its pipeline has ended, the session lingers until the client has closed its side too: to
    close with octets unread would reset the connection, and the client could lose the last reply.

    peer: who the client is.  client, backend: the transports, None before there is one.
    secure: it takes the place of a session that was inside TLS already.
    """

    __slots__ = (
        "_backend_blocked",
        "_changes",
        "_client_blocked",
        "_client_lost",
        "_pace",
        "_since",
        "_started",
        "backend",
        "choice",
        "client",
        "client_paused",
        "observer",
        "octets_backend",
        "octets_client",
        "peer",
        "pipeline",
        "service",
    )

    def __init__(
        self,
        service: "Service",
        client: asyncio.Transport,
        peer: "Peer",
        *,
        secure: bool = False,
    ) -> None:
        now = monotonic()
        self.service = service
        self.client = client
        self._client_lost = self.client_paused = False
        self._client_blocked = self._backend_blocked = False  # it does not take what is written
        self.octets_client = self.octets_backend = 0
        self._started = self._since = now  # _since: begin of connecting, blocking or lingering
        self.peer = peer
        self.observer = service.observer.session(service.name, peer.name)
        security = service.security
        rules = service.rules if security is None else security.rules_for(peer) or service.rules
        if secure:
            rules = rules.inside_tls or rules
        send_client = Sink(service.outbox, client)
        self.pipeline = Pipeline(rules, send_client, self.observer, now)
        self.pipeline.framer.watch = self.observer.content
        self._changes = None if security is None else Changes(self, security)
        self.backend: asyncio.Transport | None = None
        self._pace = None if service.pacing is None else Pace(service.pacing, now)
        self.choice = Choice(self)
        service.sweeper.add(self)
        self.choice.begin()

    # --- the backend's connection -------------------------------------------------------------

    def placed(self, *, granted: bool) -> None:
        """Take the answer to the choice's question for a place at the backend."""
        now = monotonic()
        if granted:
            self._connect(now)
        else:
            self.pipeline.fail("backend_full", replies.BACKEND_FULL, now)
            self._end(now)

    def _connect(self, now: float) -> None:
        """Try the next server; when there is none left, the client is told so."""
        self.backend = None
        self._since = now
        if not self.choice.try_next():
            self.pipeline.backend_unavailable(self.choice.refusal, now)
            self._end(now)

    def backend_connected(self, backend: asyncio.Transport) -> None:
        """Take the backend's connection."""
        self.backend = backend
        if self.pipeline.ended:
            backend.abort()
            return
        self._since = monotonic()
        self.pipeline.connect_backend(Sink(self.service.outbox, backend))
        server = self.choice.server
        assert server is not None
        ends = partial(ends_of, self.peer.name, self.client, backend)
        self.observer.connected(server.name_for(self.peer), ends)
        if self._changes is not None:
            self._changes.note_tls("backend", backend)

    def backend_received(self, octets: bytes) -> None:
        """Take octets from the backend."""
        now = monotonic()
        pipeline = self.pipeline
        self.octets_backend += len(octets)
        try:
            if self.choice.open:
                octets, why_not = self.choice.receive(octets)
                if why_not:
                    self.give_up_server(why_not, now)
            if octets:
                pipeline.backend_received(octets, now)
        except Exception as error:  # noqa: BLE001  the outermost callback: nobody above could close
            self._break_down(error, now)
        if pipeline.ended:
            self._end(now)
            return
        if pipeline.held_since == now:
            self.service.sweeper.watch_held(self)
        if self.client_paused:
            self._regulate()

    def give_up_server(self, why: str, now: float) -> None:
        """Go on to the next server: this one has not greeted, or not as it should."""
        server = self.choice.server
        assert server is not None
        self.observer.gave_up(server.name, why)
        self.choice.cancel()
        if self.backend is not None:
            self.backend.abort()
        if not self.pipeline.ended:
            self._connect(now)

    def backend_lost(self, backend: asyncio.Transport) -> None:
        """Take the end of a backend connection."""
        if backend is not self.backend or self.pipeline.ended:
            return
        now = monotonic()
        if self.pipeline.greeting_owed:
            self.choice.refusal = b""
            self.choice.failed("closed without a greeting")
            self.give_up_server("closed without a greeting", now)
            return
        self.pipeline.backend_lost(now)
        if self.pipeline.ended:
            self._end(now)

    # --- the client's connection --------------------------------------------------------------

    def client_received(self, octets: bytes) -> None:
        """Take octets from the client."""
        pipeline = self.pipeline
        if pipeline.ended:
            return  # it lingers
        now = monotonic()
        self.octets_client += len(octets)
        try:
            pipeline.client_received(octets, now)
        except Exception as error:  # noqa: BLE001  the outermost callback: nobody above could close
            self._break_down(error, now)
        if pipeline.ended:
            self._end(now)
        elif pipeline.full:
            self._regulate()
        if self._pace is not None and not self._pace.paused:
            self._slow_down()

    def client_eof(self) -> bool:
        """Take the client's half-close: what it has sent is served to the end.

        Return whether replies can still be given.
        """
        if self.pipeline.ended:
            self.client.close()
            return False
        if self.choice.waits and not self.octets_client:  # it has left the queue
            self.finish(partial(self.pipeline.end, "client_lost"))
        self.finish(self.pipeline.client_eof)
        return True

    def client_lost(self) -> None:
        """Take the end of the client's connection; what it sent before is still served."""
        self._client_lost = True
        if self.pipeline.ended:
            self.service.sweeper.remove(self)
            return
        self.pipeline.connect_client(_discard)
        self._client_blocked = False
        if self.choice.waits:  # what it has sent has reached nobody: no place for it
            self.finish(partial(self.pipeline.end, "client_lost"))
        self.finish(self.pipeline.client_eof)
        self._regulate()

    def finish(self, happen: "Callable[[float], None]") -> None:
        """Let something happen in the pipeline that may end it."""
        if self.pipeline.ended:
            return
        now = monotonic()
        happen(now)
        if self.pipeline.ended:
            self._end(now)

    # --- back-pressure ------------------------------------------------------------------------

    def client_blocked(self, *, blocked: bool) -> None:
        """Note whether the client leaves replies unread.  Called inside write: sets flags only."""
        self._client_blocked = blocked
        self._since = monotonic()
        if self.backend is not None and not self.backend.is_closing():
            if blocked:
                self.backend.pause_reading()
            else:
                self.backend.resume_reading()
        self._regulate()

    def backend_blocked(self, *, blocked: bool) -> None:
        """Note whether the backend leaves unread what is sent.  Called inside write, too."""
        self._backend_blocked = blocked
        self._regulate()

    def _regulate(self) -> None:
        """Read the client, or not, as things stand."""
        pause = self._client_blocked or self._backend_blocked or self.pipeline.full
        if self._pace is not None and self._pace.paused:
            pause = True
        if pause == self.client_paused or self._client_lost or self.pipeline.ended:
            return
        self.client_paused = pause
        if pause:
            self.client.pause_reading()
            self.observer.stalled()
        else:
            self.client.resume_reading()

    def _slow_down(self) -> None:
        """Do not read a client for a while that sends commands too fast."""
        pipeline, pace = self.pipeline, self._pace
        if pipeline.ended or pace is None:
            return
        now = monotonic()
        was_slowed, was_paused = pace.was_slowed, pace.paused
        seconds = pace.pause(pipeline.framer.commands, now)
        pace.paused = seconds > 0
        if pace.paused:
            asyncio.get_running_loop().call_later(seconds, self._slow_down)
        if pace.was_slowed and not was_slowed:
            self.observer.slowed()
        if was_paused:
            pipeline.client_active_at = now  # its silence was ours
        if was_paused != pace.paused:
            self._regulate()

    def go_on_inside(self, tls: asyncio.Transport) -> None:
        """Go on with the client inside TLS."""
        self.client = tls
        self.client_paused = False
        if self._client_blocked:
            self.client_blocked(blocked=False)
        self.pipeline.connect_client(Sink(self.service.outbox, tls))
        self.finish(self.pipeline.client_secured)

    # --- time ---------------------------------------------------------------------------------

    def waiting(self) -> tuple[str, float]:
        """Return the name of the time limit that runs, and since when."""
        if self.pipeline.ended:
            return "close", self._since
        if self.backend is None:
            return "place" if self.choice.waits else "connect", self._since
        if self._changes is not None and self._changes.tunnel is not None:
            return "client", self._changes.tunnel.active
        if self._client_blocked:
            return "client", self._since
        if self.pipeline.greeting_owed:
            return "greeting", self._since  # that of this server, not of those tried before
        return self.pipeline.waiting()

    def expire(self, limit: str, now: float) -> None:
        """Act on a time limit that is over."""
        if limit == "close":
            self.client.abort()
            return
        if limit == "connect" or (limit == "greeting" and self.choice.open):
            self.choice.failed(f"{limit} time limit")
            self.choice.refusal = b""
            if limit == "connect" or self.choice.more:
                self.give_up_server(f"{limit} time limit", now)
                return
        self.pipeline.expire(now)
        self._end(now)

    def release(self, now: float) -> bool:
        """Flush what has been held for long enough; tell whether anything is still held."""
        since = self.pipeline.held_since
        if since and now - since >= self.service.sweeper.hold:
            self.pipeline.flush(now)
        return self.pipeline.held_since > 0

    def drain(self) -> None:
        """End the session as soon as its transaction is over."""
        if self.pipeline.ended:
            return
        self.finish(self.pipeline.drain)

    def stop(self) -> None:
        """End the session at once."""
        if not self.pipeline.ended:
            now = monotonic()
            self.pipeline.fail("stopped", replies.DRAINING, now)
            self._end(now)
        self.client.abort()

    # --- the end ------------------------------------------------------------------------------

    def _break_down(self, error: Exception, now: float) -> None:
        self.service.observer.broken(error)
        self.pipeline.fail("internal_error", replies.INTERNAL_ERROR, now)

    def _end(self, now: float) -> None:
        """Close both sides, each in its way; called once, when the pipeline has ended."""
        self.service.outbox.flush()
        pipeline = self.pipeline
        makes_way = pipeline.ended == "introduced"
        if self.backend is not None and makes_way:
            self.backend.set_protocol(asyncio.Protocol())  # its reply is nobody's
            self.backend.write(b"QUIT\r\n")
            self.backend.close()
        elif self.backend is not None:
            self.backend.abort()  # nothing that matters is unsent: least of all an end of data
        self.choice.end()
        self._report(now)
        if makes_way and not (self._client_lost or pipeline.client_ended):
            assert self._changes is not None
            self._changes.make_way()
            return
        if self._changes is not None:
            self._changes.cancel()
            if self._changes.of_client:  # none of our words can go there
                self._client_lost = True
                if not self.client.is_closing():
                    self.client.abort()
        if self._client_lost:
            self.service.sweeper.remove(self)
        elif pipeline.client_ended or pipeline.ended == "quit":
            self._since = now
            self.client.close()
        else:
            self._linger(now)

    def _linger(self, now: float) -> None:
        """Say that nothing more comes, and read until the client has closed."""
        self._since = now
        if not self.client.can_write_eof():  # TLS has a good-bye of its own
            self.client.close()
            return
        self.client.write_eof()
        if self.client_paused:
            self.client.resume_reading()

    def _report(self, now: float) -> None:
        pipeline = self.pipeline
        self.observer.closed(
            Summary(
                reason=pipeline.ended,
                seconds=now - self._started,
                commands=pipeline.framer.commands,
                pipelined=pipeline.framer.pipelined,
                messages=pipeline.transaction.messages,
                client_octets=self.octets_client,
                backend_octets=self.octets_backend,
            )
        )


def _discard(octets: bytes) -> None:
    """Take replies to a client that is gone."""
