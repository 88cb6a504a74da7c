"""The token of the admin address in a file of its own."""

import os
import socket
from pathlib import Path

import pytest

from smtpproxy.config.decoding import ConfigError
from smtpproxy.config.loader import load

TOKEN = "0123456789abcdef"
MANY = "0.0.0.0:8025"


def settings(directory: Path, admin: str, address: str = MANY) -> Path:
    """Write a settings file with an admin address."""
    file = directory / "smtpproxy.toml"
    file.write_text(
        '[listeners.smtp]\naddress = "127.0.0.1:0"\n[backends.old]\nservers = ["10.0.0.5:25"]\n'
        f'[admin]\naddress = "{address}"\n{admin}\n'
    )
    return file


def secret(path: Path, text: str | bytes = f"{TOKEN}\n", mode: int = 0o600) -> Path:
    """Write a token file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
@pytest.mark.parametrize("text", [TOKEN, f"{TOKEN}\n", f" {TOKEN}\r\n\n"])
def test_the_token_file_replaces_the_setting(tmp_path: Path, text: str, mode: int) -> None:
    file = secret(tmp_path / "token", text, mode)
    assert load(settings(tmp_path, f'token_file = "{file}"')).admin.token == TOKEN


def test_the_token_file_may_be_a_symbolic_link(tmp_path: Path) -> None:
    secret(tmp_path / "data", mode=0o440)
    (tmp_path / "token").symlink_to("data")
    assert load(settings(tmp_path, f'token_file = "{tmp_path}/token"')).admin.token == TOKEN


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        (TOKEN, 0o644, "has the mode 0644: other accounts can read or change it"),
        (TOKEN, 0o660, "has the mode 0660: other accounts can read or change it"),
        (TOKEN, 0o601, "has the mode 0601: other accounts can read or change it"),
        ("", 0o600, "is empty; write the token into it"),
        ("\n\n", 0o600, "is empty; write the token into it"),
        ("sesame", 0o600, "holds a token that is too short or has odd characters"),
        (f"{TOKEN}\n{TOKEN}", 0o600, "holds a token that is too short or has odd characters"),
        (b"\xff" * 16, 0o600, "is not text"),
    ],
)
def test_an_unsafe_or_invalid_token_file_is_reported(
    tmp_path: Path, text: str | bytes, mode: int, why: str
) -> None:
    file = secret(tmp_path / "token", text, mode)
    (reported,) = problems(settings(tmp_path, f'token_file = "{file}"'))
    assert reported.startswith(f"{tmp_path}/smtpproxy.toml:7: admin.token_file: {why}")
    assert "sesame" not in reported
    assert TOKEN not in reported


@pytest.mark.parametrize("kind", ["nothing", "directory", "fifo", "socket"])
def test_a_token_file_that_is_no_file_is_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "token"
    with socket.socket(socket.AF_UNIX) as unix:
        if kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            unix.bind(str(path))
        (reported,) = problems(settings(tmp_path, f'token_file = "{path}"'))
    assert (
        "admin.token_file: cannot be read: " in reported
        or "admin.token_file: is not a file" in reported
    )


def test_token_and_token_file_exclude_each_other(tmp_path: Path) -> None:
    both = f'token = "{TOKEN}"\ntoken_file = "{secret(tmp_path / "token")}"'
    (reported,) = problems(settings(tmp_path, both))
    assert reported.endswith(
        "admin.token_file: is not used: there is admin.token, too; leave one of them out"
    )


@pytest.mark.parametrize("written", ['"sesame open"', "12345678"])
def test_an_invalid_token_is_not_shown(tmp_path: Path, written: str) -> None:
    (reported,) = problems(settings(tmp_path, f"token = {written}"))
    assert "admin.token: " in reported
    assert written.strip('"') not in reported


def problems(file: Path) -> list[str]:
    """Return what is wrong with a settings file."""
    with pytest.raises(ConfigError) as caught:
        load(file)
    return [str(each) for each in caught.value.problems]
