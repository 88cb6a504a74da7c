"""The proxy on the path: neither client nor MTA is configured, and each sees the other's address.

With the files of smtpproxy/data/transparent as they are, in network namespaces.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop import mta_clients
from tests.interop.clients import Mail, SmtpTarget
from tests.interop.messages import brief, recipients
from tests.interop.networks import (
    CLIENT,
    CLIENT6,
    EXAMPLES,
    MTA,
    MTA6,
    ROUTER,
    ROUTER6,
    Machine,
    Networks,
    networks,
    talk,
)
from tests.interop.peers import Backend, opensmtpd
from tests.support.processes import PreloadedProcess, Process, Workplace, activated, eventually

GROUP = ("EHLO client.example", "MAIL FROM:<a@sender.example>", "RCPT TO:<good@rcpt.example>")


@contextmanager
def proxy(machine: Machine, settings: Path) -> Iterator[Process]:
    """Run the proxy on a machine, as an operator would."""
    argv = ("run", "-c", settings)
    with (
        Workplace("proxy") as work,
        PreloadedProcess(argv, work.path / "log", network=machine.network) as process,
    ):
        machine.await_listening(2525)
        yield process
        assert "Traceback" not in process.printed(), process.printed()


@pytest.fixture(scope="module")
def row() -> Iterator[Networks]:
    with networks("path") as made:
        yield made


@pytest.fixture(scope="module")
def mta(row: Networks) -> Iterator[Backend]:
    with opensmtpd(listen=(MTA, MTA6), machine=row.mta) as backend:
        yield backend


@pytest.fixture
def tproxy(row: Networks) -> Iterator[Process]:
    row.proxy.run("nft", "-f", EXAMPLES / "tproxy.nft")
    row.proxy.run("sh", EXAMPLES / "routes.sh")
    with proxy(row.proxy, EXAMPLES / "smtpproxy.toml") as process:
        yield process
    row.proxy.run("sh", EXAMPLES / "routes.sh", "del")
    row.proxy.run("nft", "delete", "table", "inet", "smtpproxy")


@pytest.mark.parametrize(("host", "source"), [(MTA, CLIENT), (MTA6, f"[{CLIENT6}]")])
@pytest.mark.usefixtures("tproxy")
def test_both_sides_see_each_other_and_the_client_sees_pipelining(
    host: str, source: str, row: Networks, mta: Backend
) -> None:
    """A group is served that OpenSMTPD itself would answer with 500 and a close."""
    lines = talk(row.client, host, (*GROUP, "QUIT"))
    assert "250 PIPELINING" in lines
    assert lines[-1].startswith("221 ")
    eventually(lambda: f"address={source}" in mta.printed() or None, "the client in the MTA's log")
    assert ROUTER not in mta.printed()


_RESETS = """
import socket, struct, sys
for _ in range(20):
    with socket.create_connection((sys.argv[1], 25), 15) as client:
        client.sendall("\\r\\n".join(sys.argv[2:] + [""]).encode())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""


@pytest.mark.parametrize(("host", "source"), [(MTA, CLIENT), (MTA6, f"[{CLIENT6}]")])
@pytest.mark.usefixtures("tproxy")
def test_a_client_that_resets_at_once_does_not_pass_for_the_proxy(
    host: str, source: str, row: Networks, mta: Backend
) -> None:
    def seen() -> list[int]:
        return [mta.printed().count(each) for each in (ROUTER, ROUTER6)]

    before = seen()
    row.client.run("python3", "-c", _RESETS, host, *GROUP, "QUIT")
    known = mta.printed().count(f"address={source}")
    assert talk(row.client, host, (*GROUP, "QUIT"))[-1].startswith("221 ")
    eventually(
        lambda: mta.printed().count(f"address={source}") > known or None,
        "the client in the MTA's log",
    )
    assert seen() == before


@pytest.mark.usefixtures("mta")
def test_without_the_proxy_the_same_group_fails(row: Networks) -> None:
    lines = talk(row.client, MTA, (*GROUP, "QUIT"))
    assert not any("PIPELINING" in line for line in lines)
    assert lines[-1].startswith("500 ")


@pytest.mark.usefixtures("tproxy")
def test_a_real_client_delivers_to_a_real_mta(row: Networks, mta: Backend) -> None:
    """Postfix sends MAIL, all RCPT and DATA in one group; the MTA notes where it came from."""
    mail = Mail(brief(), recipients(3))
    [result] = mta_clients.postfix(SmtpTarget(25), [mail], host=MTA, machine=row.client)
    assert result.sent, result.output
    delivery = mta.find(mail.message)
    assert delivery.recipients == set(mail.recipients)
    assert f"[{CLIENT}]".encode() in delivery.kept


def test_a_client_of_the_proxy_itself_causes_no_loop(row: Networks, tproxy: Process) -> None:
    """It listens at every address of its machine, and would connect to itself in a loop."""
    lines = talk(row.client, "10.91.1.1", ("QUIT",), port=2525)
    assert lines[0].startswith("421 4.4.1 ")
    closed = '"session_closed"'
    eventually(lambda: closed in tproxy.printed() or None, "the end of the session")
    assert tproxy.printed().count(closed) == 1


def test_redirected_clients_reach_their_original_mta(
    row: Networks, mta: Backend, tmp_path: Path
) -> None:
    """As in redirect.nft; the MTA then sees the proxy's address."""
    settings = tmp_path / "smtpproxy.toml"
    lines = (EXAMPLES / "smtpproxy.toml").read_text().splitlines(keepends=True)
    settings.write_text("".join(line for line in lines if not line.startswith("identity")))
    row.proxy.run("nft", "-f", EXAMPLES / "redirect.nft")
    with proxy(row.proxy, settings):
        for host in (MTA, MTA6):
            lines = talk(row.client, host, (*GROUP, "QUIT"))
            assert "250 PIPELINING" in lines
    row.proxy.run("nft", "delete", "table", "inet", "smtpproxy-redirect")
    eventually(lambda: f"address={ROUTER}" in mta.printed() or None, "the proxy in the MTA's log")


@pytest.mark.usefixtures("mta")
def test_one_socket_for_both_families_serves_both(row: Networks) -> None:
    """There the kernel returns an IPv4 client's target only by the option of IPv4."""
    text = (
        '[listeners.smtp]\naddress = "fd:smtp"\ntransparent = true\n'
        '[backends.path]\nservers = ["original"]\n'
    )
    row.proxy.run("nft", "-f", EXAMPLES / "redirect.nft")
    with Workplace("dual-stack") as work:
        settings = work.write("smtpproxy.toml", text)
        program = (sys.executable, "-m", "smtpproxy", "run", "-c", settings)
        argv = (*row.proxy.inside, *activated("::", 2525), *program)
        with Process(argv, work.path / "log"):
            row.proxy.await_listening(2525)
            for host in (MTA, MTA6):
                lines = talk(row.client, host, (*GROUP, "QUIT"))
                assert "250 PIPELINING" in lines
    row.proxy.run("nft", "delete", "table", "inet", "smtpproxy-redirect")


@pytest.mark.parametrize("server", [f"{MTA}:25", "original"])
def test_its_own_way_to_the_mta_may_not_be_redirected_to_it(row: Networks, server: str) -> None:
    """A rule that is meant for clients and takes the proxy's connections, too, makes a loop."""
    transparent = "transparent = true\n" if server == "original" else ""
    text = (
        f'[listeners.l]\naddress = "0.0.0.0:2525"\n{transparent}'
        f'[backends.path]\nservers = ["{server}"]\n'
    )
    row.proxy.run("nft", "-f", EXAMPLES / "redirect.nft")
    chain = "type nat hook output priority -100;"
    row.proxy.run("nft", f"add chain inet smtpproxy-redirect output {{ {chain} }}")
    row.proxy.run("nft", "add rule inet smtpproxy-redirect output tcp dport 25 redirect to :2525")
    with (
        Workplace("settings") as work,
        proxy(row.proxy, work.write("smtpproxy.toml", text)) as process,
    ):
        lines = talk(row.client, MTA, ("QUIT",))
        assert lines[0].startswith("421 4.4.6 ")
        closed = '"reason":"loop_detected"'
        eventually(lambda: closed in process.printed() or None, "the reason")
        assert process.printed().count('"session_closed"') == 2
    row.proxy.run("nft", "delete", "table", "inet", "smtpproxy-redirect")


@pytest.mark.parametrize(
    "header",
    [
        f"PROXY TCP4 10.91.1.77 {MTA} 4711 25",
        f"PROXY TCP6 ::ffff:10.91.1.78 ::ffff:{MTA} 4711 25",
    ],
    ids=["TCP4", "mapped"],
)
def test_the_mta_sees_the_client_that_a_proxy_in_front_names(
    row: Networks, mta: Backend, header: str
) -> None:
    """The connection comes from its address, although the client never connected here."""
    client = header.split()[2].removeprefix("::ffff:")
    text = (
        '[listeners.smtp]\naddress = "0.0.0.0:2525"\nproxy_protocol = ["10.91.1.0/24"]\n'
        f'[backends.mta]\nservers = ["{MTA}:{mta.port}"]\nidentity = "transparent"\n'
    )
    row.proxy.run("nft", "-f", EXAMPLES / "tproxy.nft")
    row.proxy.run("sh", EXAMPLES / "routes.sh")
    with (
        Workplace("settings") as work,
        proxy(row.proxy, work.write("smtpproxy.toml", text)),
    ):
        lines = talk(row.client, "10.91.1.1", (header, *GROUP, "QUIT"), port=2525)
        assert lines[-1].startswith("221 ")
        named = f"address={client}"
        eventually(lambda: named in mta.printed() or None, "the client in the MTA's log")
    row.proxy.run("sh", EXAMPLES / "routes.sh", "del")
    row.proxy.run("nft", "delete", "table", "inet", "smtpproxy")


def test_a_reload_makes_a_listener_transparent_and_takes_it_back(
    row: Networks, mta: Backend
) -> None:
    """Its socket stays the same, since an address cannot be bound twice."""
    greeting = "220 "
    text = (EXAMPLES / "smtpproxy.toml").read_text()
    plain = '[listeners.smtp]\naddress = "0.0.0.0:2525"\n[backends.path]\nservers = ["{}:{}"]\n'
    row.proxy.run("nft", "-f", EXAMPLES / "tproxy.nft")
    row.proxy.run("sh", EXAMPLES / "routes.sh")
    with Workplace("settings") as work:
        file = work.write("smtpproxy.toml", plain.format(MTA, mta.port))
        with proxy(row.proxy, file) as process:
            assert not _is_served(row)
            for settings, served in ((text, True), (plain.format(MTA, mta.port), False)):
                file.write_text(settings)
                process.hang_up()
                eventually(lambda served=served: _is_served(row) == served or None, greeting)
            assert "cannot_listen" not in process.printed()
    row.proxy.run("sh", EXAMPLES / "routes.sh", "del")
    row.proxy.run("nft", "delete", "table", "inet", "smtpproxy")


def _is_served(row: Networks) -> bool:
    """Return whether a client that connects to the MTA gets the proxy."""
    try:
        return "250 PIPELINING" in talk(row.client, MTA, ("EHLO client.example", "QUIT"))
    except AssertionError:
        return False  # TPROXY finds no socket that takes it
