"""What real clients send in one group when the proxy offers PIPELINING, and what the MTA sees."""

from collections.abc import Iterator

import pytest

from tests.interop import clients, mta_clients
from tests.interop.clients import Client, Mail, SmtpTarget
from tests.interop.dialogue import half_closed_before_reply, verb_groups
from tests.interop.messages import brief, recipients
from tests.interop.stage import Stage
from tests.interop.tap import Connection, Tap

REFERENCE = pytest.mark.parametrize("stage", ["opensmtpd"], indirect=True)
RCPTS = [b"RCPT"] * 3


@pytest.fixture
def front(stage: Stage, way: str) -> Iterator[Tap]:
    """Give a tap whose replies are so late that a group sent in several writes is seen as one."""
    with Tap(stage.ports[way], reply_delay_s=0.1) as tap:
        yield tap


def sent_by(client: Client, front: Tap) -> Connection:
    """Let the client send a message to three recipients, and return what the tap saw."""
    [result] = client(SmtpTarget(front.port), [Mail(brief(), recipients(3))])
    assert result.sent, result.output
    return front.only()


@REFERENCE
@pytest.mark.parametrize("client", [mta_clients.postfix, mta_clients.exim, clients.swaks])
def test_mail_rcpt_and_data_come_in_one_group(client: Client, stage: Stage, front: Tap) -> None:
    """And reach the MTA one by one, which the fixture `stage` checks."""
    groups = verb_groups(sent_by(client, front))
    assert groups[:2] == [[b"EHLO"], [b"MAIL", *RCPTS, b"DATA"]]
    assert verb_groups(stage.tap.settled()[-1])[:6] == [
        *([b"EHLO"], [b"MAIL"], [b"RCPT"], [b"RCPT"], [b"RCPT"], [b"DATA"])
    ]


@REFERENCE
@pytest.mark.parametrize("way", ["starttls", "implicit"], indirect=True)
@pytest.mark.parametrize("client", [mta_clients.postfix, mta_clients.exim, clients.swaks])
def test_they_come_in_one_group_inside_tls_too(
    client: Client, stage: Stage, target: SmtpTarget, way: str
) -> None:
    """The tap cannot see that; the proxy logs the sizes of groups.  The MTA gets one at a time."""
    mail = Mail(brief(), recipients(3), f"{client.__name__}-{way}@sender.example")
    [result] = client(target, [mail])
    assert result.sent, result.output
    assert stage.relayed(mail.sender)["groups"][0] == 1 + 3 + 1
    assert stage.backend.find(mail.message).recipients == set(mail.recipients)


@REFERENCE
def test_msmtp_groups_recipients_with_data(front: Tap) -> None:
    """And with MAIL, which it writes separately: the kernel may delay the others (Nagle)."""
    groups = verb_groups(sent_by(clients.msmtp, front))
    rest = [*RCPTS, b"DATA"]
    assert groups[1:3] == [[b"MAIL"], rest] or groups[1] == [b"MAIL", *rest]


@REFERENCE
def test_nodemailer_groups_recipients(front: Tap) -> None:
    """It waits for the reply to MAIL first, and sends DATA on its own.

    It writes each RCPT by itself, so the kernel may keep all but the first for a while (Nagle).
    """
    groups = verb_groups(sent_by(clients.nodemailer, front))
    assert groups[:2] == [[b"EHLO"], [b"MAIL"]]
    data = groups.index([b"DATA"])
    recipients = groups[2:data]
    assert [verb for group in recipients for verb in group] == RCPTS
    assert len(recipients) < len(RCPTS)


@REFERENCE
@pytest.mark.parametrize("client", [clients.smtplib_client, clients.curl])
def test_a_lock_step_client_is_served_too(client: Client, front: Tap) -> None:
    """One command in each group, and the same for the MTA."""
    groups = verb_groups(sent_by(client, front))
    assert groups[:6] == [[b"EHLO"], [b"MAIL"], [b"RCPT"], [b"RCPT"], [b"RCPT"], [b"DATA"]]


@REFERENCE
@pytest.mark.parametrize("client", [mta_clients.postfix, mta_clients.exim])
def test_end_of_data_and_quit_come_in_one_segment(client: Client, front: Tap) -> None:
    """The message is acknowledged all the same, and QUIT is answered after it."""
    connection = sent_by(client, front)
    last = [chunk.octets for chunk in connection.chunks if chunk.from_client and chunk.octets][-1]
    assert last.endswith(b"\r\n.\r\nQUIT\r\n")
    data, dot, goodbye = connection.answered().splitlines()[-3:]
    assert (data[:3], dot[:3], goodbye[:3]) == (b"354", b"250", b"221")


@REFERENCE
def test_exim_half_closes_after_quit_and_still_gets_its_replies(front: Tap) -> None:
    """The replies to the final dot and to QUIT come after the half-close."""
    connection = sent_by(mta_clients.exim, front)
    assert half_closed_before_reply(connection)
    assert connection.answered().splitlines()[-1].startswith(b"221")
    assert not connection.reset


@pytest.mark.parametrize("stage", ["exim-chunking"], indirect=True)
def test_exim_groups_bdat_where_the_mta_offers_chunking(stage: Stage, front: Tap) -> None:
    """MAIL, RCPT and BDAT with its payload come at once; each reaches the MTA alone."""
    connection = sent_by(mta_clients.exim, front)
    group = verb_groups(connection)[1]
    assert group[:5] == [b"MAIL", *RCPTS, b"BDAT"]
    assert b"DATA" not in group
    assert b"BDAT" in stage.tap.settled()[-1].sent()


@pytest.mark.parametrize("stage", ["smtp-sink-e"], indirect=True)
@pytest.mark.parametrize("client", [mta_clients.postfix, mta_clients.exim, clients.swaks])
def test_an_mta_without_ehlo_gets_helo(client: Client, stage: Stage, front: Tap) -> None:
    """The client's EHLO is answered with PIPELINING, and its groups are served."""
    connection = sent_by(client, front)
    assert b"\r\n250 PIPELINING\r\n" in connection.answered()
    assert verb_groups(connection)[1] == [b"MAIL", *RCPTS, b"DATA"]
    after = stage.tap.settled()[-1]
    assert verb_groups(after)[:3] == [[b"EHLO"], [b"HELO"], [b"MAIL"]]


@pytest.mark.parametrize("client", [mta_clients.postfix, mta_clients.exim])
@REFERENCE
def test_a_message_whose_recipients_are_all_refused_is_sent_to_no_one(
    client: Client, stage: Stage, front: Tap
) -> None:
    """DATA travels with the refused recipients; the MTA never sees it (RFC 2920 section 3.2)."""
    mail = Mail(brief(), recipients(0, 3))
    [result] = client(SmtpTarget(front.port), [mail])
    assert not result.sent
    assert result.refused == set(mail.recipients)
    assert verb_groups(front.only())[1] == [b"MAIL", *RCPTS, b"DATA"]
    assert b"DATA" not in stage.tap.settled()[-1].sent()
    assert not stage.backend.has(mail.message)
