"""The reply buffer: replies wait here for others that are to go to the client in the same write.

The flush rule (RFC 2920 section 3.2, items 2, 5, 6 and 7).  Held replies go out as soon as one of
these is true:

- the last one answers a command that does not belong in a group: its reply may not wait;
- nothing more is to be answered: no whole command waits, and the backend owes no reply;
- they are HELD_OCTETS long;
- the first of them has been held for too long.  The core has no clock, so the caller looks after
  that: it compares `since` with its own time, and flushes.
"""

from collections.abc import Callable
from typing import Final

from smtpproxy.core.exchange import Exchange, ExchangeObserver

HELD_OCTETS: Final = 16 * 1024
"""Held replies are flushed when they are this long together."""


class ReplyBuffer:
    """The exchanges whose replies the client has not got yet, in order."""

    __slots__ = ("exchanges", "observer", "octets", "send_client", "since")

    send_client: Callable[[bytes], None]
    """The sink for octets to the client."""
    observer: ExchangeObserver
    """Is shown what was flushed."""
    exchanges: list[Exchange] | tuple[()]
    """Those whose replies are held."""
    octets: int
    """How long their replies are together."""
    since: float
    """When the first of them came; 0.0 if none is held."""

    def __init__(self, send_client: Callable[[bytes], None], observer: ExchangeObserver) -> None:
        self.send_client = send_client
        self.observer = observer
        self.exchanges = ()
        self.octets = 0
        self.since = 0.0

    # Hot path (bench S2): each reply passes here once.
    def hold(self, exchange: Exchange, reply: bytes, code: int, now: float, more: bool) -> bool:
        """Hold the reply to an exchange.

        Args:
            more: Another reply will follow: a whole command waits, or the backend owes a reply.

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
            self.exchanges = [exchange]  # there is no list in an idle session (bench S5)
            self.since = now
        self.octets += len(reply)
        return not more or not exchange.verb.groupable or self.octets >= HELD_OCTETS

    def flush(self, now: float) -> Exchange | None:
        """Send the held replies to the client in one write, and show them to the observer.

        Returns:
            The last exchange of them; None if no reply was held.
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
        if exchange.verb.secret:  # never held, so it can only be the last
            exchange.redact_reply()
        self.observer.settled(exchanges)
        return exchange
