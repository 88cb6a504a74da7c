"""nginx in front, which names its clients by XCLIENT and then relays their commands."""

import threading
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
        smtp_auth none;
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
def nginx(target: int) -> Iterator[int]:
    """Run nginx as a mail proxy in front of a port."""
    program = command("nginx", "nginx-light")
    if not MODULE.exists():
        unavailable("package libnginx-mod-mail is missing (see .ci/install-peers)")
    port = free_port()
    with Workplace("nginx") as work, adviser(target) as asked:
        text = _NGINX.format(module=MODULE, work=work.path, adviser=asked, port=port)
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
