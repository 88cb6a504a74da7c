"""Beforehand: what has to happen before a command may go out, where the rules ask for it.

The backend is told by XFORWARD whose message comes, each time, for it forgets that with the message
(Postfix's XFORWARD_README).  XCLIENT of a trusted client never goes out: its session makes way for
one of the client that is introduced.
"""

from typing import TYPE_CHECKING

from smtpproxy.core import commands, replies
from smtpproxy.core.exchange import Exchange, Step

if TYPE_CHECKING:
    from smtpproxy.core.pipeline import Pipeline


def holds_up(pipeline: "Pipeline", exchange: Exchange, now: float) -> bool:
    """Do what comes before a command; tell whether it may not go out yet, or never will."""
    role = exchange.verb.role
    announced = role == commands.MAIL and pipeline.hello.forward
    if exchange.refusal or not (announced or role == commands.XCLIENT):
        return False
    if pipeline.in_flight:  # what may yet begin or end a transaction
        return True
    return _forward(pipeline, now) if announced else _introduce(pipeline, exchange, now)


def _forward(pipeline: "Pipeline", now: float) -> bool:
    """Say the next line of XFORWARD, alone in flight."""
    hello = pipeline.hello
    if pipeline.transaction.open or hello.forwarded == len(hello.forward):
        hello.forwarded = 0
        return False
    own = Exchange(commands.FORWARDED, hello.forward[hello.forwarded], now)
    own.sent = now
    hello.forwarded += 1
    pipeline.in_flight.append(own)
    pipeline.send_backend(own.line)
    return True


def _introduce(pipeline: "Pipeline", exchange: Exchange, now: float) -> bool:
    """Let the client that XCLIENT names take this one's place, or have it refused."""
    if pipeline.draining:
        pipeline.fail("draining", replies.DRAINING, now)
    elif pipeline.transaction.open:
        exchange.refusal = replies.XCLIENT_IN_TRANSACTION
    else:
        exchange.refusal = pipeline.introduce(exchange.line)
        if not exchange.refusal:
            pipeline.end("introduced", now)
    return not exchange.refusal


def is_done(pipeline: "Pipeline", role: int, code: int, reply: bytes, now: float) -> bool:
    """Take the reply to XFORWARD; tell whether it was the proxy's own, of which no client hears."""
    if role == commands.XFORWARD:
        if code < 300:
            pipeline.hello.stop_forwarding()  # the client does it for its own messages
        return False
    take_back(pipeline, reply, now)
    if code >= 300:
        pipeline.hello.stop_forwarding()  # it is for a log only: no reason to keep the mail
    return True


def take_back(pipeline: "Pipeline", reply: bytes, now: float) -> None:
    """Have no XFORWARD in flight any more; the MAIL that it was said for tells of it."""
    in_flight = pipeline.in_flight
    if in_flight and in_flight[0].verb is commands.FORWARDED:
        own, mail = in_flight.pop(0), pipeline.framer.queue[0]
        step = Step(own.line, reply, own.sent, now if reply else 0.0)
        mail.steps = (*mail.steps, step)
