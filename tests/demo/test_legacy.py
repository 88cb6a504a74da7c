"""The legacy MTA conforms to RFC 5321, and each of its faults shows."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from smtpproxy.demo.legacy import DEFAULT_FAILING, FAILINGS, Happening, LegacyMTA

SILENCE_S = 0.15
DEADLINE_S = 5.0

REFUSED = {b"bad@b.example": b"550 <bad@b.example>... User unknown"}

HELLO = """
    S: 220 old.innosoft.com SMTP service ready
    C: EHLO me
    S: 250-old.innosoft.com Hello me, pleased to meet you
    S: 250-8BITMIME
    S: 250-SIZE 10485760
    S: 250 HELP
"""


async def end(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await asyncio.wait_for(writer.wait_closed(), DEADLINE_S)


async def converse(address: str, transcript: str) -> None:
    """Play a transcript: adjacent `C:` lines are one group, each `S:` line is expected.

    `S: (silent)` expects no reply, `S: (closed)` the end of the connection.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    group = b""
    try:
        for line in filter(None, (line.strip() for line in transcript.splitlines())):
            side, _, text = line.partition(": ")
            if side == "C":
                group += text.encode() + b"\r\n"
                continue
            if group:
                writer.write(group)
                group = b""
            if text == "(silent)":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), SILENCE_S)
                continue
            got = await asyncio.wait_for(reader.readline(), DEADLINE_S)
            assert got == (b"" if text == "(closed)" else text.encode() + b"\r\n"), transcript
    finally:
        await end(writer)


Converse = Callable[..., Awaitable[LegacyMTA]]


@pytest.fixture
def against() -> Converse:
    """Play a transcript with a new MTA that has this fault, and return the MTA."""

    async def play(failing: str, transcript: str, **settings: float) -> LegacyMTA:
        async with LegacyMTA(failing=failing, refused=REFUSED, **settings) as mta:
            await converse(mta.address, transcript)
        return mta

    return play


def test_the_default_fault_exists() -> None:
    assert DEFAULT_FAILING in FAILINGS


def test_an_unknown_fault_is_an_error() -> None:
    with pytest.raises(ValueError, match="flush-always"):
        LegacyMTA(failing="pipelines-perfectly")


@pytest.mark.parametrize("failing", sorted(FAILINGS.keys() - {"helo-only"}))
async def test_every_fault_still_serves_a_lock_step_client(against: Converse, failing: str) -> None:
    mta = await against(
        failing,
        HELLO
        + """
        C: MAIL FROM:<a@b.example> SIZE=100 BODY=8BITMIME
        S: 250 <a@b.example>... Sender ok
        C: RCPT TO:<c@b.example>
        S: 250 <c@b.example>... Recipient ok
        C: DATA
        S: 354 Enter mail, end with "." on a line by itself
        C: Subject: dots
        C: .
        S: 250 AA00001 Message accepted for delivery
        C: QUIT
        S: 221 old.innosoft.com closing connection
        S: (closed)
        """,
    )
    (message,) = mta.messages
    assert message.sender == b"a@b.example"
    assert message.recipients == (b"c@b.example",)
    assert message.content == b"Subject: dots\r\n"
    assert mta.violations == []


async def test_commands_out_of_sequence_or_malformed_are_refused(against: Converse) -> None:
    await against(
        "none",
        """
        S: 220 old.innosoft.com SMTP service ready
        C: MAIL FROM:<a@b.example>
        S: 503 Send HELO or EHLO first
        C: HELO
        S: 501 HELO requires a domain
        C: HELO me
        S: 250 old.innosoft.com Hello me, pleased to meet you
        C: MAIL FROM:<a@b.example> SIZE=1
        S: 555 SIZE parameter not recognized
        C: EHLO me
        S: 250-old.innosoft.com Hello me, pleased to meet you
        S: 250-8BITMIME
        S: 250-SIZE 10485760
        S: 250 HELP
        C: RCPT TO:<c@b.example>
        S: 503 Need MAIL before RCPT
        C: DATA
        S: 503 Need MAIL before DATA
        C: MAIL FROM:a@b.example
        S: 501 Syntax error in MAIL FROM:<address>
        C: MAIL FROM:<a@b.example> SIZE=99999999
        S: 552 Message size exceeds the maximum of 10485760
        C: MAIL FROM:<a@b.example> SIZE=x
        S: 501 Syntax error in SIZE parameter
        C: MAIL FROM:<a@b.example> BODY=9BIT
        S: 501 Syntax error in BODY parameter
        C: mail from:<>
        S: 250 <>... Sender ok
        C: MAIL FROM:<a@b.example>
        S: 503 Sender already specified
        C: DATA
        S: 503 Need RCPT before DATA
        C: RCPT TO:<>
        S: 501 Syntax error in RCPT TO:<address>
        C: RCPT TO:<c@b.example> NOTIFY=NEVER
        S: 555 NOTIFY=NEVER parameter not recognized
        C: RCPT TO:<bad@b.example>
        S: 550 <bad@b.example>... User unknown
        C: DATA now
        S: 501 DATA takes no parameter
        C: DATA
        S: 554 No valid recipients
        C: RSET
        S: 250 Reset state
        C: NOOP
        S: 250 OK
        C: VRFY
        S: 501 VRFY requires an address
        C: VRFY ned
        S: 252 Cannot verify ned but will accept it
        C: HELP
        S: 214-Commands:
        S: 214-  DATA EHLO HELO HELP MAIL NOOP QUIT RCPT RSET VRFY
        S: 214 End of HELP info
        C: EXPN staff
        S: 502 EXPN command not implemented
        C: STARTTLS
        S: 500 Command unrecognized: "STARTTLS"
        """,
    )


async def test_without_a_fault_a_group_is_answered_but_recorded(against: Converse) -> None:
    mta = await against(
        "none",
        HELLO
        + """
        C: MAIL FROM:<a@b.example>
        C: RCPT TO:<c@b.example>
        S: 250 <a@b.example>... Sender ok
        S: 250 <c@b.example>... Recipient ok
        """,
    )
    assert [event.octets for event in mta.violations] == [b"RCPT TO:<c@b.example>\r\n"]


async def test_data_while_a_reply_is_owed_is_a_violation(against: Converse) -> None:
    mta = await against(
        "none",
        """
        C: HELO me
        S: 220 old.innosoft.com SMTP service ready
        S: 250 old.innosoft.com Hello me, pleased to meet you
        C: QUIT
        S: 221 old.innosoft.com closing connection
        S: (closed)
        """,
        delay_s=0.05,
    )
    assert [event.octets for event in mta.violations] == [b"HELO me\r\n"]


async def test_input_is_flushed_on_failure_only(against: Converse) -> None:
    mta = await against(
        "flush-on-failure",
        HELLO
        + """
        C: MAIL FROM:<a@b.example>
        C: RCPT TO:<bad@b.example>
        C: RCPT TO:<c@b.example>
        C: DATA
        S: 250 <a@b.example>... Sender ok
        S: 550 <bad@b.example>... User unknown
        S: (silent)
        """,
    )
    lost = [e.octets for e in mta.sessions[0].events if e.what is Happening.LOST]
    assert lost == [b"RCPT TO:<c@b.example>\r\nDATA\r\n"]


async def test_input_is_flushed_after_every_command(against: Converse) -> None:
    await against(
        "flush-always",
        HELLO
        + """
        C: MAIL FROM:<a@b.example>
        C: RCPT TO:<c@b.example>
        S: 250 <a@b.example>... Sender ok
        S: (silent)
        """,
    )


async def test_a_hand_over_loses_input_at_mail_and_at_data(against: Converse) -> None:
    mta = await against(
        "hand-over",
        HELLO
        + """
        C: RSET
        C: MAIL FROM:<a@b.example>
        C: RCPT TO:<lost@b.example>
        S: 250 Reset state
        S: 250 <a@b.example>... Sender ok
        S: (silent)
        C: RCPT TO:<c@b.example>
        C: DATA
        C: .
        S: 250 <c@b.example>... Recipient ok
        S: 354 Enter mail, end with "." on a line by itself
        S: (silent)
        """,
    )
    lost = [e.octets for e in mta.sessions[0].events if e.what is Happening.LOST]
    assert lost == [b"RCPT TO:<lost@b.example>\r\n", b".\r\n"]


async def test_data_depends_on_the_last_recipient(against: Converse) -> None:
    await against(
        "last-recipient",
        HELLO
        + """
        C: MAIL FROM:<a@b.example>
        S: 250 <a@b.example>... Sender ok
        C: RCPT TO:<c@b.example>
        S: 250 <c@b.example>... Recipient ok
        C: RCPT TO:<bad@b.example>
        S: 550 <bad@b.example>... User unknown
        C: DATA
        S: 554 No valid recipients
        """,
    )


async def test_data_is_accepted_without_recipients_but_the_message_is_not(
    against: Converse,
) -> None:
    mta = await against(
        "data-accepted",
        HELLO
        + """
        C: MAIL FROM:<a@b.example>
        S: 250 <a@b.example>... Sender ok
        C: RCPT TO:<bad@b.example>
        S: 550 <bad@b.example>... User unknown
        C: DATA
        S: 354 Enter mail, end with "." on a line by itself
        C: .
        S: 554 No valid recipients
        """,
    )
    assert mta.messages == []


async def test_data_after_a_command_line_closes(against: Converse) -> None:
    mta = await against(
        "opensmtpd",
        HELLO
        + """
        C: MAIL FROM:<a@b.example>
        C: R
        S: 500 5.5.1 Invalid command: Pipelining not supported
        S: (closed)
        """,
    )
    assert len(mta.violations) == 1


async def test_ehlo_is_unknown_but_helo_is_not(against: Converse) -> None:
    await against(
        "helo-only",
        """
        S: 220 old.innosoft.com SMTP service ready
        C: EHLO me
        S: 500 Command unrecognized: "EHLO me"
        C: HELO me
        S: 250 old.innosoft.com Hello me, pleased to meet you
        """,
    )


async def test_content_is_stored_unchanged_however_it_is_cut() -> None:
    """Dots are unstuffed; 8-bit, bare CR and bare LF are kept; only CRLF . CRLF ends it."""
    content = b"..first\r\n.\n.\r\r\n\xff\0 .\r\nlast\r\n"
    async with LegacyMTA() as mta:
        host, _, port = mta.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await reader.readline()
        for line in (b"HELO me", b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@b.example>", b"DATA"):
            writer.write(line + b"\r\n")
            await asyncio.wait_for(reader.readline(), DEADLINE_S)
        session = mta.sessions[0]
        for octet in content + b".\r\n":
            session.data_received(bytes([octet]))
        assert await asyncio.wait_for(reader.readline(), DEADLINE_S) == (
            b"250 AA00001 Message accepted for delivery\r\n"
        )
        await end(writer)
    assert mta.messages[0].content == b".first\r\n\n.\r\r\n\xff\0 .\r\nlast\r\n"


async def test_refusals_may_come_from_a_function_and_have_several_lines() -> None:
    def refused(address: bytes) -> bytes | None:
        return b"551-moved\r\n551 away" if address.startswith(b"old") else None

    async with LegacyMTA(refused=refused) as mta:
        await converse(
            mta.address,
            HELLO
            + """
            C: MAIL FROM:<a@b.example>
            S: 250 <a@b.example>... Sender ok
            C: RCPT TO:<old@b.example>
            S: 551-moved
            S: 551 away
            C: RCPT TO:<new@b.example>
            S: 250 <new@b.example>... Recipient ok
            """,
        )


async def test_a_half_closed_client_gets_its_late_replies() -> None:
    async with LegacyMTA(delay_s=0.02) as mta:
        host, _, port = mta.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HELO me\r\nNOOP\r\n")
        writer.write_eof()
        replies = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert [line[:3] for line in replies.splitlines()] == [b"220", b"250", b"250"]
        await end(writer)


async def test_the_end_of_a_session_is_reported() -> None:
    closed = asyncio.Event()
    async with LegacyMTA(on_closed=lambda _: closed.set()) as mta:
        await converse(mta.address, HELLO + "C: QUIT\nS: 221 old.innosoft.com closing connection")
        await asyncio.wait_for(closed.wait(), DEADLINE_S)
        times = [event.at for event in mta.sessions[0].events]
        assert times == sorted(times)
        assert mta.sessions[0].events[-1].what is Happening.CLOSED


async def test_an_endless_line_is_refused() -> None:
    async with LegacyMTA() as mta:
        host, _, port = mta.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"x" * 4000)
        replies = await asyncio.wait_for(reader.read(), DEADLINE_S)
        assert replies.endswith(b"500 Line too long\r\n")
        await end(writer)
