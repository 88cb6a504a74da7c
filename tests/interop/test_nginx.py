"""nginx in front, which names its clients by XCLIENT and then relays their commands."""

import socketserver
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.interop.messages import brief
from tests.interop.peers import postfix
from tests.interop.stage import configured
from tests.interop.wire import Wire
from tests.support.processes import Process, Workplace, eventually, free_port
from tests.support.programs import command, unavailable

MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")

_NGINX = """\
load_module {module};
daemon off;
master_process off;
error_log {work}/errors;
pid {work}/pid;
events {{}}
mail {{
    server_name front.example;
    auth_http 127.0.0.1:{adviser}/;
    xclient on;
    server {{
        listen 127.0.0.1:{port};
        protocol smtp;
        smtp_auth {auth};
    }}
}}
"""


@contextmanager
def adviser(target: int) -> Iterator[int]:
    """Run what nginx asks for each client: all are to be served at a port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Auth-Status", "OK")
            self.send_header("Auth-Server", "127.0.0.1")
            self.send_header("Auth-Port", str(target))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


@contextmanager
def nginx(target: int, auth: str = "none") -> Iterator[int]:
    """Run nginx as a mail proxy in front of a port; `auth` is the mechanism that clients must use.

    It passes every user name and password.
    """
    program = command("nginx", "nginx-light")
    if not MODULE.exists():
        unavailable("package libnginx-mod-mail is missing (see .ci/install-peers)")
    port = free_port()
    with Workplace("nginx") as work, adviser(target) as asked:
        text = _NGINX.format(module=MODULE, work=work.path, adviser=asked, port=port, auth=auth)
        argv = (program, "-e", work.path / "errors", "-c", work.write("nginx.conf", text))
        with Process(argv, work.path / "printed") as process:
            process.await_open(port)
            yield port


@pytest.mark.parametrize("identity", ["xclient", "proxy-v2"])
def test_the_mta_serves_the_client_of_nginx_and_not_whom_that_client_names(identity: str) -> None:
    message = brief()
    settings = {"mynetworks": "127.0.0.9/32"}
    if identity == "xclient":
        settings["smtpd_authorized_xclient_hosts"] = "127.0.0.1"
    else:
        settings["smtpd_upstream_proxy_protocol"] = "haproxy"
    with postfix(settings) as mta:
        backend = f'servers = ["127.0.0.1:{mta.port}"]\nidentity = "{identity}"'
        with (
            configured('xclient = ["127.0.0.1/32"]', backend) as (port, process),
            nginx(port) as front,
            Wire(front, "127.0.0.9") as wire,
        ):
            assert wire.replies(1) == [220]
            for line in (b"EHLO client.example", b"MAIL FROM:<a@sender.example>"):
                assert wire.ask(line) == [250]
            assert wire.ask(b"RCPT TO:<good@rcpt.example>") == [250]
            assert wire.ask(b"RSET", b"XCLIENT ADDR=127.0.0.1") == [250, 550]
            group = (b"MAIL FROM:<a@sender.example>", b"RCPT TO:<good@rcpt.example>", b"DATA")
            assert wire.ask(*group) == [250, 250, 354]
            assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
            assert mta.find(message).without_trace() == message.as_kept()
            client = "client=unknown[127.0.0.9]"
            eventually(lambda: client in mta.printed() or None, "the client in the MTA's log")
            client = '"client_ip":"127.0.0.9","client_port":0'
            eventually(lambda: client in process.printed() or None, "the client in the log")


@contextmanager
def sasl_server(path: Path) -> Iterator[None]:
    """Offer PLAIN to Postfix, as Dovecot does; nobody authenticates there."""
    offer = b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tab\nDONE\n"

    class Offer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(offer)
            self.rfile.read()

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Offer) as server:
        path.chmod(0o666)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield
        server.shutdown()


@pytest.mark.parametrize("relays", [True, False], ids=["relays for it", "for others only"])
def test_the_mta_relays_for_the_user_that_nginx_has_authenticated(relays: bool) -> None:
    """Its address alone is not enough; nothing that the proxy logs has the user's name."""
    message = brief()
    users = "alice" if relays else "bob"
    settings = {
        "smtpd_authorized_xclient_hosts": "127.0.0.1",
        "mynetworks": "127.0.0.1/32",
        "smtpd_relay_restrictions": "check_sasl_access inline:{" + users + "=permit}, reject",
        "smtpd_recipient_restrictions": "",
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
    }
    with (
        Workplace("sasl") as work,
        sasl_server(work.path / "auth"),
        postfix(settings | {"smtpd_sasl_path": str(work.path / "auth")}) as mta,
    ):
        backend = f'servers = ["127.0.0.1:{mta.port}"]\nidentity = "xclient"'
        more = '\n[log]\nlevel = "debug"'
        with (
            configured('xclient = ["127.0.0.1/32"]', backend + more) as (port, process),
            nginx(port, "plain") as front,
            Wire(front, "127.0.0.9") as wire,
        ):
            assert wire.replies(1) == [220]
            assert wire.ask(b"EHLO client.example") == [250]
            secret = b64encode(b"\0alice\0secret")
            assert wire.ask(b"AUTH PLAIN " + secret) == [235]
            assert wire.ask(b"MAIL FROM:<a@sender.example>") == [250]
            rcpt = wire.ask(b"RCPT TO:<good@rcpt.example>")
            assert rcpt == [250 if relays else 554]
            if relays:
                assert wire.ask(b"DATA") == [354]
                assert wire.ask(message.octets + b".", b"QUIT") == [250, 221]
                assert mta.find(message).without_trace() == message.as_kept()
                login = "sasl_username=alice"
                eventually(lambda: login in mta.printed() or None, "the login in the MTA's log")
            else:
                assert wire.ask(b"QUIT") == [221]
            closed = '"event":"session_closed"'
            eventually(lambda: closed in process.printed() or None, "the end of the session")
            assert "alice" not in process.printed()
