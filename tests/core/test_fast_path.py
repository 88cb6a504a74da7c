"""The fast path has the same result as the five steps, for any input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpproxy.core import pipeline as steps
from smtpproxy.core.exchange import Exchange
from smtpproxy.core.policy import SessionPolicy
from smtpproxy.core.transaction import Transaction
from tests.support.compiled import attributes_of, only_pure
from tests.support.effort import THOROUGH
from tests.support.pipeline_stage import Introduced, Stage

GROUPS = st.lists(
    st.sampled_from(
        [
            b"MAIL FROM:<a>\r\n",
            b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\n",
            b"MAIL FROM:<a> SIZE=99\r\n",
            b"RCPT TO:<b>\r\n",
            b"RCPT TO:<b>\r\n" * 3,
            b"RCPT TO:<c>\n",
            b"RSET\r\n",
            b"NOOP\r\n",
            b"FROB\r\n",
            b"EHLO c\r\n",
            b"TURN\r\n",
            b"AUTH PLAIN x\r\n",
            b"QUIT\r\n",
            b"DATA\r\nx\r\n",
            b"BDAT 2\r\nxx",
            b"x\0\r\n",
        ]
    ),
    min_size=3,
    max_size=12,
).map(b"".join)
REPLIES = st.lists(
    st.sampled_from(
        [
            *[b"250 ok\r\n", b"250-a\r\n250 b\r\n", b"251 x\r\n"] * 6,
            b"250-a\r\n252 b\r\n",
            b"354-a\r\n250 b\r\n",
            b"550-a\r\n250 b\r\n",
            b"250-a\r\n354 b\r\n",
            b"550 no\r\n",
            b"421 bye\r\n",
            b"354 go\r\n",
            b"250 ok\r\n250 ok\r\n",
            b"250 ok\n",
            b"250 o\0k\r\n",
            b"250 ok\r\n25",
            b"250-" + b"x" * 4000 + b"\r\n250 y\r\n",
        ]
    ),
    max_size=16,
)
RULES = st.builds(
    SessionPolicy,
    guard_data=st.booleans(),
    consecutive_errors=st.sampled_from([1, 20]),
    message_bytes=st.sampled_from([0, 50]),
    recipients=st.sampled_from([0, 2]),
    queue_commands=st.sampled_from([1, 2, 3, 1000]),
    xforward=st.booleans(),
)


def _shape(exchange: Exchange) -> tuple[object, ...]:
    named = ("line", "reply", "code", "pipelined", "refusal", "framed", "sent", "replied")
    return tuple(getattr(exchange, name) for name in (*named, "flushed", "octets", "steps"))


def _play(
    policy: SessionPolicy, parts: list[bytes], replies: list[bytes], offer: bytes
) -> list[object]:
    """Return the whole result of a session."""
    stage = Stage(policy)
    if policy.xforward:
        stage.pass_address(Introduced("XFORWARD"))
    for octets in (b"220 mx\r\n", b"EHLO c\r\n", offer):
        (stage.client if octets[:1] == b"E" else stage.backend)(octets)
    waiting = [*parts]
    for reply in replies:
        if waiting:
            stage.client(waiting.pop(0))
        stage.backend(reply)
    pipeline = stage.pipeline
    left = [pipeline.waiting(), pipeline.framer.queue_octets, pipeline.reply_buffer.octets]
    stage.happen("stop")
    transaction, framer = pipeline.transaction, pipeline.framer
    return [
        left,
        stage.to_client,
        stage.to_backend,
        [_shape(exchange) for exchange in stage.observed],
        pipeline.ended,
        pipeline.consecutive_errors,
        [getattr(transaction, name) for name in attributes_of(Transaction)],
        (framer.commands, framer.pipelined),
        [str(exchange.problem) for exchange in stage.observed],
    ]


@only_pure
@THOROUGH
@given(
    RULES,
    st.lists(GROUPS, min_size=1, max_size=3),
    REPLIES,
    st.sampled_from([b"", b"250-PIPELINING\r\n", b"250-XFORWARD ADDR\r\n", b"250-CHUNKING\r\n"]),
)
def test_fast_path_leads_where_the_five_steps_do(
    policy: SessionPolicy, parts: list[bytes], replies: list[bytes], more: bytes
) -> None:
    offer = b"250-mx\r\n" + more + b"250 SIZE\r\n"
    fast = _play(policy, parts, replies, offer)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(steps, "whole_reply_code", lambda _octets: 0)
        assert _play(policy, parts, replies, offer) == fast
