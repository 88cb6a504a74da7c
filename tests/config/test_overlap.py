"""Addresses that `run` could not bind, and settings that nothing uses, are found by `check`."""

from pathlib import Path

import pytest

from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import load
from smtpproxy.config.validation import crowded, superfluous
from tests.support.settings_file import write


def text(*listeners: str, more: str = "") -> str:
    tables = "".join(
        f'[listeners.l{number}]\naddress = "{each}"\nbackend = "old"\n'
        for number, each in enumerate(listeners)
    )
    return f'{tables}[backends.old]\nservers = ["192.0.2.1:25"]\n{more}'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.0.0.0:2525", "127.0.0.1:2525"),
        ("127.0.0.1:2525", "0.0.0.0:2525"),
        ("[::]:2525", "[::1]:2525"),
        ("localhost:2525", "127.0.0.1:2525"),
        ("localhost:2525", "[::]:2525"),
    ],
)
def test_addresses_that_overlap_are_a_mistake(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"listeners.l1.address: cannot be bound: .* of listeners\.l0 is at the same",
    ):
        load(write(tmp_path, text(one, other)))
    with pytest.raises(ConfigError, match=r"admin.address: cannot be bound: "):
        load(write(tmp_path, text(one, more=f'[admin]\naddress = "{other}"\ntoken = "{"t" * 16}"')))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.0.0.0:2525", "127.0.0.1:2526"),
        ("0.0.0.0:2525", "[::]:2525"),
        ("127.0.0.1:2525", "127.0.0.2:2525"),
        ("127.0.0.1:0", "127.0.0.1:0"),
    ],
)
def test_addresses_that_do_not_overlap_are_fine(tmp_path: Path, one: str, other: str) -> None:
    load(write(tmp_path, text(one, other)))


@pytest.mark.parametrize(
    ("one", "other"),
    [("fd:smtp", "fd:smtp"), ("unix:/run/a", "unix:/run/x/../a"), ("unix:/run/a", "unix:/run//a")],
)
def test_a_socket_belongs_to_one_listener(tmp_path: Path, one: str, other: str) -> None:
    with pytest.raises(ConfigError, match=r"listeners.l1.address: .* of listeners\.l0"):
        load(write(tmp_path, text(one, other)))
    with pytest.raises(ConfigError, match=r"admin.address: cannot be bound: "):
        load(write(tmp_path, text(one, more=f'[admin]\naddress = "{other}"\ntoken = "{"t" * 16}"')))


def test_sockets_of_systemd_differ_by_their_names(tmp_path: Path) -> None:
    load(write(tmp_path, text("fd:smtp", "fd:submission", "unix:/run/a", "unix:/run/b")))


def test_what_is_never_used_is_found(tmp_path: Path) -> None:
    more = '[backends.spare]\nservers = ["192.0.2.2:25", "192.0.2.2:25"]\n'
    settings = load(write(tmp_path, text("127.0.0.1:2525", more=more)))
    assert superfluous(settings) == [
        ("spare", "no listener uses it"),
        ("spare", "192.0.2.2:25 is named twice"),
    ]


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ("", ["limits.sessions_per_address is 100: clients of one address can take all 10 "]),
        ("sessions_per_address = 11", ["limits.sessions_per_address is 11: "]),
        ("sessions_per_address = 0", ["limits.sessions_per_address is 0: "]),
        ("sessions_per_address = 10", []),
        ("sessions_per_address = 1", []),
    ],
)
def test_one_address_that_may_take_all_connections_is_found(
    tmp_path: Path, limits: str, found: list[str]
) -> None:
    more = f"max_connections = 10\n[limits]\n{limits}\n"
    settings = load(write(tmp_path, text("127.0.0.1:2525", more=more)))
    warnings = [what for name, what in crowded(settings) if name == "old"]
    assert len(warnings) == len(found)
    for warning, begin in zip(warnings, found, strict=True):
        assert warning.startswith(begin)
        assert warning.endswith("set sessions_per_address to 10 or less")


def test_without_max_connections_no_client_waits(tmp_path: Path) -> None:
    assert crowded(load(write(tmp_path, text("127.0.0.1:2525")))) == []
