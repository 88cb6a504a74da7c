"""What real senders do with injected faults, in front of a real MTA."""

import signal
import smtplib
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.interop import peers
from tests.interop.clients import Mail, SmtpTarget
from tests.interop.messages import Message, brief
from tests.interop.mta_clients import QueueingExim
from tests.interop.peers import Backend
from tests.support.processes import eventually, free_port
from tests.support.program import Program
from tests.support.scrape import scrape, total

INJECTED = "fault_injected"


def times(backend: Backend, message: Message) -> int:
    """Return how often a message has arrived."""
    return sum(message.token.encode() in delivery.kept for delivery in backend.kept())


def events(proxy: Program) -> list[dict[str, Any]]:
    """Return the events of sessions so far."""
    return [line for line in proxy.log() if "session" in line]


@pytest.mark.parametrize("action", ["close-after", "reset-after"])
def test_exim_sends_a_message_again_that_the_mta_has_already(tmp_path: Path, action: str) -> None:
    """The classic duplicate: what the MTA acknowledged did not reach the sender."""
    mail = Mail(brief())
    with peers.postfix() as backend:
        flags = ("-l", "127.0.0.1:0", "-b", f"127.0.0.1:{backend.port}", "--fault-seed", "1")
        fault = f"END_OF_DATA {action} 50% sender={mail.sender}"
        with (
            Program(tmp_path, *flags, "--fault", fault) as proxy,
            QueueingExim(SmtpTarget(proxy.port())) as exim,
        ):
            exim.queue(mail)
            eventually(lambda: times(backend, mail.message) or None, "the message")
            assert exim.retry(mail).sent
            eventually(lambda: times(backend, mail.message) >= 2 or None, "the message twice")
            proxy.event("message_relayed")
            found = [line["event"] for line in events(proxy)]
            assert found[:3] == ["fault_injected", "message_abandoned", "session_closed"]
            identifiers = [each.get("message_id") for each in events(proxy) if "sender" in each]
            assert len(identifiers) == 2 == times(backend, mail.message)
            assert identifiers[0] == identifiers[1] != ""


def test_what_is_refused_for_now_is_sent_later_and_nothing_is_lost(tmp_path: Path) -> None:
    """With this seed each rule applies, in four sessions; each recipient has the message once."""
    mail = Mail(brief(), ("one@rcpt.example", "two@rcpt.example"))
    rules = ("CONNECT 421", "RCPT 450", "END_OF_DATA 451", "END_OF_DATA close")
    faults = [word for rule in rules for word in ("--fault", f"{rule} 30%")]
    with peers.postfix() as backend:
        flags = ("-l", "127.0.0.1:0", "-b", f"127.0.0.1:{backend.port}", "--fault-seed", "20")
        with (
            Program(tmp_path, *flags, *faults) as proxy,
            QueueingExim(SmtpTarget(proxy.port())) as exim,
        ):
            exim.queue(mail)
            for _ in range(2):
                exim.try_again()
            assert exim.retry(mail).sent
            eventually(lambda: times(backend, mail.message) or None, "the message")
            token = mail.message.token.encode()
            arrived = [each.recipients for each in backend.kept() if token in each.kept]
            assert sorted(name for each in arrived for name in each) == sorted(mail.recipients)
            proxy.event("message_relayed")
            faults = [each["fault"] for each in events(proxy) if each["event"] == INJECTED]
            assert faults == [f"{rules[number]} 30%" for number in (1, 2, 0, 1, 3)]


def test_a_reload_keeps_the_faults_and_they_are_everywhere(tmp_path: Path) -> None:
    """On standard error, in the log, and in the metrics."""
    with peers.smtp_sink("-p") as backend:
        admin = f"127.0.0.1:{free_port()}"
        flags = ("-l", "127.0.0.1:0", "-b", f"127.0.0.1:{backend.port}", "--admin", admin)
        with Program(tmp_path, *flags, "--fault", "NOOP 450") as proxy:
            port = proxy.port()
            first = proxy.event("faults_wanted")
            proxy.signal(signal.SIGHUP)
            again = proxy.event("faults_wanted")
            assert (again["faults"], again["seed"]) == (["NOOP 450"], first["seed"])
            proxy.event("reloaded")
            with smtplib.SMTP("127.0.0.1", port) as client:
                assert client.noop()[0] == 450
            assert proxy.event("fault_injected")["fault"] == "NOOP 450"
            assert proxy.event("session_closed")["fault"] == "NOOP 450"
            assert total(scrape(admin), "faults") == 1
            eventually(lambda: total(scrape(admin), "faults_injected_total"), "it is counted")
        assert "smtpproxy: warning: injects faults" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("action", "ends"), [("close", b""), ("reset", ConnectionResetError)])
def test_what_the_client_sees(tmp_path: Path, action: str, ends: object) -> None:
    """Through the kernel: what was answered before comes first, then FIN or RST."""
    with peers.smtp_sink("-p") as backend:
        flags = ("-l", "127.0.0.1:0", "-b", f"127.0.0.1:{backend.port}")
        fault = ("--fault", f"RCPT {action}")
        with (
            Program(tmp_path, *flags, *fault) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port()), 10) as client,
            client.makefile("rb") as replies,
        ):
            assert replies.readline().startswith(b"220 ")
            client.sendall(b"HELO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\n")
            assert replies.readline().startswith(b"250 ")
            assert replies.readline().startswith(b"250 ")
            if ends is ConnectionResetError:
                with pytest.raises(ConnectionResetError):
                    replies.readline()
            else:
                assert replies.readline() == ends
