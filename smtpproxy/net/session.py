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
from typing import TYPE_CHECKING, cast

from smtpproxy.core import replies
from smtpproxy.core.observer import Summary
from smtpproxy.core.pipeline import SECURE_BACKEND, Pipeline
from smtpproxy.core.rules import ClientTls
from smtpproxy.net.choice import Choice
from smtpproxy.net.ends import ends_of
from smtpproxy.net.outbox import Sink
from smtpproxy.net.pace import Pace
from smtpproxy.net.upgrade import Upgrade, note_tls
from smtpproxy.net.xclient import BadXclient, introduced

if TYPE_CHECKING:
    from smtpproxy.net.client import ClientConnection
    from smtpproxy.net.peer import Peer
    from smtpproxy.net.service import Service


class Session:
    """One client, served by one connection to the backend.

    When its pipeline has ended, the session lingers until the client has closed its side too: to
    close with octets unread would reset the connection, and the client could lose the last reply.

    peer: who the client is.  secure: it takes the place of a session that was inside TLS already.
    """

    __slots__ = (
        "_backend",
        "_backend_blocked",
        "_choice",
        "_client",
        "_client_blocked",
        "_client_lost",
        "_client_paused",
        "_observer",
        "_octets_backend",
        "_octets_client",
        "_pace",
        "_pipeline",
        "_service",
        "_since",
        "_started",
        "_upgrade",
        "peer",
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
        self._service = service
        self._client = client
        self._client_lost = self._client_paused = False
        self._client_blocked = self._backend_blocked = False  # it does not take what is written
        self._octets_client = self._octets_backend = 0
        self._started = self._since = now  # _since: begin of connecting, blocking or lingering
        self.peer = peer
        self._upgrade: Upgrade | None = None
        self._observer = service.observer.session(service.name, peer.name)
        security = service.security
        rules = service.rules if security is None else security.rules_for(peer) or service.rules
        if secure:
            rules = rules.inside_tls or rules
        send_client = Sink(service.outbox, client)
        self._pipeline = Pipeline(rules, send_client, self._observer.settled, now)
        self._pipeline.framer.watch = self._observer.content
        if security is not None:
            note_tls(self, "client", client)
            self._pipeline.upgrade = self._begin_upgrade
            self._pipeline.introduce = self._introduce
            if security.introduce is not None:
                self._pipeline.hello.introduction = security.introduce(peer)
        self._backend: asyncio.Transport | None = None
        self._pace = None if service.pacing is None else Pace(service.pacing, now)
        self._choice = Choice(self, service.servers, service.places)
        service.sweeper.add(self)
        self._choice.begin()

    # --- the backend's connection -------------------------------------------------------------

    def placed(self, *, granted: bool) -> None:
        """Take the answer to the choice's question for a place at the backend."""
        now = monotonic()
        if granted:
            self._connect(now)
        else:
            self._pipeline.fail("backend_full", replies.BACKEND_FULL, now)
            self._end(now)

    def _connect(self, now: float) -> None:
        """Try the next server; when there is none left, the client is told so."""
        self._backend = None
        self._since = now
        if not self._choice.try_next():
            self._pipeline.backend_unavailable(self._choice.refusal, now)
            self._end(now)

    def backend_connected(self, backend: asyncio.Transport) -> None:
        """Take the backend's connection."""
        self._backend = backend
        if self._pipeline.ended:
            backend.abort()
            return
        self._since = monotonic()
        self._pipeline.connect_backend(Sink(self._service.outbox, backend))
        server = self._choice.server
        assert server is not None
        ends = partial(ends_of, self.peer.name, self._client, backend)
        self._observer.connected(server.name_for(self.peer), ends)
        note_tls(self, "backend", backend)

    def backend_received(self, octets: bytes) -> None:
        """Take octets from the backend."""
        now = monotonic()
        pipeline = self._pipeline
        self._octets_backend += len(octets)
        try:
            if self._choice.open:
                octets, why_not = self._choice.receive(octets)
                if why_not:
                    self.give_up_server(why_not, now)
            if octets:
                pipeline.backend_received(octets, now)
        except Exception as error:  # noqa: BLE001  the outermost callback: nobody above could close
            self._break_down(error, now)
        if pipeline.ended:
            self._end(now)
            return
        if pipeline.held.exchanges and pipeline.held.exchanges[0].replied == now:
            self._service.sweeper.watch_held(self)
        if self._client_paused:
            self._regulate()

    def give_up_server(self, why: str, now: float) -> None:
        """Go on to the next server: this one has not greeted, or not as it should."""
        server = self._choice.server
        assert server is not None
        self._observer.gave_up(server.name, why)
        self._choice.cancel()
        if self._backend is not None:
            self._backend.abort()
        if not self._pipeline.ended:
            self._connect(now)

    def backend_lost(self, backend: asyncio.Transport) -> None:
        """Take the end of a backend connection."""
        if backend is not self._backend or self._pipeline.ended:
            return
        now = monotonic()
        if self._pipeline.answers.greeting_owed:
            self._choice.refusal = b""
            self._choice.failed("closed without a greeting")
            self.give_up_server("closed without a greeting", now)
            return
        self._pipeline.backend_lost(now)
        if self._pipeline.ended:
            self._end(now)

    # --- the client's connection --------------------------------------------------------------

    def client_received(self, octets: bytes) -> None:
        """Take octets from the client."""
        pipeline = self._pipeline
        if pipeline.ended:
            return  # it lingers
        now = monotonic()
        self._octets_client += len(octets)
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
        if self._pipeline.ended:
            self._client.close()
            return False
        if self._choice.waits and not self._octets_client:  # it has left the queue
            self._finish(partial(self._pipeline.end, "client_lost"))
        self._finish(self._pipeline.client_eof)
        return True

    def client_lost(self) -> None:
        """Take the end of the client's connection; what it sent before is still served."""
        self._client_lost = True
        if self._pipeline.ended:
            self._service.sweeper.remove(self)
            return
        self._pipeline.held.send_client = _discard
        self._client_blocked = False
        if self._choice.waits:  # what it has sent has reached nobody: no place for it
            self._finish(partial(self._pipeline.end, "client_lost"))
        self._finish(self._pipeline.client_eof)
        self._regulate()

    def _finish(self, happen: "Callable[[float], None]") -> None:
        """Let something happen in the pipeline that may end it."""
        if self._pipeline.ended:
            return
        now = monotonic()
        happen(now)
        if self._pipeline.ended:
            self._end(now)

    # --- back-pressure ------------------------------------------------------------------------

    def client_blocked(self, *, blocked: bool) -> None:
        """Note whether the client leaves replies unread.  Called inside write: sets flags only."""
        self._client_blocked = blocked
        self._since = monotonic()
        if self._backend is not None and not self._backend.is_closing():
            if blocked:
                self._backend.pause_reading()
            else:
                self._backend.resume_reading()
        self._regulate()

    def backend_blocked(self, *, blocked: bool) -> None:
        """Note whether the backend leaves unread what is sent.  Called inside write, too."""
        self._backend_blocked = blocked
        self._regulate()

    def _regulate(self) -> None:
        """Read the client, or not, as things stand."""
        pause = self._client_blocked or self._backend_blocked or self._pipeline.full
        if self._pace is not None and self._pace.paused:
            pause = True
        if pause == self._client_paused or self._client_lost or self._pipeline.ended:
            return
        self._client_paused = pause
        if pause:
            self._client.pause_reading()
            self._observer.stalled()
        else:
            self._client.resume_reading()

    def _slow_down(self) -> None:
        """Do not read a client for a while that sends commands too fast."""
        pipeline, pace = self._pipeline, self._pace
        if pipeline.ended or pace is None:
            return
        now = monotonic()
        was_slowed, was_paused = pace.was_slowed, pace.paused
        seconds = pace.pause(pipeline.framer.commands, now)
        pace.paused = seconds > 0
        if pace.paused:
            asyncio.get_running_loop().call_later(seconds, self._slow_down)
        if pace.was_slowed and not was_slowed:
            self._observer.slowed()
        if was_paused:
            pipeline.active = now  # its silence was ours
        if was_paused != pace.paused:
            self._regulate()

    # --- TLS ----------------------------------------------------------------------------------

    def _begin_upgrade(self, what: int) -> None:
        security, server = self._service.security, self._choice.server
        assert security is not None
        assert self._backend is not None
        assert server is not None
        self._service.outbox.flush()
        if what != SECURE_BACKEND:
            self._pipeline.held.send_client = _discard  # in plaintext nothing may follow
        host = server.address_for(self.peer).host or "localhost"
        self._upgrade = Upgrade(self, security, what, self._client, self._backend, host)

    def note(self, event: str, **values: str) -> None:
        """Tell who watches of something besides the dialogue."""
        self._observer.noted(event, **values)

    def client_secured(self, inside: asyncio.Transport) -> None:
        """Take the client's connection inside TLS."""
        self._upgrade = None
        self._client = inside
        self._client_paused = False
        if self._client_blocked:
            self.client_blocked(blocked=False)
        self._pipeline.held.send_client = Sink(self._service.outbox, inside)
        self._finish(self._pipeline.client_secured)

    def backend_secured(self, inside: asyncio.Transport) -> None:
        """Take the backend's connection inside TLS."""
        self._upgrade = None
        self._backend = inside
        self._pipeline.connect_backend(Sink(self._service.outbox, inside))
        self._pipeline.backend_secured(monotonic())

    def not_secured(self, reason: str) -> None:
        """Take the end of a handshake that failed."""
        self._finish(partial(self._pipeline.fail, reason, replies.BACKEND_TLS_FAILED))

    def tunnel_over(self) -> None:
        """Take the end of the tunnel: both have said all, or one is gone."""
        assert self._upgrade is not None
        assert self._upgrade.tunnel is not None
        assert self._backend is not None
        self._octets_client += self._upgrade.tunnel.from_client
        self._octets_backend += self._upgrade.tunnel.from_backend
        self._backend.close()
        self._backend = None  # what is on its way goes out
        self._client.close()
        self._finish(self._pipeline.client_eof)

    # --- XCLIENT ------------------------------------------------------------------------------

    def _introduce(self, line: bytes) -> bytes:
        """Take it from a trusted client that it speaks for another one; return a refusal."""
        try:
            self.peer = introduced(self.peer, line)
        except BadXclient as bad:
            return bad.reply
        return b""

    def _make_way(self) -> None:
        """Let a session of the client that was introduced take the place of this one.

        With a backend connection of its own, since this one is known to be another client's; the
        greeting is the reply to XCLIENT, as it should be.  Who is named is not trusted for that:
        what it says itself may come through the proxy in front as it is.
        """
        self._service.sweeper.remove(self)
        if self._client_paused:
            self._client.resume_reading()
        connection = cast("ClientConnection", self._client.get_protocol())
        secure = self._pipeline.rules.client_tls is ClientTls.ACTIVE
        connection.begin_anew(self._client, self.peer, secure=secure)

    # --- time ---------------------------------------------------------------------------------

    def waiting(self) -> tuple[str, float]:
        """Return the name of the time limit that runs, and since when."""
        if self._pipeline.ended:
            return "close", self._since
        if self._backend is None:
            return "place" if self._choice.waits else "connect", self._since
        if self._upgrade is not None and self._upgrade.tunnel is not None:
            return "client", self._upgrade.tunnel.active
        if self._client_blocked:
            return "client", self._since
        if self._pipeline.answers.greeting_owed:
            return "greeting", self._since  # that of this server, not of those tried before
        return self._pipeline.waiting()

    def expire(self, limit: str, now: float) -> None:
        """Act on a time limit that is over."""
        if limit == "close":
            self._client.abort()
            return
        if limit == "connect" or (limit == "greeting" and self._choice.open):
            self._choice.failed(f"{limit} time limit")
            self._choice.refusal = b""
            if limit == "connect" or self._choice.more:
                self.give_up_server(f"{limit} time limit", now)
                return
        self._pipeline.expire(now)
        self._end(now)

    def release(self, now: float) -> bool:
        """Flush what has been held for long enough; tell whether anything is still held."""
        held = self._pipeline.held.exchanges
        if held and now - held[0].replied >= self._service.sweeper.hold:
            self._pipeline.flush(now)
        return bool(self._pipeline.held.exchanges)

    def drain(self) -> None:
        """End the session as soon as its transaction is over."""
        if self._pipeline.ended:
            return
        self._finish(self._pipeline.drain)

    def stop(self) -> None:
        """End the session at once."""
        if not self._pipeline.ended:
            now = monotonic()
            self._pipeline.fail("stopped", replies.DRAINING, now)
            self._end(now)
        self._client.abort()

    # --- the end ------------------------------------------------------------------------------

    def _break_down(self, error: Exception, now: float) -> None:
        self._service.observer.broken(error)
        self._pipeline.fail("internal_error", replies.INTERNAL_ERROR, now)

    def _end(self, now: float) -> None:
        """Close both sides, each in its way; called once, when the pipeline has ended."""
        self._service.outbox.flush()
        pipeline = self._pipeline
        makes_way = pipeline.ended == "introduced"
        if self._backend is not None and makes_way:
            self._backend.set_protocol(asyncio.Protocol())  # its reply is nobody's
            self._backend.write(b"QUIT\r\n")
            self._backend.close()
        elif self._backend is not None:
            self._backend.abort()  # nothing that matters is unsent: least of all an end of data
        self._choice.end()
        self._report(now)
        if makes_way and not (self._client_lost or pipeline.client_ended):
            self._make_way()
            return
        if self._upgrade is not None:
            self._upgrade.cancel()
            if self._upgrade.of_client:  # none of our words can go there
                self._client_lost = True
                if not self._client.is_closing():
                    self._client.abort()
        if self._client_lost:
            self._service.sweeper.remove(self)
        elif pipeline.client_ended or pipeline.ended == "quit":
            self._since = now
            self._client.close()
        else:
            self._linger(now)

    def _linger(self, now: float) -> None:
        """Say that nothing more comes, and read until the client has closed."""
        self._since = now
        if not self._client.can_write_eof():  # TLS has a good-bye of its own
            self._client.close()
            return
        self._client.write_eof()
        if self._client_paused:
            self._client.resume_reading()

    def _report(self, now: float) -> None:
        pipeline = self._pipeline
        self._observer.closed(
            Summary(
                reason=pipeline.ended,
                seconds=now - self._started,
                commands=pipeline.framer.commands,
                pipelined=pipeline.framer.pipelined,
                messages=pipeline.transaction.messages,
                client_octets=self._octets_client,
                backend_octets=self._octets_backend,
            )
        )


def _discard(octets: bytes) -> None:
    """Take replies to a client that is gone."""
