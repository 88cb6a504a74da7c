"""Fault injection: applies the rules of `run --fault` to sessions, to test the senders of mail.

Without such a flag, sessions have no injector.  A fault never acknowledges anything, and never
leaves proxy and MTA out of step: the MTA gets a command either whole or not at all, and no end of
data whose reply the client does not get from the MTA, except where the connection is closed after
it.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from time import monotonic
from typing import Final, Protocol

from smtpproxy.core import verbs
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.fault_rules import FaultAction, FaultRule, SessionFaults
from smtpproxy.core.observer import IdentifiedObserver
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.replies import REPLY_LIMIT, ReplyReader
from smtpproxy.core.violations import BackendViolation
from smtpproxy.net.backend.backend_connection import BackendEvents
from smtpproxy.net.peer import Peer

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_END: Final = b"\r\n.\r\n"
_AT_ONCE: Final = (FaultAction.CLOSE, FaultAction.RESET)
_AFTER: Final = (FaultAction.CLOSE_AFTER, FaultAction.RESET_AFTER)
_RESETS: Final = (FaultAction.RESET, FaultAction.RESET_AFTER)


class Greetings(Protocol):
    """The server selection of a session."""

    open: bool

    def receive(self, octets: bytes) -> tuple[bytes, str]:
        """Process octets of a server until its greeting is complete."""


class FaultySession(BackendEvents, Protocol):
    """The part of a session that fault injection uses."""

    peer: Peer
    pipeline: Pipeline
    observer: IdentifiedObserver

    @property
    def server_selection(self) -> Greetings:
        """What reads the greeting of a server."""

    def give_up_server(self, why: str) -> None:
        """Try the next server."""

    def finish(self, callback: Callable[[float], None]) -> None:
        """Call a function of the pipeline that may end it; it gets the time."""

    def cut(self, *, reset: bool) -> None:
        """End the session without a reply, and close the client's connection."""


class FaultInjection:
    """The fault rules of a worker.

    Args:
        rules: The rules.
        seed: The seed of all decisions.
    """

    def __init__(self, rules: Sequence[FaultRule], seed: int) -> None:
        self._rules = tuple(rules)
        self._seed = seed
        self._numbers = count(1)

    def of(self, session: FaultySession) -> "FaultInjector":
        """Return what injects the faults of a new session."""
        faults = SessionFaults(self._rules, self._seed, next(self._numbers), session.peer.host)
        return FaultInjector(session, faults)


class FaultInjector:
    """Injects the faults of one session.  It gets the events of its backend connection first.

    Args:
        session: The session.
        faults: Its decisions.
    """

    def __init__(self, session: FaultySession, faults: SessionFaults) -> None:
        self._session = session
        self._pipeline = session.pipeline
        self._faults = faults
        self._timer: asyncio.Handle | None = None
        self._greeting = b""  # what the client does not get yet
        self._intercepted: Exchange | None = None  # the command that was intercepted last,
        self._waits = False  # and whether it must wait
        self._content = b""  # the last octets of the message content sent
        self._withheld: Exchange | None = None  # the content whose end the MTA does not get yet
        self._awaited: tuple[Exchange, FaultRule] | None = None  # whose reply closes the connection
        self._reader = ReplyReader(REPLY_LIMIT)
        self._pipeline.intercept_with(self._intercept)

    def cancel(self) -> None:
        """Inject nothing more, since the session has ended."""
        self._pipeline.intercept_with(None)  # each knows the other
        self._pipeline.framer.connect_backend(self._pipeline.send_backend)
        self._later(None)

    def _later(self, timer: asyncio.Handle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _note(self, rule: FaultRule) -> None:
        self._session.observer.noted("fault_injected", fault=rule.text)

    # --- the backend's connection -------------------------------------------------------------

    def backend_connected(self, backend: asyncio.Transport) -> None:
        """Pass it on."""
        self._session.backend_connected(backend)

    def backend_blocked(self, *, blocked: bool) -> None:
        """Pass it on."""
        self._session.backend_blocked(blocked=blocked)

    def backend_lost(self, backend: asyncio.Transport) -> None:
        """Pass it on, unless the server has greeted: then it is not to blame."""
        if self._greeting:
            self._session.finish(self._pipeline.backend_lost)
        else:
            self._session.backend_lost(backend)

    def backend_received(self, octets: bytes) -> None:
        """Pass octets of the MTA on, unless a fault concerns them."""
        self._session.finish(partial(self._receive, octets))

    def _receive(self, octets: bytes, now: float) -> None:
        if self._greeting:
            self._greeting += octets
            if len(self._greeting) > REPLY_LIMIT:
                self._release_greeting()
        elif self._session.server_selection.open:
            self._take_greeting(octets)
        elif self._awaited is not None and self._pipeline.in_flight[:1] == [self._awaited[0]]:
            self._take_answer(*self._awaited, octets, now)
        else:
            if self._withheld is not None:
                self._withheld.delay(0.0)  # so no reply is taken for that to the end of data
            self._session.backend_received(octets)

    def _take_greeting(self, octets: bytes) -> None:
        session = self._session
        octets, why_not = session.server_selection.receive(octets)
        if why_not:
            session.give_up_server(why_not)
            return
        rule = self._faults.for_connection() if octets else None
        if rule is None:
            if octets:
                session.backend_received(octets)
            return
        self._note(rule)
        if rule.action is FaultAction.REPLY:
            session.finish(partial(self._pipeline.fail, "fault_injected", rule.reply))
        elif rule.action in (FaultAction.DELAY, FaultAction.STALL):
            self._greeting = octets
            self._delay(rule, self._release_greeting)
        else:
            session.cut(reset=rule.action in _RESETS)

    def _release_greeting(self) -> None:
        greeting, self._greeting = self._greeting, b""
        self._session.backend_received(greeting)

    def _take_answer(self, exchange: Exchange, rule: FaultRule, octets: bytes, now: float) -> None:
        """Close the client's connection instead of passing on the reply to this exchange."""
        reader = self._reader
        reader.receive(octets)
        try:
            found = reader.next_reply()
        except BackendViolation:
            found = None
        else:
            if found is None:
                return
        if found is None:  # no reply: the session handles it
            octets = bytes(reader.unread)
            self._awaited, self._reader = None, ReplyReader(REPLY_LIMIT)
            self._session.backend_received(octets)
            return
        self._note(rule)
        exchange.add_step(b"" if exchange.verb.secret else found[1], now)
        self._session.cut(reset=rule.action in _RESETS)

    # --- commands -----------------------------------------------------------------------------

    def _intercept(self, exchange: Exchange) -> bool:
        """Return whether a command must wait; this is the pipeline's `intercept` callback."""
        if exchange is not self._intercepted:
            self._intercepted = exchange
            self._waits = not exchange.refusal and self._inject(exchange)
        return self._waits

    def _inject(self, exchange: Exchange) -> bool:
        """Inject the fault of a command, if there is one; return whether the command must wait."""
        pipeline = self._pipeline
        self._content = b"\r\n"
        is_data = exchange.verb.role == verbs.DATA
        pipeline.framer.connect_backend(self._send_content if is_data else pipeline.send_backend)
        rule = self._faults.for_command(exchange)
        if rule is None:
            return False
        if rule.action in _AFTER:
            self._awaited = exchange, rule
            return False
        self._note(rule)
        if rule.action is FaultAction.REPLY:
            return self._refuse(exchange, rule)
        self._delay(rule, self._resume)
        return True

    def _refuse(self, exchange: Exchange, rule: FaultRule) -> bool:
        """Refuse a command; return whether it must wait, since the session ends with its reply.

        That is so after 421 (RFC 5321 section 3.8), and after BDAT, whose payload follows.
        """
        if rule.reply.startswith(b"421") or exchange.verb.role == verbs.BDAT:
            self._pipeline.fail("fault_injected", rule.reply, monotonic())
            return True
        exchange.replace_reply(rule.reply % self._pipeline.policy.hostname)
        return False

    def _delay(self, rule: FaultRule, callback: Callable[[], None]) -> None:
        """Call a function after the delay of a rule; cut the session if that is its action."""
        loop = asyncio.get_running_loop()
        if rule.action is FaultAction.DELAY:
            self._later(loop.call_later(rule.seconds, callback))
        elif rule.action in _AT_ONCE:  # not within a call of the pipeline
            self._later(loop.call_soon(partial(self._session.cut, reset=rule.action in _RESETS)))

    def _resume(self) -> None:
        self._waits = False
        self._session.finish(self._pipeline.resume)

    # --- message content ----------------------------------------------------------------------

    def _send_content(self, octets: bytes) -> None:
        """Send message content to the MTA, and its end unless a fault concerns it."""
        pipeline = self._pipeline
        self._content = (self._content + octets[-len(_END) :])[-len(_END) :]
        if self._content != _END:
            pipeline.send_backend(octets)
            return
        pipeline.framer.connect_backend(pipeline.send_backend)
        content = pipeline.in_flight[0]
        rule = self._faults.for_command(content)
        if rule is None or rule.action in _AFTER:
            self._awaited = (content, rule) if rule else None
            pipeline.send_backend(octets)
            return
        self._note(rule)
        if rule.action is FaultAction.REPLY:  # as for content over a limit: the session ends
            content.replace_reply(rule.reply % pipeline.policy.hostname)
            return
        self._withheld = content
        send = partial(self._send_end, content, octets)
        self._delay(rule, partial(self._session.finish, send))

    def _send_end(self, content: Exchange, octets: bytes, now: float) -> None:
        self._withheld = None
        content.delay(now)
        self._pipeline.send_backend(octets)


def reset_connection(transport: asyncio.Transport) -> None:
    """Close a connection with a reset (RST), so that the peer gets an error."""
    opened = transport.get_extra_info("socket")
    if opened is not None and not transport.is_closing():
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
