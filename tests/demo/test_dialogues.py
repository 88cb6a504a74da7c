"""The dialogues are those of RFC 2920, and the client detects every wrong reply."""

import asyncio

import pytest

from smtpproxy.demo.dialogues import CONTENT, DELIVERED, Dialogue, golden, lock_step
from smtpproxy.demo.harness import perform, send_straight
from smtpproxy.demo.legacy import FAILINGS, LegacyMTA
from smtpproxy.demo.scripted_client import Outcome, play

DEADLINE_S = 2.0


def dialogue(letter: str, recipients: int = 3, failing: str = "none") -> Dialogue:
    (found,) = (d for d in golden(recipients, failing) if d.letter == letter)
    return found


def test_the_waits_are_those_of_the_rfc() -> None:
    """The greeting is a wait too."""
    straight = {d.letter: 1 + len(lock_step(d.straight)) for d in golden()}
    proxied = {d.letter: len(d.proxied) + (not d.early) for d in golden()}
    assert straight == {"a": 9, "b": 9, "c": 7, "d": 8, "e": 9, "f": 13, "g": 9}
    assert proxied == {"a": 9, "b": 4, "c": 4, "d": 4, "e": 4, "f": 5, "g": 2}


@pytest.mark.parametrize("recipients", [1, 3, 100])
def test_more_recipients_add_waits_only_in_lock_step(recipients: int) -> None:
    it = dialogue("b", recipients)
    assert 1 + len(lock_step(it.straight)) == 6 + recipients
    assert 1 + len(it.proxied) == 4
    assert len(it.delivered[0].recipients) == len(set(it.delivered[0].recipients)) == recipients


def test_groups_end_where_the_rfc_says() -> None:
    """RFC 2920 section 3.1: EHLO, DATA and QUIT may only be last in a group, unless it is early."""
    for each in golden():
        assert each.early == (each.letter == "g")
        if each.early:
            continue
        for group in each.proxied:
            for exchange in group[:-1]:
                assert exchange.command[:4] not in {b"EHLO", b"HELO", b"DATA", b"QUIT"}


def test_the_content_has_dots_and_8_bit_characters() -> None:
    assert b"\r\n.." in CONTENT
    assert b"\r\n.a" in DELIVERED
    assert any(octet > 127 for octet in CONTENT)


def test_d_must_read_like_c() -> None:
    assert dialogue("d").reads_like == "c"
    assert dialogue("d").proxied == dialogue("c").proxied


@pytest.mark.parametrize("failing", FAILINGS)
async def test_every_dialogue_passes_in_lock_step_with_every_fault(failing: str) -> None:
    performances = await asyncio.gather(
        *(perform(d, proxied=False, rtt_s=0.0) for d in golden(failing=failing))
    )
    for performance in performances:
        assert performance.outcome.problems == []
        assert performance.timeline.waits == performance.outcome.waits


@pytest.mark.parametrize(
    ("failing", "letter", "codes", "ended"),
    [
        ("none", "b", "220 250 250 250 250 250 354 250 221", ""),
        ("flush-on-failure", "e", "220 250 250 250 550", "silent"),
        ("flush-always", "b", "220 250 250", "silent"),
        ("hand-over", "b", "220 250 250", "silent"),
        ("opensmtpd", "b", "220 250 500", "closed"),
    ],
)
async def test_a_group_sent_to_the_mta_itself_shows_its_fault(
    failing: str, letter: str, codes: str, ended: str
) -> None:
    outcome = await send_straight(dialogue(letter, failing=failing), rtt_s=0.0)
    assert b" ".join(reply[:3] for reply in outcome.replies).decode() == codes
    assert outcome.ended == ended


async def played_against(replies: list[bytes]) -> Outcome:
    """Play (b) in lock step against a server that sends these replies to anything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            writer.write(reply)
            if not await reader.read(4096):
                break
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        return await play(dialogue("b").straight, f"{host}:{port}", deadline_s=0.3)
    finally:
        server.close()
        await server.wait_closed()


RIGHT = [b"220 a\r\n", b"250 b\r\n", b"250 <mrose@dbc.mtview.ca.us> ok\r\n"]


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        ([b"554 go away\r\n"], "greeting: expected 220, but got 554 go away"),
        (
            [*RIGHT, b"250 not he\r\n"],
            (
                "RCPT TO:<ned@innosoft.com>: expected <ned@innosoft.com> in the reply, "
                "but got 250 not he"
            ),
        ),
        (
            [*RIGHT, b"250 <ned@innosoft.com> ok"],
            "RCPT TO:<ned@innosoft.com>: expected 250, but none came in 0.3 s",
        ),
        (
            RIGHT,
            "RCPT TO:<ned@innosoft.com>: expected 250, but the connection was closed",
        ),
        ([b"220-a\r\n", b""], "greeting: expected 220, but none came in 0.3 s"),
    ],
)
async def test_a_wrong_reply_is_reported_and_ends_the_dialogue(
    replies: list[bytes], problem: str
) -> None:
    outcome = await played_against(replies)
    assert outcome.problems == [problem]


async def test_an_unreachable_server_is_a_problem_not_an_exception() -> None:
    async with LegacyMTA() as mta:
        address = mta.address
    outcome = await play(dialogue("b").straight, address, deadline_s=DEADLINE_S)
    assert outcome.problems[0].startswith(f"cannot connect to {address}: ")
