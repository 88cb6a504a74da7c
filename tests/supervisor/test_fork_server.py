"""The fork server: its workers have everything loaded, and its end is detected."""

import json
import signal
import smtplib
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from smtpproxy.demo.legacy import LegacyMTA
from tests.support.processes import eventually, free_port
from tests.support.program import SMTPPROXY, Program

Run = Callable[..., Program]

WATCHED = """
import json, sys
from pathlib import Path
from smtpproxy.supervisor import supervisor
from smtpproxy.worker import main as worker_main

run = worker_main.main

def main(control):
    before = set(sys.modules)
    code = run(control)
    Path({path!r}).write_text(json.dumps(sorted(set(sys.modules) - before)))
    return code

worker_main.main = main
from smtpproxy.cli import main as command
command()
"""


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("form", ["json", pytest.param("console", marks=pytest.mark.long)])
def test_a_worker_imports_nothing_after_the_fork(
    mta: LegacyMTA, run: Run, tmp_path: Path, form: str
) -> None:
    """Otherwise it could load the code of another version that an upgrade has installed."""
    authority, pem = trustme.CA(), tmp_path / "mx.pem"
    authority.issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls, named, lost = (free_port() for _ in range(3))
    file, found = tmp_path / "p.toml", tmp_path / "modules"
    file.write_text(f"""
        [listeners.tls]
        address = "127.0.0.1:{tls}"
        backend = "old"
        tls = "starttls"
        certificate = "{pem}"
        sni."*.example" = {{ certificate = "{pem}" }}
        [listeners.named]
        address = "127.0.0.1:{named}"
        backend = "old"
        proxy_protocol = ["127.0.0.0/8"]
        xclient = ["127.0.0.0/8"]
        [listeners.lost]
        address = "127.0.0.1:{lost}"
        backend = "lost"
        [backends.old]
        servers = ["localhost:{mta.address.rpartition(":")[2]}"]
        tls = "opportunistic"
        identity = "xforward"
        max_connections = 5
        [backends.lost]
        servers = ["mx.invalid:25"]
        tls = "implicit"
        [log]
        level = "debug"
        format = "{form}"
        [admin]
        address = "unix:{tmp_path}/admin"
        [trace]
        directory = "{tmp_path}"
        content = "full"
        """)
    program = run("-c", file, argv=(sys.executable, "-c", WATCHED.format(path=str(found))))
    eventually(lambda: is_open(tls) or None, "the start")
    with smtplib.SMTP("127.0.0.1", tls, timeout=10) as client:
        client._host = "mx.example"  # type: ignore[attr-defined]  # whom it verifies
        client.starttls(context=context)
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\ntext\r\n")
        client.docmd("GET / HTTP/1.1")
    with socket.create_connection(("127.0.0.1", named), 10) as connection:
        connection.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert connection.recv(100).startswith(b"220 ")
    with socket.create_connection(("127.0.0.1", lost), 30) as connection:  # after a look-up
        assert connection.recv(100).startswith(b"421 ")
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert json.loads(found.read_text()) == []
    assert len(mta.messages) == 1


def test_workers_share_the_memory_of_what_is_loaded(run: Run) -> None:
    """The garbage collector writes to each object that it looks at, so it must leave those out."""
    program = run("-l", "127.0.0.1:0", "-b", "127.0.0.1:1", "-w", "2", argv=SMTPPROXY)
    program.port()
    for worker in program.workers():
        rollup = Path(f"/proc/{worker}/smaps_rollup").read_text()
        private = int(rollup.partition("Private_Dirty:")[2].split()[0])
        assert private < 10_000  # KiB; 17,000 if it collects what it shares
