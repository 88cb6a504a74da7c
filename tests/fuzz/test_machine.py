"""A session as a state machine: Hypothesis drives both sides, and looks for the shortest failure.

Unlike the fuzzer it knows what a client may say at each moment, so that its sessions go deep: whole
transactions, handshakes, AUTH exchanges, with anything else in between.  A longer run:
SMTPPROXY_MACHINE_EXAMPLES=20000 pytest tests/fuzz/test_machine.py
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from smtpproxy.core import framing
from tests.fuzz import server as backend
from tests.fuzz.run import run
from tests.fuzz.schedule import ANSWER, BACKEND, CLIENT, RULES, Schedule, Turn
from tests.fuzz.trial import Trial
from tests.fuzz.verdict import judge
from tests.support.effort import QUICK

COMMANDS = [
    b"MAIL FROM:<a>\r\n",
    b"MAIL FROM:<a> SIZE=99\r\n",
    b"SOML FROM:<a>\r\n",
    b"RCPT TO:<b>\r\n",
    b"rcpt to:<c>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY b\n",
    b"EHLO again\r\n",
    b"HELO again\r\n",
    b"AUTH LOGIN\r\n",
    b"STARTTLS\r\n",
    b"FROB x\r\n",
    b"TURN\r\n",
    b"\r\n",
    b"NOOP \r x\r\n",
    b"NO\0OP\r\n",
    b"x" * 3000 + b"\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT 4\r\nab\r\n",
    b"BDAT 5 LAST\r\n.\r\n\0\xfe",
]
PIECES = [
    b"text\r\n",
    b"..\r\n",
    b".",
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"\r\0",
    b"\0\n",
    b".\r\n",
    b"\r\n.\r\n",
    b"QUIT\r\n",
]
OFFERS = [b"", b" CHUNKING", b" PIPELINING|CHUNKING", b" STARTTLS|SIZE 9|XCLIENT ADDR|AUTH LOGIN"]
ODD = [
    b"250 x\r\n",
    b"250-",
    b"250 a\n",
    b"421 x\r\n",
    b"354 x\r\n",
    b"554 x\r\n",
    b"334 x\r\n",
    b"250 \0\r\n",
    b"x\r\n",
]


class Session(RuleBasedStateMachine):
    """A session whose next step Hypothesis draws; the verdict comes at its end."""

    @initialize(letters=st.frozensets(st.sampled_from(sorted(RULES)), max_size=3))
    def begin(self, letters: frozenset[str]) -> None:
        self.letters = letters - ({"t"} if letters & {"b", "B"} else set())
        self.turns: list[Turn] = []
        self.trial = Trial(Schedule(self.letters, ()))

    def _take(self, kind: str, octets: bytes = b"") -> None:
        self.turns.append(Turn(kind, octets))
        self.trial.take(kind, octets)

    @property
    def _goes_on(self) -> bool:
        return not (self.trial.ended or self.trial.handed_over)

    @precondition(lambda self: self._goes_on and self.trial.server.owed)
    @rule(code=st.sampled_from([b"", b"", b"", b"250", b"550", b"450", b"354", b"334", b"235"]))
    def answer(self, code: bytes) -> None:
        self._take(ANSWER, code)

    @precondition(lambda self: self._goes_on and self._owed == b"EHLO")
    @rule(offer=st.sampled_from(OFFERS))
    def offer(self, offer: bytes) -> None:
        self._take(ANSWER, b"250" + offer)

    @precondition(lambda self: self._goes_on and self._owed in (b"STARTTLS", b"XCLIENT"))
    @rule()
    def agree(self) -> None:
        self._take(ANSWER, b"220")

    @precondition(lambda self: self._goes_on)
    @rule(group=st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=5))
    def commands(self, group: list[bytes]) -> None:
        self._take(CLIENT, b"".join(group))

    @precondition(lambda self: self._goes_on)
    @rule()
    def hello(self) -> None:
        self._take(CLIENT, b"EHLO c\r\n")

    @precondition(lambda self: self._goes_on)
    @rule(refused=st.booleans())
    def transaction(self, *, refused: bool) -> None:
        self._take(CLIENT, b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n")
        for code in (b"", b"550" if refused else b"", b""):
            self._take(ANSWER, code)

    @precondition(lambda self: self._goes_on and self._mode == framing.CONTENT)
    @rule(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), end=st.booleans())
    def content(self, pieces: list[bytes], *, end: bool) -> None:
        self._take(CLIENT, b"".join(pieces) + b"\r\n.\r\n" * end)

    @precondition(lambda self: self._goes_on and self._mode == framing.AUTH_DATA)
    @rule(
        line=st.sampled_from(
            [b"cXVpdA==\r\n", b"*\r\n", b"QUIT\r\n", b"\r\n", b"a\rb\r\n", b"\0\n"]
        )
    )
    def auth_line(self, line: bytes) -> None:
        self._take(CLIENT, line)

    @precondition(lambda self: self._goes_on)
    @rule(octets=st.binary(min_size=1, max_size=6).map(lambda it: it.replace(b"\xff", b"\r\n")))
    def noise(self, octets: bytes) -> None:
        self._take(CLIENT, octets)

    @precondition(lambda self: self._goes_on and self.trial.server.state != backend.TLS)
    @rule(octets=st.sampled_from(ODD))
    def backend_breaks(self, octets: bytes) -> None:
        self._take(BACKEND, octets)

    @precondition(lambda self: self._goes_on and self.trial.upgrades)
    @rule(kind=st.sampled_from("tun"))
    def handshake(self, kind: str) -> None:
        self._take(kind)

    @precondition(lambda self: self._goes_on)
    @rule(kind=st.sampled_from("hhdelxs"))
    def happening(self, kind: str) -> None:
        self._take(kind)

    @rule()
    def quit(self) -> None:
        self._take(CLIENT, b"QUIT\r\n")

    @property
    def _owed(self) -> bytes:
        owed = self.trial.server.owed
        return owed[0].verb if owed else b""

    @property
    def _mode(self) -> int:
        return self.trial.pipeline.framer.mode

    def teardown(self) -> None:
        if not hasattr(self, "trial"):
            return
        self.trial.settle()
        judge(self.trial)
        self.trial.finish()
        run(Schedule(self.letters, tuple(self.turns)).encode())  # and in single octets


TestSession = Session.TestCase
TestSession.settings = settings(QUICK, stateful_step_count=30)
