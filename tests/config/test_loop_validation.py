"""A server that is one of the listeners: found before the first client is."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpproxy.cli import main
from smtpproxy.config import loop_validation, own_addresses
from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import from_flags, load


def own_address() -> str:
    """Return an address of this machine besides loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has loopback only")
        return str(probe.getsockname()[0])


def found(
    work: Path, listening: list[str], *servers: str, names: object = loop_validation.no_look_up
) -> list[str]:
    """Return the problems of a file with these listeners and servers."""
    listeners = "".join(
        f'[listeners.l{number}]\naddress = "{each}"\n' for number, each in enumerate(listening)
    )
    quoted = ", ".join(f'"{each}"' for each in servers)
    file = work / "p.toml"
    file.write_text(f"{listeners}[backends.mta]\nservers = [{quoted}]\n")
    try:
        load(file, look_up=names)  # type: ignore[arg-type]  # a LookUp
    except ConfigError as error:
        return [f"{problem.key} {problem.text}" for problem in error.problems]
    return []


LOOPS = [
    ("127.0.0.1:2525", "127.0.0.1:2525"),
    ("127.0.0.1:2525", "localhost:2525"),
    ("localhost:2525", "127.0.0.1:2525"),
    ("localhost:2525", "[::1]:2525"),
    ("[::1]:2525", "localhost:2525"),
    ("0.0.0.0:2525", "127.0.0.1:2525"),
    ("0.0.0.0:2525", "127.9.9.9:2525"),
    ("0.0.0.0:2525", "localhost:2525"),
    ("0.0.0.0:2525", "[::ffff:127.0.0.1]:2525"),
    ("[::]:2525", "[::1]:2525"),
    ("[::]:2525", "127.0.0.1:2525"),
    ("[::]:2525", "localhost:2525"),
    ("unix:/run/smtpproxy/x", "unix:/run/smtpproxy/x"),
    ("unix:/run/smtpproxy/../x", "unix:/run/x"),
]
NO_LOOPS = [
    ("127.0.0.1:2525", "127.0.0.1:25"),
    ("127.0.0.1:2525", "127.0.0.2:2525"),
    ("127.0.0.1:2525", "[::1]:2525"),
    ("0.0.0.0:2525", "[::1]:2525"),
    ("0.0.0.0:2525", "192.0.2.1:2525"),
    ("[::]:2525", "[2001:db8::1]:2525"),
    ("127.0.0.1:0", "127.0.0.1:25"),
    ("unix:/run/x", "unix:/run/y"),
    ("unix:/run/x", "127.0.0.1:2525"),
    ("fd:smtp", "127.0.0.1:2525"),
]


@pytest.mark.parametrize(("listening", "server"), LOOPS)
def test_a_server_that_is_a_listener_is_reported_at_its_key(
    listening: str, server: str, tmp_path: Path
) -> None:
    others = ["127.0.0.1:1", listening]
    (problem,) = found(tmp_path, others, "10.0.0.5:25", server)
    assert problem.startswith("backends.mta.servers[1] ")
    assert "leads back to listeners.l1" in problem


@pytest.mark.parametrize(("listening", "server"), NO_LOOPS)
def test_a_server_at_another_address_is_no_loop(
    listening: str, server: str, tmp_path: Path
) -> None:
    assert found(tmp_path, [listening], server) == []


def test_a_wildcard_covers_each_address_of_this_machine(tmp_path: Path) -> None:
    for listening in ("0.0.0.0:2525", "[::]:2525"):
        assert len(found(tmp_path, [listening], f"{own_address()}:2525")) == 1
    assert found(tmp_path, ["127.0.0.1:2525"], f"{own_address()}:2525") == []


def test_a_wildcard_of_ipv6_covers_ipv4_unless_another_listener_does(tmp_path: Path) -> None:
    listening = ["[::]:2525", "192.0.2.1:2525"]
    assert found(tmp_path, listening, "127.0.0.1:2525") == []
    assert len(found(tmp_path, listening, "192.0.2.1:2525")) == 1


def test_symbolic_links_of_sockets_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "socket")
    (problem,) = found(tmp_path, [f"unix:{tmp_path}/socket"], f"unix:{tmp_path}/link")
    assert "leads back to listeners.l0" in problem


def test_every_server_that_leads_back_is_reported(tmp_path: Path) -> None:
    reported = found(tmp_path, ["127.0.0.1:1", "127.0.0.2:2"], "127.0.0.2:2", "127.0.0.1:1")
    assert [each.split()[0] for each in reported] == [
        "backends.mta.servers[0]",
        "backends.mta.servers[1]",
    ]


NAMES = {"mta.example": ["192.0.2.1", "::ffff:127.0.0.1"], "other.example": ["192.0.2.1"]}


def test_each_address_of_a_name_is_checked(tmp_path: Path) -> None:
    def look_up(host: str) -> list[str]:
        return NAMES.get(host, [])

    listening = ["127.0.0.1:2525"]
    (reported,) = found(tmp_path, listening, "mta.example:2525", names=look_up)
    assert '"mta.example:2525" leads back to listeners.l0' in reported
    for server in ("mta.example:25", "other.example:2525", "none.example:2525"):
        assert found(tmp_path, listening, server, names=look_up) == []
    assert found(tmp_path, listening, "mta.example:2525") == []


def test_check_resolves_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: real(
            "127.0.0.1" if host == "mta.example" else host, *more, **named
        ),
    )
    file = tmp_path / "p.toml"
    text = '[listeners.l]\naddress = "0.0.0.0:2525"\n[backends.m]\nservers = ["mta.example:2525"]\n'
    file.write_text(text)
    result = CliRunner().invoke(main, ["check", "-c", str(file)])
    assert result.exit_code == 1
    assert f"{file}:4: backends.m.servers[0]: " in result.stderr


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 300])
def test_a_name_without_addresses_is_no_problem_of_this_kind(host: str) -> None:
    assert loop_validation.look_up(host) == ()


def test_loops_by_flags_are_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'^-b: "127.0.0.1:25" leads back to .*listener-1'):
        from_flags(None, ["127.0.0.1:25"], ["127.0.0.1:25"])
    file = tmp_path / "p.toml"
    file.write_text('[backends.mta]\nservers = ["127.0.0.1:25"]\n')
    settings = load(file, need_listener=False)
    with pytest.raises(ConfigError, match=r"^backends.mta.servers.* leads back to .*listener-1"):
        from_flags(settings, ["0.0.0.0:25"], [])


def test_which_addresses_are_this_machines() -> None:
    assert own_addresses.is_own("127.0.0.1")
    assert own_addresses.is_own("127.9.9.9")
    assert own_addresses.is_own("::1")
    assert own_addresses.is_own(own_address())
    for other in ("192.0.2.1", "2001:db8::1", "198.51.100.1", "fe80::1%nowhere"):
        assert not own_addresses.is_own(other)


def test_own_addresses_are_known_where_any_address_can_be_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As net.ipv4.ip_nonlocal_bind has it, on machines that share an address."""
    monkeypatch.setattr(own_addresses, "_can_bind", lambda *_: True)
    assert own_addresses.is_own(own_address())
    assert not own_addresses.is_own("192.0.2.1")
