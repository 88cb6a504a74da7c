"""Bounded exhaustive search: every order in which small groups and their replies can arrive.

Each scenario is played once for every way to cut the client's octets near line ends, and for every
interleaving of these segments with the backend's replies; then again with either side's EOF at
every point.  The model MTA fails the search if it gets an octet while it owes a reply.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise, product

import pytest

from smtpproxy.core.policy import SessionPolicy
from tests.support.model_mta import EHLO_OFFER, Mta, MtaStage, replies_in

LOST = b"421 4.4.2 localhost Error: connection to mail server lost\r\n"


@dataclass(frozen=True)
class Scenario:
    """What a client sends in two parts, and all that it gets.

    begin: sent and answered before the search begins.  first: sent without waiting; then: when it
    has the replies to all of `first`.  expected: the replies to both.  ends_content: how many ends
    of data there are in begin, first and then.
    """

    name: str
    begin: tuple[bytes, ...]
    first: bytes
    then: bytes
    expected: tuple[bytes, ...]
    replies_to_first: int
    ends_content: int = 0
    pipelining: bool = False
    quits: bool = False


GROUP = b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<refused>\r\nDATA\r\n"
TO_GROUP = (
    b"250 MAIL FROM:<a>\r\n",
    b"250-first\r\n250 RCPT TO:<b>\r\n",
    b"550 RCPT TO:<refused>\r\n",
    b"354 go\r\n",
)
READY = (b"EHLO c\r\n",)
IN_CONTENT = (b"EHLO c\r\n", b"MAIL FROM:<c>\r\n", b"RCPT TO:<d>\r\n", b"DATA\r\n")
SCENARIOS = [
    Scenario(
        "a group with DATA", READY, GROUP, b"x\r\n.\r\n", (*TO_GROUP, b"250 queued 1\r\n"), 4, 1
    ),
    Scenario(
        "end of data and QUIT",
        IN_CONTENT,
        b"x\r\n.\r\nQUIT\r\n",
        b"",
        (b"250 queued 1\r\n", b"250 QUIT\r\n"),
        2,
        1,
        quits=True,
    ),
    Scenario(
        "end of data and the next transaction",
        IN_CONTENT,
        b".\r\n" + GROUP,
        b"y\r\n.\r\n",
        (b"250 queued 1\r\n", *TO_GROUP, b"250 queued 2\r\n"),
        5,
        2,
    ),
    Scenario(
        "MAIL, RCPT, BDAT LAST and payload",
        READY,
        b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 5 LAST\r\n\r\n.\r\nRSET\r\n",
        b"",
        (*TO_GROUP[:2], b"250 queued 1\r\n", b"250 RSET\r\n"),
        4,
        1,
    ),
    Scenario(
        "two chunks",
        (*READY, b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n"),
        b"BDAT 3\r\nabcBDAT 2 LAST\r\nde",
        b"NOOP\r\n",
        (b"250 chunk\r\n", b"250 queued 1\r\n", b"250 NOOP\r\n"),
        2,
        1,
    ),
    Scenario(
        "AUTH and its data",
        READY,
        b"AUTH LOGIN\r\n",
        b"QUIT\r\nNOOP\r\n",
        (b"334 challenge\r\n", b"235 auth QUIT\r\n", b"250 NOOP\r\n"),
        1,
    ),
    Scenario(
        "AUTH with its data sent ahead",
        READY,
        b"RSET\r\nAUTH LOGIN\r\nQUIT\r\nRSET\r\n",
        b"",
        (b"250 RSET\r\n", b"334 challenge\r\n", b"235 auth QUIT\r\n", b"250 RSET\r\n"),
        4,
    ),
    Scenario(
        "all recipients refused",
        READY,
        b"MAIL FROM:<a>\r\nRCPT TO:<refused>\r\nRCPT TO:<refused>\r\nDATA\r\n",
        b"QUIT\r\n",
        (
            TO_GROUP[0],
            TO_GROUP[2],
            TO_GROUP[2],
            b"554 5.5.1 Error: no valid recipients\r\n",
            b"250 QUIT\r\n",
        ),
        4,
        quits=True,
    ),
    Scenario(
        "commands that stand last, and one answered here",
        READY,
        b"RSET\r\nNOOP\r\nTURN\r\nFROB\r\nRSET\r\n",
        b"",
        (
            b"250 RSET\r\n",
            b"250 NOOP\r\n",
            b"502 5.5.1 Error: command not implemented\r\n",
            b"250 FROB\r\n",
            b"250 RSET\r\n",
        ),
        5,
    ),
    Scenario(
        "a group with DATA, the backend pipelining",
        READY,
        GROUP,
        b"x\r\n.\r\nMAIL FROM:<a>\r\n",
        (*TO_GROUP, b"250 queued 1\r\n", b"250 MAIL FROM:<a>\r\n"),
        4,
        1,
        pipelining=True,
    ),
    Scenario(
        "two chunks, the backend pipelining",
        (*READY, b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n"),
        b"BDAT 3\r\nabcBDAT 2 LAST\r\ndeMAIL FROM:<a>\r\nNOOP\r\n",
        b"",
        (b"250 chunk\r\n", b"250 queued 1\r\n", b"250 MAIL FROM:<a>\r\n", b"250 NOOP\r\n"),
        4,
        1,
        pipelining=True,
    ),
]


class Choices:
    """The choices of one run; `next_run` makes them those of the next one, depth first."""

    def __init__(self) -> None:
        self._taken: list[int] = []
        self._of: list[int] = []
        self._at = 0

    def choose(self, count: int) -> int:
        """Return a number below `count`, a different one in a later run."""
        if self._at == len(self._taken):
            self._taken.append(0)
            self._of.append(count)
        self._at += 1
        return self._taken[self._at - 1]

    def next_run(self) -> bool:
        """Go on to the next run; return whether there is one."""
        while self._taken and self._taken[-1] + 1 == self._of[-1]:
            self._taken.pop()
            self._of.pop()
        if self._taken:
            self._taken[-1] += 1
        self._at = 0
        return bool(self._taken)


class Run:
    """One run of a scenario: the events so far, and the checks after each event."""

    def __init__(self, scenario: Scenario, first: list[bytes], then: list[bytes]) -> None:
        self.scenario = scenario
        self.stage = MtaStage(SessionPolicy(), Mta(pipelining=scenario.pipelining))
        self.stage.settle()
        for octets in scenario.begin:
            self.stage.client(octets)
            self.stage.settle()
        self.stage.sent_to_client = b""
        self.segments = list(first)
        self.waiting = list(then)
        self.coming: list[bytes] = []  # parts of a reply that the backend has given
        self.given = b""  # all that it has given
        self.gone = ""  # the side whose EOF has come

    def events(self, *, split_replies: bool, eofs: bool) -> list[str]:
        """Return what can happen next."""
        if self.stage.pipeline.ended:
            return []
        got = len(replies_in(self.stage.sent_to_client))
        if not self.segments and got >= self.scenario.replies_to_first:
            self.segments, self.waiting = self.waiting, []
        if self.stage.mta.owed and not self.coming:
            reply = self.stage.mta.owed[0]
            half = len(reply) // 2
            self.coming = [reply[:half], reply[half:]] if split_replies else [reply]
        events = ["client"] if self.segments and self.gone != "client" else []
        events += ["backend"] if self.coming else []
        return events + (["client EOF", "backend EOF"] if eofs and not self.gone else [])

    def happen(self, event: str) -> None:
        """Play the event, and run the checks."""
        stage = self.stage
        if event == "client":
            stage.client(self.segments.pop(0))
        elif event == "backend":
            part = self.coming.pop(0)
            self.given += part
            if not self.coming:
                stage.mta.answer()
            stage.backend(part)
        elif event == "client EOF":
            self.gone = "client"
            stage.happen("C: EOF")
        else:
            self.gone = "backend"
            stage.happen("B< EOF")
        self.check()

    def check(self) -> None:
        """Replies are those expected, in order; only the backend acknowledges messages."""
        expected = b"".join(self.scenario.expected)
        received = self.stage.sent_to_client
        reported = received.removesuffix(LOST) if self.gone == "backend" else received
        assert expected.startswith(reported), received
        assert reported.count(b"queued") <= self.given.count(b"queued")
        assert len(self.stage.mta.messages) <= self.scenario.ends_content
        if not self.scenario.pipelining:
            assert len(self.stage.pipeline.in_flight) <= 1

    def over(self) -> None:
        """Check the end: everything was answered, or the session has ended."""
        pipeline = self.stage.pipeline
        if not self.gone:
            assert self.stage.sent_to_client == b"".join(self.scenario.expected)
            assert pipeline.ended == ("quit" if self.scenario.quits else "")
            assert len(self.stage.mta.messages) == self.scenario.ends_content
        else:
            assert pipeline.ended
        assert not [*pipeline.in_flight, *pipeline.framer.queue, *pipeline.reply_buffer.exchanges]


def _borders(octets: bytes) -> list[int]:
    """Return the places near line ends, where cuts may matter."""
    ends = [at + 1 for at, octet in enumerate(octets) if octet == ord("\n")]
    near = {end + by for end in ends for by in (-2, -1, 0, 1)}
    return sorted(at for at in near if 0 < at < len(octets))


def _cuts(octets: bytes, most: int) -> list[list[bytes]]:
    """Return all ways to cut octets near line ends at up to this many places."""
    return [
        [octets[start:end] for start, end in pairwise([0, *cuts, len(octets)]) if start < end]
        for count in range(most + 1)
        for cuts in combinations(_borders(octets), count)
    ]


def _search(
    scenario: Scenario, cuts: tuple[int, int], *, split_replies: bool = False, eofs: bool = False
) -> int:
    """Play all runs, with this many cuts in `first` and `then`; return the number of runs."""
    runs = 0
    for first, then in product(_cuts(scenario.first, cuts[0]), _cuts(scenario.then, cuts[1])):
        choices, more = Choices(), True
        while more:
            run = Run(scenario, first, then)
            steps = 0
            while events := run.events(split_replies=split_replies, eofs=eofs):
                run.happen(events[choices.choose(len(events))])
                steps += 1
                assert steps < 60, "it does not end"
            run.over()
            runs += 1
            more = choices.next_run()
    return runs


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_interleaving(scenario: Scenario) -> None:
    assert _search(scenario, (2, 0)) >= 4


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_interleaving_with_replies_in_parts(scenario: Scenario) -> None:
    assert _search(scenario, (1, 1), split_replies=True) > 10


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_either_side_may_go_at_any_point(scenario: Scenario) -> None:
    assert _search(scenario, (1, 1), eofs=True) > 60


def test_ehlo_of_these_scenarios_offers_what_they_need() -> None:
    stage = MtaStage(SessionPolicy())
    stage.settle()
    stage.client(READY[0])
    stage.settle()
    assert stage.sent_to_client.endswith(EHLO_OFFER)
