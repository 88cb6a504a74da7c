"""How octets are cut makes no difference: the same exchanges, and the same octets are forwarded.

What the client sends is taken in one piece and then in every cut.  The backend answers at once,
with `sync = off`, since with the others it matters what came before the reply to DATA; or when all
has come.  What the backend answers is taken so, too.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise, product

import pytest

from smtpproxy.core.content import BareNewlines
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.replies import ReplyReader
from smtpproxy.core.verbs import Sync
from smtpproxy.core.violations import BackendViolation, Violation
from tests.support.model_mta import MtaStage
from tests.support.pipeline_stage import Stage

RULES = SessionPolicy(sync=Sync.OFF, consecutive_errors=10**6)
SHORT_LINES = SessionPolicy(sync=Sync.OFF, consecutive_errors=10**6, command_line=12, auth_line=20)
IN_TRANSACTION = b"EHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n"


def _played(
    rules: SessionPolicy, begin: bytes, pieces: Iterable[bytes], *, at_once: bool = True
) -> tuple[object, ...]:
    """Return all that the client, the backend and an observer see of a session."""
    stage = MtaStage(rules)
    stage.settle()
    if begin:
        stage.client(begin)
        stage.settle()
    for octets in pieces:
        stage.client(octets)
        if at_once:
            stage.settle()
    stage.settle()
    stage.happen("C: EOF")
    # A guarded command is forwarded before early octets have arrived, or is refused with them.
    reported = stage.mta.octets if at_once else b""
    return (_seen(stage), reported, stage.mta.messages)


def _seen(stage: Stage) -> tuple[object, ...]:
    """Return what an observer and the client got, and how it ended."""
    exchanges = [
        (
            each.verb.name,
            each.line,
            each.reply,
            each.octets,
            each.bare_lf,
            each.closes,
            each.problem and (each.problem.kind, _shown(each.problem)),
        )
        for each in stage.observed
        if each.reply  # what came after the command that ended the session may not have been read
    ]
    return (exchanges, stage.sent_to_client, stage.pipeline.ended)


def _shown(problem: Violation) -> bytes:
    """Return the octets that are shown; of early octets only those received so far."""
    return b"" if problem.kind == "not_synchronized" else problem.octets


def _cuts(octets: bytes, most: int) -> Iterator[list[bytes]]:
    """Yield every way to cut octets at up to this many places, and all octets one by one."""
    places = range(1, len(octets))
    for cut in [cut for count in range(1, most + 1) for cut in combinations(places, count)]:
        yield [octets[start:end] for start, end in pairwise((0, *cut, len(octets)))]
    yield [octets[at : at + 1] for at in range(len(octets))]


def _check(
    octets: bytes,
    rules: SessionPolicy = RULES,
    begin: bytes = b"",
    most: int = 2,
    *,
    at_once: bool = True,
) -> None:
    whole = _played(rules, begin, [octets], at_once=at_once)
    for pieces in _cuts(octets, most):
        assert _played(rules, begin, pieces, at_once=at_once) == whole, pieces


DIALOGUES = {
    "commands": b"NOOP\r\nVRFY a\nRSET\r\nnoop \r\n\r\n",
    "commands that are none": b" NOOP\r\nNO\0OP\r\nNOOP\rRSET\r\nNOOP\r\r\nFROB\r\n",
    "a command never forwarded": b"TURN\r\nNOOP\r\n",
    "another protocol": b"NOOP\r\nGET / HTTP/1.1\r\nHost: x\r\n",
    "a header first": b"Host: x\r\nNOOP\r\n",
    "TLS": b"NOOP\r\n\x16\x03\x01\0\xa5\n\0",
    "SSH": b"SSH-2.0-x\r\nNOOP\r\n",
    "an AUTH exchange": b"AUTH X\r\nQUIT\nNOOP\r\n",
    "AUTH and a line that is none": b"AUTH X\r\na\rb\r\nNOOP\r\n",
    "AUTH and a NUL": b"AUTH X\r\na\0\r\nNOOP\r\n",
    "a misspelt AUTH": b"AUHT X c2Vj\r\nNOOP\r\nXAUTH c2Vj\r\n",
}
IN_TRANSACTIONS = {
    "chunks": b"BDAT 3\r\n\r\n.BDAT 5 LAST\r\n\r\n.\r\nRSET\r\n",
    "empty chunks": b"BDAT 0\r\nBDAT 0 LAST\r\nRSET\r\n",
    "a chunk of unknown size": b"BDAT x\r\nabcNOOP\r\n",
    "what may be a chunk": b"\tBDAT 3\r\nabcNOOP\r\n",
    "content": b"DATA\r\na\r\n..\r\n.\r\nRSET\r\n",
    "empty content": b"DATA\r\n.\r\nRSET\r\n",
    "content to be rewritten": b"DATA\r\n\0.\r\r\n.\r\nNOOP\r\n",
    "content that smuggles": b"DATA\r\na\r\0\n.\r\nRSET\r\n.\r\nNOOP\r\n",
}


@pytest.mark.parametrize("queue_commands", [1, 2, 1000])
@pytest.mark.parametrize("octets", DIALOGUES.values(), ids=DIALOGUES.keys())
def test_dialogues(octets: bytes, queue_commands: int) -> None:
    _check(
        octets,
        SessionPolicy(sync=Sync.OFF, consecutive_errors=10**6, queue_commands=queue_commands),
    )


@pytest.mark.long
@pytest.mark.parametrize("policy", BareNewlines)
@pytest.mark.parametrize("octets", IN_TRANSACTIONS.values(), ids=IN_TRANSACTIONS.keys())
def test_dialogues_in_a_transaction(octets: bytes, policy: BareNewlines) -> None:
    rules = SessionPolicy(sync=Sync.OFF, consecutive_errors=10**6, bare_newlines=policy)
    _check(octets, rules, IN_TRANSACTION)


@pytest.mark.parametrize("sync", Sync)
@pytest.mark.parametrize("octets", [*DIALOGUES.values(), *IN_TRANSACTIONS.values()])
def test_dialogues_before_any_reply(octets: bytes, sync: Sync) -> None:
    _check(
        octets,
        SessionPolicy(sync=sync, consecutive_errors=10**6),
        IN_TRANSACTION,
        most=1,
        at_once=False,
    )


@pytest.mark.parametrize(
    "octets",
    [
        b"NOOP 12345\r\nNOOP 123456\r\nNOOP\r\n",
        b"NOOP 1234567890\r1\n\0\nNOOP\r\n",
        b"AUTH 1234567890123\r\nQUIT\r\nAUTH 12345678901234\r\n",
        b"AUTH X\r\n123456789012345678\r\nNOOP\r\n",
        b"AUTH X\r\n1234567890123456789\r\nNOOP\r\n",
        b"  BDAT 123456\r\nNOOP\r\n",
        b"GET /123456789\r\nNOOP\r\n",
    ],
)
def test_lines_that_are_too_long(octets: bytes) -> None:
    _check(octets, SHORT_LINES)


WORDS = [b"NOOP", b" ", b"\r", b"\n", b"\0", b"\r\n", b"BDAT 2", b"AUTH X", b"\x16", b"\x03", b"a:"]


@pytest.mark.long
@pytest.mark.parametrize("first", WORDS, ids=repr)
def test_every_three_words_in_every_cut(first: bytes) -> None:
    for words in product([first], WORDS, WORDS):
        _check(b"".join(words) + b"\r\nRSET\r\n", most=1)


@pytest.mark.long
@pytest.mark.parametrize(
    "begin",
    [
        b"AUTH X\r\n",
        IN_TRANSACTION + b"BDAT 3\r\n",
        IN_TRANSACTION + b"BDAT 3 LAST\r\n",
        b"FROB\0",  # it will be skipped
    ],
)
def test_every_two_words_in_every_cut_where_no_command_is_due(begin: bytes) -> None:
    for words in product(WORDS, repeat=2):
        _check(b"".join(words) + b"\r\nRSET\r\n", begin=begin, most=1)


# --- replies --------------------------------------------------------------------------------------

REPLY_WORDS = [b"250", b"354", b"-", b" ", b"a", b"\r", b"\n", b"\0", b"\r\n"]


def _read(pieces: Iterable[bytes]) -> tuple[object, ...]:
    """Return the replies in octets, and what is left or wrong."""
    reader, found = ReplyReader(), []
    try:
        for octets in pieces:
            reader.receive(octets)
            while (reply := reader.next_reply()) is not None:
                found.append(reply)
    except BackendViolation as violation:
        return (found, violation.kind, violation.octets)
    return (found, reader.unread)


@pytest.mark.parametrize("first", REPLY_WORDS, ids=repr)
def test_every_four_words_of_a_reply_in_every_cut(first: bytes) -> None:
    for words in product([first], REPLY_WORDS, REPLY_WORDS, REPLY_WORDS):
        octets = b"".join(words)
        whole = _read([octets])
        for pieces in _cuts(octets, most=1):
            assert _read(pieces) == whole, pieces


CLIENT = [
    *(b"EHLO c\r\n", b"MAIL FROM:<a>\r\n", b"RCPT TO:<b>\r\n", b"DATA\r\n", b"x\r\n.\r\n"),
    *(b"AUTH X\r\n", b"c2Vj\r\n", b"FROB\r\n", b"QUIT\r\n"),
]
REPLIES = [
    b"220 mx\r\n",
    b"250-mx\r\n250-SIZE 9\n250 CHUNKING\r\n",
    b"250\r\n",
    b"250-a\n550-b\r\n251 c\n",
    b"354-go\r\n354 on\r\n",
    b"250 queued\r\n",
    b"334 challenge\r\n",
    b"535-5.7.8\r\n535 no\r\n",
    b"250 \xff\r\n",
    b"221 bye\r\n",
]


def _answered(given: list[list[bytes]]) -> tuple[object, ...]:
    """Return the result of a session whose backend sends these replies, each in pieces."""
    stage = Stage(RULES)
    for octets, pieces in zip([b"", *CLIENT], given, strict=True):
        if octets:
            stage.client(octets)
        for piece in pieces:
            stage.backend(piece)
    return (_seen(stage), b"".join(stage.to_backend))


@pytest.mark.parametrize("at", range(len(REPLIES)))
@pytest.mark.parametrize(
    "other",
    [
        *(b"", b"421 bye\r\n", b"550 no\r\n", b"250-a\r\n354 b\r\n", b"25\r\n", b"250 a\rb\r\n"),
        *(b"250 \0\r\n", b"2500 a\r\n", b"250-a\r\nb\r\n", b"334\n"),
    ],
)
def test_a_reply_in_every_cut(at: int, other: bytes) -> None:
    given = [[reply] for reply in REPLIES]
    given[at] = [other or REPLIES[at]]
    whole = _answered(given)
    for pieces in _cuts(given[at][0], most=1):
        assert _answered([*given[:at], pieces, *given[at + 1 :]]) == whole, pieces


def test_replies_to_a_group_in_every_cut() -> None:
    """The backend offers PIPELINING, so they may arrive together."""
    replies = b"250 a\r\n550-b\r\n550 c\r\n250\n354 go\r\n"
    seen = []
    for pieces in [[replies], *_cuts(replies, most=2)]:
        stage = Stage(RULES)
        stage.backend(b"220 mx\r\n")
        stage.client(CLIENT[0])
        stage.backend(b"250-mx\r\n250 PIPELINING\r\n")
        stage.client(CLIENT[1] + CLIENT[2] * 2 + CLIENT[3])
        for piece in pieces:
            stage.backend(piece)
        seen.append((_seen(stage), b"".join(stage.to_backend)))
    assert seen.count(seen[0]) == len(seen)
    assert seen[0][0][1].endswith(replies.replace(b"250\n", b"250\r\n"))
