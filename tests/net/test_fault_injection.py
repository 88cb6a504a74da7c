r"""Faults: dialogues as transcripts, and what holds for any faults.

`tests/net/transcripts/faults.txt` has the dialogues, each headed by `== what it shows`, then
`fault:` a value of `--fault`, and `given: greeting` or `given: DATA` if the session has already
reached that point.  A line for each event follows: `C:` the client sends, `B<` the MTA sends,
`later` a delay is over, `limit` a time limit is reached, `gone` the MTA closes its connection,
`eof` the client closes its own, `lost` it resets it.  Below it is what the proxy then writes: `S:`
to the client, `B>` to the MTA, and how it ends: `closes` or `resets` the client's connection.  `|`
stands for CRLF within a segment, `{}` for the text of an injected reply.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.config.fault_flag import rule_of
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.fault_rules import FAULT_VERBS, FaultRule, SessionFaults, intercepted
from smtpproxy.core.policy import ClientTls, SessionPolicy
from smtpproxy.net.fault_injection import FaultInjection
from tests.core.test_properties import Client, Part, _parts
from tests.net.fakes import Clock, Server, Stage
from tests.support.compiled import only_pure
from tests.support.effort import QUICK
from tests.support.model_mta import Mta, replies_in
from tests.support.pipeline_stage import seen_by_observers

INJECTED = "3.0 proxy Error: injected fault, a test of smtpproxy"
GREETED = ("B< 220 mx", "S: 220 mx")
GIVEN = {
    "greeting": GREETED,
    "DATA": (
        *GREETED,
        *("C: MAIL FROM:<a@x>", "B> MAIL FROM:<a@x>", "B< 250 a", "S: 250 a"),
        *("C: RCPT TO:<b@y>", "B> RCPT TO:<b@y>", "B< 250 b", "S: 250 b"),
        *("C: DATA", "B> DATA", "B< 354 go", "S: 354 go"),
    ),
}


@dataclass
class Dialogue:
    """One dialogue of the file, with what is given."""

    flags: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def read() -> dict[str, Dialogue]:
    """Return the dialogues of the file by name."""
    found: dict[str, Dialogue] = {}
    dialogue = Dialogue()
    for line in TRANSCRIPT.read_text(encoding="utf-8").splitlines():
        word, _, text = line.partition(" ")
        if word == "==":
            assert text not in found, text
            dialogue = found[text] = Dialogue()
        elif word == "fault:":
            dialogue.flags.append(text)
        elif word == "given:":
            dialogue.lines.extend(GIVEN[text])
        elif line and word != "#":
            dialogue.lines.append(line)
    return found


TRANSCRIPT = Path(__file__).parent / "transcripts" / "faults.txt"
DIALOGUES = read()
CLASSIC = "the classic duplicate: the MTA has the message, and the client does not know"
each_dialogue = pytest.mark.parametrize("dialogue", DIALOGUES.values(), ids=DIALOGUES)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock of sessions."""
    made = Clock()
    for module in ("session", "timeouts", "fault_injection"):
        monkeypatch.setattr(f"smtpproxy.net.{module}.monotonic", made)
    return made


def open_stage(clock: Clock, *rules: FaultRule, policy: SessionPolicy | None = None) -> Stage:
    """Return a stage with a session that these rules apply to."""
    made = policy or SessionPolicy(
        hostname=b"proxy",
        use_pipelining=False,
        add_chunking=True,
        intercepted=intercepted(rules),
    )
    return Stage([Server("first")], made, clock, faults=FaultInjection(rules, 1) if rules else None)


def lapse(stage: Stage) -> None:
    """Let a delay be over."""
    faults = stage.session.faults
    assert faults is not None
    timer = faults._timer
    assert isinstance(timer, asyncio.TimerHandle)
    stage.clock.now += timer.when() - asyncio.get_running_loop().time()
    timer._run()
    timer.cancel()


async def happen(stage: Stage, event: str) -> None:
    """Play an event."""
    mark, _, text = event.partition(" ")
    octets = f"{text}\r\n".replace("|", "\r\n").encode()
    server = stage.servers[0]
    if mark == "C:":
        stage.sends(octets)
    elif mark == "B<":
        server.says(octets)
    elif mark == "gone":
        server.protocol.connection_lost(None)
    elif mark == "eof":
        stage.connection.eof_received()
    elif mark == "lost":
        stage.connection.connection_lost(None)
    elif mark == "limit":
        stage.wait(600)
    else:
        assert mark == "later"
        lapse(stage)
    await stage.settle()


def written(stage: Stage) -> Iterator[str]:
    """Yield what the proxy has written since the last call, and how it ended."""
    for mark, octets in (("S:", stage.gets()), ("B>", stage.servers[0].heard())):
        assert not octets or octets.endswith(b"\r\n")
        yield from (f"{mark} {line}" if line else mark for line in octets.decode().splitlines())


async def play(clock: Clock, dialogue: Dialogue, *, pauses: bool = False) -> Stage:
    """Play a dialogue, and fail if the proxy does anything else.

    Args:
        clock: The clock.
        dialogue: The dialogue.
        pauses: Whether the client does not read for a moment before each event.
    """
    stage = open_stage(clock, *map(rule_of, dialogue.flags))
    await stage.settle()
    found, over = [], False
    for line in dialogue.lines:
        if line.startswith(("S:", "B>", "closes", "resets")):
            continue
        found.append(line)
        if pauses and not stage.ended:
            stage.connection.pause_writing()
            stage.connection.resume_writing()
        await happen(stage, line)
        found += written(stage)
        if stage.ended and not over:
            over = True
            resets = stage.client.state == "aborted"
            found.append(f"{'resets' if resets else 'closes'}: {stage.ended}")
            assert stage.servers[0].transport.state == "aborted"
    assert found == [line.replace("{}", INJECTED) for line in dialogue.lines]
    return stage


@each_dialogue
async def test_a_dialogue_with_faults(clock: Clock, dialogue: Dialogue) -> None:
    await play(clock, dialogue)


@each_dialogue
async def test_a_client_that_stops_reading_now_and_then_gets_the_same_faults(
    clock: Clock, dialogue: Dialogue
) -> None:
    await play(clock, dialogue, pauses=True)


@only_pure
@pytest.mark.parametrize(
    ("flag", "broken", "events"),
    [
        ("CONNECT delay:1", SessionFaults.for_connection, ("B< 220 mx",)),
        ("END_OF_DATA delay:1", Exchange.delay, (*GIVEN["DATA"], "C: text|.", "later")),
    ],
    ids=["greeting", "timer"],
)
async def test_an_internal_error_of_a_fault_ends_the_session(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    broken: Callable[..., object],
    events: Sequence[str],
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    stage = open_stage(clock, rule_of(flag))
    await stage.settle()
    owner = SessionFaults if broken is SessionFaults.for_connection else Exchange
    monkeypatch.setattr(owner, broken.__name__, fail)
    for event in events:
        if not event.startswith(("S:", "B>")):
            await happen(stage, event)
    assert b"421 4.3.0 " in stage.gets()
    assert stage.ended == "internal_error"


async def test_starttls_of_the_proxy_is_refused_too(clock: Clock) -> None:
    rule = rule_of("STARTTLS 454")
    policy = SessionPolicy(
        hostname=b"proxy", client_tls=ClientTls.OFFERED, intercepted=intercepted([rule])
    )
    stage = open_stage(clock, rule, policy=policy)
    await stage.settle()
    stage.servers[0].says(b"220 mx\r\n")
    stage.sends(b"STARTTLS\r\n")
    assert stage.gets().endswith(f"454 4.{INJECTED}\r\n".encode())


async def test_what_happened_is_reported_with_the_reply_that_the_client_did_not_get(
    clock: Clock,
) -> None:
    stage = await play(clock, DIALOGUES[CLASSIC])
    assert stage.watcher.notes == [("fault_injected", {"fault": "END_OF_DATA close-after"})]
    content = stage.watcher.exchanges[-1]
    assert (content.code, [step.reply for step in content.all_steps]) == (0, [b"250 queued\r\n"])


async def test_a_refused_command_counts_as_not_sent(clock: Clock) -> None:
    stage = await play(clock, DIALOGUES["a refused MAIL"])
    mail = stage.watcher.exchanges[1]
    assert (mail.code, mail.sent, mail.all_steps) == (451, 0.0, ())
    assert mail.refusal == mail.reply


@pytest.mark.parametrize("action", ["535", "421", "stall", "close", "close-after", "delay:2"])
async def test_no_fault_of_auth_shows_the_password(clock: Clock, action: str) -> None:
    stage = open_stage(clock, rule_of(f"AUTH {action}"))
    await stage.settle()
    stage.servers[0].says(b"220 mx\r\n")
    stage.sends(b"AUTH PLAIN c2VjcmV0\r\n")
    await stage.settle()
    if not stage.ended and action == "close-after":
        stage.servers[0].says(b"501 bad: c2VjcmV0\r\n")
    stage.timeouts.stop()
    assert [event for event, _ in stage.watcher.notes] == ["fault_injected"]
    seen = seen_by_observers(stage.watcher.exchanges)
    steps = [repr(each.all_steps).encode() for each in stage.watcher.exchanges]
    assert b"AUTH PLAIN *" in seen
    assert b"c2VjcmV0" not in seen + b"".join(steps) + repr(stage.watcher.notes).encode()


async def test_a_session_that_ends_leaves_no_timer(clock: Clock) -> None:
    stage = open_stage(clock, rule_of("NOOP delay:3600"))
    await stage.settle()
    stage.servers[0].says(b"220 mx\r\n")
    stage.sends(b"NOOP\r\n")
    faults = stage.session.faults
    assert faults is not None
    timer = faults._timer
    assert timer is not None
    stage.connection.connection_lost(None)
    assert stage.ended == "client_lost"
    assert timer.cancelled()
    assert stage.session.faults is None
    assert stage.session.pipeline.intercept is None


async def test_a_server_that_refuses_is_not_the_end(clock: Clock) -> None:
    """The rule is about the greeting that the client gets."""
    rule = rule_of("CONNECT 421")
    policy = SessionPolicy(hostname=b"proxy", use_pipelining=False)
    servers = [Server("first"), Server("second")]
    stage = Stage(servers, policy, clock, faults=FaultInjection([rule], 1))
    await stage.settle()
    servers[0].says(b"421 busy\r\n")
    await stage.settle()
    servers[1].says(b"220 m")
    assert stage.gets() == b""
    servers[1].says(b"x\r\n")
    assert stage.gets() == f"421 4.{INJECTED}\r\n".encode()


async def test_what_the_mta_says_before_a_late_greeting_is_bounded(clock: Clock) -> None:
    stage = open_stage(clock, rule_of("CONNECT stall"))
    await stage.settle()
    stage.servers[0].says(b"220 mx\r\n")
    for _ in range(5):
        stage.servers[0].says(b"x" * 65536)
    assert stage.ended == "backend_violation"


# --- any faults -----------------------------------------------------------------------------------

ACTIONS = ("450", "550", "421", "delay:60", "stall", "close", "reset", "close-after", "reset-after")
ENVELOPE = [Part(b"MAIL FROM:<a>\r\n"), Part(b"RCPT TO:<b>\r\n")]
MESSAGE_PARTS = [*ENVELOPE, Part(b"DATA\r\n", b"354", b"hello\r\n.\r\n")]
FLAGS = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from([verb.decode() for verb in FAULT_VERBS]),
            st.sampled_from(["RCPT", "DATA", "BDAT", "END_OF_DATA", "END_OF_DATA"]),
        ),
        st.sampled_from(ACTIONS),
        st.sampled_from(["", " 50%", " 1/3", " recipient=b", " sender=a"]),
    ),
    min_size=1,
    max_size=5,
)


@QUICK
@given(
    st.tuples(st.sampled_from([[], ENVELOPE, MESSAGE_PARTS]), _parts()).map(
        lambda both: both[0] + both[1]
    ),
    FLAGS,
    st.integers(0, 1000),
    st.data(),
)
def test_no_faults_bring_proxy_and_mta_out_of_step(
    parts: list[Part], flags: list[tuple[str, str, str]], seed: int, draw: st.DataObject
) -> None:
    """No positive reply is invented, none is out of step, and the MTA gets whole commands only.

    The MTA is as strict as the strict sink: it fails if anything comes while it owes a reply.
    """
    rules = []
    for verb, action, rest in flags:
        try:
            rules.append(rule_of(verb + " " + action + rest))
        except ValueError:
            rules.append(rule_of(verb + " " + action))
    asyncio.run(_any_faults(parts, rules, seed, draw))


async def _any_faults(
    parts: list[Part], rules: list[FaultRule], seed: int, draw: st.DataObject
) -> None:
    policy = SessionPolicy(
        hostname=b"proxy",
        use_pipelining=False,
        consecutive_errors=0,
        intercepted=intercepted(rules),
    )
    mta, client = Mta(), Client(parts)
    stage = Stage([Server("first")], policy, Clock(), faults=FaultInjection(rules, seed))
    await stage.settle()
    server, received = stage.servers[0], b""
    client.advance(b"")
    while not stage.ended:
        await stage.settle()
        if heard := server.heard():
            mta.receive(heard)
        octets = stage.gets()
        received += octets
        client.advance(octets)
        faults = stage.session.faults
        waits = faults is not None and isinstance(faults._timer, asyncio.TimerHandle)
        turns = [
            turn
            for turn, there in (
                ("client", client.unsent),
                ("mta", mta.owed),
                ("later", waits and not faults._timer.cancelled()),  # type: ignore[union-attr]
            )
            if there
        ]
        if not turns:
            break
        turn = draw.draw(st.sampled_from(turns))
        if turn == "client":
            size = draw.draw(st.sampled_from([1, 3, 30, 1000]))
            octets, client.unsent = client.unsent[:size], client.unsent[size:]
            stage.sends(octets)
        elif turn == "mta":
            server.says(mta.answer())
        else:
            lapse(stage)
    stage.session.pipeline.end("over", 2000.0)
    received += stage.gets()
    if heard := server.heard():  # what was written before the end may arrive
        mta.receive(heard)
    _check(stage, mta, received)
    stage.timeouts.stop()


def _check(stage: Stage, mta: Mta, received: bytes) -> None:
    replies = replies_in(received)
    assert b"".join(replies) == received
    answered = [each for each in stage.watcher.exchanges if each.flushed]
    # Observers do not see the text of a 235.
    shown = [b"235 *\r\n" if reply.startswith(b"235") else reply for reply in replies]
    assert [each.reply for each in answered] == shown
    acknowledged = 0
    for each in answered:
        line = each.line.strip()
        if each.verb.name in (b"MAIL", b"RCPT", b"RSET", b"NOOP", b"VRFY", b"SOML"):
            assert line in each.reply or (each.code >= 400 and not each.sent)
        if each.code < 400:
            assert each.sent or each.verb.name == b""  # the MTA has said it
        if each.ends_message and each.code < 300:
            acknowledged += 1
            assert each.reply == b"250 queued %d\r\n" % acknowledged
    lost = [each for each in stage.watcher.exchanges if each.ends_message and each.steps]
    assert len(mta.messages) - acknowledged == len(lost) <= 1
    shown = [each for each in stage.watcher.exchanges if each.line and not each.verb.secret]
    sent = [each.line.strip() for each in shown if each.sent and each.verb.name]
    heard = [line for line in mta.commands if line[:4].upper() not in (b"AUTH", b"FROB", b"")]
    cut_off = heard[len(sent) :]  # a chunk is sent with its last octet
    assert heard[: len(sent)] == sent
    assert [line[:4] for line in cut_off] in ([], [b"BDAT"])
