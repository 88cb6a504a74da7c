"""SMTP smuggling: sequences that some MTAs take for the end of data, and others do not.

The content of one message holds such a sequence and a whole second transaction after it.  Whatever
the backend takes for a line end: it gets that one message, or none, and no command of the second.
"""

from itertools import combinations, pairwise

import pytest

from smtpproxy.core.content import BareNewlines, Content
from smtpproxy.core.policy import SessionPolicy
from tests.support.model_mta import LineEnds, Mta, MtaStage, replies_in

WOULD_BE_ENDS = [
    bytes.fromhex(text)
    for text in (
        "0A 2E 0A",
        "0A 2E 0D 0A",
        "0D 0A 2E 0A",
        "0D 2E 0D",
        "0D 2E 0A",
        "0D 2E 0D 0A",
        "0A 2E 0D",
        "0D 0A 2E 0D",
        "0D 0A 00 2E 0D 0A",
        "0D 0A 2E 00 0D 0A",
        "0D 0A 2E 00 0A",
        "0A 00 2E 00 0A",
        "0D 00 0A 2E 0D 00 0A",
        "0D 00 0A 2E 0D 0A",
        "0D 00 00 0A 2E 0D 0A",
        "0D 00 0D 0A 2E 00 0D 0A",
        "0D 0D 00 0A 2E 0D 0A",
        "0D 0A 2E 0D 0D 0A",
        "0D 0D 0A 2E 0D 0D 0A",
        "0D 0D 0D 0A 2E 0D 0D 0D 0A",
        "0D 0A 2E 0A 0D",
        "0A 0D 2E 0A 0D",
    )
]
OTHER_LINE_ENDS = [
    left + b"." + right
    for end in (b"\x0b", b"\x0c", b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"\x1c", b"\x1e")
    for left, right in ((end, end), (b"\r\n", end), (end, b"\r\n"))
]
TRUE_ENDS = [b"\r\n.\r\n", b"\r\r\n.\r\n", b"\r\0\r\n.\r\n", b"\n\r\n.\r\n"]
SECOND = b"MAIL FROM:<evil>\r\nRCPT TO:<victim>\r\nDATA\r\nFrom: ceo\r\n\r\nsmuggled"


def _deliver(policy: SessionPolicy, line_ends: LineEnds, segments: list[bytes]) -> MtaStage:
    stage = MtaStage(policy, Mta(line_ends))
    stage.ready()
    for segment in segments:
        stage.client(segment)
    stage.settle()
    return stage


def _holds(stage: MtaStage) -> None:
    """Check that there was one message or none, as the client's reply says."""
    assert not [line for line in stage.mta.commands if b"evil" in line or b"victim" in line]
    assert len(stage.mta.messages) <= 1
    taken = [reply for reply in replies_in(stage.sent_to_client) if b"queued" in reply]
    assert len(taken) == len(stage.mta.messages) == stage.pipeline.transaction.messages


@pytest.mark.parametrize("line_ends", LineEnds)
@pytest.mark.parametrize("bare_newlines", [BareNewlines.NORMALIZE, BareNewlines.REJECT])
@pytest.mark.parametrize("sequence", WOULD_BE_ENDS + OTHER_LINE_ENDS, ids=lambda it: it.hex(" "))
def test_would_be_end_of_data_smuggles_nothing(
    sequence: bytes, bare_newlines: BareNewlines, line_ends: LineEnds
) -> None:
    policy = SessionPolicy(bare_newlines=bare_newlines)
    text = b"first" + sequence + SECOND + b"\r\n.\r\n"
    bare = sequence not in OTHER_LINE_ENDS
    refused = bare and bare_newlines is BareNewlines.REJECT
    near = range(4, len(b"first" + sequence) + 2)
    cuts = [(), *combinations(near, 1), *(combinations(near, 2) if bare else ()), near]
    for cut in cuts:
        parts = [text[start:end] for start, end in pairwise((0, *cut, len(text)))]
        stage = _deliver(policy, line_ends, parts)
        _holds(stage)
        assert len(stage.mta.messages) == (0 if refused else 1)
        assert bool(stage.pipeline.ended) == refused
    _holds(_deliver(policy, line_ends, [text[at : at + 1] for at in range(len(text))]))


@pytest.mark.parametrize("policy", BareNewlines)
@pytest.mark.parametrize("sequence", WOULD_BE_ENDS + TRUE_ENDS, ids=lambda it: it.hex(" "))
def test_no_cut_changes_the_result(sequence: bytes, policy: BareNewlines) -> None:
    octets = b"a" + sequence + b"b"
    results = set()
    for count in range(len(octets)):
        for cut in combinations(range(1, len(octets)), count):
            content, out, taken = Content(policy), b"", 0
            for start, end in pairwise((0, *cut, len(octets))):
                if not content.ended:
                    given, size = content.receive(octets[start:end])
                    out += given
                    taken += size
            violation = content.violation or content.rewritten
            results.add((out, taken, content.ended, violation and violation.octets))
    assert len(results) == 1


@pytest.mark.parametrize("end", TRUE_ENDS, ids=lambda it: it.hex(" "))
def test_a_true_end_is_one_in_every_cut(end: bytes) -> None:
    text = b"first" + end + b"RSET\r\n"
    for line_ends in LineEnds:
        for count in range(3):
            for cut in combinations(range(4, len(b"first" + end) + 1), count):
                parts = [text[start:end] for start, end in pairwise((0, *cut, len(text)))]
                stage = _deliver(SessionPolicy(), line_ends, parts)
                assert stage.mta.messages[0].split() == [b"first"]
                assert stage.mta.commands[-1] == b"RSET"


@pytest.mark.parametrize("sequence", WOULD_BE_ENDS, ids=lambda it: it.hex(" "))
def test_would_be_end_at_the_very_start_smuggles_nothing(sequence: bytes) -> None:
    for begin in (sequence, sequence.lstrip(b"\r\n\0")):
        if begin.startswith(b".\r\n"):
            continue  # this is the true end
        text = begin + SECOND + b"\r\n.\r\n"
        for line_ends in LineEnds:
            for cut in range(8):
                parts = [part for part in (text[:cut], text[cut:]) if part]
                stage = _deliver(SessionPolicy(), line_ends, parts)
                _holds(stage)
                assert len(stage.mta.messages) == 1


@pytest.mark.parametrize("sequence", WOULD_BE_ENDS, ids=lambda it: it.hex(" "))
def test_pass_leaves_one_message_to_a_strict_backend(sequence: bytes) -> None:
    text = b"first" + sequence + SECOND
    stage = _deliver(
        SessionPolicy(bare_newlines=BareNewlines.PASS),
        LineEnds.STRICT,
        [text + b"\r\n.\r\nQUIT\r\n"],
    )
    assert stage.mta.messages == [text.replace(b"\r\n", b"\n")]
    assert stage.pipeline.ended == "quit"


@pytest.mark.parametrize("sequence", WOULD_BE_ENDS, ids=lambda it: it.hex(" "))
def test_would_be_end_and_then_eof_is_no_message(sequence: bytes) -> None:
    for line_ends in LineEnds:
        for bare_newlines in (BareNewlines.NORMALIZE, BareNewlines.REJECT):
            stage = _deliver(
                SessionPolicy(bare_newlines=bare_newlines), line_ends, [b"first" + sequence]
            )
            stage.happen("C: EOF")
            assert stage.pipeline.ended == "client_lost"
            assert stage.mta.messages == []


def test_true_end_is_found_however_it_is_cut() -> None:
    text = b".\r\nRSET\r\n"
    for content in (b"", b"x\r\n", b"..\r\n", b".x\r\n", b"x.\r\n", b"\r\n"):
        for cut in range(1, len(content + text)):
            for second in range(cut, len(content + text)):
                whole = content + text
                parts = [whole[:cut], whole[cut:second], whole[second:]]
                stage = _deliver(SessionPolicy(), LineEnds.STRICT, [part for part in parts if part])
                assert len(stage.mta.messages) == 1
                assert stage.mta.octets.endswith(whole)


def test_two_messages_back_to_back_stay_two() -> None:
    text = b"one\r\n.\r\nMAIL FROM:<c>\r\nRCPT TO:<d>\r\nDATA\r\n"
    for cut in range(len(text)):
        stage = _deliver(
            SessionPolicy(), LineEnds.STRICT, [p for p in (text[:cut], text[cut:]) if p]
        )
        stage.client(b"two\r\n.\r\n")
        stage.settle()
        assert stage.mta.messages == [b"one", b"two"]


def test_lenient_models_are_as_lenient_as_they_say() -> None:
    taken = {
        LineEnds.STRICT: [],
        LineEnds.BARE_LF: [b"x\n.\n", b"x\r\n.\n", b"x\n.\r\r\n"],
        LineEnds.ANY: [b"x\n.\n", b"x\r.\rx", b"x\r\n.\rx"],
        LineEnds.C_STRINGS: [b"x\n.\n", b"x\r\n.\x00\r\n"],
    }
    for line_ends, ends in taken.items():
        for text in ends:
            mta = Mta(line_ends)
            stage = MtaStage(SessionPolicy(bare_newlines=BareNewlines.PASS), mta)
            stage.ready()
            try:
                stage.client(text + b"\r\n")
            except AssertionError:
                assert mta.owed  # it ended the message, so the rest of it was a command
            assert mta.messages == [b"x"], (line_ends, text)


def test_no_sequence_holds_a_true_end() -> None:
    assert not [sequence for sequence in WOULD_BE_ENDS if b"\r\n.\r\n" in sequence]
