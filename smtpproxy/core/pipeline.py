"""The pipeline of one session: the client's groups become single commands, the replies groups.

The rules, in the order of the five steps that the octets take (RFC 2920):

1. Octets from the client are appended to what is not yet framed.  Nothing received is dropped,
   except behind STARTTLS and by a refusal that closes.
2. Framing turns them into exchanges on the queue, until a gate closes: a command whose reply tells
   how the octets behind it are to be read.  The greeting and AUTH lines are gates like any other.
3. The first of the queue goes out when the backend owes no reply.  So exactly one is in flight;
   more only when the backend itself offers PIPELINING and the rules let it be used.
4. Octets from the backend become whole replies.  Each must have been asked for: a surplus one would
   shift every later one.
5. The reply settles its exchange: it joins the held replies, is flushed by the rule of RFC 2920
   section 3.2, opens the gate if it was one, and the next exchange goes out.

Steps 1 and 2 are the framer's, 3 to 5 are here.  A message is acknowledged only by the backend's
own reply to its end of data.  The pipeline calls nothing but its two sinks and its observer, and it
has no clock: every call brings the time.
"""

from collections.abc import Callable

from smtpproxy.core import commands, lines, replies
from smtpproxy.core.commands import Sync
from smtpproxy.core.errors import BackendViolation, ClientViolation, Violation
from smtpproxy.core.exchange import Exchange, Observer
from smtpproxy.core.extensions import Extensions
from smtpproxy.core.framing import CLOSED, COMMANDS, CONTENT, DEAF, PAYLOAD, Framer
from smtpproxy.core.hello import DONE, FAILED, SECURE, Hello
from smtpproxy.core.replies import ReplyReader, whole_reply_code
from smtpproxy.core.rules import Rules

HELD_OCTETS = 16 * 1024
"""Held replies are flushed when they are this long."""

SECURE_CLIENT, SECURE_BACKEND, TUNNEL = range(3)
"""What `Pipeline.upgrade` is called with: begin TLS on a connection, or join both for good."""


class Pipeline:
    """The protocol state of one session.

    The caller owns both connections and has these duties.  It calls `connect_backend` before it
    hands over the backend's first octets.  After each call it looks at `ended` (a reason, empty
    while the session goes on): then it closes the client when all that was written to it has gone
    out, and the backend.  While `full` it does not read the client.  While replies are `held` it
    calls `flush` when the first of them is too old, and `expire` when a time limit of `waiting` is
    over.  It keeps the clock: `now` is in seconds and never goes back.

    `upgrade` is to be set where the rules speak of TLS.  When it is called the caller reads nothing
    more of that connection in plaintext, and calls `client_secured`, `backend_secured` or
    `not_secured` when the handshake is over.  With TUNNEL, both connections are the caller's alone.

    active, replied: when the client sent octets, and the backend a reply, last.
    transaction: MAIL was accepted, and the transaction is not over.
    """

    __slots__ = (
        "active",
        "authenticated",
        "chunk_octets",
        "client_ended",
        "draining",
        "ended",
        "errors",
        "extensions",
        "framer",
        "held",
        "held_octets",
        "hello",
        "in_flight",
        "messages",
        "observe",
        "recipients",
        "recipients_accepted",
        "replied",
        "reply_reader",
        "rules",
        "send_backend",
        "send_client",
        "transaction",
        "upgrade",
    )

    def __init__(
        self, rules: Rules, send_client: Callable[[bytes], None], observe: Observer, now: float
    ) -> None:
        greeting = Exchange(rules.greeting, b"", now)
        self.rules = rules
        self.send_client = send_client
        self.send_backend: Callable[[bytes], None] = _not_connected
        self.observe = observe
        self.framer = Framer(rules, greeting, _not_connected)
        self.in_flight = [greeting]
        self.reply_reader = ReplyReader()
        self.held: list[Exchange] = []
        self.held_octets = 0
        self.extensions = Extensions(rules)
        self.hello = Hello(rules, self.extensions)
        self.upgrade: Callable[[int], None] = _not_upgradable
        self.authenticated = False
        self.transaction = False
        self.recipients = self.recipients_accepted = 0  # RCPT commands of this transaction
        self.chunk_octets = 0  # of this message
        self.errors = 0  # in a row
        self.messages = 0
        self.client_ended = False
        self.draining = False
        self.ended = ""
        self.active = self.replied = now

    def connect_backend(self, send_backend: Callable[[bytes], None]) -> None:
        """Name the sink for octets to the backend."""
        self.send_backend = self.framer.send_backend = send_backend

    @property
    def full(self) -> bool:
        """Tell whether the client may not be read for now (back-pressure, never an error)."""
        return self.framer.full

    @property
    def greeting_owed(self) -> bool:
        """Tell whether the backend has not greeted yet."""
        return bool(self.in_flight) and self.in_flight[0].verb.role == commands.GREETING

    def waiting(self) -> tuple[str, float]:
        """Return which time limit runs and since when: a Verb.limit, "content" or "client"."""
        if self.framer.mode in (CONTENT, PAYLOAD):
            return "content", self.active
        if self.in_flight:
            first = self.in_flight[0]
            return first.verb.limit, max(first.sent, first.framed, self.replied)
        return "client", self.active

    # --- steps 1 and 2: octets from the client ------------------------------------------------

    def client_received(self, octets: bytes, now: float) -> None:
        """Take octets from the client."""
        if self.ended:
            return
        self.active = now
        self.framer.receive(octets, now)
        self._send(now)
        if self.client_ended or self.draining:
            self._end_if_done(now)

    def client_eof(self, now: float) -> None:
        """Take the end of the client's octets: what it sent is served, then the session ends.

        Message content or a BDAT payload cut short ends it at once: the backend is to be closed
        without an end of data.
        """
        self.client_ended = True
        self._end_if_done(now)

    # --- step 3: one command at a time goes to the backend ------------------------------------

    def _send(self, now: float) -> None:
        """Send what may be sent, and settle what is answered here when its turn comes."""
        framer = self.framer
        if framer.content_over:
            self._end_content(now)
        queue, in_flight = framer.queue, self.in_flight
        while queue:
            # Octets that nobody asked for have begun to come: they can only end the session.
            if not self._may_join_group() if in_flight else self.reply_reader.unread or self.ended:
                return
            exchange = queue[0]
            refusal = exchange.refusal
            if exchange.verb.weighed:
                refusal = refusal or self._refusal_in_turn(exchange)
            if refusal:
                if in_flight:
                    return
                framer.take().cut_secret()
                self._settle(exchange, refusal, int(refusal[:3]), now)
                self.flush(now)  # the edge begins to time held replies when the backend answers
                framer.frame_waiting(now)
                continue
            del queue[0]
            framer.queue_octets -= len(exchange.line)
            in_flight.append(exchange)
            exchange.sent = 0.0 if exchange.octets else now  # not before its payload is
            role = exchange.verb.role
            said = role not in _HELLO
            self.send_backend(exchange.line if said else self.hello.begin(exchange.line))
            if exchange.verb.secret:
                exchange.cut_secret()
            if role == commands.BDAT:
                self.chunk_octets += exchange.octets
                framer.open_payload(exchange.octets)
                framer.frame_waiting(now)
                if framer.content_over:
                    self._end_content(now)

    def _may_join_group(self) -> bool:
        """Tell whether a command may be sent behind those in flight, as the backend allows."""
        # RFC 2920 section 3.1: others stand last in a group; the end of data may stand first.
        last = self.in_flight[-1]
        return self.extensions.pipelining and (
            last.verb.groupable
            or (last.verb.role in (commands.END_OF_DATA, commands.BDAT) and last.sent > 0)
        )

    def _refusal_in_turn(self, exchange: Exchange) -> bytes:
        """Return the reply to what may not be forwarded as things stand now, else nothing."""
        role = exchange.verb.role
        rules = self.rules
        if role == commands.RCPT:
            # Those in flight may yet be refused; then this one is looked at again.
            if self.recipients_accepted + len(self.in_flight) >= rules.recipients:
                return replies.TOO_MANY_RECIPIENTS  # RFC 5321 section 4.5.3.1.10
        elif role == commands.MAIL:
            if lines.declared_size(exchange.line) > rules.message_octets:
                return replies.MESSAGE_TOO_BIG  # RFC 1870 section 6.1
        elif role == commands.DATA:
            guarded = self.rules.guard_data and not self.extensions.pipelining
            if guarded and self.recipients and not self.recipients_accepted:
                return replies.NO_VALID_RECIPIENTS  # RFC 2920 section 3.2, items 3 and 4
        elif role == commands.STARTTLS:
            return self._starttls_reply(exchange)
        elif not self.extensions.chunking:
            # This backend would take the payload for commands.
            exchange.refuse(
                ClientViolation(
                    "bdat_not_offered", replies.NOT_IMPLEMENTED, exchange.line, closes=True
                )
            )
        elif rules.message_octets:
            self._weigh_chunk(exchange)
        return exchange.refusal

    def _weigh_chunk(self, chunk: Exchange) -> None:
        """Refuse a BDAT chunk that makes its message too big (RFC 3030 section 2).

        It ends the session: to the backend a later chunk would complete a message that lacks this.
        """
        if self.chunk_octets + chunk.octets > self.rules.message_octets:
            violation = ClientViolation("message_too_big", replies.MESSAGE_TOO_BIG, closes=True)
            chunk.refuse(violation)

    def _starttls_reply(self, exchange: Exchange) -> bytes:
        """Return the proxy's own reply to STARTTLS (RFC 3207 section 4)."""
        if exchange.line[8:].strip():
            return replies.STARTTLS_ARGUMENT
        # The backend could not be made to forget who the client is.
        return replies.AUTH_BEFORE_TLS if self.authenticated else replies.READY_FOR_TLS

    def _end_content(self, now: float) -> None:
        """Let content or a payload wait for its reply, or answer it if that is known."""
        self.framer.content_over = False
        if not self.in_flight:
            return  # BDAT was refused before its payload had come
        exchange = self.in_flight[-1]
        if exchange.refusal:
            self.in_flight.pop()
            exchange.closes = True
            self._settle(exchange, exchange.refusal, int(exchange.refusal[:3]), now)
        elif len(self.in_flight) > 1 or not self.reply_reader.unread:
            exchange.sent = now  # else a reply has begun before the end: it can't be for it

    # --- step 4: octets from the backend become replies ---------------------------------------

    def backend_received(self, octets: bytes, now: float) -> None:
        """Take octets from the backend."""
        if self.ended:
            return
        reader = self.reply_reader
        code = 0 if reader.unread else whole_reply_code(octets)
        if 200 <= code < 300 and self._goes_on(code, octets, now):
            return
        try:
            if code:
                self._take_reply(code, octets, now)
            else:
                self._take_replies(octets, now)
        except BackendViolation as violation:
            if self.in_flight and self._reads_on(self.in_flight[0]):
                self.reply_reader = ReplyReader()  # what it says now is to take no room
                return
            self._fail(self._own(replies.BACKEND_BROKEN), "backend_violation", now, violation)
        framer = self.framer
        if framer.unframed:
            framer.frame_waiting(now)
        if framer.queue or framer.content_over:
            self._send(now)
        if self.client_ended or self.draining:
            self._end_if_done(now)

    def _goes_on(self, code: int, reply: bytes, now: float) -> bool:
        """Take the short way of a group: a command is accepted, and the next one goes out.

        Tell whether it was taken; all that is not so plain takes the five steps.
        """
        queue, in_flight = self.framer.queue, self.in_flight
        if not (len(queue) > 1 and len(in_flight) == 1):
            return False
        exchange, following = in_flight[0], queue[0]
        role = exchange.verb.role
        if (
            not commands.MAIL <= role <= commands.RCPT
            or following.verb.role > commands.RSET
            or following.verb.weighed
            or exchange.refusal
            or following.refusal
            or self.held_octets + len(reply) >= HELD_OCTETS
        ):
            return False
        exchange.reply = reply
        exchange.code = code
        exchange.replied = self.replied = following.sent = now
        self.held.append(exchange)
        self.held_octets += len(reply)
        self.errors = 0
        if role == commands.RCPT:
            self.recipients += 1
            self.recipients_accepted += 1
        else:
            self.transaction = True
            self.recipients = self.recipients_accepted = self.chunk_octets = 0
        line = following.line
        self.framer.queue_octets -= len(line)
        in_flight[0] = following
        del queue[0]
        self.send_backend(line)
        return True

    def _take_replies(self, octets: bytes, now: float) -> None:
        """Take all that came before anything more is sent.

        So a surplus reply is not taken for one to a command that had not been sent when it came.
        """
        reader = self.reply_reader
        reader.receive(octets)
        while not self.ended and (reply := reader.next_reply()) is not None:
            self._take_reply(*reply, now)

    def _take_reply(self, code: int, reply: bytes, now: float) -> None:
        """Give a reply to the exchange that waits for it.

        Raises BackendViolation for a reply that none waits for, or that can't be an answer.
        """
        self.replied = now
        in_flight = self.in_flight
        exchange = in_flight[0] if in_flight else _NOTHING_ASKED
        odd = 300 <= code < 400 or code == 421 or reply[:1] == b"3"
        if odd or exchange.verb.role > commands.RSET:
            code, reply = self._reply_for(exchange, code, reply, now)
            if not reply:
                return
        del in_flight[0]
        if exchange.refusal:  # its group was refused while it was in flight
            reply, code = exchange.refusal, int(exchange.refusal[:3])
        self._settle(exchange, reply, code, now)

    def _reply_for(
        self, exchange: Exchange, code: int, reply: bytes, now: float
    ) -> tuple[int, bytes]:
        """Look at a reply with a meaning of its own; return what the client gets, if anything now.

        Raises BackendViolation as `_take_reply` does.
        """
        role = exchange.verb.role
        if self._reads_on(exchange):
            return code, b""
        if code == 421 or (role == commands.GREETING and code >= 400):
            self._fail(reply, "backend_closed", now)  # RFC 5321 section 3.8: unasked too
            return code, b""
        if exchange is _NOTHING_ASKED:
            raise BackendViolation("reply_not_asked_for", reply)
        if role == commands.END_OF_DATA and not exchange.sent:
            self._take_early_reply(exchange, code, reply, now)
            return code, b""
        if not exchange.may_be_answered(code, reply):
            raise BackendViolation("impossible_reply", reply)
        if role in _HELLO:
            return self._take_hello(code, reply, now)
        if role == commands.TUNNEL and code == 220 and self.reply_reader.unread:
            raise BackendViolation("reply_behind_starttls", self.reply_reader.unread)
        return code, reply

    def _take_hello(self, code: int, reply: bytes, now: float) -> tuple[int, bytes]:
        """Do what the reply to EHLO, HELO, or to what was said because of it, leads to."""
        hello = self.hello
        step = hello.take(code, reply)
        if step == DONE:
            if hello.code < 300:
                self.framer.table = self.rules.table
            return hello.code, hello.reply
        if self.reply_reader.unread:
            raise BackendViolation("reply_not_asked_for", self.reply_reader.unread)
        if step == FAILED:
            self._fail(self._own(replies.BACKEND_UNFIT), hello.reason, now)
        elif step == SECURE:
            self.upgrade(SECURE_BACKEND)
        else:
            self.send_backend(hello.line)
        return code, b""

    def _reads_on(self, exchange: Exchange) -> bool:
        """Tell whether the client is read to its end of data only to get a reply already known."""
        return exchange.refusal != b"" and self.framer.mode == CONTENT

    def _take_early_reply(self, exchange: Exchange, code: int, reply: bytes, now: float) -> None:
        """Take a reply that began before the end of data was sent: it can only be a refusal."""
        if code < 400:
            raise BackendViolation("reply_before_end_of_data", reply)
        exchange.refusal = reply
        if self.framer.mode != CONTENT:  # the end of data has come meanwhile
            self._end_content(now)

    # --- step 5: a reply settles its exchange --------------------------------------------------

    def _settle(self, exchange: Exchange, reply: bytes, code: int, now: float) -> None:
        """Join the reply to the held ones, flush by the rule, open the gate if it was one."""
        exchange.reply = reply
        exchange.code = code
        exchange.replied = now
        self.held.append(exchange)
        self.held_octets += len(reply)
        self.errors = self.errors + 1 if code >= 500 else 0
        verb = exchange.verb
        if verb.role == commands.RCPT:
            self.recipients += 1
            self.recipients_accepted += code < 300
        elif verb.role:
            self._follow_transaction(exchange, code)
        framer = self.framer
        more = framer.queue or self.in_flight
        if not (verb.groupable and more) or self.held_octets >= HELD_OCTETS:
            self.flush(now)  # RFC 2920 section 3.2, items 2 and 5 to 7
        if exchange.closes:
            self._end(exchange.close_reason, now)
        elif self.errors > self.rules.errors:
            self._fail(self._own(replies.TOO_MANY_ERRORS), "too_many_errors", now)
        elif exchange is framer.gate and framer.mode == CLOSED:
            self._open_gate(verb.role, code, now)

    def _open_gate(self, role: int, code: int, now: float) -> None:
        """Say how the client's next octets are read, now that the reply tells it."""
        if code == 220 and role in _UPGRADES:
            # A gate stays closed: nothing may follow in plaintext.
            self.framer.gate = Exchange(self.framer.gate.verb, b"", now)
            self.upgrade(_UPGRADES[role])
        elif code == 354:
            content = Exchange(commands.DATA_ENDED, b"", now)
            self.in_flight.append(content)
            self.framer.open_content(content)
        elif code == 334:
            self.framer.open_auth_data()
        else:
            self.framer.open_commands()

    def _follow_transaction(self, exchange: Exchange, code: int) -> None:
        """Keep in mind what the guard of DATA and a drain have to know (RFC 5321 section 3.3)."""
        role = exchange.verb.role
        is_message = exchange.ends_message
        if is_message or (code < 300 and role in _BEGIN_OR_END):
            self.transaction = role == commands.MAIL
            self.recipients = self.recipients_accepted = self.chunk_octets = 0
            self.messages += is_message and code < 300
            if role == commands.HELO:
                self.extensions.leave()
                if self.rules.sync is Sync.STRICT:
                    self.framer.table = self.rules.lock_step_table
        elif role == commands.AUTH and code == 235:
            self.authenticated = True

    def flush(self, now: float) -> None:
        """Send the held replies to the client in one write, and show them to the observer."""
        held = self.held
        if not held:
            return
        self.held = []
        self.held_octets = 0
        if len(held) == 1:
            self.send_client(held[0].reply)
        else:
            self.send_client(b"".join([exchange.reply for exchange in held]))
        for exchange in held:
            exchange.flushed = now
        self.framer.forget(exchange)
        self.observe(held)

    # --- TLS ------------------------------------------------------------------------------------

    def client_secured(self, now: float) -> None:
        """The client's connection is inside TLS: the session begins anew (RFC 3207 section 4.2).

        Nothing that was said before counts, and what was sent behind STARTTLS in plaintext ends it:
        somebody on the way could have put it there (CVE-2011-0411).
        """
        framer = self.framer
        if framer.mode == DEAF:
            self._fail(replies.NOT_SYNCHRONIZED, "not_synchronized", now, framer.gate.problem)
            return
        assert self.rules.inside_tls is not None
        self.rules = self.extensions.rules = self.rules.inside_tls
        self.hello.begin_anew(self.rules)
        self.extensions.leave()
        self.transaction = False
        self.recipients = self.recipients_accepted = self.errors = 0
        self.active = now
        framer.begin_anew(self.rules)
        self._end_if_done(now)

    def backend_secured(self, now: float) -> None:
        """The backend's connection is inside TLS: it gets the client's EHLO once more."""
        self.replied = now
        self.send_backend(self.hello.secured())

    def not_secured(self, reason: str, now: float) -> None:
        """A handshake has failed; where it was the client's, nobody gets the reply."""
        self._fail(self._own(replies.BACKEND_TLS_FAILED), reason, now)

    # --- how a session ends --------------------------------------------------------------------

    def backend_unavailable(self, greeting: bytes, now: float) -> None:
        """No server could be had; `greeting` is the last one that refused, if there was any."""
        self._fail(greeting or self._own(replies.BACKEND_UNAVAILABLE), "backend_unavailable", now)

    def backend_full(self, now: float) -> None:
        """No place at the backend has become free in time."""
        self._fail(self._own(replies.BACKEND_FULL), "backend_full", now)

    def backend_lost(self, now: float) -> None:
        """Take the end of the backend's octets, or the loss of its connection."""
        if not (self.in_flight and self._reads_on(self.in_flight[0])):
            self._fail(self._own(replies.BACKEND_LOST), "backend_lost", now)

    def expire(self, now: float) -> None:
        """The time limit that `waiting` names is over."""
        self._fail(self._own(replies.TIME_LIMIT), f"{self.waiting()[0]}_time_limit", now)

    def drain(self, now: float) -> None:
        """End with 421 as soon as no transaction is open and the client waits for nothing."""
        self.draining = True
        self._end_if_done(now)

    def stop(self, now: float) -> None:
        """End at once, with 421, whatever is going on."""
        self._fail(self._own(replies.DRAINING), "stopped", now)

    def abandon(self, now: float) -> None:
        """The client is gone before it had a server: there is nobody to serve."""
        self._end("client_lost", now)

    def break_down(self, now: float) -> None:
        """Something in the proxy itself went wrong: end with 421."""
        self._fail(self._own(replies.INTERNAL_ERROR), "internal_error", now)

    def _own(self, text: bytes) -> bytes:
        return text % self.rules.hostname

    def _end_if_done(self, now: float) -> None:
        busy = self.framer.queue or self.in_flight
        if self.client_ended and self.framer.mode in (CONTENT, PAYLOAD):
            self._end("client_lost", now)
        elif self.client_ended and not busy:
            self._end("client_closed", now)
        elif self.draining and not (busy or self.transaction) and self.framer.mode == COMMANDS:
            self._fail(self._own(replies.DRAINING), "draining", now)

    def _fail(
        self, reply: bytes, reason: str, now: float, problem: Violation | None = None
    ) -> None:
        """Answer the oldest exchange that waits with a reply that ends the session."""
        if self.ended:
            return
        waiting = self.in_flight or self.framer.queue
        exchange = waiting.pop(0) if waiting else Exchange(commands.NOT_ASKED, b"", now)
        exchange.cut_secret()
        exchange.problem = exchange.problem or problem
        exchange.reply = reply
        exchange.code = int(reply[:3])
        exchange.replied = now
        self.held.append(exchange)
        self._end(reason, now)

    def _end(self, reason: str, now: float) -> None:
        if self.ended:
            return
        self.ended = reason
        self.flush(now)
        unanswered = self.in_flight + self.framer.queue
        self.in_flight.clear()
        self.framer.queue.clear()
        self.framer.close()
        for exchange in unanswered:
            exchange.cut_secret()
        if unanswered:
            self.observe(unanswered)


_NOTHING_ASKED = Exchange(commands.NOT_ASKED, b"", 0.0)
"""Stands for the exchange in flight where there is none; never changed."""

_HELLO = frozenset((commands.EHLO, commands.HELO))
_BEGIN_OR_END = _HELLO | {commands.MAIL, commands.RSET, commands.XCLIENT}
"""Roles whose positive reply begins a transaction, or ends the one there was."""
_UPGRADES = {commands.STARTTLS: SECURE_CLIENT, commands.TUNNEL: TUNNEL}
"""Roles whose 220 ends plaintext."""


def _not_connected(octets: bytes) -> None:
    raise AssertionError(f"the backend is not connected: {octets!r}")


def _not_upgradable(what: int) -> None:
    raise AssertionError(f"the rules do not speak of TLS: {what}")
