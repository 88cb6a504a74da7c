"""The stage: a pipeline, with the test as both peers and as observer."""

import re
from functools import partial

from smtpproxy.core import replies
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.pipeline import Pipeline
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.starttls import Upgrade
from smtpproxy.core.xclient_xforward import AttributeCommands

INTRODUCED = (b"HELO=%b", b"ADDR=192.0.2.1")
"""The attributes that pass the client's address, each in a separate line."""


class Introduced:
    """Makes the commands that pass the client's address."""

    def __init__(self, verb: str) -> None:
        self.verb = verb.encode()

    def lines(self, attributes: frozenset[bytes], hello: bytes) -> list[bytes]:
        """Return a line for each attribute in INTRODUCED that the backend offers.

        If LOGIN is offered, it names joe, in a line with the address.
        """
        words = [word % hello[5:].strip() if b"%" in word else word for word in INTRODUCED]
        if {b"LOGIN", b"ADDR"} <= attributes:
            return [self.verb + b" LOGIN=joe " + words[-1] + b"\r\n"]
        return [
            self.verb + b" " + word + b"\r\n" for word in words if word.split(b"=")[0] in attributes
        ]


class Observed(list[Exchange]):
    """All exchanges that an observer got."""

    def settled(self, exchanges: list[Exchange]) -> None:
        self.extend(exchanges)

    def content(self, exchange: Exchange, sent: bytes, came: bytes) -> None:  # noqa: ARG002
        assert not exchange.code, "content of an exchange that has its reply"


class Stage:
    """A pipeline, with the test as both sides and as observer.

    to_client, to_backend: what was written since they were last cleared.  observed: all exchanges
    that an observer was shown.  The clock goes on by one second with each call.
    """

    def __init__(self, policy: SessionPolicy | None = None) -> None:
        self.now = 1000.0
        self.to_client: list[bytes] = []
        self.to_backend: list[bytes] = []
        self.observed = Observed()
        self.sent_to_client = b""
        self.pipeline = Pipeline(
            policy or SessionPolicy(hostname=b"proxy"),
            self._write,
            self.observed,
            self.now,
            self.observed.content,
        )
        self.pipeline.connect_backend(self.to_backend.append)
        self.pipeline.allow_upgrades(self._upgrade, self._introduce)
        self.upgrades: list[str] = []
        self.introduced = ""
        self.refusal = b""  # of the client's XCLIENT

    def pass_address(self, commands: AttributeCommands) -> None:
        """Have the client's address passed to the backend by these commands."""
        self.pipeline.allow_upgrades(self._upgrade, self._introduce, commands)

    def _upgrade(self, what: Upgrade) -> None:
        self.upgrades.append(what.value)

    def _introduce(self, line: bytes) -> bytes:
        self.introduced += line.decode().rstrip()
        return self.refusal

    def _write(self, octets: bytes) -> None:
        assert octets, "an empty write"
        self.to_client.append(octets)
        self.sent_to_client += octets

    def clear(self) -> None:
        """Clear what was written so far."""
        self.to_client.clear()
        self.to_backend.clear()
        self.upgrades.clear()
        self.introduced = ""

    def client(self, octets: bytes) -> None:
        """Send a segment as the client."""
        self.now += 1
        self.pipeline.client_received(octets, self.now)

    def backend(self, octets: bytes) -> None:
        """Send a segment as the backend."""
        self.now += 1
        self.pipeline.backend_received(octets, self.now)

    def happen(self, kind: str, octets: bytes = b"") -> None:
        """Play another event."""
        self.now += 1
        pipeline = self.pipeline
        if kind == "unavailable":
            pipeline.backend_unavailable(octets, self.now)
            return
        {
            "C: EOF": pipeline.client_eof,
            "C: RST": pipeline.client_lost,
            "B< EOF": pipeline.backend_lost,
            "hold": pipeline.flush,
            "expire": partial(pipeline.expire, pipeline.waiting()[0]),
            "drain": pipeline.drain,
            "reclaim": partial(pipeline.drain, reason="connection_slot_reclaimed"),
            "stop": partial(pipeline.fail, "stopped", replies.DRAINING),
            "break down": partial(pipeline.fail, "internal_error", replies.INTERNAL_ERROR),
            "no place": partial(pipeline.fail, "backend_full", replies.BACKEND_FULL),
            "client secured": pipeline.client_secured,
            "backend secured": pipeline.backend_secured,
            "not secured": self._not_secured,
        }[kind](self.now)

    def _not_secured(self, now: float) -> None:
        if not self.pipeline.restart_in_plaintext():
            self.pipeline.fail("backend_tls_failed", replies.BACKEND_TLS_FAILED, now)

    def come_to(self, given: str) -> None:
        """Play the usual start of a session up to where a transcript begins."""
        state, *capabilities = given.split()
        order = ("greeting", "EHLO", "MAIL", "DATA")
        level = 1 if state == "HELO" else order.index(state)
        self.backend(b"220 mx ESMTP\r\n")
        if state == "HELO":
            self._command(b"HELO client", b"250 mx")
        elif level >= 1:
            offer = "".join(f"250-{word}\r\n" for word in ["mx", *capabilities])
            self._command(b"EHLO client", f"{offer}250 SIZE".encode())
        if level >= 2:
            self._command(b"MAIL FROM:<a@a>", b"250 sender")
            self._command(b"RCPT TO:<b@b>", b"250 recipient")
        if level == 3:
            self._command(b"DATA", b"354 go")
        assert not self.pipeline.ended, given
        self.clear()

    def _command(self, line: bytes, reply: bytes) -> None:
        self.client(line + b"\r\n")
        self.backend(reply + b"\r\n")


def check_observed(stage: Stage) -> None:
    """Check what holds for the exchanges of any session."""
    flushed = [exchange for exchange in stage.observed if exchange.flushed]
    if stage.sent_to_client != b"".join(exchange.reply for exchange in flushed):
        reported = b"".join(_pattern(exchange) for exchange in flushed)
        assert re.fullmatch(reported, stage.sent_to_client)
    assert len({id(exchange) for exchange in stage.observed}) == len(stage.observed)
    for exchange in flushed:
        assert exchange.framed <= exchange.replied <= exchange.flushed
        assert not exchange.sent or exchange.framed <= exchange.sent <= exchange.replied
        assert 200 <= exchange.code <= 599


def _pattern(exchange: Exchange) -> bytes:
    """Return a pattern for what the client got, with redacted parts as wildcards."""
    reply = exchange.reply
    if exchange.verb.secret and reply.endswith(b"*\r\n"):
        return re.escape(reply[:3]) + rb"[^\r]*\r\n(?:[0-9]{3}[^\r]*\r\n)*?"
    return re.escape(reply)


def seen_by_observers(exchanges: list[Exchange]) -> bytes:
    """Return all octets that observers get in exchanges."""
    return b"\n".join(
        b"\n".join(
            (
                exchange.line,
                exchange.reply,
                exchange.refusal,
                repr(exchange).encode(),
                exchange.problem.octets if exchange.problem else b"",
                str(exchange.problem).encode(),
            )
        )
        for exchange in exchanges
    )
