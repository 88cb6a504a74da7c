"""The client's identity: what a real MTA gets, and what a real proxy in front passes."""

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.interop.messages import brief
from tests.interop.peers import Backend, opensmtpd, postfix
from tests.interop.stage import configured, lines_of
from tests.interop.tap import Tap
from tests.interop.wire import Wire
from tests.support.processes import Process, Workplace, eventually, free_port
from tests.support.programs import command

FROM_A_PROXY = 'proxy_protocol = ["127.0.0.0/8"]'
HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25"
GROUP = (b"EHLO client.example", b"MAIL FROM:<a@sender.example>", b"RCPT TO:<good@rcpt.example>")


def send(port: int, header: bytes = HEADER) -> bytes:
    """Send a message in groups, as a client of another proxy; return its token."""
    message = brief()
    with Wire(port) as wire:
        if header:
            wire.send(header)
        assert wire.replies(1) == [220]
        assert wire.ask(*GROUP, b"DATA") == [250, 250, 250, 354]
        assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
    return message.token.encode()


def logged_by(mta: Backend, text: str) -> None:
    """Wait until the MTA has logged a text."""
    eventually(lambda: text in mta.printed() or None, f"{text} in the MTA's log")


def line_of(process: Process, event: str) -> dict[str, Any]:
    """Wait for an event of the proxy that happens once, and return its log line."""
    (line,) = eventually(lambda: lines_of(process, event) or None, f"the event {event}")
    return line


def backend(mta: Backend, identity: str) -> str:
    return f'servers = ["127.0.0.1:{mta.port}"]\nidentity = "{identity}"'


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_postfix_learns_the_client_from_a_proxy_header(identity: str) -> None:
    settings = {
        "smtpd_upstream_proxy_protocol": "haproxy",
        "mynetworks": "192.0.2.0/24",
    }
    with (
        postfix(settings) as mta,
        configured(FROM_A_PROXY, backend(mta, identity)) as (port, process),
    ):
        send(port)
        logged = '"client_ip":"192.0.2.7","client_port":4711'
        eventually(lambda: logged in process.printed() or None, "the client in the log")
        logged_by(mta, "client=unknown[192.0.2.7]")


def test_postfix_learns_the_client_by_xclient_and_does_not_relay_for_it() -> None:
    """It relays for 127.0.0.1, from where the proxy comes, but not for 192.0.2.7."""
    with (
        postfix({"smtpd_authorized_xclient_hosts": "127.0.0.1"}) as mta,
        configured(FROM_A_PROXY, backend(mta, "xclient")) as (port, _),
        Wire(port) as wire,
    ):
        wire.send(HEADER)
        assert wire.replies(1) == [220]
        assert wire.ask(*GROUP) == [250, 250, 554]
        logged_by(mta, "from unknown[192.0.2.7]")
        wire.ask(b"QUIT")
        send(port, HEADER.replace(b"192.0.2.7", b"127.0.0.9"))  # one of its own network


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2", "xclient"])
def test_a_client_that_postfix_refuses_gets_its_reply_and_others_are_served(identity: str) -> None:
    """XCLIENT comes late: its reply is the greeting of the named client."""
    refusals = "192.0.2.7=450 4.7.1 later}, {192.0.2.8=554 5.7.1 never"
    settings = {
        "smtpd_delay_reject": "no",
        "smtpd_client_restrictions": f"check_client_access inline:{{{{{refusals}}}}}, permit",
    }
    if identity == "xclient":
        settings["smtpd_authorized_xclient_hosts"] = "127.0.0.1"
    else:
        settings["smtpd_upstream_proxy_protocol"] = "haproxy"
    hello = [b"EHLO client.example"] if identity == "xclient" else []
    with (
        postfix(settings) as mta,
        configured(FROM_A_PROXY, backend(mta, identity)) as (port, process),
    ):
        for host, words in ((b"192.0.2.7", b"450 4.7.1 "), (b"192.0.2.8", b"554 5.7.1 ")):
            with Wire(port) as wire:
                wire.send(HEADER.replace(b"192.0.2.7", host), *hello)
                assert wire.rest().splitlines()[-1].startswith(words + b"<unknown[" + host)
        with Wire(port) as wire:
            wire.send(HEADER.replace(b"192.0.2.7", b"192.0.2.9"), GROUP[0])
            assert wire.replies(2) == [220, 250]
        assert "server_down" not in process.printed()


def test_an_mta_without_xclient_gets_no_mail() -> None:
    """It would take them for the proxy."""
    with (
        opensmtpd() as mta,
        configured("", backend(mta, "xclient")) as (port, process),
        Wire(port) as wire,
    ):
        assert wire.replies(1) == [220]
        assert wire.ask(b"EHLO client.example") == [421]
        assert wire.rest() == b""
        eventually(lambda: "xclient_not_offered" in process.printed() or None, "the reason")


def test_postfix_logs_the_client_by_xforward_for_each_message() -> None:
    """It discards the address after each message and at RSET; its access rules never use it."""
    group = (*GROUP[1:], b"DATA")
    with (
        postfix({"smtpd_authorized_xforward_hosts": "127.0.0.1"}) as mta,
        configured(FROM_A_PROXY, backend(mta, "xforward")) as (port, _),
        Wire(port) as wire,
    ):
        wire.send(HEADER)
        assert wire.replies(1) == [220]
        assert wire.ask(GROUP[0], *group) == [250, 250, 250, 354]
        assert wire.ask(brief().octets + b".", *group) == [250, 250, 250, 354]
        assert wire.ask(brief().octets + b".", *GROUP[1:], b"RSET") == [250, 250, 250, 250]
        assert wire.ask(*group) == [250, 250, 354]
        assert wire.ask(brief().octets + b".", b"QUIT") == [250, 221]
        logged_by(mta, "xforward=4 ")  # as it ends
        logged = [line for line in mta.printed().splitlines() if " client=" in line]
        assert len(logged) == 4  # the one that RSET ended, too
        assert all("orig_client=unknown[192.0.2.7]" in line for line in logged)


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2", "xclient"])
def test_postfix_does_not_relay_for_a_client_that_resets_at_once(identity: str) -> None:
    """It relays for 127.0.0.1, from where the proxy comes, and not for 127.0.0.9."""
    settings = {"mynetworks": "127.0.0.1/32"}
    if identity == "xclient":
        settings["smtpd_authorized_xclient_hosts"] = "127.0.0.1"
    else:
        settings["smtpd_upstream_proxy_protocol"] = "haproxy"
    envelope = (*GROUP[:2], b"RCPT TO:<a@elsewhere.example>")
    with (
        postfix(settings) as mta,
        configured("", backend(mta, identity)) as (port, process),
    ):
        for _ in range(20):
            with Wire(port, "127.0.0.9") as wire:
                wire.send(*envelope, b"BDAT 6 LAST\r\ntext", b"QUIT")
                wire.reset()
        with Wire(port, "127.0.0.9") as wire:
            assert wire.replies(1) == [220]
            assert wire.ask(*envelope, b"QUIT") == [250, 250, 554, 221]
        ended = '"reason":"quit"'
        eventually(lambda: ended in process.printed() or None, "the end of the session")
        assert '"client_ip":null' not in process.printed()
        logged_by(mta, "NOQUEUE: reject: RCPT from unknown[127.0.0.9]")
        # Postfix logs each message that it begins to take with its client.
        assert " client=" not in mta.printed()


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2", "xclient"])
def test_postfix_serves_the_client_that_swaks_names_by_xclient(identity: str) -> None:
    """The MTA relays for 192.0.2.7 only, whichever way the proxy got and passes that address."""
    message = brief()
    settings = {"mynetworks": "192.0.2.7/32"}
    if identity == "xclient":
        settings["smtpd_authorized_xclient_hosts"] = "127.0.0.1"
    else:
        settings["smtpd_upstream_proxy_protocol"] = "haproxy"
    with (
        postfix(settings) as mta,
        configured('xclient = ["127.0.0.0/8"]', backend(mta, identity)) as (port, process),
    ):
        done = subprocess.run(
            [
                *(command("swaks"), "--server", "127.0.0.1", "--port", str(port), "--pipeline"),
                *("--xclient-addr", "192.0.2.7", "--xclient-port", "4711"),
                *("--xclient-name", "client.example", "--from", "a@sender.example"),
                *("--to", "good@rcpt.example", "--no-data-fixup", "--data", "-"),
            ],
            input=message.octets.removesuffix(b"\r\n") + b"\r\n.",
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        name = "client.example" if identity == "xclient" else "unknown"
        logged_by(mta, f"client={name}[192.0.2.7]")
        relayed = line_of(process, "message_relayed")
        assert (relayed["client_ip"], relayed["client_port"]) == ("192.0.2.7", 4711)


_HAPROXY = """\
defaults
    mode tcp
    log stdout format raw local0
    log-format "seen %[fc_pp_authority] %[fc_pp_unique_id]"
    unique-id-format id-of-front
    timeout connect 10s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{port} {bind}
    server proxy 127.0.0.1:{target} send-proxy-v2 {options}
"""


@contextmanager
def haproxy(target: int, bind: str = "", options: str = "") -> Iterator[tuple[int, Process]]:
    """Run HAProxy in front of a port; it names its clients by PROXY headers, version 2.

    It logs what a header that it got says, if `bind` has `accept-proxy`.
    """
    port = free_port()
    with Workplace("haproxy") as work:
        file = work.write(
            "haproxy.cfg", _HAPROXY.format(port=port, target=target, bind=bind, options=options)
        )
        argv = (command("haproxy"), "-db", "-f", file)
        with Process(argv, work.path / "printed") as process:
            process.await_open(port)
            yield port, process


@pytest.mark.parametrize("options", ["", "proxy-v2-options crc32c,ssl"], ids=["plain", "TLVs"])
def test_haproxy_in_front_names_its_clients(options: str) -> None:
    with (
        opensmtpd() as mta,
        configured(FROM_A_PROXY, f'servers = ["127.0.0.1:{mta.port}"]') as (port, process),
        haproxy(port, options=options) as (front, _),
        Wire(front) as wire,
    ):
        assert wire.replies(1) == [220]
        assert wire.ask(*GROUP, b"QUIT") == [250, 250, 250, 221]
        host, _, own_port = wire.own_address.rpartition(":")
        client = f'"client_ip":"{host}","client_port":{own_port}'
        eventually(lambda: client in process.printed() or None, "the client")


@contextmanager
def before_haproxy(listener: str) -> Iterator[tuple[int, Process, Process]]:
    """Run the proxy in front of an HAProxy that logs PROXY headers; give port, proxy, HAProxy."""
    with (
        postfix({"smtpd_upstream_proxy_protocol": "haproxy"}) as mta,
        haproxy(mta.port, "accept-proxy") as (after, its_process),
        configured(listener, f'servers = ["127.0.0.1:{after}"]\nidentity = "proxy-v2"') as (
            port,
            process,
        ),
    ):
        yield port, process, its_process


def test_haproxy_in_front_says_what_it_knows_of_its_client(keys: Path, tmp_path: Path) -> None:
    """With `proxy-v2` another HAProxy after the proxy gets it, too."""
    clients = trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    context = ssl.create_default_context(cafile=keys / "ca.pem")
    clients.issue_cert("c@sender.example", common_name="client.example").configure_cert(context)
    options = "send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,authority,unique-id"
    bind = f"ssl crt {keys}/mx.pem ca-file {tmp_path}/clients.pem verify optional"
    with (
        before_haproxy(FROM_A_PROXY) as (port, process, after),
        haproxy(port, bind, f"{options},crc32c") as (front, _),
        Wire(front) as wire,
    ):
        wire.secure(context, "mx.example")
        assert wire.replies(1) == [220]
        assert wire.ask(*GROUP, b"DATA") == [250, 250, 250, 354]
        assert wire.ask(brief().octets + b".", b"QUIT") == [250, 221]
        relayed = line_of(process, "message_relayed")
        assert {name: relayed.get(name) for name in relayed if name.startswith("forwarded_")} == {
            "forwarded_authority": "mx.example",
            "forwarded_unique_id": "id-of-front",
            "forwarded_tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
            "forwarded_cn": "client.example",
        }
        assert "tls" not in relayed
        seen = "seen mx.example id-of-front"
        eventually(lambda: seen in after.printed() or None, "the header in HAProxy's log")


def test_haproxy_after_the_proxy_gets_the_name_and_the_id_of_a_session(keys: Path) -> None:
    listener = f'tls = "implicit"\ncertificate = "{keys}/mx.pem"'
    with before_haproxy(listener) as (port, process, after), Wire(port) as wire:
        wire.secure(ssl.create_default_context(cafile=keys / "ca.pem"), "mx.example")
        assert wire.replies(1) == [220]
        assert wire.ask(GROUP[0], b"QUIT") == [250, 221]
        seen = f"seen mx.example {line_of(process, 'session_closed')['session']}"
        eventually(lambda: seen in after.printed() or None, "the header in HAProxy's log")


@pytest.mark.parametrize("identity", ["proxy-v1", "proxy-v2"])
def test_haproxy_as_the_backend_accepts_a_header_and_tls_after_it(
    identity: str, keys: Path
) -> None:
    """Postfix gets the client's address in plaintext, and nothing else in plaintext."""
    trust = f'tls = "implicit"\nca_file = "{keys}/ca.pem"\nhealth_check_interval = 5'
    settings = {"smtpd_upstream_proxy_protocol": "haproxy", "mynetworks": "192.0.2.0/24"}
    with (
        postfix(settings) as mta,
        haproxy(mta.port, f"accept-proxy ssl crt {keys}/mx.pem") as (mta_port, _),
        Tap(mta_port) as tap,
    ):
        own = f'servers = ["127.0.0.1:{tap.port}"]\nidentity = "{identity}"\n{trust}'
        with configured(FROM_A_PROXY, own) as (port, process):
            send(port)
            logged_by(mta, "client=unknown[192.0.2.7]")
            logged_by(mta, "disconnect from unknown[127.0.0.1] ehlo=1 quit=1 commands=2")
            assert "server_down" not in process.printed()
        for connection in tap.connections:
            assert b"EHLO" not in connection.sent()
            assert connection.sent().startswith((b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n"))
