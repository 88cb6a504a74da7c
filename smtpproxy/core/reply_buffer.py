"""The reply buffer: holds replies, so that several go to the client in one write.

The flush rule (RFC 2920 section 3.2, items 2, 5, 6 and 7): held replies are sent as soon as one of
these is true:

- the last reply answers a command that must end a group, so it may not be held;
- no other reply will follow: no complete command waits, and the backend owes no reply;
- the held replies have `HELD_OCTETS` together;
- the first one has been held for the time limit.  The core has no clock, so the caller compares
  `since` with its own clock, and flushes.
"""

from collections.abc import Callable
from typing import Final

from smtpproxy.core.exchange import Exchange, ExchangeObserver

HELD_OCTETS: Final = 16 * 1024
"""The total length at which held replies are flushed."""


class ReplyBuffer:
    """The exchanges whose replies have not been sent to the client yet, in order."""

    __slots__ = ("exchanges", "observer", "octets", "send_client", "since")

    send_client: Callable[[bytes], None]
    """The sink for octets to the client."""
    observer: ExchangeObserver
    """Gets the exchanges that were flushed."""
    exchanges: list[Exchange] | tuple[()]
    """The exchanges whose replies are held."""
    octets: int
    """The total length of the held replies."""
    since: float
    """When the first held reply arrived; 0.0 if none is held."""

    def __init__(self, send_client: Callable[[bytes], None], observer: ExchangeObserver) -> None:
        self.send_client = send_client
        self.observer = observer
        self.exchanges = ()
        self.octets = 0
        self.since = 0.0

    def connect_client(self, send_client: Callable[[bytes], None]) -> None:
        """Replace the sink for octets to the client."""
        self.send_client = send_client

    # Hot path (bench S2): called once per reply.
    def hold(self, exchange: Exchange, reply: bytes, code: int, now: float, more: bool) -> bool:
        """Hold the reply to an exchange.

        Args:
            exchange: The exchange, whose reply, code and time are set here.
            reply: The reply for the client, all lines with their CRLF.
            code: Its code.
            now: The time.
            more: Whether another reply will follow: a complete command waits, or the backend owes
                a reply.

        Returns:
            Whether the held replies must be flushed now, by the flush rule.
        """
        exchange.reply = reply
        exchange.code = code
        exchange.replied = now
        exchanges = self.exchanges
        if exchanges:
            exchanges.append(exchange)
        else:
            self.exchanges = [exchange]  # an idle session has no list (bench S5)
            self.since = now
        self.octets += len(reply)
        return not more or not exchange.verb.groupable or self.octets >= HELD_OCTETS

    def flush(self, now: float) -> Exchange | None:
        """Send the held replies to the client in one write, and pass them to the observer.

        Returns:
            The exchange of the last reply; None if no reply was held.
        """
        exchanges = self.exchanges
        if not exchanges:
            return None
        self.exchanges = ()
        self.octets = 0
        self.since = 0.0
        if len(exchanges) == 1:
            self.send_client(exchanges[0].reply)
        else:
            self.send_client(b"".join([exchange.reply for exchange in exchanges]))
        for exchange in exchanges:
            exchange.flushed = now
        if exchange.verb.secret:  # may not be held, so only the last one can be secret
            exchange.redact_reply()
        self.observer.settled(exchanges)
        return exchange
