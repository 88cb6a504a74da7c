"""Every client delivers to every MTA through the proxy: complete, to the right recipients."""

from itertools import product

import pytest

from tests.interop import clients, mta_clients
from tests.interop.clients import Client, Mail, SmtpTarget
from tests.interop.messages import awkward, brief, large, recipients
from tests.interop.peers import BACKENDS, SEALED
from tests.interop.stage import Stage
from tests.interop.tap import Tap

CLIENTS = (
    *(clients.smtplib_client, clients.swaks, clients.curl, clients.msmtp, clients.nodemailer),
    *(mta_clients.postfix, mta_clients.exim),
)
PATIENT_CLIENTS = tuple(client for client in CLIENTS if client is not clients.msmtp)
IN_ONE_CONNECTION = (
    *(clients.smtplib_client, clients.curl, clients.nodemailer),
    *(mta_clients.postfix, mta_clients.exim),
)
STAGES = (
    *((mta, "off") for mta in BACKENDS),
    # To the MTA it is all one whether and how the client came into TLS.
    *(("opensmtpd", "starttls"), ("exim-chunking", "starttls"), ("opensmtpd", "implicit")),
    *((mta, "starttls") for mta in SEALED),
)
"""Every MTA, every way of a client, and TLS on both sides where the MTA can."""


def to_every_mta(*tried: Client) -> pytest.MarkDecorator:
    """Return the parameters of a test: these clients with each of `STAGES`.

    A run of all tests has each client and each stage; the other pairs are long.
    """
    pairs = product(enumerate(STAGES), enumerate(tried))
    return pytest.mark.parametrize(
        ("client", "stage", "way"),
        [
            pytest.param(client, *stage, marks=() if is_usual else pytest.mark.long)
            for (row, stage), (column, client) in pairs
            for is_usual in (row % len(tried) == column,)
        ],
        indirect=["stage", "way"],
    )


@to_every_mta(*CLIENTS)
def test_an_awkward_message_arrives_as_it_was_sent(
    client: Client, stage: Stage, target: SmtpTarget
) -> None:
    """Lines that begin with dots, 8-bit octets, long lines, no newline at the end."""
    mail = Mail(awkward())
    [result] = client(target, [mail])
    assert result.sent, result.output
    delivery = stage.backend.find(mail.message)
    assert delivery.without_trace() == mail.message.as_kept()
    assert delivery.recipients == set(mail.recipients)


@to_every_mta(*PATIENT_CLIENTS)
def test_a_large_message_arrives_at_the_existing_ones_of_30_recipients(
    client: Client, stage: Stage, target: SmtpTarget
) -> None:
    """The client reports each refused recipient, and no other."""
    mail = Mail(large(), recipients(26, 4))
    bad = {each for each in mail.recipients if each.startswith("bad")}
    [result] = client(target, [mail])
    assert result.sent, result.output
    assert result.refused == (bad if stage.backend.refuses else set())
    delivery = stage.backend.find(mail.message)
    assert delivery.without_trace() == mail.message.as_kept()
    assert delivery.recipients == set(mail.recipients) - result.refused


@pytest.mark.parametrize(("stage", "way"), STAGES, indirect=True)
def test_a_client_that_closes_after_data_leaves_no_message(
    stage: Stage, front: Tap, target: SmtpTarget
) -> None:
    """A client that sends DATA in a group closes without content if a recipient is refused."""
    mail = Mail(brief(), recipients(5, 1))
    [result] = clients.msmtp(target, [mail])
    front.settled()
    if stage.backend.refuses:
        assert not result.sent
        assert result.refused == {"bad0@rcpt.example"}
        assert not stage.backend.has(mail.message)
    else:
        assert result.sent
        assert stage.backend.find(mail.message).recipients == set(mail.recipients)


@to_every_mta(*IN_ONE_CONNECTION)
def test_several_messages_go_through_one_connection(
    client: Client, stage: Stage, front: Tap, target: SmtpTarget
) -> None:
    """Each arrives complete, for its own recipients."""
    bodies = (b"first", b"second", b"third")
    mails = [
        Mail(brief(body), (f"{body.decode()}@rcpt.example", "all@rcpt.example")) for body in bodies
    ]
    results = client(target, mails)
    assert all(result.sent for result in results), [result.output for result in results]
    for mail in mails:
        delivery = stage.backend.find(mail.message)
        assert delivery.without_trace() == mail.message.as_kept()
        assert delivery.recipients == set(mail.recipients)
    front.only()
