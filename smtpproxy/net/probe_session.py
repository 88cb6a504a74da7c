"""The session of a health probe, such as that of a load balancer.

It serves the clients in `listeners.NAME.probes`.  The proxy replies itself, without a connection to
the MTA; `/readyz` reports whether the MTA is up.  Only the commands of probes are answered, and any
other command ends the session with 421, so no mail is accepted.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from smtpproxy.core import replies
from smtpproxy.core.observer import SessionSummary

if TYPE_CHECKING:
    from smtpproxy.net.listener_context import ListenerContext
    from smtpproxy.net.peer import Peer
    from smtpproxy.net.shared_counters import CounterSlots

MOST_COMMANDS = 20
"""The limit of commands in one session, which also bounds unread replies."""
LINE_OCTETS = 512
"""The limit of a command line (RFC 5321 section 4.5.3.1.4)."""
_GREETING = b"220 %b ESMTP\r\n"
_HELLO, _OK = b"250 %b\r\n", b"250 2.0.0 Ok\r\n"
_ANSWERS = {b"EHLO": _HELLO, b"HELO": _HELLO, b"NOOP": _OK, b"RSET": _OK}
_QUIT = b"221 2.0.0 %b closing connection\r\n"


class ProbeSession(asyncio.Protocol):
    """A session of a probe; it is a `TimedSession`.

    Args:
        listener_context: The context of its listener.
        peer: The client.
        counter_slots: Its counter slots, if the client has been admitted already.
    """

    def __init__(
        self,
        listener_context: "ListenerContext",
        peer: "Peer",
        counter_slots: "CounterSlots | None",
    ) -> None:
        self._listener_context = listener_context
        self._hostname = listener_context.policy.hostname
        self._peer = peer
        self._counter_slots = counter_slots
        self._line = b""
        self._commands = self._octets = 0
        self._reason = ""
        self._started = self._active = monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the greeting."""
        self._transport = cast("asyncio.Transport", transport)
        admission = self._listener_context.admission
        if admission is not None and self._counter_slots is None:
            opened = transport.get_extra_info("socket")
            # The limits by address do not apply to probes.
            self._counter_slots = admission.enter("", opened.fileno() if opened else -1)
            if self._counter_slots is None:
                self._end("turned_away", admission.refusal)
        self._listener_context.timeouts.add(self)
        if not self._reason:
            self._transport.write(_GREETING % self._hostname)

    def data_received(self, data: bytes) -> None:
        """Answer commands."""
        self._active = monotonic()
        self._octets += len(data)
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if self._reason:
                return
            self._commands += 1
            self._answer(line.split(maxsplit=1)[:1])
        if len(self._line) > LINE_OCTETS:
            self._end("not_a_probe", replies.PROBE_ONLY % self._hostname)

    def _answer(self, words: list[bytes]) -> None:
        verb = words[0].upper() if words else b""
        if verb == b"QUIT":
            self._end("quit", _QUIT % self._hostname)
        elif verb in _ANSWERS and self._commands <= MOST_COMMANDS:
            self._transport.write(_ANSWERS[verb].replace(b"%b", self._hostname))
        else:
            self._end("not_a_probe", replies.PROBE_ONLY % self._hostname)

    def eof_received(self) -> None:
        """Close the connection after the client's half-close."""
        self._reason = self._reason or "client_closed"

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Report the end of the session."""
        self._listener_context.timeouts.remove(self)
        if self._counter_slots is not None and self._listener_context.admission is not None:
            self._listener_context.admission.leave(self._counter_slots)
        observer = self._listener_context.observer.session(
            self._listener_context.name, self._listener_context.backend, self._peer.name
        )
        seconds = monotonic() - self._started
        reason = self._reason or "client_lost"
        observer.closed(
            SessionSummary(reason, seconds, self._commands, 0, 0, self._octets, 0, probe=True)
        )

    def _end(self, reason: str, reply: bytes) -> None:
        if not self._reason:
            self._reason = reason
            self._transport.write(reply)
            self._transport.close()

    # --- the interface of TimedSession ---------------------------------------------------------

    def waiting(self) -> tuple[str, float]:
        """Return the time limit that runs, and since when."""
        return ("close" if self._reason else "client"), self._active

    def expire(self, limit: str, now: float) -> None:  # noqa: ARG002
        """End the session at a time limit."""
        if self._reason:
            self._transport.abort()
        self._end(f"{limit}_time_limit", replies.TIME_LIMIT % self._hostname)

    def release(self, now: float) -> bool:  # noqa: ARG002
        """Return that no reply is held."""
        return False

    def drain(self) -> None:
        """End the session with 421."""
        self._end("draining", replies.DRAINING % self._hostname)

    def stop(self) -> None:
        """End the session at once."""
        self._reason = self._reason or "stopped"
        self._transport.abort()
