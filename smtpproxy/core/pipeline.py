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
from typing import NoReturn

from smtpproxy.core import beforehand, commands, replies, shortcut, upgrades
from smtpproxy.core.answers import CLOSES, NOT_YET, NOTHING_ASKED, Answers
from smtpproxy.core.errors import BackendViolation, ClientViolation, Violation
from smtpproxy.core.exchange import Exchange, Observer
from smtpproxy.core.extensions import Extensions
from smtpproxy.core.framing import CLOSED, COMMANDS, CONTENT, DEAF, PAYLOAD, Framer
from smtpproxy.core.held import HELD_OCTETS, Held
from smtpproxy.core.hello import DONE, FAILED, SECURE, Hello
from smtpproxy.core.replies import whole_reply_code
from smtpproxy.core.rules import Rules
from smtpproxy.core.transaction import Transaction


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
    `fail` when the handshake is over.  With TUNNEL, both connections are the caller's alone.

    `introduce` is to be set where the rules trust the client.  It is called with an XCLIENT line
    and returns what refuses it; else the session ends as "introduced", and its successor's
    greeting is the reply.

    active: when the client sent octets last.
    """

    __slots__ = (
        "active",
        "answers",
        "client_ended",
        "draining",
        "ended",
        "errors",
        "extensions",
        "framer",
        "held",
        "hello",
        "in_flight",
        "introduce",
        "rules",
        "send_backend",
        "transaction",
        "upgrade",
    )

    def __init__(
        self, rules: Rules, send_client: Callable[[bytes], None], observer: Observer, now: float
    ) -> None:
        greeting = Exchange(rules.greeting, b"", now)
        self.rules = rules
        self.send_backend: Callable[[bytes], None] = _not_connected
        self.framer = Framer(rules, greeting, _not_connected)
        self.answers = Answers(self.framer, now)
        self.in_flight = self.answers.in_flight
        self.held = Held(send_client, observer)
        self.extensions = Extensions(rules)
        self.hello = Hello(rules, self.extensions)
        self.upgrade: Callable[[int], None] = _not_connected
        self.introduce: Callable[[bytes], bytes] = _not_connected
        self.transaction = Transaction()
        self.errors = 0  # in a row
        self.client_ended = self.draining = False
        self.ended = ""
        self.active = now

    def connect_backend(self, send_backend: Callable[[bytes], None]) -> None:
        """Name the sink for octets to the backend."""
        self.send_backend = self.framer.send_backend = send_backend

    @property
    def full(self) -> bool:
        """Tell whether the client may not be read for now (back-pressure, never an error)."""
        return self.framer.full

    def waiting(self) -> tuple[str, float]:
        """Return which time limit runs and since when: a Verb.limit, "content" or "client"."""
        return self.answers.waiting(self.active)

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
        framer, in_flight = self.framer, self.in_flight
        if framer.content_over:
            self._end_content(now)
        while framer.queue and self._may_send():
            exchange = framer.queue[0]
            refusal = exchange.refusal
            if exchange.verb.weighed:
                if beforehand.holds_up(self, exchange, now):
                    return
                refusal = exchange.refusal or self.transaction.weigh(
                    exchange, self.rules, self.extensions, len(in_flight)
                )
            if not refusal:
                self._forward(framer.take(), now)
            elif in_flight:
                return
            else:
                framer.take().cut_secret()
                self._settle(exchange, refusal, int(refusal[:3]), now)
                self.flush(now)  # the edge begins to time held replies when the backend answers
                framer.frame_waiting(now)

    def _may_send(self) -> bool:
        if self.in_flight:
            return self.extensions.may_follow(self.in_flight)
        # Octets that nobody asked for have begun to come: they can only end the session.
        return not (self.answers.reader.unread or self.ended)

    def _forward(self, exchange: Exchange, now: float) -> None:
        self.in_flight.append(exchange)
        exchange.sent = 0.0 if exchange.octets else now  # not before its payload is
        role = exchange.verb.role
        line = exchange.line
        self.send_backend(self.hello.begin(line, now) if role in _HELLO else line)
        if exchange.verb.secret:
            exchange.cut_secret()
        if role == commands.BDAT:
            self.transaction.chunk_octets += exchange.octets
            self.framer.open_payload(exchange.octets)
            self.framer.frame_waiting(now)
            if self.framer.content_over:
                self._end_content(now)

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
        elif len(self.in_flight) > 1 or not self.answers.reader.unread:
            exchange.sent = now  # else a reply has begun before the end: it can't be for it

    # --- step 4: octets from the backend become replies ---------------------------------------

    def backend_received(self, octets: bytes, now: float) -> None:
        """Take octets from the backend."""
        if self.ended:
            return
        code = 0 if self.answers.reader.unread else whole_reply_code(octets)
        if 200 <= code < 300 and shortcut.take(self, code, octets, now):
            return
        try:
            if code:
                self._take_reply(code, octets, now)
            else:
                self._take_replies(octets, now)
        except BackendViolation as violation:
            if self.answers.known:
                self.answers.ignore()
                return
            self.fail("backend_violation", replies.BACKEND_BROKEN, now, violation)
        framer = self.framer
        if framer.unframed:
            framer.frame_waiting(now)
        if framer.queue or framer.content_over:
            self._send(now)
        if self.client_ended or self.draining:
            self._end_if_done(now)

    def _take_replies(self, octets: bytes, now: float) -> None:
        """Take all that came before anything more is sent.

        So a surplus reply is not taken for one to a command that had not been sent when it came.
        """
        reader = self.answers.read(octets)
        while not self.ended and (reply := reader.next_reply()) is not None:
            self._take_reply(*reply, now)

    def _take_reply(self, code: int, reply: bytes, now: float) -> None:
        """Give a reply to the exchange that waits for it; BackendViolation as in `judge`."""
        self.answers.came = now
        in_flight = self.in_flight
        exchange = in_flight[0] if in_flight else NOTHING_ASKED
        role = exchange.verb.role
        if role > commands.RSET or 300 <= code < 400 or code == 421 or reply[:1] == b"3":
            meaning = self.answers.judge(exchange, code, reply)
            if meaning == CLOSES:
                self._end_with(reply, "backend_closed", now, None)
            if meaning in (CLOSES, NOT_YET):
                return
            if role in _HELLO:
                code, reply = self._take_hello(code, reply, now)
                if not reply:
                    return
            elif role >= commands.XFORWARD and beforehand.is_done(self, role, code, reply, now):
                return
        del in_flight[0]
        if exchange.refusal:  # its group was refused while it was in flight
            exchange.note_reply(reply, now)
            reply, code = exchange.refusal, int(exchange.refusal[:3])
        self._settle(exchange, reply, code, now)

    def _take_hello(self, code: int, reply: bytes, now: float) -> tuple[int, bytes]:
        """Do what a reply to a hello leads to; return what the client gets, if anything now."""
        hello = self.hello
        exchange = self.in_flight[0]
        step = hello.take(exchange, code, reply, now)
        if step == DONE:
            code, reply = hello.answer()
            if code < 300:
                said_ehlo = exchange.verb.role == commands.EHLO
                self.framer.table = self.rules.table if said_ehlo else self.rules.helo_table
            return code, reply
        if self.answers.reader.unread:
            raise BackendViolation("reply_not_asked_for", self.answers.reader.unread)
        if step == FAILED:
            self.fail(hello.reason, replies.BACKEND_UNFIT, now)
        elif step == SECURE:
            self.upgrade(upgrades.SECURE_BACKEND)
        else:
            self.send_backend(hello.line)
        return code, b""

    # --- step 5: a reply settles its exchange --------------------------------------------------

    def _settle(self, exchange: Exchange, reply: bytes, code: int, now: float) -> None:
        """Join the reply to the held ones, flush by the rule, open the gate if it was one."""
        self.held.hold(exchange, reply, code, now)
        self.errors = self.errors + 1 if code >= 500 else 0
        verb = exchange.verb
        if verb.role:
            self.transaction.follow(exchange, code)
        framer = self.framer
        more = framer.queue or self.in_flight
        if not (verb.groupable and more) or self.held.octets >= HELD_OCTETS:
            self.flush(now)  # RFC 2920 section 3.2, items 2 and 5 to 7
        if exchange.closes:
            self.end(exchange.close_reason, now)
        elif self.errors > self.rules.errors:
            reply = replies.TOO_MANY_ERRORS
            over = ClientViolation("too_many_errors", reply % self.rules.hostname)
            self.fail("too_many_errors", reply, now, over)
        elif exchange is framer.gate and framer.mode == CLOSED:
            self._open_gate(verb.role, code, now)

    def _open_gate(self, role: int, code: int, now: float) -> None:
        """Say how the client's next octets are read, now that the reply tells it."""
        if code == 220 and role in upgrades.OF_ROLES:
            upgrades.ask(self, role, now)
        elif code == 354:
            content = Exchange(commands.DATA_ENDED, b"", now)
            self.in_flight.append(content)
            self.framer.open_content(content)
        elif code == 334:
            self.framer.open_auth_data()
        else:
            self.framer.open_commands()

    def flush(self, now: float) -> None:
        """Send the held replies to the client in one write, and show them to the observer."""
        last = self.held.flush(now)
        if last is not None:
            self.framer.forget(last)

    # --- TLS ------------------------------------------------------------------------------------

    def client_secured(self, now: float) -> None:
        """The client's connection is inside TLS: the session begins anew (RFC 3207 section 4.2).

        What came ahead of TLS ends it: somebody on the way could have put it there (CVE-2011-0411).
        """
        if self.framer.mode == DEAF:
            problem = self.framer.gate.problem
            self._end_with(replies.NOT_SYNCHRONIZED, "not_synchronized", now, problem)
        else:
            upgrades.begin_anew(self, now)
            self._end_if_done(now)

    def backend_secured(self, now: float) -> None:
        """The backend's connection is inside TLS: it gets the client's EHLO once more."""
        self.answers.came = now
        self.send_backend(self.hello.secured(now))

    # --- how a session ends --------------------------------------------------------------------

    def fail(self, reason: str, reply: bytes, now: float, problem: Violation | None = None) -> None:
        """End with one of the proxy's own 421 replies."""
        self._end_with(reply % self.rules.hostname, reason, now, problem)

    def backend_unavailable(self, greeting: bytes, now: float) -> None:
        """No server could be had; `greeting` is the last one that refused, if there was any."""
        own = replies.BACKEND_UNAVAILABLE % self.rules.hostname
        self._end_with(greeting or own, "backend_unavailable", now, None)

    def backend_lost(self, now: float) -> None:
        """Take the end of the backend's octets, or the loss of its connection."""
        if not self.answers.known:
            self.fail("backend_lost", replies.BACKEND_LOST, now)

    def expire(self, now: float) -> None:
        """The time limit that `waiting` names is over."""
        self.fail(f"{self.waiting()[0]}_time_limit", replies.TIME_LIMIT, now)

    def drain(self, now: float) -> None:
        """End with 421 as soon as no transaction is open and the client waits for nothing."""
        self.draining = True
        self._end_if_done(now)

    def _end_if_done(self, now: float) -> None:
        busy = self.framer.queue or self.in_flight
        if self.client_ended and self.framer.mode in (CONTENT, PAYLOAD):
            self.end("client_lost", now)
        elif self.client_ended and not busy:
            self.end("client_closed", now)
        elif self.draining and not (busy or self.transaction.open) and self.framer.mode == COMMANDS:
            self.fail("draining", replies.DRAINING, now)

    def _end_with(self, reply: bytes, reason: str, now: float, problem: Violation | None) -> None:
        """Answer the oldest exchange that waits with a reply that ends the session."""
        if self.ended:
            return
        own = reason != "backend_closed"
        beforehand.take_back(self, problem.octets if problem else b"" if own else reply, now)
        waiting = self.in_flight or self.framer.queue
        exchange = waiting.pop(0) if waiting else Exchange(commands.NOT_ASKED, b"", now)
        exchange.cut_short(problem, now, own=own)
        self.held.hold(exchange, reply, int(reply[:3]), now)
        self.end(reason, now)

    def end(self, reason: str, now: float) -> None:
        """End without a word: the client is gone, or has had its last reply."""
        if self.ended:
            return
        self.ended = reason
        self.flush(now)
        beforehand.take_back(self, b"", now)
        unanswered = self.in_flight + self.framer.queue
        self.in_flight.clear()
        self.framer.queue.clear()
        self.framer.close()
        for exchange in unanswered:
            exchange.cut_secret()
        if unanswered:
            self.held.observer.settled(unanswered)


_HELLO = frozenset((commands.EHLO, commands.HELO))


def _not_connected(what: object) -> NoReturn:
    raise AssertionError(f"nothing is connected that could take {what!r}")
