"""Held replies: they wait for those that are to go to the client with them in one write."""

from collections.abc import Callable

from smtpproxy.core.exchange import Exchange, Observer

HELD_OCTETS = 16 * 1024
"""Held replies are flushed when they are this long."""


class Held:
    """The exchanges whose replies the client has not got yet, in order.

    exchanges, octets: they, and how long their replies are together.
    send_client: the sink for octets to the client.
    observer: is shown what was flushed.
    """

    __slots__ = ("exchanges", "observer", "octets", "send_client")

    def __init__(self, send_client: Callable[[bytes], None], observer: Observer) -> None:
        self.send_client = send_client
        self.observer = observer
        self.exchanges: list[Exchange] | tuple[()] = ()
        self.octets = 0

    def hold(self, exchange: Exchange, reply: bytes, code: int, now: float) -> None:
        """Keep a reply to the exchange until the next flush."""
        exchange.reply = reply
        exchange.code = code
        exchange.replied = now
        if self.exchanges:
            self.exchanges.append(exchange)
        else:
            self.exchanges = [exchange]  # there is no list in an idle session (bench S5)
        self.octets += len(reply)

    def flush(self, now: float) -> Exchange | None:
        """Send them to the client in one write, and show them to the observer; return the last."""
        exchanges = self.exchanges
        if not exchanges:
            return None
        self.exchanges = ()
        self.octets = 0
        if len(exchanges) == 1:
            self.send_client(exchanges[0].reply)
        else:
            self.send_client(b"".join([exchange.reply for exchange in exchanges]))
        for exchange in exchanges:
            exchange.flushed = now
        if exchange.verb.secret:  # never held, so it can only be the last
            exchange.cut_quoted()
        self.observer.settled(exchanges)
        return exchange
