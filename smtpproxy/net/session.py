"""The session: a client connection, its backend connection and the pipeline between them.

Only the session closes either connection.  It keeps the time for the pipeline, tries the next
server until one has sent its greeting, and applies back-pressure: while the client does not read,
it reads from neither side; while the backend does not read, or the queue is full, it does not read
from the client.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from smtpproxy.core import replies
from smtpproxy.core.observer import SessionSummary
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.net.backend.backend_connection import QuittingConnection
from smtpproxy.net.backend.server_selection import ServerSelection
from smtpproxy.net.fault_injection import reset_connection
from smtpproxy.net.peer import TransportEnds
from smtpproxy.net.proxy_tlvs import tlvs_for_backend
from smtpproxy.net.rate_limit import RateLimit
from smtpproxy.net.session_upgrades import SessionUpgrades
from smtpproxy.net.write_batching import BatchedWriter

if TYPE_CHECKING:
    from smtpproxy.net.backend.backend_connection import BackendEvents
    from smtpproxy.net.listener_context import ListenerContext
    from smtpproxy.net.peer import Peer
    from smtpproxy.net.proxy_tlvs import ProxyTlvs


class Session:
    """One client with one connection to the backend.

    When its pipeline has ended, the session lingers until the client has closed its side, too:
    closing with unread octets would reset the connection, and the client could lose the last reply.

    Args:
        listener_context: What the sessions of the listener share.
        client: The transport of the client connection.
        peer: The client.
        secure: Whether it replaces a session that was inside TLS already.
    """

    __slots__ = (
        "_backend_blocked",
        "_client_blocked",
        "_client_lost",
        "_over",
        "_rate_limit",
        "_since",
        "_slot_reclaimed_at",
        "_started",
        "_upgrades",
        "backend",
        "client",
        "client_paused",
        "faults",
        "listener_context",
        "observer",
        "octets_backend",
        "octets_client",
        "peer",
        "pipeline",
        "server_selection",
    )

    def __init__(
        self,
        listener_context: "ListenerContext",
        client: asyncio.Transport,
        peer: "Peer",
        *,
        secure: bool = False,
    ) -> None:
        now = monotonic()
        self.listener_context = listener_context
        self.client = client
        self._client_lost = self.client_paused = self._over = False
        self._client_blocked = self._backend_blocked = False  # whether its write buffer is full
        self.octets_client = self.octets_backend = 0
        self._started = self._since = now  # _since: start of connecting, blocking or lingering
        self._slot_reclaimed_at = 0.0
        self.peer = peer
        self.observer = listener_context.observer.session(
            listener_context.name, listener_context.backend, peer.name
        )
        security = listener_context.security
        policy = (
            listener_context.policy
            if security is None
            else security.policy_for(peer) or listener_context.policy
        )
        if secure:
            policy = policy.inside_tls or policy
        send_client = BatchedWriter(listener_context.write_batcher, client)
        self.pipeline = Pipeline(policy, send_client, self.observer, now, self.observer.content)
        self._upgrades = (
            None
            if security is None
            else SessionUpgrades(
                self, security, listener_context.write_batcher, listener_context.timeouts.unread
            )
        )
        self.backend: asyncio.Transport | None = None
        self._rate_limit = (
            RateLimit(listener_context.commands_per_second, now)
            if listener_context.commands_per_second
            else None
        )
        self.server_selection = ServerSelection(self, listener_context, peer)
        if policy.early_pipelining:
            self.pipeline.extensions.compare_servers(self.server_selection.offers)
        faults = listener_context.faults
        self.faults = None if faults is None else faults.of(self)
        listener_context.timeouts.add(self)
        self.server_selection.begin()

    # --- the backend's connection -------------------------------------------------------------

    def connection_slot_answered(self, *, granted: bool) -> None:
        """Connect to the backend if a connection slot was granted, else end the session."""
        if granted:
            self.finish(self._connect)
        else:
            self.finish(partial(self.pipeline.fail, "backend_full", replies.BACKEND_FULL))

    def reclaim_slot(self) -> None:
        """End the session, to give its connection slot to a waiting client of another address.

        The session ends at once between transactions, else after its transaction.  After a time
        limit it also ends if the transaction is inactive, or the client only sends commands that
        have no effect.
        """
        self._slot_reclaimed_at = monotonic()
        self.finish(partial(self.pipeline.drain, reason="connection_slot_reclaimed"))

    def _connect(self, now: float) -> None:
        """Try the next server; if there is none left, end the session with 421."""
        self.backend = None
        self._since = now
        if not self.server_selection.try_next():
            self.pipeline.backend_unavailable(self.server_selection.refusal, now)

    def backend_connected(self, backend: asyncio.Transport) -> None:
        """Start to use the backend connection."""
        self.backend = backend
        if self.pipeline.ended:
            backend.abort()
            return
        self.finish(partial(self._use_backend, backend))

    def _use_backend(self, backend: asyncio.Transport, now: float) -> None:
        self._since = now
        self.pipeline.connect_backend(BatchedWriter(self.listener_context.write_batcher, backend))
        server = self.server_selection.server
        assert server is not None
        ends = TransportEnds(self.peer.name, self.client, backend)
        self.observer.connected(server.name_for(self.peer), ends)
        if self._upgrades is not None:
            self._upgrades.note_tls("backend", backend)

    def backend_received(self, octets: bytes) -> None:
        """Process octets from the backend."""
        now = monotonic()
        pipeline = self.pipeline
        self.octets_backend += len(octets)
        try:
            if self.server_selection.open:
                octets, why_not = self.server_selection.receive(octets)
                if why_not:
                    self.give_up_server(why_not)
            if octets:
                pipeline.backend_received(octets, now)
            if pipeline.reply_buffer.since == now:
                self.listener_context.timeouts.watch_held(self)
            if self.client_paused:
                self._regulate()
        except Exception as error:  # noqa: BLE001  as in `finish`; hot path (bench S2): no closure
            self._break_down(error, now)
        if pipeline.ended:
            self._end(now)

    def header_tlvs(self) -> "ProxyTlvs":
        """Return what a PROXY header says about the client besides its addresses."""
        inside = None if self.peer.by_xclient else self.client.get_extra_info("ssl_object")
        return tlvs_for_backend(self.peer.tlvs, inside, self.observer.id)

    def give_up_server(self, why: str) -> None:
        """Try the next server, since this one sent no greeting, or refused the client in it."""
        self.finish(partial(self._give_up_server, why))

    def _give_up_server(self, why: str, now: float) -> None:
        server = self.server_selection.server
        assert server is not None
        self.note_given_up(server.name_for(self.peer), why)
        self.server_selection.cancel()
        if self.backend is not None:
            self.backend.abort()
        if self.pipeline.greeting_owed:
            self._connect(now)
        else:  # `reconnect` has failed
            self.pipeline.fail("backend_lost", replies.BACKEND_LOST, now)

    def reconnect(self) -> None:
        """Connect to the same server again, after TLS has failed and closed its connection."""
        self.backend = None
        self._backend_blocked = False
        self._since = monotonic()
        self.server_selection.reconnect()

    def refuse_loop(self) -> None:
        """Refuse a client that is the service's own connection to a server: a loop."""
        reason = f"a server of its backend leads back to {self.listener_context.name}"
        self.observer.noted("loop_detected", reason=reason)
        self.finish(partial(self.pipeline.fail, "loop_detected", replies.LOOP_DETECTED))

    def note_given_up(self, server: str, why: str) -> None:
        """Report a server that did not serve the client."""
        self.observer.gave_up(server, why)

    def _note_refusal(self) -> None:
        """Report the server if it refused the client after its first greeting."""
        server, reason = self.server_selection.server, self.pipeline.ehlo.reason
        if server is not None and reason and self.pipeline.ended == "backend_closed":
            self.note_given_up(server.name_for(self.peer), reason)

    def backend_lost(self, backend: asyncio.Transport) -> None:
        """Process the end or the loss of a backend connection."""
        if backend is not self.backend or self.pipeline.ended:
            return
        self.finish(self._lose_backend)

    def _lose_backend(self, now: float) -> None:
        if self.pipeline.greeting_owed:
            self.server_selection.failed("closed without a greeting")
            self._give_up_server("closed without a greeting", now)
            return
        self.pipeline.backend_lost(now)
        if not self.pipeline.ended:
            # The backend has refused the content, which is read to its end without it.
            self.server_selection.end()

    # --- the client's connection --------------------------------------------------------------

    def client_received(self, octets: bytes) -> None:
        """Process octets from the client."""
        pipeline = self.pipeline
        if pipeline.ended:
            return  # lingering
        now = monotonic()
        self.octets_client += len(octets)
        try:
            pipeline.client_received(octets, now)
            if pipeline.framer.mistaken_end is not None:
                self._note_mistaken_end()
            if pipeline.full:
                self._regulate()
        except Exception as error:  # noqa: BLE001  as in `finish`; hot path (bench S2): no closure
            self._break_down(error, now)
        if pipeline.ended:
            self._end(now)
        elif self._rate_limit is not None and not self._rate_limit.paused:
            self._slow_down()

    def _note_mistaken_end(self) -> None:
        violation = self.pipeline.framer.take_mistaken_end()
        assert violation is not None
        self.observer.noted("content_not_ended", kind=violation.kind)

    def client_eof(self) -> bool:
        """Process the client's half-close: answer all commands received, then end.

        Returns:
            Whether to keep the other direction of the connection open for replies.
        """
        if self.pipeline.ended:
            self.client.close()
            return False
        self.finish(self._receive_eof)
        return True

    def _receive_eof(self, now: float) -> None:
        self.listener_context.timeouts.unread.add(self.client, self.client.abort)
        if self.server_selection.waits and not self.octets_client:  # it stopped waiting for a slot
            self.pipeline.end("client_lost", now)
        else:
            self.pipeline.client_eof(now)

    def client_lost(self) -> None:
        """End the session after the loss of the client connection."""
        self._client_lost = True
        if self.pipeline.ended:
            self.listener_context.timeouts.remove(self)
        else:
            self.finish(self.pipeline.client_lost)

    def finish(self, callback: "Callable[[float], None]") -> None:
        """Call a function that may end the pipeline; it gets the time.

        An internal error in it ends the session, so each event of a session goes through here, or
        has the same guard.
        """
        if self.pipeline.ended:
            return
        now = monotonic()
        try:
            callback(now)
        except Exception as error:  # noqa: BLE001  the outermost callback: no caller could close
            self._break_down(error, now)
        if self.pipeline.ended:
            self._end(now)

    # --- faults -------------------------------------------------------------------------------

    @property
    def backend_events(self) -> "BackendEvents":
        """The receiver of backend events: the fault injector, if there is one."""
        return self.faults or self

    def cut(self, *, reset: bool) -> None:
        """End the session without a reply, by a fault, and close the client's connection.

        Args:
            reset: Whether to reset it instead, so that the client sees an error.
        """
        self.finish(partial(self._cut, reset))

    def _cut(self, reset: bool, now: float) -> None:
        self.pipeline.end("fault_injected", now)
        if reset:
            self.listener_context.write_batcher.flush()
            self._client_lost = True
            reset_connection(self.client)

    # --- back-pressure ------------------------------------------------------------------------

    def client_blocked(self, *, blocked: bool) -> None:
        """Stop or resume reading, since the client does not read its replies, or does again.

        The event loop may call it inside `write`, so it only sets flags and pauses reading.
        """
        self._client_blocked = blocked
        self._since = monotonic()
        backend, unread = self.backend, self.listener_context.timeouts.unread
        if backend is not None and not backend.is_closing():
            if blocked:
                backend.pause_reading()
                unread.add(backend, backend.resume_reading)  # reads its last data after a reset
            else:
                backend.resume_reading()
                unread.discard(backend)
        self._regulate()

    def backend_blocked(self, *, blocked: bool) -> None:
        """Stop or resume reading from the client, since the backend does not read, or does again.

        The event loop may call it inside `write`, too.
        """
        self._backend_blocked = blocked
        self._since = monotonic()
        self._regulate()

    def _regulate(self) -> None:
        """Pause or resume reading from the client, as the current state requires."""
        pause = self._client_blocked or self._backend_blocked or self.pipeline.full
        if self._rate_limit is not None and self._rate_limit.paused:
            pause = True
        pipeline = self.pipeline
        if pause == self.client_paused or pipeline.client_ended or pipeline.ended:
            return
        self.client_paused = pause
        unread = self.listener_context.timeouts.unread
        if pause:
            self.client.pause_reading()
            unread.add(self.client, self.client.abort)
            self.observer.stalled()
        else:
            self.client.resume_reading()
            unread.discard(self.client)

    def _slow_down(self) -> None:
        """Pause reading from a client that exceeds its rate limit."""
        self.finish(self._apply_rate_limit)

    def _apply_rate_limit(self, now: float) -> None:
        pipeline, rate_limit = self.pipeline, self._rate_limit
        assert rate_limit is not None
        was_slowed, was_paused = rate_limit.was_slowed, rate_limit.paused
        seconds = rate_limit.pause(pipeline.framer.commands, now)
        if rate_limit.paused:
            asyncio.get_running_loop().call_later(seconds, self._slow_down)
        if rate_limit.was_slowed and not was_slowed:
            self.observer.slowed()
        if was_paused:
            pipeline.client_resumed(now)
        if was_paused != rate_limit.paused:
            self._regulate()

    # --- upgrades -----------------------------------------------------------------------------

    def client_secured(self, inside: asyncio.Transport) -> None:
        """Use the client connection inside TLS."""
        self.finish(partial(self._use_secured_client, inside))

    def _use_secured_client(self, inside: asyncio.Transport, now: float) -> None:
        self.listener_context.timeouts.unread.discard(self.client)
        self.client = inside
        self.client_paused = False
        if self._client_blocked:
            self.client_blocked(blocked=False)
        self.pipeline.connect_client(BatchedWriter(self.listener_context.write_batcher, inside))
        self.pipeline.client_secured(now)

    def backend_secured(self, inside: asyncio.Transport) -> None:
        """Use the backend connection inside TLS."""
        self.finish(partial(self._use_secured_backend, inside))

    def _use_secured_backend(self, inside: asyncio.Transport, now: float) -> None:
        self.backend = inside
        self.pipeline.connect_backend(BatchedWriter(self.listener_context.write_batcher, inside))
        self.pipeline.backend_secured(now)

    # --- time ---------------------------------------------------------------------------------

    def waiting(self) -> tuple[str, float]:
        """Return the name of the time limit that runs, and since when."""
        if self.pipeline.ended:
            return "close", self._since
        if self.backend is None:
            return "slot_queue" if self.server_selection.waits else "connect", self._since
        if self._upgrades is not None and self._upgrades.tunnel is not None:
            return "client", self._upgrades.tunnel.active
        if self._slot_reclaimed_at and self.pipeline.interruptible:
            return "connection_slot", self._slot_reclaimed_at
        if self._client_blocked:
            return "client", self._since
        if self.pipeline.greeting_owed:
            return "greeting", self._since  # since connecting to this server
        if self._backend_blocked:
            return "backend", self._since
        limit, since = self.pipeline.waiting()
        if limit == "content":
            limits, began = self.listener_context.timeouts.limits, self.pipeline.content_since
            if began + limits["message"] < since + limits["content"]:
                return "message", began
        return limit, since

    def expire(self, limit: str, now: float) -> None:  # noqa: ARG002
        """End the session at a time limit, or try the next server."""
        if limit == "close":
            self.client.abort()
        else:
            self.finish(partial(self._expire, limit))

    def _expire(self, limit: str, now: float) -> None:
        if limit == "connect" or (limit == "greeting" and self.server_selection.open):
            self.server_selection.failed(f"{limit} time limit")
            if limit == "connect" or self.server_selection.has_more:
                self._give_up_server(f"{limit} time limit", now)
                return
        if limit == "slot_queue":
            self.pipeline.fail("backend_full", replies.BACKEND_FULL, now)
        elif limit == "connection_slot":
            self.pipeline.fail("connection_slot_reclaimed", replies.SLOT_RECLAIMED, now)
        else:
            self.pipeline.expire(limit, now)

    def release(self, now: float) -> bool:
        """Flush replies held for the time limit; return whether any are still held."""
        since = self.pipeline.reply_buffer.since
        if since and now - since >= self.listener_context.timeouts.reply_hold:
            self.finish(self.pipeline.flush)
        return self.pipeline.reply_buffer.since > 0

    def drain(self) -> None:
        """End the session with 421 after its transaction."""
        self.finish(self.pipeline.drain)

    def stop(self) -> None:
        """End the session at once with 421."""
        self.finish(partial(self.pipeline.fail, "stopped", replies.DRAINING))
        self.client.abort()

    # --- the end ------------------------------------------------------------------------------

    def break_down(self, error: Exception) -> None:
        """End the session after an internal error in what works for it."""
        self.finish(partial(self._break_down, error))

    def _break_down(self, error: Exception, now: float) -> None:
        self.observer.broken(error)
        self.pipeline.fail("internal_error", replies.INTERNAL_ERROR, now)

    def _end(self, now: float) -> None:
        """Close both connections after the pipeline has ended; more calls do nothing."""
        if self._over:
            return
        self._over = True
        is_replaced = self.pipeline.ended == "introduced" and not (
            self._client_lost or self.pipeline.client_ended
        )
        try:
            self.listener_context.write_batcher.flush()
            self._note_refusal()
            self._leave_backend()
            if is_replaced:
                self._leave_client()
            else:
                self._close_client(now)
        except Exception as error:  # noqa: BLE001  else a connection or a count would stay
            is_replaced = False
            self._abandon()
            self.observer.broken(error)
        self._report(now)
        upgrades, self._upgrades = self._upgrades, None  # each knows the other
        if is_replaced:
            assert upgrades is not None
            upgrades.start_introduced_session()

    def _abandon(self) -> None:
        """Close and release everything at once; an error in one step stops no other."""
        with ExitStack() as steps:
            steps.callback(self.listener_context.timeouts.remove, self)
            steps.callback(self.server_selection.end)
            if self.backend is not None:
                steps.callback(self.backend.abort)
            steps.callback(self.client.abort)

    def _leave_client(self) -> None:
        """Leave the client's connection to the next session on it."""
        self.listener_context.timeouts.remove(self)
        if self.client_paused:
            self.client.resume_reading()
            self.listener_context.timeouts.unread.discard(self.client)

    def _close_client(self, now: float) -> None:
        pipeline, upgrades = self.pipeline, self._upgrades
        if upgrades is not None:
            upgrades.cancel()
            if upgrades.of_client:  # no reply can be sent during a handshake or a tunnel
                self._client_lost = True
                if not self.client.is_closing():
                    self.client.abort()
        if self._client_lost:
            self.listener_context.timeouts.remove(self)
        elif pipeline.client_ended or pipeline.ended == "quit":
            self._since = now
            self.client.close()
        else:
            self._linger(now)

    def _leave_backend(self) -> None:
        """Close the backend connection, after QUIT if the backend is idle."""
        if self.faults is not None:
            self.faults.cancel()
            self.faults = None  # each knows the other
        backend, unread = self.backend, self.listener_context.timeouts.unread
        if backend is not None and self.pipeline.backend_idle and not backend.is_closing():
            if self._client_blocked:
                backend.resume_reading()
                unread.discard(backend)
            QuittingConnection(backend, self.server_selection.end)
            return
        if backend is not None:
            backend.abort()  # nothing unsent matters, and an unsent end of data must not go
        self.server_selection.end()

    def _linger(self, now: float) -> None:
        """Half-close, and read until the client has closed."""
        self._since = now
        if not self.client.can_write_eof():  # TLS sends close_notify instead
            self.client.close()
            return
        self.client.write_eof()
        if self.client_paused:
            self.client.resume_reading()

    def _report(self, now: float) -> None:
        pipeline = self.pipeline
        tunnel = None if self._upgrades is None else self._upgrades.tunnel
        if tunnel is not None:
            self.octets_client += tunnel.from_client
            self.octets_backend += tunnel.from_backend
        self.observer.closed(
            SessionSummary(
                reason=pipeline.ended,
                seconds=now - self._started,
                commands=pipeline.framer.commands,
                pipelined=pipeline.framer.pipelined,
                messages=pipeline.transaction.messages,
                client_octets=self.octets_client,
                backend_octets=self.octets_backend,
                probe=not self.octets_client and pipeline.ended in ("client_closed", "client_lost"),
            )
        )
