"""Why the proxy is needed: MTAs that drop a pipelining client, directly and through the proxy."""

import pytest

from tests.interop.messages import brief
from tests.interop.stage import Stage
from tests.interop.wire import Wire

GROUP = (
    b"MAIL FROM:<sender@sender.example>",
    b"RCPT TO:<good@rcpt.example>",
    b"DATA",
)

DROPPING = pytest.mark.parametrize("stage", ["opensmtpd", "exim"], indirect=True)


@DROPPING
def test_the_mta_itself_drops_a_client_that_pipelines(stage: Stage) -> None:
    """OpenSMTPD answers 500, Exim 554, and both close: DATA is never taken."""
    with Wire(stage.backend.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        wire.send(*GROUP)
        codes = [int(line[:3]) for line in wire.rest().splitlines()]
    assert codes[-1] in (500, 554)
    assert 354 not in codes


@DROPPING
def test_the_same_group_is_served_through_the_proxy(stage: Stage) -> None:
    """And the message after it is delivered."""
    message = brief()
    with Wire(stage.port) as wire:
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [250]
        assert wire.ask(*GROUP) == [250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
        assert wire.rest() == b""
    assert stage.backend.find(message).recipients == {"good@rcpt.example"}


@pytest.mark.parametrize("stage", ["opensmtpd"], indirect=True)
def test_the_mta_itself_offers_no_pipelining_and_the_proxy_does(stage: Stage) -> None:
    """The proxy adds PIPELINING as the last capability, and changes no other line."""
    direct, proxied = (_ehlo(port) for port in (stage.backend.port, stage.port))
    assert b"PIPELINING" not in b"".join(direct)
    assert proxied[-1] == b"250 PIPELINING\r\n"
    assert [line[4:] for line in proxied[:-1]] == [line[4:] for line in direct]


def _ehlo(port: int) -> list[bytes]:
    with Wire(port) as wire:
        wire.replies(1)
        wire.send(b"EHLO client.example")
        lines = wire.reply()
        wire.ask(b"QUIT")
        return lines
