"""The pipeline of one session: turns the client's groups into single commands for the backend.

The five steps, in the order of the data (RFC 2920):

1. Octets from the client are appended to those that are not framed yet.  None are dropped, except
   after STARTTLS and after a refusal that closes the session.
2. Framing turns them into exchanges on the queue, until a gate closes: a command whose reply
   decides how the octets after it are read.  The greeting and AUTH lines are gates, too.
3. The first exchange of the queue is sent when the backend owes no reply.  So exactly one is in
   flight; more only if the backend itself offers PIPELINING and the policy allows its use.
4. Octets from the backend become complete replies.  Each must belong to an exchange: a surplus one
   would shift all later ones.
5. The reply settles its exchange: it joins the held replies, which are flushed by the rule of the
   reply buffer (RFC 2920 section 3.2), opens the gate if it was one, and the next exchange is sent.

The framer does steps 1 and 2.  Steps 3 to 5 are here, with the reply matcher for step 4 and the
reply buffer for step 5.  A message is acknowledged only by the backend's own reply to its end of
data.  The pipeline calls nothing but its sinks, its callbacks and its observer, and it has no
clock: every call passes the time.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NoReturn

from smtpproxy.core import replies, verbs
from smtpproxy.core.ehlo import DONE, FAILED, REFUSED, START_TLS, Ehlo
from smtpproxy.core.exchange import ContentObserver, Exchange, ExchangeObserver, ProxyStep
from smtpproxy.core.framing import (
    AUTH_DATA,
    CHUNK,
    CLOSED,
    COMMANDS,
    CONTENT,
    ENDED,
    PAYLOAD,
    SKIPPED_PAYLOAD,
    Framer,
)
from smtpproxy.core.negotiated_extensions import NegotiatedExtensions
from smtpproxy.core.policy import BackendTls, SessionPolicy
from smtpproxy.core.replies import whole_reply_code
from smtpproxy.core.reply_buffer import ReplyBuffer
from smtpproxy.core.reply_matching import CLOSING, DEFERRED, NO_EXCHANGE, ReplyMatcher
from smtpproxy.core.starttls import UPGRADES, Upgrade
from smtpproxy.core.transaction import Transaction
from smtpproxy.core.verbs import MAIL, RCPT, RSET, Verb
from smtpproxy.core.violations import BackendViolation, ClientViolation, Violation
from smtpproxy.core.xclient_xforward import AttributeCommands


class Pipeline:
    """The protocol state of one session.

    The caller owns both connections and has these duties.  It calls `connect_backend` before it
    passes the backend's first octets.  After each call it checks `ended`; if set, it closes the
    backend, and closes the client when all data written to it has been sent.  While `full` it does
    not read from the client.  It calls `flush` when the time limit of `reply_buffer.since` is
    reached, and `expire` when that of `waiting` is.  It keeps the clock: `now` is in seconds and
    never goes back.

    Args:
        policy: The policy of the listener.
        send_client: The sink for octets to the client.
        observer: Gets the exchanges whose replies were flushed.
        now: The time.
        watch_content: Gets content and payload, as `SessionObserver.content`.
    """

    __slots__ = (
        "_introduce",
        "_upgrade",
        "backend_idle",
        "client_active_at",
        "client_ended",
        "consecutive_errors",
        "draining",
        "ehlo",
        "ended",
        "extensions",
        "framer",
        "in_flight",
        "intercept",
        "last_reply_at",
        "matcher",
        "policy",
        "reply_buffer",
        "send_backend",
        "transaction",
    )

    intercept: Callable[[Exchange], bool] | None
    """The callback for commands of `SessionPolicy.intercepted`; None costs nothing.

    It is called with a command that is next to be sent or has been refused, and may refuse it or
    end the session.  It returns whether the command must wait: then it is called again with the
    same command, after `resume` or when octets arrive.
    """
    ended: str
    """Why the session ended, a snake_case noun; empty while it is active."""
    backend_idle: bool
    """Whether the session ended between transactions, without a fault of the backend.

    The backend owes no reply then and reads commands, so that the caller may send it QUIT.
    """
    client_ended: bool
    """Whether the client has closed its sending side."""
    client_active_at: float
    """When the client last sent octets, not counting those that continue an incomplete line."""
    consecutive_errors: int
    """The number of consecutive 5xx replies, not counting those to RCPT."""
    draining: str
    """Why the session ends as soon as no transaction is open; empty if it does not."""
    in_flight: list[Exchange]
    """The exchanges that were sent to the backend and not answered; the reply matcher's list."""
    last_reply_at: float
    """When the backend's last reply arrived."""
    send_backend: Callable[[bytes], None]
    """The sink for octets to the backend."""

    def __init__(
        self,
        policy: SessionPolicy,
        send_client: Callable[[bytes], None],
        observer: ExchangeObserver,
        now: float,
        watch_content: ContentObserver | None = None,
    ) -> None:
        greeting = Exchange(policy.greeting, b"", now)
        self.policy = policy
        self.send_backend = _not_connected
        self.framer = Framer(policy, greeting, _not_connected, watch_content)
        self.matcher = ReplyMatcher(self.framer, policy.reply_bytes)
        self.in_flight = self.matcher.in_flight
        self.reply_buffer = ReplyBuffer(send_client, observer)
        self.extensions = NegotiatedExtensions(policy)
        self.ehlo = Ehlo(policy, self.extensions)
        self._upgrade: Callable[[Upgrade], None] = _not_connected
        self._introduce: Callable[[bytes], bytes] = _not_connected
        self.intercept = None
        self.transaction = Transaction()
        self.consecutive_errors = 0
        self.client_ended = self.backend_idle = False
        self.draining = self.ended = ""
        self.client_active_at = self.last_reply_at = now

    def connect_backend(self, send_backend: Callable[[bytes], None]) -> None:
        """Set the sink for octets to the backend."""
        self.send_backend = send_backend
        self.framer.connect_backend(send_backend)

    def connect_client(self, send_client: Callable[[bytes], None]) -> None:
        """Replace the sink for octets to the client."""
        self.reply_buffer.connect_client(send_client)

    def allow_upgrades(
        self,
        upgrade: Callable[[Upgrade], None],
        introduce: Callable[[bytes], bytes],
        introduction: AttributeCommands | None = None,
    ) -> None:
        """Set the callbacks that TLS and XCLIENT need, before any octets arrive.

        Args:
            upgrade: Called for TLS.  The caller must then read no more plaintext from that
                connection, and call `client_secured`, `backend_secured`, `restart_in_plaintext`
                or `fail` after the handshake.  After `Upgrade.TUNNEL` it relays both connections
                without the pipeline.
            introduce: Called with the XCLIENT line of a trusted client.  It returns a refusal, or
                empty: then the session ends as "introduced", and the greeting of the session that
                replaces it is the reply.
            introduction: The commands that pass the client's address to the backend, if any.
        """
        self._upgrade = upgrade
        self._introduce = introduce
        if introduction is not None:
            self.ehlo.pass_address(introduction)

    def intercept_with(self, intercept: Callable[[Exchange], bool] | None) -> None:
        """Set the callback `intercept`."""
        self.intercept = intercept

    @property
    def full(self) -> bool:
        """Whether the caller must pause reading from the client (back-pressure)."""
        return self.framer.full

    @property
    def greeting_owed(self) -> bool:
        """Whether the backend has not sent its greeting yet."""
        return self.matcher.greeting_owed

    def waiting(self) -> tuple[str, float]:
        """Return which time limit runs, a `Verb.limit`, "content" or "client", and since when."""
        if self.framer.mode in _CONTENT:
            return "content", self.client_active_at
        owed = self.in_flight or self.framer.queue  # a queued one if it was intercepted
        if owed:
            first = owed[0]
            return first.verb.limit, max(first.sent, first.framed, self.last_reply_at)
        return "client", max(self.client_active_at, self.last_reply_at)

    def client_resumed(self, now: float) -> None:
        """Restart the client's time limit, since the caller did not read from it until now."""
        self.client_active_at = now

    @property
    def content_since(self) -> float:
        """When the current content or payload began."""
        return self.framer.last.framed

    # --- steps 1 and 2: octets from the client ------------------------------------------------

    def client_received(self, octets: bytes, now: float) -> None:
        """Process octets from the client."""
        if self.ended:
            return
        framer = self.framer
        began, commands = framer.in_line, framer.commands
        framer.receive(octets, now)
        if not (began and framer.in_line and framer.commands == commands):
            self.client_active_at = now
        self._send(now)
        if self.client_ended or self.draining:
            self._end_if_done(now)

    def client_eof(self, now: float) -> None:
        """Process the client's half-close: end after the commands received so far are answered.

        If message content or a BDAT payload is incomplete, the session ends at once, and the
        caller closes the backend without an end of data.
        """
        self.client_ended = True
        self._end_if_done(now)

    def client_lost(self, now: float) -> None:
        """Process the loss of the client connection, on which no reply can be sent any more.

        The session ends at once, and the caller closes the backend, without an end of data unless
        it has been sent.  If only the reply to QUIT is missing, the session ends as "quit".
        """
        quitting = self.in_flight and self.in_flight[0].verb.closes
        self.end("quit" if quitting else "client_lost", now)

    # --- step 3: one command at a time goes to the backend ------------------------------------

    def _send(self, now: float) -> None:
        """Send the commands that may be sent, and settle those that the proxy answers, in order."""
        framer, in_flight = self.framer, self.in_flight
        if framer.content_over:
            self._end_content(now)
        while framer.queue and (not in_flight or self.extensions.may_follow(in_flight)):
            if self.matcher.reader.unread and not in_flight:
                self._end_unasked(now)
                return
            exchange = framer.queue[0]
            refusal = exchange.refusal
            if exchange.verb.needs_check:
                if self._waits_for_introduction(exchange, now):
                    return
                if self.intercept is not None and self.intercept(exchange):
                    return
                refusal = exchange.refusal or self.transaction.refusal_for(
                    exchange, self.policy, self.extensions, len(in_flight)
                )
                if exchange.verb.role == verbs.BDAT and not refusal and self._waits_for_data(now):
                    return
            if not refusal:
                self._forward(framer.pop(), now)
            elif in_flight:
                return
            else:
                framer.pop().redact_line()
                self._settle(exchange, refusal, int(refusal[:3]), now)
                self.flush(now)  # the caller times held replies only after a backend reply
                framer.frame_waiting(now)

    def resume(self, now: float) -> None:
        """Send the commands that may be sent, after `intercept` has made one wait."""
        self._send(now)

    def _end_unasked(self, now: float) -> None:
        """End the session: a reply to no command has begun to arrive.

        If the next command were sent, that reply would be taken for the reply to it.
        """
        violation = BackendViolation("reply_not_asked_for", self.matcher.reader.unread)
        self.fail("backend_violation", replies.BACKEND_BROKEN, now, violation)

    def _forward(self, exchange: Exchange, now: float) -> None:
        self.in_flight.append(exchange)
        role = exchange.verb.role
        if role == verbs.BDAT:
            self._forward_chunk(exchange, now)
            return
        exchange.sent = now
        line = exchange.line
        self.send_backend(self.ehlo.begin(line, now) if role in _HELLO else line)
        if exchange.verb.secret:
            exchange.redact_line()

    def _forward_chunk(self, chunk: Exchange, now: float) -> None:
        framer = self.framer
        if framer.amid_chunks:
            chunk.verb = verbs.CONTENT_CHUNK_ROW
            chunk.replace_reply(framer.chunk_refusal)  # mostly none
        else:
            self.send_backend(chunk.line)
            if not framer.payload:
                chunk.sent = now  # else it is set after the payload
        self.transaction.add_chunk(framer.payload)
        framer.open_payload()
        framer.frame_waiting(now)
        if framer.content_over:
            self._end_content(now)

    def _waits_for_data(self, now: float) -> bool:
        """Send DATA before the first chunk to a backend without CHUNKING, alone in flight.

        Returns:
            Whether the chunk must wait for the reply to it.
        """
        if not self.extensions.chunking_added or self.framer.amid_chunks:
            return False
        if not self.in_flight:
            self._send_own(verbs.OWN_DATA_ROW, b"DATA\r\n", now)
        return True

    def _send_own(self, verb: Verb, line: bytes, now: float) -> None:
        own = Exchange(verb, line, now)
        own.sent = now
        self.in_flight.append(own)
        self.send_backend(line)

    def _waits_for_introduction(self, exchange: Exchange, now: float) -> bool:
        """Send XFORWARD before a MAIL, or process XCLIENT.

        Returns:
            Whether the command may not be sent yet, or is never sent.
        """
        role = exchange.verb.role
        forward = role == MAIL and self.ehlo.xforward.lines
        if exchange.refusal or not (forward or role == verbs.XCLIENT):
            return False
        if self.in_flight:  # its reply may begin or end a transaction
            return True
        return self._send_xforward(now) if forward else self._switch_client(exchange, now)

    def _send_xforward(self, now: float) -> bool:
        """Send the next XFORWARD line, alone in flight; return whether there was one."""
        line = b"" if self.transaction.open else self.ehlo.xforward.next_line()
        if line:
            self._send_own(verbs.OWN_XFORWARD_ROW, line, now)
        return line != b""

    def _switch_client(self, xclient: Exchange, now: float) -> bool:
        """Process XCLIENT: refuse it, or end the session for a new one of the named client.

        A trusted client's XCLIENT is never forwarded.
        """
        if self.draining:
            self.fail(self.draining, replies.DRAINED[self.draining], now)
        elif self.transaction.open:
            xclient.refusal = replies.XCLIENT_IN_TRANSACTION
        else:
            xclient.refusal = self._introduce(xclient.line)
            if not xclient.refusal:
                self.end("introduced", now)
        return not xclient.refusal

    def _end_content(self, now: float) -> None:
        """Wait for the reply to content or a payload, or settle it if it is already refused."""
        self.framer.clear_content_over()
        if not self.in_flight:
            return  # BDAT was refused before its payload arrived
        exchange = self.in_flight[-1]
        if exchange.refusal:
            self.in_flight.pop()
            exchange.closes = True
            self._settle(exchange, exchange.refusal, int(exchange.refusal[:3]), now)
        elif len(self.in_flight) > 1 or not self.matcher.reader.unread:
            if exchange.is_content_chunk:
                self._end_chunk(exchange, now)
            else:
                exchange.sent = now
        # Else a reply has begun before the end, and is not for it.

    def _end_chunk(self, chunk: Exchange, now: float) -> None:
        """Wait for the reply to the end of data after the last chunk; answer any other chunk."""
        if chunk.ends_message:
            chunk.end_of_data_sent(now)
        else:
            self.in_flight.pop()
            chunk.replace_reply(replies.CHUNK_RECEIVED % chunk.octets)
            self._settle(chunk, chunk.refusal, 250, now)

    # --- step 4: octets from the backend become replies ---------------------------------------

    def backend_received(self, octets: bytes, now: float) -> None:
        """Process octets from the backend."""
        if self.ended:
            return
        code = 0 if self.matcher.reader.unread else whole_reply_code(octets)
        if 200 <= code < 300 and self._take_fast_path(code, octets, now):
            return
        try:
            if code:
                self._take_reply(code, octets, now)
            else:
                self._take_replies(octets, now)
        except BackendViolation as violation:
            if self.matcher.discards_content:
                self.matcher.discard()
                return
            self.fail("backend_violation", replies.BACKEND_BROKEN, now, violation)
        framer = self.framer
        if framer.unframed:
            framer.frame_waiting(now)
        if framer.queue or framer.content_over:
            self._send(now)
        if self.client_ended or self.draining:
            self._end_if_done(now)

    def _take_fast_path(self, code: int, reply: bytes, now: float) -> bool:
        """Settle a positive reply to MAIL or RCPT, and send the plain command that follows.

        Hot path (bench S2): nine of ten replies take it.  It does the same as steps 4, 5 and 3
        with fewer checks, and leaves all other cases to them.

        Returns:
            Whether the reply was settled.
        """
        framer, in_flight = self.framer, self.in_flight
        queue = framer.queue
        if not (len(queue) > 1 and len(in_flight) == 1):
            return False
        exchange, following = in_flight[0], queue[0]
        role, verb = exchange.verb.role, following.verb
        if (
            not MAIL <= role <= RCPT
            or verb.role > RSET
            or verb.needs_check
            or exchange.refusal
            or following.refusal
        ):
            return False
        must_flush = self.reply_buffer.hold(exchange, reply, code, now, True)
        self.consecutive_errors = 0
        if role == RCPT:
            self.transaction.add_recipient()
        else:
            self.transaction.begin()
        if must_flush:
            self.flush(now)
        self.last_reply_at = following.sent = now
        in_flight[0] = framer.pop()
        self.send_backend(following.line)
        return True

    def _take_replies(self, octets: bytes, now: float) -> None:
        """Process all replies received, before anything more is sent.

        So a surplus reply is not taken for the reply to a command that was sent after it.
        """
        reader = self.matcher.receive(octets)
        while not self.ended and (reply := reader.next_reply()) is not None:
            self._take_reply(*reply, now)
        if reader.unread and not self.ended:
            self.matcher.check_begun_reply()

    def _take_reply(self, code: int, reply: bytes, now: float) -> None:
        """Process one reply.

        Raises:
            BackendViolation: As `ReplyMatcher.classify`.
        """
        self.last_reply_at = now
        in_flight = self.in_flight
        exchange = in_flight[0] if in_flight else NO_EXCHANGE
        role = exchange.verb.role
        if role > RSET or 300 <= code < 400 or code == 421 or reply[:1] == b"3":
            meaning = self.matcher.classify(exchange, code, reply, now)
            if meaning == CLOSING:
                self._end_with(reply, "backend_closed", now, None, own=False)
            if meaning in (CLOSING, DEFERRED):
                return
            if role in _HELLO:
                code, reply = self._take_ehlo(code, reply, now)
                if not reply:
                    return
            elif role >= verbs.BDAT and self._take_uncommon(exchange, code, reply, now):
                return
        del in_flight[0]
        if exchange.refusal:  # its group was refused while it was in flight
            exchange.add_step(reply, now)
            reply, code = exchange.refusal, int(exchange.refusal[:3])
        self._settle(exchange, reply, code, now)

    def _take_ehlo(self, code: int, reply: bytes, now: float) -> tuple[int, bytes]:
        """Process a reply to EHLO or HELO; return the client's code and reply, empty if not yet."""
        ehlo = self.ehlo
        exchange = self.in_flight[0]
        step = ehlo.take(exchange, code, reply, now)
        if step == DONE:
            code, reply = ehlo.answer()
            if code < 300:
                self.framer.ehlo_accepted(helo=exchange.verb.role == verbs.HELO)
            return code, reply
        if self.matcher.reader.unread:
            raise BackendViolation("reply_not_asked_for", self.matcher.reader.unread)
        if step == FAILED:
            self.fail(ehlo.reason, replies.BACKEND_UNFIT, now)
        elif step == REFUSED:
            self._end_with(reply, "backend_closed", now, None, own=False)
        elif step == START_TLS:
            self._upgrade(Upgrade.BACKEND_TLS)
        else:
            if b" LOGIN=" in ehlo.line:  # which a reply may quote
                exchange.verb = replace(exchange.verb, secret=True)
            self.send_backend(ehlo.line)
        return code, b""

    def _take_uncommon(self, exchange: Exchange, code: int, reply: bytes, now: float) -> bool:
        """Process the reply to the last chunk, to XFORWARD, or to the proxy's own DATA.

        Returns:
            Whether it was the proxy's own command, so that the client gets no reply to it.
        """
        role = exchange.verb.role
        if exchange.is_content_chunk:
            exchange.add_step(reply, now)
        elif role == verbs.OWN_DATA:
            self._take_own_data(code, reply, now)
            return True
        return role >= verbs.XFORWARD and self._take_xforward(role, code, reply, now)

    def _take_xforward(self, role: int, code: int, reply: bytes, now: float) -> bool:
        """Process the reply to XFORWARD.

        The proxy stops sending XFORWARD when the client has sent its own, or when the backend
        refuses it.  The session continues, since XFORWARD is only for the backend's log.

        Returns:
            Whether it was the proxy's own XFORWARD, so that the client gets no reply.
        """
        if role == verbs.XFORWARD:
            if code < 300:
                self.ehlo.stop_xforward()
            return False
        self._drop_own(reply, now)
        if code >= 300:
            self.ehlo.stop_xforward()
        return True

    def _take_own_data(self, code: int, reply: bytes, now: float) -> None:
        """Process the reply to the proxy's own DATA; a refusal is the reply to the chunk."""
        self._drop_own(reply, now)
        if code == 354:
            self.framer.begin_chunks()
        else:
            self._settle(self.framer.pop(), reply, code, now)

    def _drop_own(self, reply: bytes, now: float) -> None:
        """Remove the proxy's own command, if in flight; add it to that which waits for it."""
        in_flight = self.in_flight
        if in_flight and in_flight[0].verb.role >= verbs.OWN_XFORWARD:
            own, waiting = in_flight.pop(0), self.framer.queue[0]
            step = ProxyStep(own.line, reply, own.sent, now if reply else 0.0)
            waiting.steps = (*waiting.steps, step)

    # --- step 5: a reply settles its exchange --------------------------------------------------

    def _settle(self, exchange: Exchange, reply: bytes, code: int, now: float) -> None:
        """Hold the reply, flush by the rule, end the session or open the gate if it was one."""
        framer = self.framer
        more = bool(framer.queue or self.in_flight)
        must_flush = self.reply_buffer.hold(exchange, reply, code, now, more)
        verb = exchange.verb
        if code < 500:
            self.consecutive_errors = 0
        elif verb.role != RCPT:  # unknown recipients are not the client's error
            self.consecutive_errors += 1
        if verb.role:
            self.transaction.update(exchange, code)
        if must_flush:
            self.flush(now)
        if exchange.closes:
            self.end(exchange.close_reason, now)
        elif self.consecutive_errors > self.policy.consecutive_errors > 0:
            reply = replies.TOO_MANY_ERRORS
            over = ClientViolation("too_many_errors", reply % self.policy.hostname)
            self.fail("too_many_errors", reply, now, over)
        elif exchange is framer.gate and framer.mode == CLOSED:
            self._open_gate(verb.role, code, now)

    def _open_gate(self, role: int, code: int, now: float) -> None:
        """Read the client's next octets as the reply to the gate decides."""
        if code == 220 and role in UPGRADES:
            self.framer.await_upgrade(now)
            self._upgrade(UPGRADES[role])
        elif code == 354:
            content = Exchange(verbs.END_OF_DATA_ROW, b"", now)
            self.in_flight.append(content)
            self.framer.open_content(content)
        elif code == 334:
            self.framer.open_auth_data()
        elif role == verbs.BDAT:  # refused here
            self.framer.skip_payload()
        else:
            self.framer.open_commands()

    def flush(self, now: float) -> None:
        """Send the held replies to the client in one write, and pass them to the observer."""
        last = self.reply_buffer.flush(now)
        if last is not None:
            self.framer.forget(last)

    # --- TLS ------------------------------------------------------------------------------------

    def client_secured(self, now: float) -> None:
        """Restart, since the client connection is now inside TLS (RFC 3207 section 4.2).

        Octets received before TLS end the session: an attacker on the network could have injected
        them (CVE-2011-0411).
        """
        if self.framer.mode == ENDED:
            problem = self.framer.gate.problem
            self._end_with(replies.NOT_SYNCHRONIZED, "not_synchronized", now, problem)
        else:
            self._restart(now)
            self._end_if_done(now)

    def _restart(self, now: float) -> None:
        """Discard the state from before the client's TLS (RFC 3207 section 4.2)."""
        inside = self.policy.inside_tls
        assert inside is not None
        self.policy = inside
        self.ehlo.restart(inside)
        self.extensions.restart(inside)
        self.transaction.end()
        self.consecutive_errors = 0
        self.client_active_at = now
        self.framer.restart(inside)

    def backend_secured(self, now: float) -> None:
        """Send the client's EHLO again, since the backend connection is now inside TLS."""
        self.last_reply_at = now
        self.send_backend(self.ehlo.secured(now))

    def restart_in_plaintext(self) -> bool:
        """Expect a new backend connection, since the TLS handshake on the last one has failed.

        Only opportunistic TLS allows it, and only if the client's first command is in progress:
        else the new connection would lack what earlier ones did.

        Returns:
            Whether the caller must connect again, and pass on the greeting; else it must call
            `fail`.
        """
        earlier = self.framer.commands - len(self.framer.queue) - len(self.in_flight)
        if self.policy.backend_tls is not BackendTls.OPPORTUNISTIC or earlier:
            return False
        self.ehlo.restart_in_plaintext()
        return True

    # --- how a session ends --------------------------------------------------------------------

    def fail(self, reason: str, reply: bytes, now: float, problem: Violation | None = None) -> None:
        """End the session with one of the proxy's own 421 replies.

        Args:
            reason: Why, a snake_case noun.
            reply: The reply, with %b for the proxy's name.
            now: The time.
            problem: The violation that ends the session, if any.
        """
        self._end_with(reply % self.policy.hostname, reason, now, problem)

    def backend_unavailable(self, greeting: bytes, now: float) -> None:
        """End the session, since no server could be reached.

        Args:
            greeting: The refusing greeting of the last server, for the client; empty if none.
            now: The time.
        """
        if greeting:
            self._end_with(greeting, "backend_unavailable", now, None, own=False)
        else:
            self.fail("backend_unavailable", replies.BACKEND_UNAVAILABLE, now)

    def backend_lost(self, now: float) -> None:
        """Process the end or the loss of the backend connection."""
        if not self.matcher.discards_content:
            self.fail("backend_lost", replies.BACKEND_LOST, now)

    def expire(self, limit: str, now: float) -> None:
        """End the session at a time limit, given its name from `waiting` or the caller's own."""
        self.fail(f"{limit}_time_limit", replies.TIME_LIMIT, now)

    def drain(self, now: float, reason: str = "draining") -> None:
        """End with 421 as soon as no transaction is open and no reply is owed to the client.

        Args:
            now: The time.
            reason: Why, one of `replies.DRAINED`.
        """
        self.draining = reason
        self._end_if_done(now)

    @property
    def interruptible(self) -> bool:
        """Whether a 421 now would interrupt nothing: no content, and no command with a role."""
        may_end = self.framer.mode in (COMMANDS, AUTH_DATA, SKIPPED_PAYLOAD)
        return may_end and not any(exchange.verb.role for exchange in self.in_flight)

    def _end_if_done(self, now: float) -> None:
        busy = self.framer.queue or self.in_flight
        framer = self.framer
        if self.client_ended and (framer.mode in (CONTENT, PAYLOAD) or framer.amid_chunks):
            self.end("client_lost", now)
        elif self.client_ended and not busy:
            self.end("client_closed", now)
        elif self.draining and not busy and self._may_drain:
            self.fail(self.draining, replies.DRAINED[self.draining], now)

    @property
    def _may_drain(self) -> bool:
        if self.transaction.open or self.framer.amid_chunks:
            return False
        return self.framer.mode in (COMMANDS, SKIPPED_PAYLOAD)

    def _end_with(
        self, reply: bytes, reason: str, now: float, problem: Violation | None, *, own: bool = True
    ) -> None:
        """Answer the oldest exchange without a reply, and end the session.

        Args:
            reply: The reply.
            reason: Why, a snake_case noun.
            now: The time.
            problem: The violation that ends the session, if any.
            own: Whether the reply is the proxy's own.
        """
        if self.ended:
            return
        owed = bool(self.in_flight)
        self._drop_own(problem.octets if problem else b"" if own else reply, now)
        waiting = self.in_flight or self.framer.queue
        exchange = waiting.pop(0) if waiting else Exchange(verbs.UNSOLICITED_ROW, b"", now)
        exchange.abort(problem, now, own=own)
        if own and exchange.verb.role == verbs.GREETING:
            exchange.replace_reply(reply)
        self.reply_buffer.hold(exchange, reply, int(reply[:3]), now, False)
        self._end(reason, now, owed=owed)

    def end(self, reason: str, now: float) -> None:
        """End the session without another reply; the held ones are flushed.

        Args:
            reason: Why, a snake_case noun.
            now: The time.
        """
        if not self.ended:
            self._end(reason, now, owed=bool(self.in_flight))

    def _end(self, reason: str, now: float, *, owed: bool) -> None:
        framer = self.framer
        relayed = framer.mode == CLOSED and framer.gate.verb.role == verbs.TUNNEL
        self.backend_idle = reason in _ENDS_OF_CLIENTS and not (
            owed
            or relayed
            or self.transaction.open
            or framer.amid_chunks
            or self.matcher.reader.unread
            or framer.mode in (AUTH_DATA, PAYLOAD)
        )
        self.ended = reason
        self._upgrade = self._introduce = _not_connected  # nothing more is asked of the caller
        self.flush(now)
        self._drop_own(b"", now)
        unanswered = self.in_flight + framer.queue
        self.in_flight.clear()
        framer.queue.clear()
        framer.close()
        for exchange in unanswered:
            exchange.redact_line()
        if unanswered:
            self.reply_buffer.observer.settled(unanswered)


_HELLO: Final = frozenset((verbs.EHLO, verbs.HELO))
_CONTENT: Final = frozenset((CONTENT, PAYLOAD, SKIPPED_PAYLOAD, CHUNK))
_ENDS_OF_CLIENTS: Final = frozenset(
    (
        "client_closed",
        "client_lost",
        "client_time_limit",
        "client_tls_failed",
        "connection_slot_reclaimed",
        "draining",
        "introduced",
        "too_many_errors",
    )
)
"""The reasons of an end that the backend has not caused."""


def _not_connected(what: object) -> NoReturn:
    raise AssertionError(f"nothing is connected to take {what!r}")
