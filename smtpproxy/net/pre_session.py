"""The pre-session: reads a PROXY header or makes the implicit TLS handshake before a session.

It is used only at listeners that need it.  A client that must send a PROXY header and does not gets
421.  With implicit TLS, a client with a missing or unexpected PROXY header gets a TLS alert; a
client whose handshake fails, or that is not admitted, is closed without a reply.
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from smtpproxy.core import replies
from smtpproxy.core.lines import PROXY_HEADERS, may_begin_proxy_header
from smtpproxy.core.observer import SessionSummary
from smtpproxy.net import tproxy
from smtpproxy.net.client_connection import ClientConnection, recognized, turn_away
from smtpproxy.net.listener_security import is_in
from smtpproxy.net.probe_session import ProbeSession
from smtpproxy.net.proxy_protocol import BadProxyHeader, read_header
from smtpproxy.tls import handshake

if TYPE_CHECKING:
    from smtpproxy.net.listener_context import ListenerContext
    from smtpproxy.net.listener_security import ListenerSecurity
    from smtpproxy.net.shared_counters import CounterSlots

HEADER_WAIT_S = 1.0
"""A probe that owes a PROXY header may send none, and waits for the greeting: after this time it is
taken for a probe.  A proxy in front sends a header at once."""
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x0a"
"""The refusal with implicit TLS: a fatal alert, unexpected_message (RFC 8446 section 6)."""


class PreSession(asyncio.Protocol):
    """A client without a session yet; it is a `TimedSession`."""

    def __init__(self, listener_context: "ListenerContext", security: "ListenerSecurity") -> None:
        self._listener_context = listener_context
        self._security = security
        self._octets = b""
        self._started = monotonic()
        self._owes_header = False
        self._handshake: asyncio.Task[None] | None = None
        self._counter_slots: CounterSlots | None = None
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the PROXY header if the client must send one, else continue."""
        self._transport = cast("asyncio.Transport", transport)
        peer = recognized(self._listener_context, self._transport)
        if peer is None:
            return
        if self._security.transparent:
            opened = transport.get_extra_info("socket")
            peer = tproxy.with_original_target(peer, opened, self._security.own_port)
        self._peer = peer
        if self._is_one_too_many():
            return
        self._listener_context.timeouts.add(self)
        self._owes_header = is_in(self._peer.host, self._security.proxies)
        if not self._owes_header:
            self._go_on()
        elif self._is_probe and not self._security.implicit:
            asyncio.get_running_loop().call_later(HEADER_WAIT_S, self._stop_waiting_for_header)

    @property
    def _is_probe(self) -> bool:
        return is_in(self._peer.host, self._security.probes)

    def _stop_waiting_for_header(self) -> None:
        if self._owes_header and not self._octets and not self._over:
            self._owes_header = False
            self._go_on()

    def _is_one_too_many(self) -> bool:
        """Refuse the client if file descriptors are short; return whether it was refused."""
        admission, opened = (
            self._listener_context.admission,
            self._transport.get_extra_info("socket"),
        )
        if admission is None or not opened:
            return False
        if not admission.lacks_descriptors(opened.fileno(), self._peer.host):
            return False
        self._over = True
        turn_away(self._transport, b"" if self._security.implicit else admission.refusal)
        return True

    def data_received(self, data: bytes) -> None:
        """Process the PROXY header or the ClientHello, and keep octets after it."""
        self._octets += data
        if not self._owes_header:
            self._shake_hands()
            return
        try:
            peer, taken = read_header(self._octets)
        except BadProxyHeader as error:
            if not self._is_probe or self._octets.startswith(PROXY_HEADERS):
                self._turn_away("bad_proxy_header", str(error))
                return
            self._owes_header = False
            self._go_on()
            return
        if taken:
            self._octets = self._octets[taken:]
            self._peer = peer or self._peer
            self._owes_header = False
            self._go_on()

    def eof_received(self) -> None:
        """Refuse a client that closes before it has sent a complete header or handshake."""
        self._cut_short()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Process the loss of the connection."""
        if self._owes_header:
            self._turn_away("client_lost", "")
        else:
            self._cut_short()

    def _cut_short(self) -> None:
        if not self._octets and self._handshake is None:
            self._turn_away("client_lost", "")  # a check by a load balancer
            return
        self._turn_away(
            "bad_proxy_header" if self._owes_header else "client_tls_failed", "cut short"
        )

    # --- the interface of TimedSession ---------------------------------------------------------

    def waiting(self) -> tuple[str, float]:
        """Return the time limit that runs, and since when."""
        if self._handshake is not None:
            return "handshake", self._started
        return ("proxy_header" if self._owes_header else "client_hello"), self._started

    def expire(self, limit: str, now: float) -> None:  # noqa: ARG002
        """Refuse the client at a time limit."""
        self._turn_away(f"{limit}_time_limit", "nothing received")

    def release(self, now: float) -> bool:  # noqa: ARG002
        """Return that no reply is held."""
        return False

    def drain(self) -> None:
        """End at once, since no session has started."""
        self._turn_away("draining", "")

    def stop(self) -> None:
        """End at once."""
        self._turn_away("stopped", "")

    # --- the handshake and the session --------------------------------------------------------

    def _go_on(self) -> None:
        if not self._security.implicit:
            self._begin_session(self._transport)
            return
        if not self._count_in():
            self._leave()
            self._transport.abort()  # a client that expects TLS cannot read a plaintext reply
            return
        self._started = monotonic()
        if self._octets:
            self._shake_hands()

    def _shake_hands(self) -> None:
        """Start the handshake with the client's first octets, usually a ClientHello."""
        if self._octets.startswith(PROXY_HEADERS):
            self._turn_away("proxy_header_unexpected", "")
            return
        if may_begin_proxy_header(self._octets):
            return  # not a ClientHello, so wait for the rest
        context = self._security.client
        assert context is not None
        early, self._octets = self._octets, b""
        self._handshake = handshake.begin(
            self._transport,
            context,
            self._begin_session,
            lambda why: self._turn_away("client_tls_failed", why),
            limit_s=self._security.handshake_s,
            early=early,
        )

    def _count_in(self) -> bool:
        """Admit the client before the expensive handshake; return whether it is admitted."""
        admission = self._listener_context.admission
        if admission is None:
            return True
        self._counter_slots = admission.enter("" if self._is_probe else self._peer.host)
        return self._counter_slots is not None

    def _begin_session(self, transport: asyncio.Transport) -> asyncio.Protocol:
        kind = ProbeSession if self._is_probe else ClientConnection
        connection = kind(self._listener_context, self._peer, self._counter_slots)
        self._counter_slots = None
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self._leave()
        protocol = cast("asyncio.Protocol", transport.get_protocol())  # changed if it was refused
        if self._octets:
            protocol.data_received(self._octets)
        return protocol

    def _leave(self) -> None:
        self._over = True
        self._listener_context.timeouts.remove(self)
        if self._counter_slots is not None and self._listener_context.admission is not None:
            self._listener_context.admission.leave(self._counter_slots)
            self._counter_slots = None

    def _turn_away(self, reason: str, why: str) -> None:
        if self._over:
            return
        self._leave()
        if self._handshake is not None:
            self._handshake.cancel()
        setting = _SETTING.get(reason, "")
        if setting and not self._transport.is_closing():
            missing = replies.PROXY_MISSING % self._listener_context.policy.hostname
            turn_away(self._transport, TLS_ALERT if self._security.implicit else missing)
        else:
            self._transport.abort()
        observer = self._listener_context.observer.session(
            self._listener_context.name, self._listener_context.backend, self._peer.name
        )
        if why or setting:
            why = "; ".join(filter(None, (why, setting)))
            observer.noted("client_turned_away", kind=reason, reason=why)
        seconds = monotonic() - self._started
        silent = reason == "client_lost" and not self._octets
        observer.closed(SessionSummary(reason, seconds, 0, 0, 0, len(self._octets), 0, silent))


_EXPECTED = "its network is in proxy_protocol"
_SETTING = {
    "bad_proxy_header": _EXPECTED,
    "proxy_header_time_limit": _EXPECTED,
    "proxy_header_unexpected": "its network is not in proxy_protocol",
}
"""The setting that decides whether a client must send a PROXY header, for the log."""
