"""The trial: plays one schedule, and checks all invariants after each step."""

from smtpproxy.core.framing import CHUNK as READS_CHUNK
from smtpproxy.core.framing import CONTENT as READS_CONTENT
from smtpproxy.core.framing import ENDED
from smtpproxy.core.replies import REPLY_LIMIT
from smtpproxy.core.reply_buffer import HELD_OCTETS
from tests.fuzz import server as backend
from tests.fuzz.schedule import ANSWER, BACKEND, CLIENT, HAPPENINGS, Schedule
from tests.fuzz.server import Server
from tests.support.pipeline_stage import Introduced, Stage, check_observed

PATIENCE = 3000
"""Turns within which a session must be at rest, if the server answers what it owes."""
CUT_UP = 1000
"""The limit of octets that arrive one by one, since each costs time."""


class Introduction(Introduced):
    """Like the real one, it sends XCLIENT even if the backend offers no attribute."""

    def lines(self, attributes: frozenset[bytes], hello: bytes) -> list[bytes]:
        return super().lines(attributes, hello) or [self.verb + b"\r\n"]


class Trial(Stage):
    """A session whose two sides follow a schedule.

    octet_by_octet: the same, but the client's octets and the server's answers come one by one.
    epochs: what the client has sent, in plaintext and then inside TLS.
    server: the backend.
    """

    def __init__(self, schedule: Schedule, *, octet_by_octet: bool = False) -> None:
        super().__init__(schedule.policy)
        self.schedule = schedule
        self.server = Server(schedule.policy)
        self.epochs = [b""]
        self._octet_by_octet = octet_by_octet
        self._coming = b""  # of the client, while it may not be read
        self._over = self._lost = self._client_ended = False
        self._longest = 0
        self.pipeline.connect_backend(self._send_backend)
        if "X" in schedule.letters:
            self.pipeline.ehlo.pass_address(Introduction("XCLIENT"))

    def play(self) -> None:
        """Play all turns; then send the server's replies until the session is at rest."""
        for turn in self.schedule.turns:
            self.take(turn.kind, turn.octets)
        self.settle()

    @property
    def ended(self) -> str:
        return self.pipeline.ended

    @property
    def handed_over(self) -> bool:
        """Whether both connections belong to the caller, which relays octets now."""
        return "tunnel" in self.upgrades

    @property
    def waits_for_nobody(self) -> bool:
        """Whether some commands may never get a reply."""
        return bool(self.ended or self.handed_over or self.server.in_a_reply)

    def finish(self) -> None:
        """End what is still active."""
        self._over = self._over or bool(self.ended)
        self.happen("stop")
        assert self.ended
        check_observed(self)

    def clear_written(self) -> None:
        """Clear what was written, but not the pending handshakes."""
        self.to_client.clear()
        self.to_backend.clear()

    # --- turns ------------------------------------------------------------------------------------

    def take(self, kind: str, octets: bytes = b"") -> None:
        """Play one turn; skip one that is not possible now."""
        if self.handed_over:
            return
        if kind == CLIENT:
            self._coming += octets
        elif kind in (ANSWER, BACKEND):
            self._take_backend(kind, octets)
        else:
            self._take_happening(HAPPENINGS[kind])
        self._let_come()

    def _take_backend(self, kind: str, octets: bytes) -> None:
        server = self.server
        if self._lost or self.ended or server.state == backend.TLS:
            return
        if kind == BACKEND:
            self._say(octets, len(octets))
        elif server.owed and not server.in_a_reply:
            answer = server.answer(octets)
            self._say(answer, 1 if self._octet_by_octet else len(answer))

    def _say(self, octets: bytes, size: int) -> None:
        for at in range(0, len(octets), size):
            if not self.ended:
                self.server.say(octets[at : at + size])
                self.backend(octets[at : at + size])
                self._look()

    def _take_happening(self, what: str) -> None:
        handshakes = {"client secured": "client", "backend secured": "backend"}
        if what == "not secured":
            possible = bool(self.upgrades)
        elif what in handshakes:
            possible = self.upgrades[-1:] == [handshakes[what]]
        elif what == "C: EOF":
            possible = not (self._client_ended or self._coming or self.upgrades == ["client"])
            self._client_ended = self._client_ended or possible
        else:
            possible = not (what == "B< EOF" and (self._lost or self.server.state == backend.TLS))
            self._lost = self._lost or (possible and what == "B< EOF")
        if not possible or (self.ended and what in handshakes):
            return
        if what in handshakes:
            self.upgrades.clear()
        if what == "client secured":
            self.epochs.append(b"")
        elif what == "backend secured":
            self.server.secured()
        self.happen(what)
        self._look()

    def _let_come(self) -> None:
        """Deliver the client's octets, as long as it is read."""
        while self._coming and not (self.ended or self.pipeline.full or self._client_ended):
            if "client" in self.upgrades:
                return
            single = self._octet_by_octet and len(self.epochs[-1]) < CUT_UP
            size = 1 if single else len(self._coming)
            framer, most = self.pipeline.framer, self.schedule.policy.queue_bytes
            if framer.queue_octets + len(framer.unframed) >= most:
                assert b"\n" not in framer.unframed, "it reads on, and whole lines wait"
            octets, self._coming = self._coming[:size], self._coming[size:]
            self._longest = max(self._longest, size)
            self.epochs[-1] += octets
            self.client(octets)
            self._look()

    def settle(self) -> None:
        """Complete handshakes, and send the server's replies, until nothing more happens."""
        for _ in range(PATIENCE):
            if self.ended or self.handed_over:
                break
            if self.upgrades:
                self.take("t" if self.upgrades[-1] == "client" else "u")
            elif self.server.owed and not (
                self._lost or self.server.broken or self.server.in_a_reply
            ):
                self.take(ANSWER)
            elif self.pipeline.reply_buffer.exchanges and self._awaits_payload:
                self.take("h")
            else:
                break
        else:
            raise AssertionError("the session does not come to rest")
        if not self.waits_for_nobody:
            assert not self._coming or self._client_ended, "it is full for good"
            assert not self.pipeline.reply_buffer.exchanges
            assert not self._client_ended, "the client is gone, and served, and yet it goes on"

    @property
    def _awaits_payload(self) -> bool:
        return self.pipeline.framer.mode == READS_CHUNK

    # --- what must hold at every moment -----------------------------------------------------------

    def _write(self, octets: bytes) -> None:
        assert not self._over, f"{octets!r} to the client after the end"
        super()._write(octets)

    def _send_backend(self, octets: bytes) -> None:
        assert octets
        assert not self.ended, f"{octets!r} after the end"
        assert not self._lost, f"{octets!r} to a server that is gone"
        self.to_backend.append(octets)
        self.server.receive(octets)

    def _look(self) -> None:
        pipeline, framer, policy = self.pipeline, self.pipeline.framer, self.schedule.policy
        held = pipeline.reply_buffer.exchanges
        if self.ended:
            self._over = True
            assert framer.mode == ENDED
            assert [*pipeline.in_flight, *framer.queue, *framer.unframed, *held] == []
            return
        pipeline.waiting()
        server = self.server
        if server.broken or server.unasked or (server.in_a_reply and self._lost):
            reads_content = framer.mode in (READS_CONTENT, READS_CHUNK) or framer.chunk_refusal
            assert reads_content, "the server broke the protocol, and it goes on"
        assert len(framer.queue) <= policy.queue_commands
        assert framer.queue_octets == sum(len(each.line) for each in framer.queue)
        assert len(framer.unframed) <= policy.queue_bytes + max(self._longest, policy.auth_line)
        assert len(pipeline.matcher.reader.unread) < REPLY_LIMIT
        assert pipeline.reply_buffer.octets == sum(len(each.reply) for each in held)
        assert pipeline.reply_buffer.octets < HELD_OCTETS
        assert not held or framer.queue or pipeline.in_flight
        assert all(each.verb.groupable for each in held)
