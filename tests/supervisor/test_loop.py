"""A server that is one of the listeners: a loop ends after one round.

The listener is a socket from systemd, whose address `run` cannot know beforehand.
"""

import contextlib
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.support.processes import activated, free_port
from tests.support.program import SMTPPROXY, Program
from tests.support.programs import require_root

HEADER = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n"
IN_FRONT = 'proxy_protocol = ["127.0.0.0/8"]'
MOST = 100
"""Sessions of one client with several workers, where a loop may take a few rounds."""
REFUSED = b"421 4.4.6 "

Run = Callable[..., Program]


def rounds(
    run: Run,
    work: Path,
    *,
    server: str = "127.0.0.1",
    listener: str = "",
    backend: str = "",
    says: bytes = b"",
    inside: ssl.SSLContext | None = None,
    workers: int = 1,
) -> tuple[bytes, Counter[str]]:
    """Connect one client; return what it got, and the number of sessions by reason of their end."""
    port = free_port()
    file = work / "p.toml"
    file.write_text(
        f'hostname = "mx.example"\n[listeners.l]\naddress = "fd:smtp"\n{listener}\n'
        f'[backends.mta]\nservers = ["{server}:{port}"]\n{backend}\n'
    )
    argv = (*activated("127.0.0.1", port), *SMTPPROXY)
    program = run("-c", file, "-w", str(workers), argv=argv)
    program.event("listening")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
        if inside is not None:
            client = stack.enter_context(inside.wrap_socket(client))
        client.sendall(says)
        got = b"".join(iter(lambda: client.recv(4096), b""))
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    lines = program.log()
    reported = [line["reason"] for line in lines if line["event"] == "loop_detected"]
    assert set(reported) == {"a server of its backend leads back to l"}
    closed = Counter(line["reason"] for line in lines if line["event"] == "session_closed")
    assert closed["loop_detected"] == len(reported)
    return got, closed


WAYS = {
    "plain": {},
    "by name": {"server": "localhost"},
    "proxy-v1": {"listener": IN_FRONT, "backend": 'identity = "proxy-v1"', "says": HEADER},
    "proxy-v2": {"listener": IN_FRONT, "backend": 'identity = "proxy-v2"', "says": HEADER},
    "xclient": {
        "listener": 'xclient = ["127.0.0.0/8"]',
        "backend": 'identity = "xclient"',
    },
}


def check_gone_at_once(closed: Counter[str]) -> None:
    """Check that the loop ended in time.

    A server that gets the client's address is then checked in the proxy's own name, as a client of
    its own: the check may come round as well, before the program ends.
    """
    assert closed.keys() - {"draining"} == {"loop_detected", "backend_closed"}
    assert 1 <= closed["loop_detected"] <= 2
    assert closed["backend_closed"] <= 2


@pytest.mark.parametrize("way", WAYS)
def test_a_loop_ends_after_one_round(way: str, run: Run, tmp_path: Path) -> None:
    got, closed = rounds(run, tmp_path, **WAYS[way])
    assert got.startswith(REFUSED)
    check_gone_at_once(closed)


@pytest.mark.long
@pytest.mark.parametrize("way", ["plain", "by name", "proxy-v2"])
def test_over_all_workers_it_ends_soon(way: str, run: Run, tmp_path: Path) -> None:
    got, closed = rounds(run, tmp_path, workers=3, **WAYS[way])
    assert got.startswith(REFUSED)
    # Each worker checks a server that gets the client's address once, from the proxy's own address.
    assert 1 <= closed["loop_detected"] <= 1 + 3
    assert closed.total() < MOST


def test_the_same_inside_tls(run: Run, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mx.pem")
    inside = ssl.create_default_context()
    inside.check_hostname, inside.verify_mode = False, ssl.CERT_NONE
    got, closed = rounds(
        run,
        tmp_path,
        listener=f'tls = "implicit"\ncertificate = "{tmp_path}/mx.pem"',
        backend='tls = "implicit"\nverify = false',
        inside=inside,
    )
    assert got.startswith(REFUSED)
    check_gone_at_once(closed)


def test_the_same_from_the_clients_own_address(run: Run, tmp_path: Path) -> None:
    require_root("a connection from the client's address")
    got, closed = rounds(
        run,
        tmp_path,
        listener='proxy_protocol = ["127.0.0.1/32"]',
        backend='identity = "transparent"',
        says=HEADER.replace(b"192.0.2.7", b"127.0.0.77"),
    )
    assert got.startswith(REFUSED)
    check_gone_at_once(closed)
