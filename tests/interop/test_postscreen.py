"""A postscreen as the backend, which tests for clients that send too early."""

import pytest

from tests.interop.messages import brief
from tests.interop.peers import Backend, postscreen
from tests.interop.stage import configured
from tests.interop.wire import Wire
from tests.support.processes import eventually

FROM_A_PROXY = 'proxy_protocol = ["127.0.0.0/8"]'
HEADER = b"PROXY TCP4 192.0.2.%d 198.51.100.1 4711 25"
HELLO = b"EHLO client.example"
GROUP = (HELLO, b"MAIL FROM:<a@sender.example>", b"RCPT TO:<good@rcpt.example>")


def logged_by(mta: Backend, text: str) -> None:
    """Wait until the MTA has logged a text."""
    eventually(lambda: text in mta.printed() or None, f"{text} in the MTA's log")


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_a_pipelining_client_passes_postscreens_tests(identity: str) -> None:
    """The proxy's address would not be tested at all; without the proxy the same client fails."""
    message = brief()
    with postscreen() as mta:
        settings = f'servers = ["127.0.0.1:{mta.port}"]\nidentity = "{identity}"'
        with configured(FROM_A_PROXY, settings) as (port, _):
            with Wire(mta.port) as wire:
                wire.send(HEADER % 8)
                assert wire.replies(1) == [220]
                wire.send(*GROUP, b"QUIT")
                logged_by(mta, "COMMAND PIPELINING from [192.0.2.8]:4711 after EHLO")
            with Wire(port) as wire:  # what comes before the greeting is kept until it has come
                wire.send(HEADER % 7, HELLO)
                assert wire.replies(2) == [220, 250]
                assert wire.ask(*GROUP, b"QUIT") == [250, 250, 450, 221]
            logged_by(mta, "PASS NEW [192.0.2.7]:4711")
            with Wire(port) as wire:
                wire.send(HEADER % 7)
                assert wire.replies(1) == [220]
                assert wire.ask(*GROUP, b"DATA") == [250, 250, 250, 354]
                assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
            logged_by(mta, "PASS OLD [192.0.2.7]:4711")
        assert mta.find(message).without_trace() == message.as_kept()
        logged_by(mta, "client=unknown[192.0.2.7]")
        for offence in ("PREGREET", "COMMAND PIPELINING", "BARE NEWLINE", "NON-SMTP"):
            assert f"{offence} from [192.0.2.7]" not in mta.printed()


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_an_active_check_uses_the_proxys_own_name(identity: str) -> None:
    """Postfix would refuse a connection without a header, and take UNKNOWN for an error."""
    with postscreen() as mta:
        settings = (
            f'servers = ["127.0.0.1:{mta.port}"]\nidentity = "{identity}"\n'
            "health_check_interval = 5"
        )
        with configured("", settings) as (_, process):
            logged_by(mta, "quit=1 commands=2")
            assert "CONNECT from [127.0.0.1]:" in mta.printed()
            assert "server_down" not in process.printed()
