"""Properties of any input: replies in order, octets unchanged, and cuts that do not matter.

The reference is a lock-step client that speaks to the model MTA directly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.verbs import Sync
from tests.support.effort import QUICK, THOROUGH
from tests.support.model_mta import EHLO_OFFER, EHLO_REPLY, Mta, MtaStage, replies_in
from tests.support.pipeline_stage import Introduced, Stage, check_observed, seen_by_observers

# --- a client's dialogue --------------------------------------------------------------------------

LINES = [
    b"MAIL FROM:<a>",
    b"mail from:<refused>",
    b"RCPT TO:<b>",
    b"RCPT TO:<refused>",
    b"RSET",
    b"NOOP",
    b"VRFY joe",
    b"FROB \xff",
    b"",
    b"EHLO again",
    b"SOML FROM:<a>",
    b"HELP",
]
SECRET = b"c2VjcmV0"


@dataclass(frozen=True)
class Part:
    """What a client sends at once; `then` is sent if the reply has the code (DATA, AUTH)."""

    octets: bytes
    code: bytes = b""
    then: bytes = b""


def _parts(end: bytes = b"\r\n") -> st.SearchStrategy[list[Part]]:
    text = st.sampled_from([b"", b"hello", b"..", b".x", b"QUIT", b"\xff\x85", b"x" * 70])
    body = st.lists(text, max_size=4).map(lambda rows: b"".join(row + b"\r\n" for row in rows))
    return st.lists(
        st.one_of(
            st.sampled_from(LINES).map(lambda line: Part(line + end)),
            st.sampled_from(LINES[:4]).map(lambda line: Part(line + end)),
            body.map(lambda rows: Part(b"DATA\r\n", b"354", rows + b".\r\n")),
            st.just(Part(b"AUTH LOGIN\r\n", b"334", SECRET + b"\r\n")),
            st.tuples(st.binary(max_size=20), st.booleans()).map(
                lambda it: Part(b"BDAT %d%b\r\n%b" % (len(it[0]), b" LAST" * it[1], it[0]))
            ),
        ),
        min_size=1,
        max_size=12,
    )


class Client:
    """Sends its parts as early as RFC 2920 allows.

    waits_for_all: it is a lock-step client, which has every reply before it goes on.
    unsent: what it has written and the network not taken yet.
    """

    def __init__(self, parts: list[Part], *, waits_for_all: bool = False) -> None:
        self._waits_for_all = waits_for_all
        self._received = b""
        self._needed = 0  # replies, before it goes on
        self._script = self._play(parts)
        self.unsent = b""
        self.done = False

    def advance(self, octets: bytes) -> None:
        """Process octets of the server, and send what they allow."""
        self._received += octets
        while not self.done and len(replies_in(self._received)) >= self._needed:
            octets, self._needed = next(self._script, (b"", 0))
            self.done = not octets
            self.unsent += octets

    def _play(self, parts: list[Part]) -> Iterator[tuple[bytes, int]]:
        """Yield what is sent next, and how many replies it needs before."""
        owed = 2  # with the greeting
        yield b"EHLO client\r\n", owed
        for part in parts:
            owed += 1
            yield part.octets, owed if part.then or self._waits_for_all else 0
            if part.then and replies_in(self._received)[owed - 1].startswith(part.code):
                owed += 1
                yield part.then, owed if self._waits_for_all else 0


def _in_lock_step(parts: list[Part]) -> tuple[bytes, Mta]:
    """Return what a lock-step client gets from the MTA itself."""
    mta, client = Mta(), Client(parts, waits_for_all=True)
    client.advance(b"")
    received = b""
    while mta.owed or client.unsent:
        if mta.owed:
            reply = mta.answer()
            received += reply
            client.advance(reply)
        else:
            octets, client.unsent = client.unsent, b""
            mta.receive(octets)
    return received, mta


def _through_the_proxy(
    parts: list[Part], policy: SessionPolicy, draw: st.DataObject, stage: MtaStage | None = None
) -> MtaStage:
    """Play the client against the proxy; Hypothesis draws the next side and the amount."""
    stage, client = stage or MtaStage(policy), Client(parts)
    client.advance(b"")
    coming = b""  # of the backend, given but not yet there
    seen = 0
    while client.unsent or coming or stage.mta.owed:
        if stage.mta.owed and not coming:
            coming = stage.mta.answer()
        turns = [turn for turn, there in (("client", client.unsent), ("backend", coming)) if there]
        size = draw.draw(st.sampled_from([1, 2, 3, 7, 30, 1000]))
        if draw.draw(st.sampled_from(turns)) == "client":
            octets, client.unsent = client.unsent[:size], client.unsent[size:]
            stage.client(octets)
        else:
            octets, coming = coming[:size], coming[size:]
            stage.backend(octets)
        client.advance(stage.sent_to_client[seen:])
        seen = len(stage.sent_to_client)
    assert client.done
    return stage


@THOROUGH
@given(
    _parts(),
    st.builds(
        SessionPolicy,
        sync=st.sampled_from([Sync.SAFE, Sync.OFF]),
        bare_newlines=st.sampled_from(BareNewlines),
        guard_data=st.just(False),
        queue_commands=st.sampled_from([1, 2, 3, 1000]),
        consecutive_errors=st.just(10**6),
    ),
    st.data(),
)
def test_as_a_lock_step_client_at_the_backend_itself(
    parts: list[Part], policy: SessionPolicy, draw: st.DataObject
) -> None:
    expected, mta = _in_lock_step(parts)
    stage = _through_the_proxy(parts, policy, draw)
    assert not stage.pipeline.ended
    assert stage.sent_to_client == expected.replace(EHLO_REPLY, EHLO_OFFER)
    assert stage.mta.octets == mta.octets
    assert stage.mta.messages == mta.messages
    assert stage.pipeline.transaction.messages == len(mta.messages)
    _check(stage)


@QUICK
@given(_parts(), st.booleans(), st.data())
def test_of_xforward_the_client_sees_nothing_and_each_message_has_it(
    parts: list[Part], pipelining: bool, draw: st.DataObject
) -> None:
    expected, mta = _in_lock_step(parts)
    policy = SessionPolicy(xforward=True, guard_data=False, consecutive_errors=10**6)
    stage = MtaStage(policy, Mta(pipelining=pipelining, xforward=True))
    stage.pass_address(Introduced("XFORWARD"))
    _through_the_proxy(parts, policy, draw, stage)
    assert stage.sent_to_client == expected.replace(EHLO_REPLY, EHLO_OFFER)
    assert stage.mta.messages == mta.messages
    said = [line.split(b" ")[0].upper() for line in stage.mta.commands]
    assert [line for line in stage.mta.commands if line[:4] != b"XFOR"] == mta.commands
    for before, verb, after in zip([b"", *said], said, [*said[1:], b""], strict=False):
        if verb == b"XFORWARD":
            assert after in (b"XFORWARD", b"MAIL", b"SOML")
        elif verb in (b"MAIL", b"SOML"):
            assert before not in (b"EHLO", b"RSET")
    _check(stage)


@QUICK
@given(_parts(b"\n"), st.data())
def test_guarded_data_and_bare_lf_keep_the_order_of_replies(
    parts: list[Part], draw: st.DataObject
) -> None:
    stage = _through_the_proxy(parts, SessionPolicy(consecutive_errors=10**6), draw)
    received = replies_in(stage.sent_to_client)
    assert b"".join(received) == stage.sent_to_client
    assert len(received) == len([exchange for exchange in stage.observed if exchange.flushed])
    for exchange in stage.observed:
        if exchange.verb.name in (b"MAIL", b"RCPT", b"RSET", b"NOOP") and exchange.flushed:
            assert exchange.line.strip() in exchange.reply  # it is the reply to this command
    _check(stage)


def _check(stage: Stage) -> None:
    assert SECRET not in seen_by_observers(stage.observed)
    check_observed(stage)


# --- anything from either side --------------------------------------------------------------------

ANY_CLIENT = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(LINES).map(lambda line: line + b"\r\n"),
        st.sampled_from(
            [
                b"HELO old\r\n",
                b"DATA\r\n",
                b".\r\n",
                b"AUTH X\r\n",
                b"BDAT 3 LAST\r\n",
                b"BDAT x\r\n",
                b"QUIT\r\n",
                b"STARTTLS\r\n",
                b"TURN\r\n",
                b"\r",
                b"\n",
                b"\0",
                b"\r\0",
                b"\0\n",
                b"\n.\r\n",
                b".",
                b"NO\0OP\r\n",
                b"\x16\x03\x01",
                b"x" * 3000,
            ]
        ),
    ),
    max_size=12,
)
ANY_BACKEND = st.lists(
    st.one_of(
        st.binary(max_size=10),
        st.sampled_from(
            [
                b"220 mx\r\n",
                b"250 ok\r\n",
                b"250-a\r\n250 b\r\n",
                b"354 go\r\n",
                b"334 x\r\n",
                b"421 bye\r\n",
                b"500 what\r\n",
                b"550 no\r\n",
                b"250-",
                b"250",
                b"\r\n",
                b"\0",
                b"250 \0\r\n",
                EHLO_REPLY,
                b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n",
            ]
        ),
    ),
    max_size=12,
)
RULES = st.builds(
    SessionPolicy,
    sync=st.sampled_from(Sync),
    bare_newlines=st.sampled_from(BareNewlines),
    use_pipelining=st.booleans(),
    helo_fallback=st.booleans(),
    guard_data=st.booleans(),
    queue_commands=st.sampled_from([1, 2, 1000]),
    consecutive_errors=st.sampled_from([0, 1, 20]),
    early_pipelining=st.booleans(),
)
HAPPENINGS = ["hold", "drain", "C: EOF", "C: RST", "B< EOF", "expire", "stop"]


@settings(THOROUGH, max_examples=5 * THOROUGH.max_examples // 2)
@given(RULES, ANY_CLIENT, ANY_BACKEND, st.data())
def test_anything_from_either_side_is_handled(
    policy: SessionPolicy, client: list[bytes], backend: list[bytes], draw: st.DataObject
) -> None:
    stage = Stage(policy)
    backend = [b"220 mx\r\n", *backend] if draw.draw(st.booleans()) else backend
    for happening in draw.draw(st.permutations(["C"] * len(client) + ["B"] * len(backend))):
        if happening == "C":
            stage.client(client.pop(0))
        else:
            stage.backend(backend.pop(0))
        if draw.draw(st.integers(0, 15)) == 0:
            stage.happen(draw.draw(st.sampled_from(HAPPENINGS)))
    assert len(stage.pipeline.matcher.reader.unread) < 4096
    taken = [e for e in stage.observed if e.ends_message and e.code and e.code < 300]
    assert stage.pipeline.transaction.messages >= len(taken)
    stage.happen("stop")
    assert stage.pipeline.ended
    check_observed(stage)


@QUICK
@given(ANY_CLIENT, ANY_BACKEND)
def test_observers_see_every_exchange_once_and_the_client_every_reply(
    client: list[bytes], backend: list[bytes]
) -> None:
    stage = Stage(SessionPolicy())
    stage.backend(b"220 mx\r\n")
    for octets in client:
        stage.client(octets)
        if backend:
            stage.backend(backend.pop())
    stage.happen("stop")
    check_observed(stage)
    assert all(exchange.code or not exchange.reply for exchange in stage.observed)
    framed = [e for e in stage.observed if e.framed and (e.line or e.problem)]
    assert len(framed) >= stage.pipeline.framer.commands - 1
